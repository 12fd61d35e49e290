"""The order statistic behind top-k clipping: exact, and found by counting.

The threshold of a group of arrays is its ``(m+1)``-th largest magnitude. Sorting
would find it, but needs the arrays flat, together and several times over; counting
needs neither. Magnitudes are compared as integer keys (``_keys``), and the threshold is
the largest key ``t`` with

.. code-block:: text

  #{i : key_i >= t}  >=  m + 1

and one pass over the data that counts at several keys at once narrows the bracket
``[low, high)`` around it: to a quarter at worst, and mostly to almost nothing, because
some of the keys are bets on where the answer is. A bet that fails costs time, never the
answer: a bracket only ever moves to a key that was counted on all of the data.

Counting is a sum, so sharded arrays stay where they are, and a pass needs nothing but
the all-reduce of a few integers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._keys import (
    common_dtype,
    infinity_key,
    key_dtype,
    magnitude_key,
    unsigned,
    widen,
)
from optax_clip._ranks import Count, rank, stack

PROBES = 7
"""How many keys a pass counts at: about what the memory bandwidth of a CPU hides."""

BETS = (-2.0, -0.5, 0.5, 2.0)
"""Where some of them are, in standard deviations from where the answer should be."""

ROW = 512
"""How many coordinates are reduced at a time on one device."""

SMALL = 2**14
"""Arrays with fewer coordinates are joined on one device."""

SAMPLE_SIZE = 2**16
"""At most about so many coordinates are in the sample, all groups together."""

SAMPLE_STRIDE = 128
"""Every so-many-th coordinate is in the sample, or fewer."""


class Threshold(NamedTuple):
    """The order statistic of every group.

    Attributes:
      value: magnitudes of shape ``(groups,)``, in the common float type of the arrays.
      clipped_fraction: share of coordinates strictly above, shape ``(groups,)``.
    """

    value: jax.Array
    clipped_fraction: jax.Array


def threshold(
    arrays: Sequence[jax.Array], groups: Sequence[int], fraction: jax.Array | float
) -> Threshold:
    """The ``(floor(fraction * size) + 1)``-th largest magnitude of every group.

    Args:
      arrays: real floating-point arrays of any shapes and types, at least one.
      groups: the group of each array, numbered from 0 without gaps.
      fraction: share of the coordinates to exceed the threshold, in ``[0, 1)``; a
        Python number, or a scalar array (then clamped to the range).

    Returns:
      A :class:`Threshold`. NaN counts as infinitely large and is never a threshold. A
      group without coordinates has threshold 0.
    """
    dtype = common_dtype(arrays)
    sizes = [0] * (max(groups) + 1)
    for array, group in zip(arrays, groups, strict=True):
        sizes[group] += array.size
    skipped = stack([rank(fraction, size) for size in sizes])
    everything = _everything(stack([Count.exactly(size) for size in sizes]), dtype)
    arrays = [lax.stop_gradient(array) for array in arrays]
    probes, shortcut, capacity = _next_probes(everything, skipped), None, 0
    if not _may_be_sharded():
        arrays, groups = _pieces(arrays, groups, dtype)
        if max(sizes) >= SAMPLE_SIZE:
            probes = _sampled_probes(arrays, groups, sizes, skipped, dtype)
        if len(sizes) == 1:
            shortcut = functools.partial(_collected, arrays, skipped, dtype)
            # About one row in a thousand then has more than two.
            capacity = int(sum(len(piece) for piece in arrays) ** (2 / 3) / 4)
    last = _search(
        lambda probes: _group_counts(arrays, groups, probes, dtype),
        skipped,
        everything,
        probes,
        shortcut,
        capacity,
    )
    above = last.reach_high.as_float()
    share = above / jnp.asarray([max(size, 1) for size in sizes], jnp.float32)
    value = lax.bitcast_convert_type(last.low.astype(unsigned(dtype)), dtype)
    return Threshold(value, share)


def largest(arrays: Sequence[jax.Array], groups: Sequence[int]) -> Threshold:
    """The threshold for a fraction of 0, at the price of one reduction."""
    dtype = common_dtype(arrays)
    top = jnp.zeros(max(groups) + 1, key_dtype(dtype))
    for array, group in zip(arrays, groups, strict=True):
        key = magnitude_key(lax.stop_gradient(array), dtype)
        key = jnp.minimum(jnp.max(key, initial=0), infinity_key(dtype))
        top = top.at[group].max(key)
    value = lax.bitcast_convert_type(top.astype(unsigned(dtype)), dtype)
    return Threshold(value, jnp.zeros(top.shape, jnp.float32))


# The search.


class _Bracket(NamedTuple):
    """What is known of every group's answer: ``low <= answer < high``.

    Attributes:
      low: the largest key known to be reached by enough keys, shape ``(groups,)``.
      high: the smallest key known not to be.
      reach_low: how many keys reach ``low``.
      reach_high: how many keys reach ``high``.
    """

    low: jax.Array
    high: jax.Array
    reach_low: Count
    reach_high: Count

    def inside(self) -> jax.Array:
        """How many keys are in ``[low, high)``; exact where it is small."""
        return self.reach_low.minus(self.reach_high).as_float()


def _everything(sizes: Count, dtype: jnp.dtype) -> _Bracket:
    """All keys but NaN's."""
    low = jnp.zeros(sizes.low.shape, key_dtype(dtype))
    high = jnp.full_like(low, infinity_key(dtype) + 1)
    return _Bracket(low, high, sizes, sizes.map(jnp.zeros_like))


