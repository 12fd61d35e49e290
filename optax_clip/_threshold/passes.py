"""The search on each device, with its shards of the arrays.

A sample to begin with, and two passes over the data, mostly:

.. code-block:: text

  sample   every so-many-th key      where the answer is, give or take its error
  pass 1   count at four probes      a bracket with some thousandths of the keys
  pass 2   count at four probes, and take the keys between the middle two
  finish   search among those few

A pass reduces every row to a summary: two words of counts, and the largest, the
smallest and the sum of the keys between the middle probes. Unless a row has more than
three of them, that is all of them, and the answer is among them; otherwise the next
pass finds a narrower bracket.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip._threshold import sample
from optax_clip._threshold.bracket import Bracket, Restart, search
from optax_clip._threshold.counts import total
from optax_clip._threshold.rows import ROW, Rows, Stack, as_keys, row_sums, stack
from optax_clip._threshold.shards import Shards, number_of_shards

CANDIDATES = 3
"""How many keys of a row its summary holds."""


def find(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    sizes: Sequence[int],
    skipped: jax.Array,
    dtype: jnp.dtype,
    restart: Restart,
    shards: Shards,
) -> Bracket:
    """Returns the last bracket of every group.

    Args:
      arrays: floating-point arrays, or this device's shards of them.
      groups: the group of each.
      sizes: the number of coordinates of each group, on all devices together.
      skipped: how many keys of each group are above its answer, at most.
      dtype: the floating-point type that keys are made in.
      restart: see `bracket.search`.
      shards: the axes that each array is split over.
    """
    stacks = stack(arrays, groups, shards.split, dtype)
    apart = sample.strides(sizes)
    drawn = sample.draw(stacks, apart, dtype, shards)
    bracket = Bracket.around_all(jnp.asarray(sizes, jnp.int64), dtype)
    if max(apart) == 1:  # a small tree is its own sample
        count = sample.counter([drawn], shards)
        return search(count, skipped, bracket, restart=restart)
    capacity = _capacity(stacks, len(sizes))

    def advance(state):
        bracket, skipped, probes, turn = state
        needed = bracket.open()
        # 1. Count at the probes, and take what is between the middle two.
        counts, candidates, complete = _pass(stacks, probes, needed, dtype, shards)
        narrowed = bracket.narrowed(probes, counts, skipped)
        bracket = narrowed.where(needed, bracket)
        # 2. If the answer is there, and all of its neighbours are, finish.
        reached = counts > skipped[:, None]
        between = Bracket(*probes[:, 1:3].T, *counts[:, 1:3].T)
        found = reached[:, 1] & ~reached[:, 2] & complete & bracket.open()
        bracket = lax.cond(
            jnp.any(found),
            lambda: _finish(candidates, between, found, skipped, bracket, shards),
            lambda: bracket,
        )
        bracket, skipped = restart(bracket, skipped)
        # 3. Where to look next.
        probes = _next_probes(bracket, skipped, capacity, turn)
        return bracket, skipped, probes, turn + 1

    probes = sample.first_probes(drawn, apart, sizes, skipped, dtype, shards)
    state = bracket, skipped, probes, jnp.int32(0)
    return lax.while_loop(lambda s: jnp.any(s[0].open()), advance, state)[0]


def _next_probes(
    bracket: Bracket, skipped: jax.Array, capacity: jax.Array, turn: jax.Array
) -> jax.Array:
    """Returns four keys a group: the answer should be between the middle two.

    They are as far apart as the keys between them may fill the summaries. The outer
    two bet on the neighbourhood; at every other turn they cut the bracket into thirds,
    so that it shrinks whatever the bets are worth.
    """
    low, high, inside = bracket.low, bracket.high, bracket.inside()
    quantile, deviation = bracket.quantile(skipped), bracket.deviation(skipped)
    # Keys are not as even as that, most of all where many are inside.
    outer = 4 * deviation + 1 / 16
    # With room for all, take all.
    reach = jnp.minimum(4 * deviation, capacity / 2 / jnp.maximum(inside, 1))
    reach = jnp.where(inside <= capacity, 1, reach)
    second = jnp.minimum(bracket.key_at(quantile - reach), high - 1)
    third = jnp.clip(bracket.key_at(quantile + reach) + 1, second + 1, high)
    cut = jnp.maximum((high - low) // 3, 1)
    bets = turn % 2 == 0
    first = jnp.where(bets, bracket.key_at(quantile - outer), low + cut)
    fourth = jnp.where(bets, bracket.key_at(quantile + outer) + 1, high - cut)
    return jnp.stack([first, second, third, fourth], axis=1)


def _capacity(stacks: Sequence[Stack], groups: int) -> jax.Array:
    """Returns how many keys of each group the summaries of its rows hold, mostly.

    Of ``m`` keys in ``r`` rows at random, ``m^4 / 24 r^3`` rows have more than three.
    """
    rows = np.zeros(groups)
    for of_stack in stacks:
        in_shard = len(of_stack.matrices[0]) // of_stack.groups_of_each()
        np.add.at(rows, of_stack.groups, in_shard * number_of_shards(of_stack.split))
    return jnp.asarray(np.maximum(0.7 * rows**0.75, CANDIDATES), jnp.float32)


def _pass(
    stacks: Sequence[Stack],
    probes: jax.Array,
    needed: jax.Array,
    dtype: jnp.dtype,
    shards: Shards,
) -> tuple[jax.Array, list[Rows], jax.Array]:
    """Reads everything once.

    Returns:
      Counts of shape ``(groups, 4)``, the keys between the middle two probes, stack by
      stack, and whether no row of a group had more of them than its summary holds.
    """
    # Or XLA would compute the keys before the loop, and store them.
    matrices, probes = lax.optimization_barrier(([s.matrices for s in stacks], probes))
    counts, candidates, fullest, members = [], [], [], []
    for of_stack, held in zip(stacks, matrices, strict=True):
        summaries = _summaries(of_stack._replace(matrices=held), probes, needed, dtype)
        # What leaves a barrier may be typed as split like all that entered it.
        count, number, keys = (
            shards.once(of_stack.split, words, none)
            for words, none in zip(summaries, (0, 0, -1), strict=True)
        )
        counts.append(count)
        fullest.append(jnp.max(number, axis=1))
        candidates.append(Rows(keys, of_stack.groups))
        members += of_stack.groups
    counted = total(jnp.concatenate(counts), members, len(probes))
    most = jnp.zeros(len(probes), jnp.int32)
    most = most.at[jnp.asarray(members)].max(jnp.concatenate(fullest))
    overflows = (most > CANDIDATES).astype(jnp.int64)
    counted, overflows = shards.sum((counted, overflows))
    return counted, candidates, overflows == 0


def _summaries(
    of_stack: Stack, probes: jax.Array, needed: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns, of each group, four counts, the number inside of each row, the keys.

    A matrix is not read if none of its groups is needed.
    """
    branches = [lambda x=x: as_keys(x, dtype) for x in of_stack.matrices]
    shared = of_stack.groups_of_each()
    groups = jnp.asarray(of_stack.groups).reshape(len(branches), -1)
    own_probes, own_needs = probes[groups], jnp.any(needed[groups], axis=1)

    def summarize(keys, probes):
        keys = keys().reshape(shared, -1, ROW)
        return _summarize_rows(keys, probes.T[:, :, None, None])

    def nothing(probes):
        # Split, says the type, as what is read.
        zero = as_keys(of_stack.matrices[0][:, 0], dtype) * 0 + probes[0, 0] * 0
        zero = zero.reshape(shared, -1)
        words = zero.astype(jnp.int32), zero.astype(jnp.int32)
        return (*words, zero, zero, zero)

    def summarize_if_needed(i, keys):
        if len(needed) == 1:
            return summarize(keys, own_probes[i])
        read = functools.partial(summarize, keys)
        return lax.cond(own_needs[i], read, nothing, own_probes[i])

    if len(branches) == 1:  # nothing to copy
        words = summarize_if_needed(0, branches[0])
    else:
        # The switch copies one matrix into the cache; the rest reads it there.
        words = lax.map(
            lambda i: summarize_if_needed(i, lambda: lax.switch(i, branches)),
            jnp.arange(len(branches), dtype=jnp.int32),
        )
        words = [word.reshape(len(of_stack.groups), -1) for word in words]
    outer, inner, top, bottom, sums = words
    counts = [outer & 0xFFFF, inner & 0xFFFF, inner >> 16, outer >> 16]
    number = counts[1] - counts[2]
    inside = enumerate([top, bottom, sums - top - bottom])
    none = jnp.asarray(-1, top.dtype)
    keys = [jnp.where(number > i, keys, none) for i, keys in inside]
    return row_sums(*counts), number, jnp.concatenate(keys, axis=1)


