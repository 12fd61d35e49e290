"""A search for order statistics that only ever asks how many keys reach a probe.

The answer of a group of keys is the largest key that more than ``skipped`` of them
reach. A :class:`Bracket` holds what is known of it; every count at a few *probes*
narrows it. Some probes are bets on where the answer is, the others make sure that the
bracket shrinks whatever the bets are worth: a bet that fails costs time, never the
answer, because a bracket only moves to a key that was counted on all of the data.

>>> import jax.numpy as jnp
>>> from optax_clip._threshold.bracket import Bracket, search
>>> from optax_clip._threshold.counts import wide
>>> keys = jnp.array([3, 9, 4, 7])
>>> def count(probes):   # of one group
...     return jnp.sum(keys >= probes[0][:, None], axis=1)[None]
>>> with wide():
...     start = Bracket.around_all(jnp.array([4]), jnp.dtype("float32"))
...     last = search(count, jnp.array([1]), start)   # the second largest
>>> int(last.low[0]), int(last.high[0])
(7, 8)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._threshold.counts import rank
from optax_clip._threshold.keys import infinity_key, key_dtype

PROBES = 7
"""How many keys `search` counts at in one go: about what hides behind the memory."""

BETS = (-2.0, -0.5, 0.5, 2.0)
"""Where some of them are, in standard deviations from where the answer should be."""


class Bracket(NamedTuple):
    """What is known of every group's answer: ``low <= answer < high``.

    Attributes:
      low: the largest key known to be reached by enough keys, shape ``(groups,)``.
      high: the smallest key known not to be.
      reach_low: how many keys reach ``low``, int64.
      reach_high: how many keys reach ``high``.
    """

    low: jax.Array
    high: jax.Array
    reach_low: jax.Array
    reach_high: jax.Array

    @classmethod
    def around_all(cls, sizes: jax.Array, dtype: jnp.dtype) -> "Bracket":
        """Returns that of all keys but NaN's; 0 is the answer of an empty group."""
        low = jnp.zeros(sizes.shape, key_dtype(dtype))
        high = jnp.where(sizes == 0, 1, infinity_key(dtype) + 1).astype(low.dtype)
        return cls(low, high, sizes, jnp.zeros_like(sizes))

    def open(self) -> jax.Array:
        """Returns whether the answer is not known yet, shape ``(groups,)``."""
        return self.high - self.low > 1

    def inside(self) -> jax.Array:
        """Returns how many keys are in ``[low, high)``, rounded to float32."""
        return (self.reach_low - self.reach_high).astype(jnp.float32)

    def quantile(self, skipped: jax.Array) -> jax.Array:
        """Returns where the answer is if the keys are spread evenly, from 0 to 1."""
        below = (self.reach_low - skipped).astype(jnp.float32) - 0.5
        return jnp.clip(below / jnp.maximum(self.inside(), 1), 0, 1)

    def deviation(self, skipped: jax.Array) -> jax.Array:
        """Returns the standard deviation of that quantile, of keys at random."""
        quantile = self.quantile(skipped)
        return jnp.sqrt(quantile * (1 - quantile) / jnp.maximum(self.inside(), 1))

    def key_at(self, quantile: jax.Array) -> jax.Array:
        """Returns the key at a fraction of the width; both may have a further axis."""
        low, width = self.low, self.high - self.low
        if quantile.ndim > low.ndim:
            low, width = low[:, None], width[:, None]
        distance = jnp.clip(quantile, 0, 1) * width.astype(jnp.float32)
        # The product may round to more than the width.
        return low + jnp.minimum(distance.astype(low.dtype), width)

    def narrowed(
        self, probes: jax.Array, counts: jax.Array, skipped: jax.Array
    ) -> "Bracket":
        """Returns what is known once the keys at these probes were counted."""
        reached = counts > skipped[:, None]
        lows = jnp.where(reached, probes, jnp.asarray(-1, probes.dtype))
        never = jnp.asarray(jnp.iinfo(probes.dtype).max, probes.dtype)
        highs = jnp.where(reached, never, probes)
        low = _best(lax.argmax, lows, counts, self.low, self.reach_low)
        high = _best(lax.argmin, highs, counts, self.high, self.reach_high)
        return Bracket(low[0], high[0], low[1], high[1])

    def where(self, chosen: jax.Array, otherwise: "Bracket") -> "Bracket":
        """Returns this bracket for the chosen groups, and another one for the rest."""
        return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), self, otherwise)

    def without_zeros(
        self, skipped: jax.Array, fraction: jax.Array | float, dtype: jnp.dtype
    ) -> tuple["Bracket", jax.Array]:
        """Begins again among the non-zero keys where the answer turned out to be 0.

        A threshold of 0 would stop all training where most coordinates are exactly 0.
        Then they do not count: ``fraction`` is one of the others, whose number
        ``reach_high`` is known now. Groups of zeros alone keep their answer.
        """
        again = (self.high == 1) & (self.low == 0) & (self.reach_high > 0)
        others = Bracket(
            low=jnp.ones_like(self.low),
            high=jnp.full_like(self.high, infinity_key(dtype) + 1),
            reach_low=self.reach_high,
            reach_high=jnp.zeros_like(self.reach_high),
        )
        of_others = jnp.asarray(rank(fraction, self.reach_high), jnp.int64)
        return others.where(again, self), jnp.where(again, of_others, skipped)


