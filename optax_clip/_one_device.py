"""The search on one device, or on each with its parts of the arrays.

A sample to begin with, and two passes over the data, mostly:

.. code-block:: text

  sample   every so-many-th key      where the answer is, give or take its error
  pass 1   count at four probes      a bracket with some thousandths of the keys
  pass 2   count at four probes, and take the keys between the middle two
  finish   search among those few

Arrays are read as matrices of `ROW` columns. A pass reduces every row to a summary: two
words of counts, and the largest, the smallest and the sum of the keys between the
middle probes. Unless a row has more than three of them, that is all of them, and the
answer is among them; otherwise the next pass finds a narrower bracket.

Matrices of one shape share code, because compilers take seconds over a hundred copies
of a pass: they go through a loop that first copies one into the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip import _search
from optax_clip._keys import infinity_key, key_dtype, magnitude_key
from optax_clip._ranks import Count
from optax_clip._search import Bracket
from optax_clip._shards import Shards

ROW = 512
"""How many keys make a row. Below 2^15, so that two counts fit into a word."""

SMALL = 2**14
"""Arrays with fewer coordinates are joined, a group at a time."""

JOINED = 128
"""So many arrays are joined at once: a compiler's time grows with their square."""

SAMPLE = 2**16
"""About so many keys are in the sample, all groups together..."""

SAMPLE_OF_GROUP = 2**12
"""...but as many as this of a group, if it has them..."""

STRIDE = 64
"""...so many keys apart. Nearer ones would cost the time of reading all."""

CANDIDATES = 3
"""How many keys of a row its summary holds."""


def search(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    sizes: Sequence[int],
    skipped: Count,
    bracket: Bracket,
    dtype: jnp.dtype,
    unfinished: Callable[[Bracket], jax.Array],
    shards: Shards,
) -> Bracket:
    """The last bracket of every group: see `_search.search`."""
    strides = _strides(sizes)
    if max(strides) == 1:  # a small tree is its own sample
        sample, _ = _sample([_Stack([*arrays], [*groups])], strides, dtype, shards)
        return _search.search(
            lambda probes: shards.total(Count.of(_reached(sample, probes))),
            skipped,
            bracket,
            unfinished,
        )
    stacks = _stacks(arrays, groups, dtype)
    capacity = _capacity(stacks, len(sizes), shards)

    def advance(state):
        bracket, probes, turn = state
        counts, candidates, complete = _pass(stacks, probes, dtype, shards)
        bracket = bracket.narrowed(probes, counts, skipped)
        reached = counts.exceeds(skipped.map(lambda word: word[:, None]))
        between = Bracket(
            *(probes[:, i] for i in (1, 2)),
            *(counts.map(lambda word, i=i: word[:, i]) for i in (1, 2)),
        )
        found = reached[:, 1] & ~reached[:, 2] & complete & unfinished(bracket)
        bracket = lax.cond(
            jnp.any(found),
            lambda: _finish(candidates, between, found, skipped, bracket, shards),
            lambda: bracket,
        )
        return bracket, _guess(bracket, skipped, capacity, turn), turn + 1

    probes = _sampled_guess(stacks, sizes, skipped, dtype, shards)
    state = bracket, probes, jnp.int32(0)
    return lax.while_loop(lambda s: jnp.any(unfinished(s[0])), advance, state)[0]


