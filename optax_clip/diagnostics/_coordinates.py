"""Single coordinates of a tree: drawn at random, or the largest ones."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from optax_clip._clip_leaf import exceeds
from optax_clip._threshold import threshold
from optax_clip._trees import check_leaves
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._blocks import Blocks, partition, whole
from optax_clip.diagnostics._subset import Where, flat_arrays, has_numbers, pure, select


class Coordinates(NamedTuple):
    """Some coordinates of a tree.

    Attributes:
      leaf: numbers of leaves, shape (n,).
      index: flat indices within the leaves, shape (n,).

    Examples:
      Leaf 1 is the second one, its flat index 2 the start of the second row.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"a": jnp.zeros(2), "b": jnp.array([[3.0, 4.0], [5.0, 6.0]])}
      >>> one = diagnostics.Coordinates(leaf=jnp.array([1]), index=jnp.array([2]))
      >>> diagnostics.take_coordinates(tree, one).tolist()
      [5.0]
    """

    leaf: jax.Array
    index: jax.Array


def sample_coordinates(
    tree: Any, count: int, *, key: jax.Array, where: Where | None = None
) -> Coordinates:
    """Draws coordinates of a tree uniformly, with replacement.

    Args:
      tree: pytree of arrays of less than 2^31 entries each.
      count: how many.
      key: a `jax.random.key`.
      where: selects the leaves to draw from by their path.

    Returns:
      :class:`Coordinates` of shape (count,).

    Raises:
      TypeError: if `key` is no random key or `count` no int.
      ValueError: if there is nothing to draw.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"a": jnp.zeros(3), "b": jnp.ones((2, 3))}
      >>> some = diagnostics.sample_coordinates(tree, 8, key=jax.random.key(0))
      >>> bool(jnp.all(diagnostics.take_coordinates(tree, some) == some.leaf))
      True
    """
    _checks.check_key(key)
    _checks.check_count("count", count)
    selection, leaves = select(tree, where)
    pairs = zip(leaves, selection.chosen, strict=True)
    return draw_coordinates(key, tuple(np.size(x) * new for x, new in pairs), count)


def draw_coordinates(key: jax.Array, sizes: tuple[int, ...], count: int) -> Coordinates:
    """Draws coordinates of leaves of these sizes."""
    if not sum(sizes):
        raise ValueError("tree has no coordinates to draw from.")
    return _draw(key, sizes=sizes, count=count)


@functools.partial(jax.jit, static_argnames=("sizes", "count"))
def _draw(key: jax.Array, sizes: tuple[int, ...], count: int) -> Coordinates:
    which, place = jax.random.split(key)
    fractions = jnp.asarray(np.divide(sizes, sum(sizes)), jnp.float32)
    leaf = jax.random.choice(which, len(sizes), (count,), p=fractions)
    index = jax.random.randint(place, (count,), 0, jnp.asarray(sizes, jnp.int32)[leaf])
    return Coordinates(leaf, index)


def take_coordinates(tree: Any, coordinates: Coordinates) -> jax.Array:
    """Returns the entries of a tree at some coordinates, shape (n,).

    Args:
      tree: pytree of arrays. Leaves that hold no numbers, such as random keys, count
        among the leaves and have no entries.
      coordinates: as drawn by :func:`sample_coordinates` from a tree of these shapes.

    Returns:
      The entries, in the widest dtype of the tree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0, 4.0]])}
      >>> some = diagnostics.Coordinates(jnp.array([0, 1]), jnp.array([0, 1]))
      >>> diagnostics.take_coordinates(tree, some).tolist()
      [1.0, 4.0]
    """
    leaves = jax.tree.leaves(tree)
    arrays = [jnp.asarray(x) if has_numbers(x) else None for x in leaves]
    return _take(arrays, Coordinates(*coordinates))


@jax.jit
def _take(leaves: list[jax.Array | None], coordinates: Coordinates) -> jax.Array:
    dtype = widest([x for x in leaves if x is not None])
    taken = jnp.zeros(coordinates.index.shape, dtype)
    for i, leaf in enumerate(leaves):
        if leaf is not None and leaf.size:
            at = jnp.unravel_index(
                jnp.minimum(coordinates.index, leaf.size - 1), leaf.shape
            )
            # A few numbers, so every device gets all of them.
            everywhere = jax.typeof(leaf).sharding.update(spec=PartitionSpec())
            entries = leaf.at[at].get(out_sharding=everywhere).astype(dtype)
            taken = jnp.where(coordinates.leaf == i, entries, taken)
    return taken


def widest(leaves: list[jax.Array]) -> Any:
    """Returns the dtype that holds the numbers of all leaves."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*leaves) if leaves else jnp.dtype(jnp.float32)


