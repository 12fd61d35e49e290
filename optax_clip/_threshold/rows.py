"""Arrays as matrices of `ROW` columns, stacked so that they share compiled code.

Compilers take seconds over a hundred copies of a pass. So matrices of one shape form a
:class:`Stack`, which one loop goes through; small arrays are concatenated first.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._threshold.keys import magnitude_key
from optax_clip._threshold.shards import Axes

ROW = 512
"""How many keys make a row. Below 2^15, so that two counts fit into a word."""

SMALL = 2**14
"""Arrays with fewer coordinates are concatenated."""

CONCATENATED = 128
"""So many arrays are concatenated at once: a compiler's time grows with their
square..."""

IN_TURN = 64
"""...as with that of the matrices that go through one loop."""


class Stack(NamedTuple):
    """Matrices of one shape and type, and the groups of their rows.

    A matrix has as many rows of one of its groups as of another, first those of the
    first. Those of integers hold keys, -1 where there is none.

    Attributes:
      matrices: arrays of shape ``(rows, ROW)``.
      groups: the groups of the first matrix, then those of the second, and so on.
      split: the mesh axes that all of them are split over.
    """

    matrices: list[jax.Array]
    groups: list[int]
    split: Axes

    def groups_of_each(self) -> int:
        """Returns how many groups there are in each matrix."""
        return len(self.groups) // len(self.matrices)


class Rows(NamedTuple):
    """A matrix of keys, -1 where there is none, and the group of each row."""

    keys: jax.Array
    groups: list[int]


def stack(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    split: Sequence[Axes],
    dtype: jnp.dtype,
) -> list[Stack]:
    """Returns all coordinates in stacks: large arrays uncopied, small ones joined.

    Args:
      arrays: floating-point arrays of any shape.
      groups: the group of each.
      split: the mesh axes that each is split over.
      dtype: the floating-point type that keys are made in.
    """
    matrices: list[tuple[jax.Array, list[int], Axes]] = []
    loose: dict[tuple, list[jax.Array]] = {}
    # 1. Whole rows of large arrays, as they are. What is left over is made of keys.
    for array, group, axes in zip(arrays, groups, split, strict=True):
        # What is split differently is not concatenated.
        rest = loose.setdefault((group, axes, _manual(array)), [])
        flat = array.reshape(-1)
        whole = flat.size // ROW * ROW if flat.size >= SMALL else 0
        if whole:
            matrices.append((flat[:whole].reshape(-1, ROW), [group], axes))
        if whole < flat.size:
            rest.append(magnitude_key(flat[whole:], dtype))
    # 2. The rest of a group is concatenated and padded to whole rows.
    small: dict[Any, list[tuple[jax.Array, int]]] = {}
    for (group, axes, _), pieces in loose.items():
        for some in _batches(pieces):
            keys = jnp.concatenate(some)
            keys = jnp.pad(keys, (0, -keys.size % ROW), constant_values=-1)
            if keys.size < SMALL:
                kind = (jax.typeof(keys), axes)
                small.setdefault(kind, []).append((keys, group))
            else:
                matrices.append((keys.reshape(-1, ROW), [group], axes))
    # 3. Small groups of one size share a matrix.
    for (_, axes), members in small.items():
        for some in _batches(members):
            keys = jnp.concatenate([keys for keys, _ in some])
            of_rows = [group for _, group in some]
            matrices.append((keys.reshape(-1, ROW), of_rows, axes))
    # 4. Matrices of one type share a stack.
    stacks: dict[Any, list[Stack]] = {}
    for matrix, members, axes in sorted(matrices, key=lambda entry: -entry[0].size):
        kind = (jax.typeof(matrix), len(members), axes)
        alike = stacks.setdefault(kind, [])
        if not alike or len(alike[-1].matrices) == IN_TURN:
            alike.append(Stack([], [], axes))
        alike[-1].matrices.append(matrix)
        alike[-1].groups.extend(members)
    return list(itertools.chain(*stacks.values()))


def as_keys(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the keys of a matrix of a stack."""
    is_keys = jnp.issubdtype(array.dtype, jnp.integer)
    return array if is_keys else magnitude_key(array, dtype)


def row_sums(*matrices: jax.Array) -> jax.Array:
    """Returns the sums of the rows of some matrices, one column for each, in uint32.

    XLA for CPU stores what a reduction of *one* operand reads before it splits it up;
    a reduction of several operands becomes one vectorised loop.
    """
    operands = tuple(matrix.astype(jnp.uint32) for matrix in matrices)
    zeros = (jnp.zeros((), jnp.uint32),) * len(operands)
    return jnp.stack(lax.reduce(operands, zeros, _add, (1,)), axis=1)


def _add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _batches(items: list) -> list[list]:
    starts = range(0, len(items), CONCATENATED)
    return [items[start : start + CONCATENATED] for start in starts]


def _manual(array: jax.Array) -> Any:
    """Returns what the type says of manual axes: types have more than a shape."""
    return jax.typeof(array).manual_axis_type