def _summarize_rows(keys: jax.Array, probes: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what there is to know of every row, from one read, with four probes.

    Two words, each with the counts at two probes; of the keys in between the largest,
    the smallest, and the sum, which may have overflowed: so may the difference that
    brings back a third key.
    """
    reached = [keys >= probe for probe in probes]
    pairs = (reached[0], reached[3]), (reached[1], reached[2])
    outer, inner = (
        a.astype(jnp.int32) + b.astype(jnp.int32) * (1 << 16) for a, b in pairs
    )
    inside = reached[1] & ~reached[2]
    never = jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
    none, zero = jnp.asarray(-1, keys.dtype), jnp.asarray(0, keys.dtype)
    operands = outer, inner, *(jnp.where(inside, keys, x) for x in (none, never, zero))
    initial = jnp.int32(0), jnp.int32(0), none, never, zero
    return lax.reduce(operands, initial, _merge, (keys.ndim - 1,))


def _merge(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Returns the summary of two pieces of a row: no word depends on another one's.

    That is what lets a compiler vectorise it: the two largest keys, which would be
    more to the point than a sum, took eight times as long.
    """
    functions = lax.add, lax.add, lax.max, lax.min, lax.add
    return tuple(f(x, y) for f, x, y in zip(functions, a, b, strict=True))


def _finish(
    candidates: list[Rows],
    between: Bracket,
    found: jax.Array,
    skipped: jax.Array,
    bracket: Bracket,
    shards: Shards,
) -> Bracket:
    """Returns the last bracket of the groups that were found, from the keys between."""
    inside = Bracket(
        between.low,
        jnp.where(found, between.high, between.low + 1),
        between.reach_low - between.reach_high,
        jnp.zeros_like(between.reach_high),
    )
    # The keys that reach `high` are not among the candidates.
    rest = skipped - between.reach_high
    last = search(sample.counter(candidates, shards), rest, inside)
    last = last._replace(
        reach_low=last.reach_low + between.reach_high,
        reach_high=last.reach_high + between.reach_high,
    )
    return last.where(found, bracket)
