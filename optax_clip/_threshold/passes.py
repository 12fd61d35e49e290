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

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip._threshold import sample
from optax_clip._threshold.bracket import Bracket, search
from optax_clip._threshold.counts import total
from optax_clip._threshold.keys import key_dtype
from optax_clip._threshold.rows import ROW, Stack, as_keys, row_sums, stack, whole_rows
from optax_clip._threshold.shards import Shards, number_of_shards

CANDIDATES = 3
"""How many keys of a row its summary holds."""

LANES = 8
"""How many rows of summaries of a single group are counted side by side."""


def find(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    sizes: Sequence[int],
    bracket: Bracket,
    dtype: jnp.dtype,
    restart: Callable[[Bracket], Bracket],
    shards: Shards,
) -> Bracket:
    """Returns the last bracket of every group.

    Args:
      arrays: floating-point arrays, or this device's shards of them.
      groups: the group of each.
      sizes: the number of coordinates of each group, on all devices together.
      bracket: that of all keys.
      dtype: the floating-point type that keys are made in.
      restart: see `bracket.search`.
      shards: the axes that each array is split over.
    """
    stacks = stack(arrays, groups, shards.split, dtype)
    apart = sample.strides(sizes)
    drawn = sample.draw(stacks, apart, dtype, shards)
    if max(apart) == 1:  # a small tree is its own sample
        return search(sample.counter([drawn], shards), bracket, restart=restart)
    capacity = _capacity(stacks, len(sizes))

    def advance(state):
        words, probes, turn = state
        bracket = Bracket(*words)
        # 1. Count at the probes, and take what is between the middle two.
        needed = bracket.open()
        counts, complete, candidates = _pass(stacks, probes, needed, dtype, shards)
        bracket = bracket.narrowed(probes, counts, needed)
        # 2. If the answer is there, and all of its neighbours are, finish.
        second, third = probes[:, 1], probes[:, 2]
        found = complete & (bracket.low == second) & (bracket.high == third)
        # The keys that reach the third are not among the candidates.
        last = search(
            lambda probes: candidates(probes) + counts[:, 2:3],
            bracket,
            lambda bracket: bracket.open() & found,
        )
        bracket = restart(last)
        # 3. Where to look next.
        return jnp.stack(bracket), _next_probes(bracket, capacity, turn), turn + 1

    probes = sample.first_probes(drawn, apart, sizes, bracket.skipped, dtype, shards)
    state = jnp.stack(bracket), probes, jnp.int32(0)
    last, *_ = lax.while_loop(lambda s: jnp.any(Bracket(*s[0]).open()), advance, state)
    return Bracket(*last)


def _next_probes(bracket: Bracket, capacity: jax.Array, turn: jax.Array) -> jax.Array:
    """Returns four keys a group: the answer should be between the middle two.

    They are as far apart as the keys between them may fill the summaries. The outer
    two bet on the neighbourhood; at every other turn they cut the bracket into thirds,
    so that it shrinks whatever the bets are worth.
    """
    low, high, inside = bracket.low, bracket.high, bracket.inside()
    quantile, deviation = bracket.quantile(), bracket.deviation()
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
        in_shards = of_stack.rows_of_each() * number_of_shards(of_stack.split)
        np.add.at(rows, of_stack.groups, in_shards)
    return jnp.asarray(np.maximum(0.7 * rows**0.75, CANDIDATES), jnp.float32)


def _pass(
    stacks: Sequence[Stack],
    probes: jax.Array,
    needed: jax.Array,
    dtype: jnp.dtype,
    shards: Shards,
) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
    """Reads everything once.

    Returns:
      Counts of shape ``(groups, 4)``, whether no row of a group had more keys between
      the middle two probes than its summary holds, and what counts among those keys.
    """
    probes = probes.astype(key_dtype(dtype))
    # What is read on several devices counts once: nothing is in words that are 0.
    summaries = [
        shards.once(x.split, _summaries(x, probes, needed, dtype), 0) for x in stacks
    ]
    members = [of_stack.groups for of_stack in stacks]
    if len(needed) == 1:  # compilers take time for every array
        words = jnp.concatenate([x.reshape(5, 1, -1) for x in summaries], axis=2)
        words = jnp.pad(words, ((0, 0), (0, 0), (0, -words.shape[2] % LANES)))
        summaries, members = [words.reshape(5, LANES, -1)], [[0] * LANES]
    groups = [*itertools.chain(*members)]

    def total_of(counts):
        return shards.sum(total(jnp.concatenate(counts), groups, len(needed)))

    def count(probes):
        probes = probes.astype(key_dtype(dtype))
        pairs = zip(summaries, members, strict=True)
        return total_of([_reached(x, probes[jnp.asarray(g)]) for x, g in pairs])

    counted = total_of([*map(_counts, summaries)])
    return counted[:, :4], counted[:, 4] == 0, count