def _search(
    count: Callable[[jax.Array], Count],
    skipped: Count,
    bracket: _Bracket,
    probes: jax.Array,
    shortcut: Callable[[_Bracket], tuple[jax.Array, _Bracket]] | None = None,
    capacity: int = 0,
) -> _Bracket:
    """Narrow a bracket to the largest key that more than ``skipped`` keys reach.

    Args:
      count: how many keys of each group reach each of its probes; both have shape
        ``(groups, PROBES)``.
      skipped: shape ``(groups,)``.
      bracket: what is known at first.
      probes: what to count first.
      shortcut: perhaps a way from a bracket with at most ``capacity`` keys inside to
        the last one: whether it succeeded, and the bracket. It is tried once.
      capacity: see there.

    Returns:
      A bracket with ``high == low + 1``.
    """

    def unfinished(state):
        bracket, _, _ = state
        return jnp.any(bracket.high - bracket.low > 1)

    def refine(state):
        bracket, probes, untried = state
        bracket = _narrowed(bracket, probes, count(probes), skipped)
        return bracket, _next_probes(bracket, skipped), untried

    def step(state):
        if shortcut is None:
            return refine(state)

        def cut_short(state):
            bracket, probes, _ = state
            success, last = shortcut(bracket)
            bracket = jax.tree.map(lambda a, b: jnp.where(success, a, b), last, bracket)
            return bracket, probes, jnp.zeros((), bool)

        bracket, _, untried = state
        few = jnp.all(bracket.inside() <= capacity)
        return lax.cond(untried & few, cut_short, refine, state)

    state = bracket, probes, jnp.ones((), bool)
    return lax.while_loop(unfinished, step, state)[0]


def _narrowed(
    bracket: _Bracket, probes: jax.Array, counts: Count, skipped: Count
) -> _Bracket:
    """The bracket after the keys at its probes, in any order, were counted."""
    reached = counts.exceeds(skipped.map(lambda word: word[:, None]))
    beyond = jnp.iinfo(probes.dtype).max
    lows = jnp.where(reached, probes, -1)
    lows = jnp.concatenate([lows, bracket.low[:, None]], axis=1)
    highs = jnp.where(reached, beyond, probes)
    highs = jnp.concatenate([highs, bracket.high[:, None]], axis=1)
    low, reach_low = _at(jnp.argmax(lows, axis=1), lows, counts, bracket.reach_low)
    high, reach_high = _at(jnp.argmin(highs, axis=1), highs, counts, bracket.reach_high)
    return _Bracket(low, high, reach_low, reach_high)


def _at(
    column: jax.Array, ends: jax.Array, counts: Count, last_count: Count
) -> tuple[jax.Array, Count]:
    """One end of every group and its count; the last column has a count apart."""

    def pick(row):
        return jnp.take_along_axis(row, column[:, None], axis=1)[:, 0]

    joined = (
        jnp.concatenate([row, last[:, None]], axis=1)
        for row, last in zip(counts, last_count, strict=True)
    )
    return pick(ends), Count(*map(pick, joined))