def one_hot(leaves: list[jax.Array], at: Coordinates) -> list[jax.Array]:
    """Returns zeros like the leaves with a one at one coordinate."""

    # A comparison keeps the sharding of x, writing at an index would not.
    def hot(i, x):
        here = at.leaf == i
        for axis, k in enumerate(jnp.unravel_index(at.index, x.shape)):
            here &= lax.broadcasted_iota(k.dtype, x.shape, axis) == k
        return jnp.where(here, jnp.ones_like(x), 0)

    return [hot(i, x) if x.size else x for i, x in enumerate(leaves)]


def top_coordinates(tree: Any, fraction: jax.typing.ArrayLike) -> Any:
    """Returns a mask of the largest magnitudes of a tree: those that clipping changes.

    Args:
      tree: pytree of real floating-point arrays.
      fraction: fraction f of all coordinates, in [0, 1).

    Returns:
      A pytree of booleans, at most floor(f N) of them true; ties at the threshold are
      false.

    Raises:
      TypeError: for a leaf that is not real and floating-point.
      ValueError: for a tree without leaves, or a fraction outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"w": jnp.array([1.0, -5.0, 2.0]), "b": jnp.array([4.0])}
      >>> diagnostics.top_coordinates(tree, 0.5)["w"].tolist()
      [False, True, False]
    """
    _checks.check_fraction("fraction", fraction)
    check_leaves(pure(tree), "top_coordinates", real=True)
    leaves, treedef = jax.tree.flatten(tree)
    if not leaves:
        raise ValueError("tree has no leaves, so it has no top coordinates.")
    arrays = [jnp.asarray(x) for x in leaves]
    if isinstance(fraction, jax.Array):
        above = _above_array(arrays, fraction)
    else:  # a number stays one: in float32, floor(f N) would not be exact
        above = _above_number(arrays, fraction=float(np.asarray(fraction)))
    return jax.tree.unflatten(treedef, above)


def _above(leaves: list[jax.Array], fraction: jax.Array | float) -> list[jax.Array]:
    tau = threshold(leaves, [0] * len(leaves), fraction).value[0]
    return [exceeds(x, tau) for x in leaves]


_above_number = jax.jit(_above, static_argnames="fraction")
_above_array = jax.jit(_above)


class Persistence(NamedTuple):
    """How many coordinates two masks select.

    Attributes:
      old: how many the first mask selects.
      new: how many the second one selects.
      both: how many both select.

    Examples:
      Three of four coordinates stay on top while the mask grows to six.

      >>> from optax_clip import diagnostics
      >>> float(diagnostics.Persistence(old=4, new=6, both=3).fraction)
      0.75
    """

    old: jax.Array
    new: jax.Array
    both: jax.Array

    @property
    def fraction(self) -> Any:
        """Fraction of the old coordinates still among the new; nan without old ones."""
        return _checks.quotient(self.both, self.old, math.nan)


def mask_persistence(old: Any, new: Any, *, blocks: Blocks | None = None) -> Any:
    """Counts the coordinates that stay in a mask from one step to another.

    Args:
      old: pytree of booleans, for example `top_coordinates` of an update.
      new: a pytree like it, of a later update.
      blocks: ``blocks(path)`` names the block of a leaf, see :func:`split_sharpness`;
        None counts the whole tree.

    Returns:
      A :class:`Persistence`; with `blocks`, a dictionary of one for each block. Counts
      are floats, exact up to 2^24 in float32.

    Raises:
      TypeError: if a mask is not boolean.
      ValueError: if the masks have different structures or shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> old, new = jnp.array([True, True, False]), jnp.array([True, False, False])
      >>> float(diagnostics.mask_persistence(old, new).fraction)
      0.5
    """
    selection, leaves = flat_arrays(old, "mask_persistence")
    masks = [_checks.mask_leaves(old, selection, leaves, mask) for mask in (old, new)]
    parts = partition(selection.paths, leaves, blocks or whole)
    by_name = parts.by_name(_persistence(*masks, parts=parts))
    return by_name if blocks is not None else by_name["all"]


@functools.partial(jax.jit, static_argnames="parts")
def _persistence(old, new, parts) -> list[Persistence]:
    both = [a & b for a, b in zip(old, new, strict=True)]
    return parts.each(Persistence(*(parts.sums(m, float) for m in (old, new, both))))
