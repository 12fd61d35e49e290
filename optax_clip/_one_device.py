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

Compilers take seconds over a hundred copies of a pass, so matrices of one shape share
code: large ones go through a loop that first copies one into the cache, and small ones
are joined.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip import _search
from optax_clip._keys import infinity_key, magnitude_key
from optax_clip._ranks import Count
from optax_clip._search import Bracket
from optax_clip._shards import Shards

ROW = 512
"""How many keys make a row. Below 2^15, so that two counts fit into a word."""

SMALL = 2**14
"""Arrays with fewer coordinates are joined."""

JOINED = 128
"""So many arrays are joined at once: a compiler's time grows with their square..."""

IN_TURN = 64
"""...as with that of the matrices that go through one loop."""

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
    stacks = _stacks(arrays, groups, dtype)
    strides = _strides(sizes)
    sample = _sample(stacks, strides, dtype, shards)
    if max(strides) == 1:  # a small tree is its own sample
        return _search.search(_counter([sample], shards), skipped, bracket, unfinished)
    capacity = _capacity(stacks, len(sizes), shards)

    def advance(state):
        bracket, probes, turn = state
        needed = unfinished(bracket)
        counts, candidates, complete = _pass(stacks, probes, needed, dtype, shards)
        narrowed = bracket.narrowed(probes, counts, skipped)
        bracket = _where(needed, narrowed, bracket)
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

    probes = _sampled_guess(sample, strides, sizes, skipped, dtype, shards)
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
    # Keys are not as even as that, most of all where many are inside.
    outer = 4 * deviation + 1 / 16
    # With room for all, take all.
    reach = jnp.minimum(4 * deviation, capacity / 2 / jnp.maximum(inside, 1))
    reach = jnp.where(inside <= capacity, 1, reach)
    second = jnp.minimum(bracket.key_at(share - reach), high - 1)
    third = jnp.clip(bracket.key_at(share + reach) + 1, second + 1, high)
    cut = jnp.maximum((high - low) // 3, 1)
    bets = turn % 2 == 0
    first = jnp.where(bets, bracket.key_at(share - outer), low + cut)
    fourth = jnp.where(bets, bracket.key_at(share + outer) + 1, high - cut)
    return jnp.stack([first, second, third, fourth], axis=1)


def _where(chosen: jax.Array, bracket: Bracket, otherwise: Bracket) -> Bracket:
    """One bracket or the other of every group."""
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), bracket, otherwise)


# The data as matrices.


class _Stack(NamedTuple):
    """Matrices of one shape and type, and the groups of their rows.

    A matrix has as many rows of one of its groups as of another, first those of the
    first. Those of integers hold keys, -1 where there is none.
    """

    matrices: list[jax.Array]
    groups: list[int]

    def shared(self) -> int:
        """How many groups there are in each matrix."""
        return len(self.groups) // len(self.matrices)


class _Rows(NamedTuple):
    """A matrix of keys, and the group of each row."""

    keys: jax.Array
    groups: list[int]