def _next_probes(bracket: _Bracket, skipped: Count) -> jax.Array:
    """Where to count next, shape ``(groups, PROBES)``.

    Three probes quarter the bracket, whatever is inside. Four bet on keys that are
    spread evenly: then the answer is where its rank says, with a standard deviation
    of ``sqrt(share (1 - share) / inside)`` of the width.
    """
    low, high = bracket.low[:, None], bracket.high[:, None]
    width = high - low
    inside = jnp.maximum(bracket.inside(), 1.0)[:, None]
    below = bracket.reach_low.minus(skipped).as_float()[:, None] - 0.5
    share = jnp.clip(below / inside, 0.0, 1.0)
    bets = share + jnp.sqrt(share * (1 - share) / inside) * jnp.asarray(BETS)[None, :]
    bets = low + (jnp.clip(bets, 0.0, 1.0) * width.astype(jnp.float32)).astype(
        low.dtype
    )
    spread = jnp.concatenate(
        [_even(low, width, PROBES + 1 - len(BETS)), jnp.clip(bets, low + 1, high - 1)],
        axis=1,
    )
    # All keys inside, where there are so few.
    return jnp.where(width <= PROBES + 1, _even(low, width, PROBES + 1), spread)


def _even(low: jax.Array, width: jax.Array, parts: int) -> jax.Array:
    """The inner borders of so many even parts, or all keys inside if that is fewer."""
    part = jnp.arange(1, parts, dtype=low.dtype)[None, :]
    # Not `width * part // parts`, which overflows.
    return low + width // parts * part + width % parts * part // parts


# Counting.


def _group_counts(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    probes: jax.Array,
    dtype: jnp.dtype,
) -> Count:
    """How many magnitudes of each group reach each of its probes."""
    arrays, probes = _not_hoisted(arrays, probes)
    count = _count_partitionable if _may_be_sharded() else _count_variadic
    counts = [
        count(magnitude_key(array, dtype), probes[group])
        for array, group in zip(arrays, groups, strict=True)
    ]

    def total(word):
        return jnp.zeros(probes.shape, jnp.int32).at[jnp.asarray(groups)].add(word)

    return Count.of(jnp.stack(counts)).map(total).carried()


def _not_hoisted(arrays, loop_variable):
    """Keep XLA from computing the keys before the loop, and storing them."""
    return lax.optimization_barrier((arrays, loop_variable))


def _may_be_sharded() -> bool:
    """Whether an array can have more than one device under it."""
    return jax.device_count() > 1


def _count_partitionable(keys: jax.Array, probes: jax.Array) -> jax.Array:
    """All counts as one reduction of one operand: sharded keys need one all-reduce."""
    reached = keys[..., None] >= probes.reshape((1,) * keys.ndim + (-1,))
    return jnp.sum(reached, axis=tuple(range(keys.ndim)), dtype=jnp.uint32)


def _count_variadic(keys: jax.Array, probes: jax.Array) -> jax.Array:
    """All counts in one read of the keys: a reduction of several operands.

    XLA for CPU stores what a reduction of *one* operand reads before it splits it up;
    a reduction of several operands becomes one vectorised loop. The partitioner,
    though, gathers its partial results.
    """
    operands = tuple((keys >= probe).astype(jnp.uint32) for probe in probes)
    if keys.ndim == 2:
        operands = _reduce(operands, (0,) * len(operands), (lax.add,) * len(operands))
    return jnp.stack(
        _reduce(operands, (0,) * len(operands), (lax.add,) * len(operands))
    )


def _reduce(
    operands: Sequence[jax.Array], initial: Sequence[int], functions: Sequence[Callable]
) -> Sequence[jax.Array]:
    """Reduce the last dimension of several arrays, each by a function of its own."""
    return lax.reduce(
        tuple(operands),
        tuple(jnp.asarray(i, o.dtype) for i, o in zip(initial, operands, strict=True)),
        lambda a, b: tuple(f(x, y) for f, x, y in zip(functions, a, b, strict=True)),
        (operands[0].ndim - 1,),
    )


# On one device: rows instead of leaves, a start from a sample, an end by collecting.


def _pieces(
    arrays: Sequence[jax.Array], groups: Sequence[int], dtype: jnp.dtype
) -> tuple[list[jax.Array], list[int]]:
    """The same numbers, as matrices of ``ROW`` columns and one small vector a group."""
    pieces, members = [], []
    loose = {group: [] for group in groups}
    for array, group in zip(arrays, groups, strict=True):
        flat = array.reshape(-1)
        whole = flat.size // ROW * ROW if flat.size >= SMALL else 0
        if whole:
            pieces.append(flat[:whole].reshape(-1, ROW))
            members.append(group)
        loose[group].append(widen(flat[whole:], dtype))
    for group, parts in loose.items():
        vector = jnp.concatenate(parts)
        if vector.size:
            pieces.append(vector)
            members.append(group)
    return pieces, members