def _guess(
    bracket: Bracket, skipped: Count, capacity: jax.Array, turn: jax.Array
) -> jax.Array:
    """Four keys, ``(groups, 4)``: the answer should be between the middle two.

    They are as far apart as the keys between them may fill the summaries. The outer
    two bet on the neighbourhood; at every other turn they cut the bracket into thirds,
    so that it shrinks whatever the bets are worth.
    """
    low, high, inside = bracket.low, bracket.high, bracket.inside()
    share, deviation = bracket.share(skipped), bracket.deviation(skipped)
    # With room for all, take all.
    reach = jnp.minimum(4 * deviation, capacity / 2 / jnp.maximum(inside, 1))
    reach = jnp.where(inside <= capacity, 1, reach)
    second = jnp.minimum(bracket.key_at(share - reach), high - 1)
    third = jnp.clip(bracket.key_at(share + reach) + 1, second + 1, high)
    cut = jnp.maximum((high - low) // 3, 1)
    bets = turn % 2 == 0
    first = jnp.where(bets, bracket.key_at(share - 4 * deviation), low + cut)
    fourth = jnp.where(bets, bracket.key_at(share + 4 * deviation) + 1, high - cut)
    return jnp.stack([first, second, third, fourth], axis=1)


# The data as matrices.


class _Stack(NamedTuple):
    """Matrices of one type, and the group of each.

    Those of integers hold keys, -1 where there is none.
    """

    matrices: list[jax.Array]
    groups: list[int]


def _keys(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    is_keys = jnp.issubdtype(array.dtype, jnp.integer)
    return array if is_keys else magnitude_key(array, dtype)


def _stacks(
    arrays: Sequence[jax.Array], groups: Sequence[int], dtype: jnp.dtype
) -> list[_Stack]:
    """Large arrays as they are, the rest of each group joined and filled up."""
    matrices = []
    # What is split differently is not joined: types have more than shape and dtype.
    splits = [jax.typeof(array).manual_axis_type for array in arrays]
    loose: dict[tuple, list[jax.Array]] = {}
    for array, group, split in zip(arrays, groups, splits, strict=True):
        parts = loose.setdefault((group, split), [])
        flat = array.reshape(-1)
        whole = flat.size // ROW * ROW if flat.size >= SMALL else 0
        if whole:
            matrices.append((flat[:whole].reshape(-1, ROW), group))
        if whole < flat.size:
            parts.append(magnitude_key(flat[whole:], dtype))
    for (group, _), parts in loose.items():
        if parts:
            keys = _joined(parts)
            keys = jnp.pad(keys, (0, -keys.size % ROW), constant_values=-1)
            matrices.append((keys.reshape(-1, ROW), group))
    stacks: dict[Any, _Stack] = {}
    for matrix, group in sorted(matrices, key=lambda entry: -entry[0].size):
        stack = stacks.setdefault(jax.typeof(matrix), _Stack([], []))
        stack.matrices.append(matrix)
        stack.groups.append(group)
    return list(stacks.values())


def _joined(parts: list[jax.Array]) -> jax.Array:
    """Vectors as one, in steps that the compiler must not undo."""
    while len(parts) > JOINED:
        starts = range(0, len(parts), JOINED)
        parts = [jnp.concatenate(parts[i : i + JOINED]) for i in starts]
        parts = list(lax.optimization_barrier(parts))
    return jnp.concatenate(parts)


def _capacity(stacks: Sequence[_Stack], groups: int, shards: Shards) -> jax.Array:
    """How many keys of each group the summaries of its rows hold, mostly.

    Of ``m`` keys in ``r`` rows at random, ``m^4 / 24 r^3`` rows have more than three.
    """
    rows = np.zeros(groups)
    for stack in stacks:
        matrix = stack.matrices[0]
        np.add.at(rows, stack.groups, len(matrix) * shards.number(matrix))
    return jnp.asarray(np.maximum(0.7 * rows**0.75, CANDIDATES), jnp.float32)


# A pass.

_Candidates = list[tuple[jax.Array, list[int]]]


def _pass(
    stacks: Sequence[_Stack], probes: jax.Array, dtype: jnp.dtype, shards: Shards
) -> tuple[Count, _Candidates, jax.Array]:
    """Counts at the probes, the keys between the middle two, and whether all of them.

    Returns:
      Counts of shape ``(groups, 4)``, candidates and their groups stack by stack, and
      whether no row of a group had more of them than its summary holds.
    """
    # Or XLA would compute the keys before the loop, and store them.
    matrices, probes = lax.optimization_barrier(([s.matrices for s in stacks], probes))
    counts, candidates, fullest, members = [], [], [], []
    for stack, of_stack in zip(stacks, matrices, strict=True):
        summaries = _summaries(stack._replace(matrices=of_stack), probes, dtype)
        # What leaves a barrier may be typed as split like all that entered it.
        like = stack.matrices[0]
        count, number, keys = (
            shards.once(like, words, none)
            for words, none in zip(summaries, (0, 0, -1), strict=True)
        )
        counts.append(count)
        fullest.append(jnp.max(number, axis=1))
        candidates.append((keys, stack.groups))
        members += stack.groups
    total = Count.of(jnp.concatenate(counts)).total(members, len(probes))
    most = jnp.zeros(len(probes), jnp.int32)
    most = most.at[jnp.asarray(members)].max(jnp.concatenate(fullest))
    total, complete = shards.total_and_all(total, most <= CANDIDATES)
    return total, candidates, complete


def _summaries(
    stack: _Stack, probes: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each matrix: four counts, the number inside of each row, the keys inside."""
    branches = [lambda x=x: _keys(x, dtype) for x in stack.matrices]
    own_probes = probes[jnp.asarray(stack.groups)]
    if len(branches) == 1:  # nothing to copy
        words = _summarize_rows(branches[0](), own_probes[0])
        rows = [word[None] for word in words]
    else:
        rows = lax.map(
            lambda i: _summarize_rows(lax.switch(i, branches), own_probes[i]),
            jnp.arange(len(branches)),
        )
    outer, inner, top, bottom, total = rows
    words = [outer & 0xFFFF, inner & 0xFFFF, inner >> 16, outer >> 16]
    counts = _sums(*words)
    number = words[1] - words[2]
    inside = enumerate([top, bottom, total - top - bottom])
    keys = [jnp.where(number > i, keys, -1) for i, keys in inside]
    return counts, number, jnp.concatenate(keys, axis=1)


def _summarize_rows(keys: jax.Array, probes: jax.Array) -> tuple[jax.Array, ...]:
    """What there is to know of every row, in one read.

    Returns:
      Two words, each with the counts at two probes; of the keys in between the largest,
      the smallest, and the sum, which may have overflowed: so may the difference that
      brings back a third key.
    """
    reached = [keys >= probe for probe in probes]
    pairs = (reached[0], reached[3]), (reached[1], reached[2])
    outer, inner = (jnp.where(a, 1, 0) + jnp.where(b, 1 << 16, 0) for a, b in pairs)
    inside = reached[1] & ~reached[2]
    never = jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
    none, zero = jnp.asarray(-1, keys.dtype), jnp.asarray(0, keys.dtype)
    operands = outer, inner, *(jnp.where(inside, keys, x) for x in (none, never, zero))
    initial = np.int32(0), np.int32(0), none, never, zero
    return lax.reduce(operands, initial, _merge, (1,))


def _merge(a, b):
    """The summary of two parts of a row: no word depends on another one's.

    That is what lets a compiler vectorise it: the two largest keys, which would be
    more to the point than a sum, took eight times as long.
    """
    functions = lax.add, lax.add, lax.max, lax.min, lax.add
    return tuple(f(x, y) for f, x, y in zip(functions, a, b, strict=True))


def _finish(
    candidates: _Candidates,
    between: Bracket,
    found: jax.Array,
    skipped: Count,
    bracket: Bracket,
    shards: Shards,
) -> Bracket:
    """The last bracket of the groups that were found, from the keys in between."""
    inside = Bracket(
        between.low,
        jnp.where(found, between.high, between.low + 1),
        between.reach_low.minus(between.reach_high),
        between.reach_high.map(jnp.zeros_like),
    )

    def count(probes):
        counts = [_reached(keys, probes[jnp.asarray(g)]) for keys, g in candidates]
        members = [group for _, groups in candidates for group in groups]
        total = Count.of(jnp.concatenate(counts)).total(members, len(probes))
        return shards.total(total)

    # The keys that reach `high` are not among the candidates.
    last = _search.search(count, skipped.minus(between.reach_high), inside)
    last = last._replace(
        reach_low=last.reach_low.plus(between.reach_high),
        reach_high=last.reach_high.plus(between.reach_high),
    )
    return jax.tree.map(lambda a, b: jnp.where(found, a, b), last, bracket)


def _reached(keys: jax.Array, probes: jax.Array) -> jax.Array:
    """How many keys of each row reach each probe of that row, in one read."""
    return _sums(*(keys >= probe[:, None] for probe in probes.T))


def _sums(*matrices: jax.Array) -> jax.Array:
    """The sums of the rows of some matrices, side by side.

    XLA for CPU stores what a reduction of *one* operand reads before it splits it up;
    a reduction of several operands becomes one vectorised loop.
    """
    operands = tuple(matrix.astype(jnp.uint32) for matrix in matrices)
    initial = (np.uint32(0),) * len(operands)
    return jnp.stack(lax.reduce(operands, initial, _add, (1,)), axis=1)


def _add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


# The sample.


def _sampled_guess(
    stacks: Sequence[_Stack],
    sizes: Sequence[int],
    skipped: Count,
    dtype: jnp.dtype,
    shards: Shards,
) -> jax.Array:
    """Four probes from a strided sample: one deviation around the answer, and five.

    In a sample of ``n`` the rank of the answer has a standard deviation of about
    ``sqrt(n p (1 - p))``, with ``p`` the share above it. A sample of everything has
    none: the middle two probes are then the answer and the next key.
    """
    strides = _strides(sizes)
    sample, n = _sample(stacks, strides, dtype, shards)
    n = shards.sum(n)
    p = (skipped.as_float() + 0.5) / jnp.maximum(jnp.asarray(sizes, jnp.float32), 1)
    whole = jnp.asarray(strides) == 1
    deviation = jnp.where(whole, 0, jnp.sqrt(n * p * (1 - p)) + 0.5)
    ranks = jnp.concatenate([n * p + deviation, n * p - deviation])
    n, deviation = (jnp.concatenate([x, x]) for x in (n, deviation))
    twice = jnp.concatenate([sample, sample])
    ends = _search.search(
        lambda probes: shards.total(Count.of(_reached(twice, probes))),
        Count.of(jnp.clip(ranks, 0, jnp.maximum(n - 1, 0))),
        Bracket.around_all(Count.of(n), dtype),
        lambda bracket: bracket.open() & (bracket.inside() > deviation / 4),
    )
    second, third = ends.low[: len(sizes)], ends.high[len(sizes) :]
    most = infinity_key(dtype) + 1
    outer = jnp.minimum(third - second, most // 4) * 2  # must not overflow
    first = jnp.maximum(second - outer, 0)
    fourth = third + jnp.minimum(outer, most - third)
    return jnp.stack([first, second, third, fourth], axis=1)


def _strides(sizes: Sequence[int]) -> list[int]:
    """How far apart the keys are in the sample, for every group."""

    def stride(size):
        own = min(SAMPLE_OF_GROUP, size // STRIDE)
        return max(size // max(SAMPLE // len(sizes), own), 1)

    return [stride(size) for size in sizes]


def _sample(
    stacks: Sequence[_Stack],
    strides: Sequence[int],
    dtype: jnp.dtype,
    shards: Shards,
) -> tuple[jax.Array, jax.Array]:
    """Evenly spread keys, a row a group, and their number in each row.

    Rows are filled up with -1, which reaches no probe.
    """
    rows: list[list[jax.Array]] = [[jnp.zeros(0, key_dtype(dtype))] for _ in strides]
    for stack in stacks:
        for matrix, group in zip(stack.matrices, stack.groups, strict=True):
            flat = matrix.reshape(-1)[:: strides[group]]
            rows[group].append(shards.once(matrix, _keys(flat, dtype), -1))
    joined = [_joined(row) for row in rows]
    width = max(row.size for row in joined)
    filled = [jnp.pad(row, (0, width - row.size), constant_values=-1) for row in joined]
    sample = jnp.stack(filled)
    return sample, jnp.sum(sample >= 0, axis=1).astype(jnp.float32)