def _keys(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    is_keys = jnp.issubdtype(array.dtype, jnp.integer)
    return array if is_keys else magnitude_key(array, dtype)


def _stacks(
    arrays: Sequence[jax.Array], groups: Sequence[int], dtype: jnp.dtype
) -> list[_Stack]:
    """Large arrays as they are; the rest of each group joined, and beside others'."""
    # What is split differently is not joined: types have more than shape and dtype.
    splits = [jax.typeof(array).manual_axis_type for array in arrays]
    matrices: list[tuple[jax.Array, list[int]]] = []
    loose: dict[tuple, list[jax.Array]] = {}
    for array, group, split in zip(arrays, groups, splits, strict=True):
        parts = loose.setdefault((group, split), [])
        flat = array.reshape(-1)
        whole = flat.size // ROW * ROW if flat.size >= SMALL else 0
        if whole:
            matrices.append((flat[:whole].reshape(-1, ROW), [group]))
        if whole < flat.size:
            parts.append(magnitude_key(flat[whole:], dtype))
    small: dict[Any, list[tuple[jax.Array, int]]] = {}
    for (group, _), parts in loose.items():
        for some in _batches(parts):
            keys = jnp.concatenate(some)
            keys = jnp.pad(keys, (0, -keys.size % ROW), constant_values=-1)
            if keys.size < SMALL:
                small.setdefault(jax.typeof(keys), []).append((keys, group))
            else:
                matrices.append((keys.reshape(-1, ROW), [group]))
    for rows in small.values():
        for some in _batches(rows):
            keys = jnp.concatenate([keys for keys, _ in some])
            matrices.append((keys.reshape(-1, ROW), [group for _, group in some]))
    stacks: dict[Any, list[_Stack]] = {}
    for matrix, members in sorted(matrices, key=lambda entry: -entry[0].size):
        alike = stacks.setdefault((jax.typeof(matrix), len(members)), [])
        if not alike or len(alike[-1].matrices) == IN_TURN:
            alike.append(_Stack([], []))
        alike[-1].matrices.append(matrix)
        alike[-1].groups.extend(members)
    return list(itertools.chain(*stacks.values()))


def _batches(items: list) -> list[list]:
    return [items[i : i + JOINED] for i in range(0, len(items), JOINED)]


def _capacity(stacks: Sequence[_Stack], groups: int, shards: Shards) -> jax.Array:
    """How many keys of each group the summaries of its rows hold, mostly.

    Of ``m`` keys in ``r`` rows at random, ``m^4 / 24 r^3`` rows have more than three.
    """
    rows = np.zeros(groups)
    for stack in stacks:
        matrix = stack.matrices[0]
        of_each = len(matrix) // stack.shared() * shards.number(matrix)
        np.add.at(rows, stack.groups, of_each)
    return jnp.asarray(np.maximum(0.7 * rows**0.75, CANDIDATES), jnp.float32)


# A pass.


def _pass(
    stacks: Sequence[_Stack],
    probes: jax.Array,
    needed: jax.Array,
    dtype: jnp.dtype,
    shards: Shards,
) -> tuple[Count, list[_Rows], jax.Array]:
    """Counts at the probes, the keys between the middle two, and whether all of them.

    Returns:
      Counts of shape ``(groups, 4)``, candidates and their groups stack by stack, and
      whether no row of a group had more of them than its summary holds.
    """
    # Or XLA would compute the keys before the loop, and store them.
    matrices, probes = lax.optimization_barrier(([s.matrices for s in stacks], probes))
    counts, candidates, fullest, members = [], [], [], []
    for stack, of_stack in zip(stacks, matrices, strict=True):
        stack_held = stack._replace(matrices=of_stack)
        summaries = _summaries(stack_held, probes, needed, dtype)
        # What leaves a barrier may be typed as split like all that entered it.
        like = stack.matrices[0]
        count, number, keys = (
            shards.once(like, words, none)
            for words, none in zip(summaries, (0, 0, -1), strict=True)
        )
        counts.append(count)
        fullest.append(jnp.max(number, axis=1))
        candidates.append(_Rows(keys, stack.groups))
        members += stack.groups
    total = Count.of(jnp.concatenate(counts)).total(members, len(probes))
    most = jnp.zeros(len(probes), jnp.int32)
    most = most.at[jnp.asarray(members)].max(jnp.concatenate(fullest))
    total, complete = shards.total_and_all(total, most <= CANDIDATES)
    return total, candidates, complete


def _summaries(
    stack: _Stack, probes: jax.Array, needed: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each group: four counts, the number inside of each row, the keys inside.

    A matrix is not read if none of its groups is needed.
    """
    branches = [lambda x=x: _keys(x, dtype) for x in stack.matrices]
    groups = jnp.asarray(stack.groups).reshape(len(branches), -1)
    own_probes, own_needs = probes[groups], jnp.any(needed[groups], axis=1)

    def summarize(keys, probes):
        keys = keys().reshape(stack.shared(), -1, ROW)
        return _summarize_rows(keys, probes.T[:, :, None, None])

    def nothing(probes):
        # Split, says the type, as what is read.
        zero = _keys(stack.matrices[0][:, 0], dtype) * 0 + probes[0, 0] * 0
        zero = zero.reshape(stack.shared(), -1)
        words = zero.astype(jnp.int32), zero.astype(jnp.int32)
        return (*words, zero, zero, zero)

    def summarize_if_needed(i, keys):
        if len(needed) == 1:
            return summarize(keys, own_probes[i])
        read = functools.partial(summarize, keys)
        return lax.cond(own_needs[i], read, nothing, own_probes[i])

    if len(branches) == 1:  # nothing to copy
        rows = summarize_if_needed(0, branches[0])
    else:
        rows = lax.map(
            lambda i: summarize_if_needed(i, lambda: lax.switch(i, branches)),
            jnp.arange(len(branches)),
        )
        rows = [words.reshape(len(stack.groups), -1) for words in rows]
    outer, inner, top, bottom, total = rows
    words = [outer & 0xFFFF, inner & 0xFFFF, inner >> 16, outer >> 16]
    counts = _sums(*words)
    number = words[1] - words[2]
    inside = enumerate([top, bottom, total - top - bottom])
    keys = [jnp.where(number > i, keys, -1) for i, keys in inside]
    return counts, number, jnp.concatenate(keys, axis=1)


def _summarize_rows(keys: jax.Array, probes: jax.Array) -> tuple[jax.Array, ...]:
    """What there is to know of every row, in one read, with four probes to each key.

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
    return lax.reduce(operands, initial, _merge, (keys.ndim - 1,))


def _merge(a, b):
    """The summary of two parts of a row: no word depends on another one's.

    That is what lets a compiler vectorise it: the two largest keys, which would be
    more to the point than a sum, took eight times as long.
    """
    functions = lax.add, lax.add, lax.max, lax.min, lax.add
    return tuple(f(x, y) for f, x, y in zip(functions, a, b, strict=True))


def _finish(
    candidates: list[_Rows],
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

    # The keys that reach `high` are not among the candidates.
    rest = skipped.minus(between.reach_high)
    last = _search.search(_counter(candidates, shards), rest, inside)
    last = last._replace(
        reach_low=last.reach_low.plus(between.reach_high),
        reach_high=last.reach_high.plus(between.reach_high),
    )
    return _where(found, last, bracket)


# What is searched in the cache.


def _counter(parts: Sequence[_Rows], shards: Shards) -> Callable[[jax.Array], Count]:
    """Probes of each group -> how many keys of that group reach them."""
    members = [group for _, groups in parts for group in groups]

    def count(probes):
        counts = [_reached(keys, probes[jnp.asarray(g)]) for keys, g in parts]
        total = Count.of(jnp.concatenate(counts)).total(members, len(probes))
        return shards.total(total)

    return count


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
    sample: _Rows,
    strides: Sequence[int],
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
    given = jnp.sum(sample.keys >= 0, axis=1, dtype=jnp.float32)
    n = jnp.zeros(len(sizes), jnp.float32).at[jnp.asarray(sample.groups)].add(given)
    n = shards.sum(n)
    p = (skipped.as_float() + 0.5) / jnp.maximum(jnp.asarray(sizes, jnp.float32), 1)
    whole = jnp.asarray(strides) == 1
    deviation = jnp.where(whole, 0, jnp.sqrt(n * p * (1 - p)) + 0.5)
    ranks = jnp.concatenate([n * p + deviation, n * p - deviation])
    n, deviation = (jnp.concatenate([x, x]) for x in (n, deviation))
    twice = _Rows(
        jnp.concatenate([sample.keys, sample.keys]),
        [*sample.groups, *(group + len(sizes) for group in sample.groups)],
    )
    ends = _search.search(
        _counter([twice], shards),
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
) -> _Rows:
    """Evenly spread keys of every group; -1, which reaches no probe, for none."""
    parts = []
    for stack in stacks:
        stride = min(strides[group] for group in stack.groups)
        spread = [_spread(matrix, stack.shared(), stride) for matrix in stack.matrices]
        keys = _keys(jnp.concatenate(spread), dtype)
        keys = shards.once(stack.matrices[0], keys, -1)
        # Side by side, or one below the other: compilers take time for every part.
        parts.append(keys.reshape(1, -1) if len(strides) == 1 else keys)
    if len(strides) == 1:
        return _Rows(jnp.concatenate(parts, axis=1), [0])
    width = max(part.shape[1] for part in parts)
    filled = [
        jnp.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1)
        for part in parts
    ]
    return _Rows(
        jnp.concatenate(filled), [group for stack in stacks for group in stack.groups]
    )


def _spread(matrix: jax.Array, groups: int, stride: int) -> jax.Array:
    """About every so-many-th number of each group; every one if that is 1.

    Rows first: on TPU all rows that are left are copied into another layout.
    """
    rows_apart = min(max(stride // STRIDE, 1), 16)
    matrix = matrix.reshape(groups, -1, ROW)[:, ::rows_apart]
    # Odd, or it would be the same columns of every row.
    stride = stride // rows_apart | 1
    if groups == 1:  # a vector, or XLA for TPU may run out of memory
        return matrix.reshape(-1)[::stride].reshape(1, -1)
    return matrix.reshape(groups, -1)[:, ::stride]
