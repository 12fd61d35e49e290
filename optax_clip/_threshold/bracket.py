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
...     sizes, skipped = jnp.array([[4], [1]])   # the second largest
...     last = search(count, Bracket.around_all(sizes, skipped, jnp.dtype("float32")))
>>> int(last.low[0]), int(last.high[0])
(7, 8)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._threshold.counts import rank
from optax_clip._threshold.keys import infinity_key

PROBES = 7
"""How many keys `search` counts at in one go: about what hides behind the memory."""

BETS = (-2.0, -0.5, 0.5, 2.0)
"""Where some of them are, in standard deviations from where the answer should be."""


class Bracket(NamedTuple):
    """What is known of every group's answer: ``low <= answer < high``.

    All are int64 of shape ``(groups,)``, so that they can be one array: compilers take
    time for every one that a loop carries.

    Attributes:
      low: the largest key known to be reached by enough keys.
      high: the smallest key known not to be, or that of NaN.
      reach_low: how many keys reach ``low``.
      reach_high: how many keys reach ``high``.
      skipped: how many keys are larger than the answer, at most.
    """

    low: jax.Array
    high: jax.Array
    reach_low: jax.Array
    reach_high: jax.Array
    skipped: jax.Array

    @classmethod
    def around_all(
        cls, sizes: jax.Array, skipped: jax.Array, dtype: jnp.dtype
    ) -> "Bracket":
        """Returns that of all keys but NaN's; 0 is the answer of an empty group."""
        zero = jnp.zeros_like(sizes)
        high = jnp.where(sizes == 0, 1, infinity_key(dtype) + 1)
        return cls(zero, high, sizes, zero, skipped)

    def open(self) -> jax.Array:
        """Returns whether the answer is not known yet, shape ``(groups,)``."""
        return self.high - self.low > 1

    def inside(self) -> jax.Array:
        """Returns how many keys are in ``[low, high)``, rounded to float32."""
        return (self.reach_low - self.reach_high).astype(jnp.float32)

    def quantile(self) -> jax.Array:
        """Returns where the answer is if the keys are spread evenly, from 0 to 1."""
        below = (self.reach_low - self.skipped).astype(jnp.float32) - 0.5
        return jnp.clip(below / jnp.maximum(self.inside(), 1), 0, 1)

    def deviation(self) -> jax.Array:
        """Returns the standard deviation of that quantile, of keys at random."""
        quantile = self.quantile()
        return jnp.sqrt(quantile * (1 - quantile) / jnp.maximum(self.inside(), 1))

    def key_at(self, quantile: jax.Array) -> jax.Array:
        """Returns the key at a fraction of the width."""
        width = self.high - self.low
        distance = jnp.clip(quantile, 0, 1) * width.astype(jnp.float32)
        # The product may round to more than the width.
        return self.low + jnp.minimum(distance.astype(jnp.int64), width)

    def narrowed(
        self, probes: jax.Array, counts: jax.Array, groups: jax.Array
    ) -> "Bracket":
        """Returns what is known once keys were counted, of the chosen groups."""
        low, high, reach_low, reach_high, skipped = (x[:, None] for x in self)
        # What NaN alone reaches is known not to be the answer.
        new = groups[:, None] & (probes < high)
        up, down = new & (counts > skipped), new & (counts <= skipped)
        return Bracket(
            jnp.max(jnp.where(up, probes, low), axis=1),
            jnp.min(jnp.where(down, probes, high), axis=1),
            jnp.min(jnp.where(up, counts, reach_low), axis=1),
            jnp.max(jnp.where(down, counts, reach_high), axis=1),
            self.skipped,
        )

    def without_zeros(self, fraction: jax.Array | float, dtype: jnp.dtype) -> "Bracket":
        """Begins again among the non-zero keys where the answer turned out to be 0.

        A threshold of 0 would stop all training where most coordinates are exactly 0.
        Then they do not count: ``fraction`` is one of the others, whose number
        ``reach_high`` is known now. Groups of zeros alone keep their answer.
        """
        again = (self.high == 1) & (self.low == 0) & (self.reach_high > 0)
        skipped = jnp.asarray(rank(fraction, self.reach_high), jnp.int64)
        others = self.around_all(self.reach_high, skipped, dtype)
        others = others._replace(low=jnp.ones_like(self.low))
        return Bracket(
            *(jnp.where(again, *pair) for pair in zip(others, self, strict=True))
        )


def search(
    count: Callable[[jax.Array], jax.Array],
    bracket: Bracket,
    unfinished: Callable[[Bracket], jax.Array] = Bracket.open,
    restart: Callable[[Bracket], Bracket] = lambda bracket: bracket,
    choose: Callable[[Bracket], jax.Array] | None = None,
) -> Bracket:
    """Narrows a bracket until it holds nothing but the answer.

    Args:
      count: returns how many keys of each group reach each of its probes; both have
        shape ``(groups, probes)``.
      bracket: what is known at first.
      unfinished: which groups to go on with.
      restart: what may reopen a bracket that was closed: `Bracket.without_zeros`.
      choose: returns where to count next; None for even intervals.

    Returns:
      The bracket, with ``high == low + 1`` unless `unfinished` stopped earlier.
    """

    def refine(words):
        bracket = Bracket(*words)
        probes = (choose or even_probes)(bracket)
        bracket = bracket.narrowed(probes, count(probes), unfinished(bracket))
        return jnp.stack(restart(bracket))

    def goes_on(words):
        return jnp.any(unfinished(Bracket(*words)))

    return Bracket(*lax.while_loop(goes_on, refine, jnp.stack(bracket)))


def even_probes(bracket: Bracket, number: int = PROBES) -> jax.Array:
    """Returns the inner borders of even intervals, or all keys inside if fewer."""
    low, width = bracket.low[:, None], (bracket.high - bracket.low)[:, None]
    i, intervals = jnp.arange(1, number + 1, dtype=jnp.int64)[None, :], number + 1
    # Not `width * i // intervals`, which overflows.
    return low + width // intervals * i + width % intervals * i // intervals


def bets(bracket: Bracket) -> jax.Array:
    """Returns probes for counts of everything, which are dear.

    Three of them quarter the bracket, whatever is inside. Four bet on keys that are
    spread evenly.
    """
    quantile, deviation = bracket.quantile(), bracket.deviation()
    keys = [bracket.key_at(quantile + deviation * bet) for bet in BETS]
    least, most = bracket.low[:, None] + 1, bracket.high[:, None] - 1
    near = jnp.clip(jnp.stack(keys, axis=1), least, most)
    every = even_probes(bracket)
    spread = jnp.concatenate([even_probes(bracket, PROBES - len(BETS)), near], axis=1)
    few = bracket.high - bracket.low <= PROBES + 1
    return jnp.where(few[:, None], every, spread)
