"""Arrays in shards, one on each device, and sums over the devices.

Where code runs once for every device, as in :func:`jax.shard_map`, an array is a shard
of the whole one: it is split over some of the mesh's axes and replicated over the
others. What is replicated must be counted once.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

AxisName = Hashable | tuple[Hashable, ...]
Axes = tuple[Hashable, ...]


class Shards(NamedTuple):
    """The mesh axes that each of some arrays is split over.

    Attributes:
      split: the axes of each array, none of one that is whole or replicated.
      axes: all of these axes, those that sums go over.
    """

    split: tuple[Axes, ...]
    axes: Axes

    @classmethod
    def along(cls, split: Sequence[Axes]) -> "Shards":
        """Takes the axes of each array."""
        # Sorted, because all processes must build the same program.
        axes = sorted({axis for axes in split for axis in axes}, key=str)
        return cls(tuple(split), tuple(axes))

    @classmethod
    def of(cls, arrays: Sequence[jax.Array], axis_name: AxisName | None) -> "Shards":
        """Reads the axes from the types, or takes the named ones where they do not say.

        Types say them inside ``jax.shard_map(check_vma=True)``.
        """
        names = () if axis_name is None else axis_name
        names = names if isinstance(names, tuple) else (names,)
        unchecked = tuple(name for name in names if not _is_checked(name))
        return cls.along(
            [(*sorted(_varying(array), key=str), *unchecked) for array in arrays]
        )

    def once(self, split: Axes, value: jax.Array, otherwise: int) -> jax.Array:
        """Returns a value of an array's shard on one of the devices that hold it."""
        others = tuple(axis for axis in self.axes if axis not in split)
        if not others:
            return value
        return jnp.where(lax.axis_index(others) == 0, value, otherwise)

    def sum(self, tree: Any) -> Any:
        """Returns the sums of all devices' numbers, of one type, by one all-reduce."""
        if not self.axes:
            return tree
        flat, unravel = ravel_pytree(tree)
        return unravel(lax.psum(flat, self.axes))

    def largest(self, numbers: jax.Array) -> jax.Array:
        """Returns the largest of all devices' numbers."""
        return lax.pmax(numbers, self.axes) if self.axes else numbers


def number_of_shards(split: Axes) -> int:
    """Returns how many shards an array has that is split over these axes."""
    return lax.axis_size(split) if split else 1


def _varying(array: jax.Array) -> frozenset[Hashable]:
    return jax.typeof(array).manual_axis_type.varying


def _is_checked(name: Hashable) -> bool:
    """Returns whether types say what is split over this axis: its own index is."""
    try:
        return name in _varying(lax.axis_index(name))
    except NameError:
        raise ValueError(
            "clipping: expected the name of an axis of the jax.shard_map or jax.pmap "
            f"around the update as axis_name; got {name!r}, which is not bound there."
        ) from None
