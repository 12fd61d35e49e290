"""Arrays as matrices of `ROW` columns, stacked so that they share compiled code.

Compilers take seconds over a hundred copies of a pass. So matrices of one shape form a
:class:`Stack`, which one loop goes through; small arrays are concatenated first.
"""

import math
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
    """Vectors of one size and type, whose whole rows are matrices of `ROW` columns.

    A matrix has as many rows of one of its groups as of another, first those of the
    first. Those of integers hold keys, -1 where there is none.

    Attributes:
      vectors: what holds a matrix each, and less than a row at the end.
      groups: the groups of the first matrix, then those of the second, and so on.
      split: the mesh axes that all of them are split over.
    """

    vectors: list[jax.Array]
    groups: list[int]
    split: Axes

    def groups_of_each(self) -> int:
        """Returns how many groups there are in each matrix."""
        return len(self.groups) // len(self.vectors)

    def rows_of_each(self) -> int:
        """Returns how many rows a group has in its matrix."""
        return self.vectors[0].size // ROW // self.groups_of_each()


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
    vectors: list[tuple[jax.Array, list[int], Axes]] = []
    loose: dict[tuple, list[jax.Array]] = {}
    # 1. Whole rows of large arrays, as they are.
    for array, group, axes in zip(arrays, groups, split, strict=True):
        flat = lax.reshape(array, (array.size,))
        whole = flat.size // ROW * ROW if flat.size >= SMALL else 0
        if whole:
            vectors.append((flat, [group], axes))
        if whole < flat.size:
            # What is split differently is not concatenated.
            kind = group, axes, flat.dtype, jax.typeof(flat).manual_axis_type
            rest = lax.slice(flat, (whole,), (flat.size,)) if whole else flat
            loose.setdefault(kind, []).append(rest)
    # 2. What is left over of a group is concatenated. Groups of one size...
    small: dict[Any, list[tuple[jax.Array, int]]] = {}
    for (group, axes, *_), pieces in loose.items():
        for some in _batches(pieces, CONCATENATED):
            flat = lax.concatenate(some, 0)
            small.setdefault((jax.typeof(flat), axes), []).append((flat, group))
    # 3. ...share a matrix, of keys padded to whole rows.
    for (kind, axes), members in small.items():
        for some in _batches(members, CONCATENATED if kind.size < SMALL else 1):
            keys = magnitude_key(lax.concatenate([flat for flat, _ in some], 0), dtype)
            keys = keys.reshape(len(some), -1)
            keys = jnp.pad(
                keys, ((0, 0), (0, -keys.shape[1] % ROW)), constant_values=-1
            )
            vectors.append((keys.reshape(-1), [group for _, group in some], axes))
    # 4. Vectors of one type share a stack.
    alike: dict[Any, list[tuple[jax.Array, list[int]]]] = {}
    for vector, members, axes in sorted(vectors, key=lambda entry: -entry[0].size):
        kind = (jax.typeof(vector), len(members), axes)
        alike.setdefault(kind, []).append((vector, members))
    return [
        Stack([x for x, _ in some], [g for _, of_x in some for g in of_x], axes)
        for (_, _, axes), pairs in alike.items()
        for some in _batches(pairs, IN_TURN)
    ]


def whole_rows(vector: jax.Array) -> jax.Array:
    """Returns what a vector of a stack has of whole rows, still a vector."""
    return lax.slice(vector, (0,), (vector.size // ROW * ROW,))


def as_keys(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the keys of numbers in a stack."""
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


def _batches(items: list, most: int) -> list[list]:
    """Returns them in lists of about one length, which share compiled code."""
    length = math.ceil(len(items) / math.ceil(len(items) / most))
    return [items[start : start + length] for start in range(0, len(items), length)]