def _sampled_probes(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    sizes: Sequence[int],
    skipped: Count,
    dtype: jnp.dtype,
) -> jax.Array:
    """Probes where a strided sample has its order statistic, give or take.

    In a sample of ``n`` the rank of the threshold has a standard deviation of about
    ``sqrt(n p (1 - p))``, with ``p`` the share above it: the probes span five of them.
    """
    sample, n = _sample(arrays, groups, sizes, dtype)
    p = (skipped.as_float() + 0.5) / jnp.maximum(jnp.asarray(sizes, jnp.float32), 1)
    spread = 5 * jnp.sqrt(n * p * (1 - p)) + 1
    ranks = jnp.stack([n * p + spread, n * p - spread], axis=1)  # groups x 2

    def count(probes):
        probes = probes.reshape(len(sizes), 2 * PROBES, 1)
        reached = jnp.sum(sample[:, None, :] >= probes, axis=-1)
        return Count.of(reached.reshape(-1, PROBES))

    rank = Count.of(jnp.clip(ranks, 0, n[:, None] - 1).reshape(-1))
    everything = _everything(Count.of(jnp.repeat(n, 2)), dtype)
    ends = _search(count, rank, everything, _next_probes(everything, rank)).low
    low, high = ends.reshape(-1, 2, 1).transpose(1, 0, 2)
    return jnp.concatenate([low, _even(low, high - low, PROBES - 1), high + 1], axis=1)


def _sample(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    sizes: Sequence[int],
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Keys of evenly spread coordinates, a row a group, and their number in each row.

    Rows are filled up with -1, which reaches no probe.
    """
    rows = [[] for _ in sizes]
    for array, group in zip(arrays, groups, strict=True):
        stride = max(SAMPLE_STRIDE, sizes[group] * len(sizes) // SAMPLE_SIZE)
        rows[group].append(magnitude_key(array.reshape(-1)[::stride], dtype))
    rows = [jnp.concatenate(row) for row in rows]
    width = max(row.size for row in rows)
    filled = [jnp.pad(row, (0, width - row.size), constant_values=-1) for row in rows]
    return jnp.stack(filled), jnp.asarray([row.size for row in rows], jnp.float32)


def _collected(
    pieces: Sequence[jax.Array], skipped: Count, dtype: jnp.dtype, bracket: _Bracket
) -> tuple[jax.Array, _Bracket]:
    """The last bracket of a single group, from the few keys inside of a narrow one.

    One pass takes the largest and the smallest key inside the bracket from every row.
    Unless a row has more than two, that is all of them.

    Returns:
      Whether no row had more than two, and the bracket.
    """
    pieces, bracket = _not_hoisted(pieces, bracket)
    rows = [_extremes(magnitude_key(piece, dtype), bracket) for piece in pieces]
    number, largest, smallest = map(jnp.concatenate, zip(*rows, strict=True))
    candidates = jnp.concatenate(
        [jnp.where(number > 0, largest, -1), jnp.where(number > 1, smallest, -1)]
    )

    def count(probes):
        reached = jnp.sum(candidates[None, :] >= probes[0][:, None], axis=1)
        return Count.of(reached[None, :])

    # The keys that reach `high` are not among the candidates.
    rank = skipped.minus(bracket.reach_high)
    start = _Bracket(
        bracket.low,
        bracket.high,
        bracket.reach_low.minus(bracket.reach_high),
        bracket.reach_high.map(jnp.zeros_like),
    )
    last = _search(count, rank, start, _next_probes(start, rank))
    last = _Bracket(
        last.low,
        last.high,
        last.reach_low.plus(bracket.reach_high),
        last.reach_high.plus(bracket.reach_high),
    )
    return jnp.all(number <= 2), last


def _extremes(
    keys: jax.Array, bracket: _Bracket
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Number, largest and smallest of each row's keys inside; a vector is a column."""
    inside = (keys >= bracket.low[0]) & (keys < bracket.high[0])
    number = inside.astype(jnp.int32)
    if keys.ndim == 1:
        return number, keys, keys
    largest = jnp.where(inside, keys, -1)
    smallest = jnp.where(inside, keys, jnp.iinfo(keys.dtype).max)
    number, largest, smallest = _reduce(
        (number, largest, smallest),
        (0, -1, jnp.iinfo(keys.dtype).max),
        (lax.add, lax.max, lax.min),
    )
    return number, largest, smallest
