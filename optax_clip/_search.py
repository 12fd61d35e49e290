"""A search for order statistics that only ever asks how many keys reach a probe.

The answer of a group of keys is the largest key that more than ``skipped`` of them
reach. A :class:`Bracket` holds what is known of it; every count at a few *probes*
narrows it. Some probes are bets on where the answer is, the others make sure that the
bracket shrinks whatever the bets are worth: a bet that fails costs time, never the
answer, because a bracket only moves to a key that was counted on all of the data.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._keys import infinity_key, key_dtype
from optax_clip._ranks import Count

PROBES = 7
"""How many keys `search` counts at in one go: about what hides behind the memory."""

BETS = (-2.0, -0.5, 0.5, 2.0)
"""Where some of them are, in standard deviations from where the answer should be."""


class Bracket(NamedTuple):
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

    @classmethod
    def around_all(cls, sizes: Count, dtype: jnp.dtype) -> "Bracket":
        """All keys but NaN's, in groups of these sizes; 0 is that of an empty one."""
        low = jnp.zeros(sizes.low.shape, key_dtype(dtype))
        empty = (sizes.high == 0) & (sizes.low == 0)
        high = jnp.where(empty, 1, infinity_key(dtype) + 1).astype(low.dtype)
        return cls(low, high, sizes, sizes.map(jnp.zeros_like))

    def open(self) -> jax.Array:
        """Whether the answer is not known yet, shape ``(groups,)``."""
        return self.high - self.low > 1

    def inside(self) -> jax.Array:
        """How many keys are in ``[low, high)``; exact where it is small."""
        return self.reach_low.minus(self.reach_high).as_float()

    def share(self, skipped: Count) -> jax.Array:
        """Where the answer is if the keys inside are spread evenly, from 0 to 1."""
        below = self.reach_low.minus(skipped).as_float() - 0.5
        return jnp.clip(below / jnp.maximum(self.inside(), 1), 0, 1)

    def deviation(self, skipped: Count) -> jax.Array:
        """The standard deviation of that share, of keys spread evenly at random."""
        share = self.share(skipped)
        return jnp.sqrt(share * (1 - share) / jnp.maximum(self.inside(), 1))

    def key_at(self, share: jax.Array) -> jax.Array:
        """The key at a share of the width, with one more axis if that has one."""
        low, width = self.low, self.high - self.low
        if share.ndim > low.ndim:
            low, width = low[:, None], width[:, None]
        part = jnp.clip(share, 0, 1) * width.astype(jnp.float32)
        # The product may round to more than the width.
        return low + jnp.minimum(part.astype(low.dtype), width)

    def narrowed(self, probes: jax.Array, counts: Count, skipped: Count) -> "Bracket":
        """The bracket after the keys at these probes, in any order, were counted."""
        reached = counts.exceeds(skipped.map(lambda word: word[:, None]))
        lows = jnp.where(reached, probes, -1)
        lows = jnp.concatenate([lows, self.low[:, None]], axis=1)
        highs = jnp.where(reached, jnp.iinfo(probes.dtype).max, probes)
        highs = jnp.concatenate([highs, self.high[:, None]], axis=1)
        low = _at(jnp.argmax(lows, axis=1), lows, counts, self.reach_low)
        high = _at(jnp.argmin(highs, axis=1), highs, counts, self.reach_high)
        return Bracket(low[0], high[0], low[1], high[1])


def search(
    count: Callable[[jax.Array], Count],
    skipped: Count,
    bracket: Bracket,
    unfinished: Callable[[Bracket], jax.Array] = Bracket.open,
) -> Bracket:
    """Narrow a bracket until it holds nothing but the answer.

    Args:
      count: how many keys of each group reach each of its probes; both have shape
        ``(groups, PROBES)``.
      skipped: shape ``(groups,)``.
      bracket: what is known at first.
      unfinished: which groups to go on with; all stop when none is left.

    Returns:
      The bracket, with ``high == low + 1`` unless `unfinished` stopped earlier.
    """

    def refine(bracket):
        probes = next_probes(bracket, skipped)
        return bracket.narrowed(probes, count(probes), skipped)

    return lax.while_loop(lambda b: jnp.any(unfinished(b)), refine, bracket)


def next_probes(bracket: Bracket, skipped: Count) -> jax.Array:
    """Where to count next, shape ``(groups, PROBES)``.

    Three probes quarter the bracket, whatever is inside. Four bet on keys that are
    spread evenly.
    """
    low, high = bracket.low[:, None], bracket.high[:, None]
    deviation = bracket.deviation(skipped)[:, None]
    share = bracket.share(skipped)[:, None] + deviation * jnp.asarray(BETS)[None, :]
    bets = jnp.clip(bracket.key_at(share), low + 1, high - 1)
    quarters = _even(low, high - low, PROBES + 1 - len(BETS))
    # All keys inside, where there are so few.
    every = _even(low, high - low, PROBES + 1)
    spread = jnp.concatenate([quarters, bets], axis=1)
    return jnp.where(high - low <= PROBES + 1, every, spread)


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


def _even(low: jax.Array, width: jax.Array, parts: int) -> jax.Array:
    """The inner borders of so many even parts, or all keys inside if that is fewer."""
    part = jnp.arange(1, parts, dtype=low.dtype)[None, :]
    # Not `width * part // parts`, which overflows.
    return low + width // parts * part + width % parts * part // parts
