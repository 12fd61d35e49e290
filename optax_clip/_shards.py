"""Arrays in parts, one on each device, and sums over the parts.

Inside :func:`jax.shard_map` an array is a part: it is split over some of the mapped
axes, and the same along the others. Its type says which, if types are checked
(``check_vma=True``); otherwise the caller must.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from optax_clip._ranks import Count

AxisName = Hashable | tuple[Hashable, ...]


class Shards(NamedTuple):
    """The mapped axes that some arrays are split over, none where nothing is mapped.

    Attributes:
      axes: all of these axes.
      unchecked: those of which types say nothing: all arrays are split over them.
    """

    axes: tuple[Hashable, ...]
    unchecked: tuple[Hashable, ...]

    @classmethod
    def of(cls, arrays: Sequence[jax.Array], axis_name: AxisName | None) -> "Shards":
        """As the types say, and where they do not, over the named axes."""
        if axis_name is None:
            axis_name = ()
        names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
        unchecked = tuple(name for name in names if not _is_checked(name))
        checked = {axis for array in arrays for axis in _varying(array)}
        # Sorted, because all processes must build the same program.
        return cls((*sorted(checked, key=str), *unchecked), unchecked)

    def number(self, array: jax.Array) -> int:
        """How many parts an array has."""
        return lax.axis_size(self._of(array))

    def once(self, array: jax.Array, value: jax.Array, otherwise: int) -> jax.Array:
        """A value of a part of an array, on only one of the devices that hold it."""
        own = self._of(array)
        others = tuple(axis for axis in self.axes if axis not in own)
        if not others:
            return value
        return jnp.where(lax.axis_index(others) == 0, value, otherwise)

    def sum(self, tree: Any) -> Any:
        """The sums of all devices' numbers, of one type, as one all-reduce."""
        if not self.axes:
            return tree
        flat, unravel = ravel_pytree(tree)
        return unravel(lax.psum(flat, self.axes))

    def total(self, count: Count) -> Count:
        """The sum of the counts of at most 2^15 devices."""
        return self.sum(count).carried() if self.axes else count

    def total_and_all(self, count: Count, flags: jax.Array) -> tuple[Count, jax.Array]:
        """The same, and which of some flags are true everywhere."""
        if not self.axes:
            return count, flags
        count, exceptions = self.sum((count, (~flags).astype(jnp.int32)))
        return count.carried(), exceptions == 0

    def largest(self, numbers: jax.Array) -> jax.Array:
        """The largest of all devices' numbers."""
        return lax.pmax(numbers, self.axes) if self.axes else numbers

    def _of(self, array: jax.Array) -> tuple[Hashable, ...]:
        varying = _varying(array)
        return tuple(a for a in self.axes if a in varying or a in self.unchecked)


def _varying(array: jax.Array) -> frozenset[Hashable]:
    return jax.typeof(array).manual_axis_type.varying


def _is_checked(name: Hashable) -> bool:
    """Whether types say what is split over this axis: its own index is."""
    try:
        return name in _varying(lax.axis_index(name))
    except NameError:
        raise ValueError(
            "clipping: expected the name of an axis of the jax.shard_map or jax.pmap "
            f"around the update as axis_name; got {name!r}, which is not bound there."
        ) from None
