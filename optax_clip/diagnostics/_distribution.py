"""How the magnitudes of coordinates are distributed.

Counting needs no flat array: every leaf keeps its shape and its sharding, and one small
integer per bin crosses between devices.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip._threshold import threshold
from optax_clip._threshold.counts import rank
from optax_clip._trees import check_leaves
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._blocks import Blocks, Partition, partition, whole
from optax_clip.diagnostics._subset import flat_arrays, pure


class CoordinateHistogram(NamedTuple):
    """Counts of coordinates by magnitude.

    Attributes:
      edges: bin edges, increasing, shape (n + 1,).
      counts: how many magnitudes lie in [edges[i], edges[i + 1]), the last bin closed,
        shape (n,).
      below: how many lie below the first edge, zeros included.
      above: how many lie above the last edge, infinities included.
      nans: how many are not a number.

    Examples:
      Every coordinate is counted once, even one that is no finite number.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = jnp.array([0.0, 0.5, -2.0, jnp.inf, jnp.nan])
      >>> h = diagnostics.coordinate_histogram(tree, [0.1, 1.0, 10.0])
      >>> int(h.below), h.counts.tolist(), int(h.above), int(h.nans)
      (1, [1, 1], 1, 1)
    """

    edges: jax.Array
    counts: jax.Array
    below: jax.Array
    above: jax.Array
    nans: jax.Array


def coordinate_histogram(
    tree: Any,
    edges: jax.typing.ArrayLike | None = None,
    *,
    blocks: Blocks | None = None,
) -> Any:
    r"""Counts the magnitudes of all coordinates of a pytree in bins.

    Counts are exact integers (uint32) for fewer than 2^32 coordinates, and floats that
    are correct to rounding beyond.

    Args:
      tree: pytree of arrays, for example a gradient, a momentum or an update; float0
        leaves, which stand for no gradient, count as zero.
      edges: increasing positive bin edges. By default those of the paper, 30 edges from
        1e-15 to 10 in equal ratios.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None counts the whole tree.

    Returns:
      A :class:`CoordinateHistogram`; with `blocks`, a dictionary of one for each block.

    Raises:
      TypeError: if a leaf holds no numbers, or a block's name cannot be hashed.
      ValueError: if the edges do not increase, or if the tree has no leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"w": jnp.array([[0.5, -2.0], [30.0, 3.0]]), "b": jnp.zeros(3)}
      >>> h = diagnostics.coordinate_histogram(tree, [0.1, 1.0, 10.0])
      >>> h.counts.tolist(), int(h.below), int(h.above)
      ([1, 2], 3, 1)
      >>> by_leaf = diagnostics.coordinate_histogram(
      ...     tree, [0.1, 1.0, 10.0], blocks=lambda path: path)
      >>> int(by_leaf["b"].below)
      3

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, figure 1.
    """
    edges = _as_edges(edges)
    selection, leaves = flat_arrays(tree, "coordinate_histogram")
    parts = partition(selection.paths, leaves, blocks or whole)
    by_name = parts.by_name(_histograms(leaves, edges, parts=parts))
    return by_name if blocks is not None else by_name["all"]


def coordinate_quantiles(
    tree: Any, quantiles: jax.typing.ArrayLike, *, blocks: Blocks | None = None
) -> Any:
    r"""Returns quantiles of the magnitudes of all coordinates, found without sorting.

    The quantile q of N magnitudes is the smallest of them that at most
    :math:`\lfloor (1 - q) N \rfloor` exceed: always one of the magnitudes, exact, and
    for q = 1 - f the threshold of top-k clipping with fraction f, unless that is 0.

    Args:
      tree: pytree of real floating-point arrays.
      quantiles: numbers in (0, 1], shape (n,).
      blocks: ``blocks(path)`` names the block of a leaf, see
        :func:`coordinate_histogram`; None takes the whole tree.

    Returns:
      Magnitudes of shape (n,); with `blocks`, a dictionary of them.

    Raises:
      TypeError: if a leaf is not real and floating-point.
      ValueError: if a quantile is outside (0, 1] or the tree has no leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"w": jnp.array([[1.0, -2.0], [8.0, -7.0]]), "b": jnp.array([5.0])}
      >>> diagnostics.coordinate_quantiles(tree, [0.2, 0.6, 1.0]).tolist()
      [1.0, 5.0, 8.0]
    """
    quantiles = np.asarray(quantiles, np.float64)
    if quantiles.ndim != 1 or not np.all((quantiles > 0) & (quantiles <= 1)):
        raise ValueError(f"quantiles must be a vector in (0, 1]; got {quantiles}.")
    check_leaves(pure(tree), "coordinate_quantiles", real=True)
    selection, leaves = flat_arrays(tree, "coordinate_quantiles")
    parts = partition(selection.paths, leaves, blocks or whole)
    fractions = tuple((1 - quantiles).tolist())
    by_name = parts.by_name(_quantiles(leaves, fractions=fractions, parts=parts))
    return by_name if blocks is not None else by_name["all"]


@functools.partial(jax.jit, static_argnames=("fractions", "parts"))
def _quantiles(
    leaves: list[jax.Array], fractions: tuple[float, ...], parts: Partition
) -> list[jax.Array]:
    pieces, groups = [], []
    for x, ids in zip(leaves, parts.ids, strict=True):
        stacked = isinstance(ids, tuple)
        pieces += list(x) if stacked else [x]
        groups += ids if stacked else [ids]
    found = [threshold(pieces, groups, f).value for f in fractions]
    # A threshold leaves zeros out where it would be 0; a quantile does not.
    nonzero = parts.sums([x != 0 for x in leaves], _count_dtype(parts))[:, None]
    above = np.asarray([[rank(f, n) for f in fractions] for n in parts.sizes])
    values = jnp.where(nonzero <= above.astype(nonzero.dtype), 0, jnp.stack(found, 1))
    return parts.each(values)


def _count_dtype(parts: Partition) -> Any:
    return jnp.uint32 if max(parts.sizes) < 2**32 else jnp.result_type(float)


@functools.partial(jax.jit, static_argnames="parts")
def _histograms(
    leaves: list[jax.Array], edges: jax.Array, parts: Partition
) -> list[CoordinateHistogram]:
    dtype = _count_dtype(parts)
    totals = jnp.zeros([len(parts.names), edges.size + 1], dtype)
    for x, ids in zip(leaves, parts.ids, strict=True):
        count = jax.vmap(_count, (0, None)) if isinstance(ids, tuple) else _count
        totals = totals.at[jnp.asarray(ids)].add(count(x, edges).astype(dtype))
    reached, nans = totals[:, :-1], totals[:, -1]
    histograms = CoordinateHistogram(
        edges=jnp.tile(edges, (len(parts.names), 1)),
        counts=reached[:, :-1] - reached[:, 1:],
        below=jnp.asarray(np.asarray(parts.sizes, dtype)) - nans - reached[:, 0],
        above=reached[:, -1],
        nans=nans,
    )
    return parts.each(histograms)


def _count(x: jax.Array, edges: jax.Array) -> jax.Array:
    """Counts |x| >= edges (the last one: or |x| > edges[-1]) and nans."""
    if x.size >= 2**32:  # a uint32 could wrap
        return jnp.sum(jax.vmap(_count, (0, None))(x, edges).astype(float), axis=0)
    x = jnp.abs(x)
    x = x if x.dtype.itemsize > 4 else x.astype(jnp.float32)
    edges = edges.astype(x.dtype)
    # The last bin is closed: its right edge is reached only by what lies beyond.
    tests = [x >= edge for edge in edges[:-1]] + [x > edges[-1], x != x]
    # One reduction with many results reads x once; many reductions take a hundred
    # times as long on a CPU.
    zeros = (jnp.zeros([], jnp.uint32),) * len(tests)
    ones = tuple(test.astype(jnp.uint32) for test in tests)
    return jnp.stack(lax.reduce(ones, zeros, _add, tuple(range(x.ndim))))


def _add(a: tuple, b: tuple) -> tuple:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _as_edges(edges: jax.typing.ArrayLike | None) -> jax.Array:
    edges = jnp.asarray(np.logspace(-15, 1, 30) if edges is None else edges, float)
    if edges.ndim != 1 or edges.size < 2:
        msg = (
            f"edges must be a vector of at least two numbers; got shape {edges.shape}."
        )
        raise ValueError(msg)
    if _checks.is_concrete(edges) and not np.all(np.diff(edges, prepend=0) > 0):
        raise ValueError(f"edges must be positive and increase; got {edges}.")
    return edges