Restart = Callable[[Bracket, jax.Array], tuple[Bracket, jax.Array]]


def search(
    count: Callable[[jax.Array], jax.Array],
    skipped: jax.Array,
    bracket: Bracket,
    unfinished: Callable[[Bracket], jax.Array] = Bracket.open,
    restart: Restart | None = None,
) -> Bracket:
    """Narrows a bracket until it holds nothing but the answer.

    Args:
      count: returns how many keys of each group reach each of its probes; both have
        shape ``(groups, PROBES)``.
      skipped: how many keys are larger than the answer, at most, shape ``(groups,)``.
      bracket: what is known at first.
      unfinished: which groups to go on with; all stop when none is left.
      restart: what may reopen a bracket that was closed: `Bracket.without_zeros`.

    Returns:
      The bracket, with ``high == low + 1`` unless `unfinished` stopped earlier.
    """

    def refine(state):
        bracket, skipped = state
        probes = next_probes(bracket, skipped)
        bracket = bracket.narrowed(probes, count(probes), skipped)
        return (bracket, skipped) if restart is None else restart(bracket, skipped)

    state = bracket, skipped
    return lax.while_loop(lambda s: jnp.any(unfinished(s[0])), refine, state)[0]


def next_probes(bracket: Bracket, skipped: jax.Array) -> jax.Array:
    """Returns where to count next, shape ``(groups, PROBES)``.

    Three probes quarter the bracket, whatever is inside. Four bet on keys that are
    spread evenly.
    """
    low, high = bracket.low[:, None], bracket.high[:, None]
    deviation = bracket.deviation(skipped)[:, None]
    bets = jnp.asarray(BETS, jnp.float32)[None, :]
    quantile = bracket.quantile(skipped)[:, None] + deviation * bets
    bets = jnp.clip(bracket.key_at(quantile), low + 1, high - 1)
    quarters = _even(low, high - low, PROBES + 1 - len(BETS))
    # All keys inside, where there are so few.
    every = _even(low, high - low, PROBES + 1)
    spread = jnp.concatenate([quarters, bets], axis=1)
    return jnp.where(high - low <= PROBES + 1, every, spread)


def _best(
    select: Callable[..., jax.Array],
    probes: jax.Array,
    counts: jax.Array,
    end: jax.Array,
    count_at_end: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the selected one of the probes and the present end, with its count."""
    probes = jnp.concatenate([probes, end[:, None]], axis=1)
    counts = jnp.concatenate([counts, count_at_end[:, None]], axis=1)
    column = select(probes, 1, jnp.int32)[:, None]
    best = (jnp.take_along_axis(x, column, axis=1)[:, 0] for x in (probes, counts))
    return next(best), next(best)


def _even(low: jax.Array, width: jax.Array, intervals: int) -> jax.Array:
    """Returns the inner borders of even intervals, or all keys inside if fewer."""
    i = jnp.arange(1, intervals, dtype=low.dtype)[None, :]
    # Not `width * i // intervals`, which overflows.
    return low + width // intervals * i + width % intervals * i // intervals