def _counts(words: jax.Array) -> jax.Array:
    """Returns four counts of each group, and how many rows hold too many keys."""
    outer, inner = words[:2]
    reached = outer & 0xFFFF, inner & 0xFFFF, inner >> 16, outer >> 16
    return row_sums(*reached, _inside(words)[0] > CANDIDATES)


def _inside(words: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Returns how many keys were between the middle two probes, and three of them."""
    _, inner, top, bottom, sums = words
    return (inner & 0xFFFF) - (inner >> 16), [top, bottom, sums - top - bottom]


def _reached(words: jax.Array, probes: jax.Array) -> jax.Array:
    """Returns how many of the keys in summaries reach each probe of their group."""
    # Or XLA would compute the keys before the loop, and store them.
    words, probes = lax.optimization_barrier((words, probes))
    number, keys = _inside(words)
    none = jnp.asarray(-1, words.dtype)
    keys = [jnp.where(number > i, key, none) for i, key in enumerate(keys)]
    reached = [
        [(key >= probe[:, None]).astype(jnp.uint32) for key in keys]
        for probe in probes.T
    ]
    return row_sums(*(x + y + z for x, y, z in reached))


def _summaries(
    of_stack: Stack, probes: jax.Array, needed: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Returns five words for every row, shape ``(5, groups of the stack, rows)``.

    A matrix is not read if none of its groups is needed.
    """
    # Or XLA would compute the keys before the loop, and store them.
    vectors, probes = lax.optimization_barrier((of_stack.vectors, probes))
    # Keys of matrices: XLA for CPU has one thread for copies, and for vectors.
    matrices = [whole_rows(x).reshape(-1, ROW) for x in vectors]
    branches = [lambda x=x: as_keys(x, dtype) for x in matrices]
    number, shared = len(vectors), of_stack.groups_of_each()
    members = jnp.asarray(of_stack.groups).reshape(number, shared)
    # Split, says the type, as what is read.
    zero = as_keys(vectors[0][0], dtype) * 0 + probes[0, 0] * 0
    nothing = jnp.broadcast_to(zero, (5, 1, shared, of_stack.rows_of_each()))

    def summary(i):
        own = probes[members[i]]

        def read():
            # The switch copies one matrix into the cache; the rest reads it there.
            keys = lax.switch(i, branches).reshape(len(own), -1, ROW)
            return _summarize_rows(keys, own.T[:, :, None, None])[:, None]

        if len(needed) == 1:
            return read()
        return lax.cond(jnp.any(needed[members[i]]), read, lambda: nothing)

    def fill(i, words):
        return lax.dynamic_update_slice_in_dim(words, summary(i), i, 1)

    if number == 1:  # nothing to copy
        words = summary(0)
    else:
        words = lax.fori_loop(0, number, fill, jnp.repeat(nothing, number, axis=1))
    return words.reshape(5, number * shared, -1)


def _summarize_rows(keys: jax.Array, probes: jax.Array) -> jax.Array:
    """Returns what there is to know of every row, from one read, with four probes.

    Two words, each with the counts at two probes; of the keys in between the largest,
    the smallest, and the sum, which may have overflowed: so may the difference that
    brings back a third key.
    """
    reached = [keys >= probe for probe in probes]
    pairs = (reached[0], reached[3]), (reached[1], reached[2])
    outer, inner = (
        a.astype(keys.dtype) + b.astype(keys.dtype) * (1 << 16) for a, b in pairs
    )
    inside = reached[1] & ~reached[2]
    never = jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
    none, zero = jnp.asarray(-1, keys.dtype), jnp.asarray(0, keys.dtype)
    operands = outer, inner, *(jnp.where(inside, keys, x) for x in (none, never, zero))
    return jnp.stack(
        lax.reduce(operands, (zero, zero, none, never, zero), _merge, (2,))
    )


def _merge(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Returns the summary of two pieces of a row: no word depends on another one's.

    That is what lets a compiler vectorise it: the two largest keys, which would be
    more to the point than a sum, took eight times as long.
    """
    functions = lax.add, lax.add, lax.max, lax.min, lax.add
    return tuple(f(x, y) for f, x, y in zip(functions, a, b, strict=True))
