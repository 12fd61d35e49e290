"""How far to go along a direction, found by forward passes alone.

Both searches walk in factors of two until the loss turns, then narrow the bracket: by
golden sections around the lowest loss, by halves around the first that is not lower.
They run in compiled loops, one evaluation in memory at a time. From x = 3, the loss
x^2 / 2 is lowest after one gradient step, and back at its start after two:

>>> import jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> problem = (lambda x: 0.5 * x**2, jnp.array(3.0), jnp.array(-3.0))
>>> lowest = diagnostics.minimize_along(*problem, tolerance=1e-3)
>>> critical = diagnostics.critical_sharpness(*problem, tolerance=1e-3)
>>> round(float(lowest.step), 2), round(float(critical.multiple), 2)
(3.0, 2.0)
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import ForwardOptions, Loss, Problem, state_problem

GOLDEN = (5**0.5 - 1) / 2
SMALLEST = 2.0**-20
"""Relative to the first step. Below, rounding decides whether a loss is lower."""


class LineMinimum(NamedTuple):
    """The lowest loss found along a direction.

    Attributes:
      step: its distance along u / ||u||; 0 if no step above 2^-20 of the first one
        lowers the loss.
      loss: the loss there.
      decrease: L(0) minus that loss.
      evaluations: how many forward passes this took.

    Examples:
      Uphill no step lowers the loss, so the lowest one is where it starts.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> uphill = (lambda x: x**2, jnp.array(2.0), jnp.array(1.0))
      >>> up = diagnostics.minimize_along(*uphill)
      >>> float(up.step), float(up.loss), float(up.decrease)
      (0.0, 4.0, 0.0)
    """

    step: jax.Array
    loss: jax.Array
    decrease: jax.Array
    evaluations: jax.Array


def minimize_along(
    loss: Loss, params: Any, direction: Any, *args: Any,
    first: jax.typing.ArrayLike | None = None, tolerance: jax.typing.ArrayLike = 1e-2,
    max_evaluations: int = 64, **options: Unpack[ForwardOptions],
) -> Any:  # fmt: skip
    r"""Finds the distance along a direction at which the loss is lowest.

    It doubles (or halves) a first step until the loss turns upwards again, then narrows
    the bracket by golden sections.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: likewise; a pytree like `params` or a mapping of names to such pytrees.
      *args: likewise; the batch.
      first: distance of the first step; by default ||u||, the step itself.
      tolerance: width of the last bracket relative to the step.
      max_evaluations: the largest number of forward passes.
      **options: see :class:`ForwardOptions`.

    Returns:
      A :class:`LineMinimum`, or a dictionary of them for a mapping.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: likewise; also if there is nothing to evaluate.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> lowest = diagnostics.minimize_along(
      ...     lambda x: 0.5 * (x - 3) ** 2, jnp.array(0.0), jnp.array(1.0))
      >>> round(float(lowest.step), 1), round(float(lowest.decrease), 2)
      (3.0, 4.5)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, appendix A.3.
    """
    _checks.check_count("max_evaluations", max_evaluations)
    _checks.check_positive("tolerance", tolerance)
    if first is not None:
        _checks.check_positive("first", first)
    problem = state_problem(loss, params, args, options, direction)
    return problem.by_name(problem.run(_minima, first, tolerance, max_evaluations))


class CriticalSharpness(NamedTuple):
    """Where a direction stops to lower the loss.

    Attributes:
      lower: the largest multiple of u known to lower the loss; 0 if none above 2^-20 of
        the first one does.
      upper: the smallest multiple known not to lower it; 0 if none was found.
      evaluations: how many forward passes this took.

    Examples:
      At x = 3 the loss 2 x^2 has the gradient 12. The update u = -g / 4 leads to its
      minimum, 2 u to x = -3 with the same loss again: the learning rate may double.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> found = diagnostics.critical_sharpness(
      ...     lambda x: 2 * x**2, jnp.array(3.0), jnp.array(-3.0), tolerance=1e-4)
      >>> round(float(found.multiple), 2), round(float(found.sharpness), 2)
      (2.0, 1.0)
    """

    lower: jax.Array
    upper: jax.Array
    evaluations: jax.Array

    @property
    def multiple(self) -> Any:
        """The smallest multiple of u that does not lower the loss.

        It is inf if none was found, and 0 if not even a tiny one lowers the loss.
        """
        return _checks.quotient(self._reached(), jnp.where(self.upper == 0, 0, 1))

    @property
    def sharpness(self) -> Any:
        """2 / multiple; on a quadratic u^T H u / <-g, u>.

        That is the directional sharpness if u = -g.
        """
        return _checks.quotient(jnp.where(self.upper == 0, 0, 2), self._reached())

    def _reached(self) -> jax.Array:
        found = jnp.where(self.lower > 0, self.upper, 0)
        return jnp.where(self.upper == 0, 1, found)


def critical_sharpness(
    loss: Loss, params: Any, direction: Any, *args: Any,
    first: jax.typing.ArrayLike = 1.0, tolerance: jax.typing.ArrayLike = 1 / 16,
    max_evaluations: int = 48, **options: Unpack[ForwardOptions],
) -> Any:  # fmt: skip
    r"""Finds 2 / eta, where x + eta u is the first point not to lower the loss.

    .. math::
      \lambda_c = \frac{2}{\eta_c}, \quad
      \eta_c = \min \{ \eta > 0 : L(x + \eta u) \ge L(x) \}

    For a gradient step u = -g on a quadratic, :math:`\lambda_c` is the directional
    sharpness. An exponential search brackets eta, a binary search narrows it: a few
    forward passes, no derivative.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: likewise; a pytree like `params` or a mapping of names to such pytrees.
      *args: likewise; the batch.
      first: the first multiple of u to try.
      tolerance: width of the last bracket relative to the multiple.
      max_evaluations: the largest number of forward passes.
      **options: see :class:`ForwardOptions`.

    Returns:
      A :class:`CriticalSharpness`, or a dictionary of them for a mapping.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: likewise; also if there is nothing to evaluate.

    Examples:
      From x = 3 the loss 2 x^2 is back at its start after two gradient steps of 1/4.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> found = diagnostics.critical_sharpness(
      ...     lambda x: 2 * x**2, jnp.array(3.0), jnp.array(-12.0), tolerance=1e-4)
      >>> round(float(found.multiple), 3), round(float(found.sharpness), 2)
      (0.5, 4.0)

    References:
      Kalra et al., `arXiv:2601.16979 <https://arxiv.org/abs/2601.16979>`_, 2026.
    """
    _checks.check_count("max_evaluations", max_evaluations)
    _checks.check_positive("tolerance", tolerance)
    _checks.check_positive("first", first)
    problem = state_problem(loss, params, args, options, direction)
    return problem.by_name(problem.run(_criticals, first, tolerance, max_evaluations))


### what is compiled


def _minima(problem: Problem, first, tolerance, max_evaluations) -> tuple:
    def one(v, norm):
        start = norm if first is None else jnp.asarray(first, norm.dtype)
        return _minimize(problem.line(v), start, tolerance, max_evaluations)

    found = problem.map(one, problem.norms)
    return found.loss + found.decrease, problem.results(found)


def _criticals(problem: Problem, first, tolerance, max_evaluations) -> tuple:
    def one(v, norm):
        at = problem.line(v)
        start = at(jnp.zeros_like(norm))

        def lowers(multiple):
            return at(multiple * norm) < start

        first_multiple = jnp.asarray(first, norm.dtype)
        return start, _last_true(lowers, first_multiple, tolerance, max_evaluations)

    start, found = problem.map(one, problem.norms)
    return start, problem.results(found)


def _last_true(lowers, first, tolerance, max_evaluations) -> CriticalSharpness:
    """Brackets the switch from True to False by factors of two, then by halves."""

    def unfinished(state):
        low, high, n = state
        bracketed = (low > 0) & (high > 0)
        found = bracketed & (high - low <= tolerance * high)
        vanished = (high > 0) & (high <= SMALLEST * first)
        return (n < max_evaluations) & ~found & ~vanished

    def advance(state):
        low, high, n = state
        # Double while nothing is above, halve while nothing is below, then bisect.
        s = jnp.where(high == 0, jnp.where(low > 0, 2 * low, first), (low + high) / 2)
        down = lowers(s)
        return jnp.where(down, s, low), jnp.where(down, high, s), n + 1

    zero = jnp.zeros_like(first)
    low, high, n = lax.while_loop(unfinished, advance, (zero, zero, jnp.array(0)))
    return CriticalSharpness(low, high, n + 1)  # one more for the start


def _minimize(at, first, tolerance, max_evaluations) -> LineMinimum:
    """Brackets a minimum by factors of two, then narrows by golden sections.

    The loss at b is the lowest seen. The minimum lies between a and c, which are 0
    until something to their side of b was seen: a below b, c above it.
    """
    start = at(jnp.zeros_like(first))

    # Step 1: double s while the loss falls; while nothing is below the start, halve it.
    def searching(state):
        _, b, c, _, _, n = state
        vanished = (c > 0) & (c <= SMALLEST * first)
        return (n < max_evaluations) & ((b == 0) | (c == 0)) & ~vanished

    def search(state):
        a, b, c, best, s, n = state
        value = at(s)
        better = value < best
        a, b, c = (jnp.where(better, *pair) for pair in ((b, a), (s, b), (c, s)))
        s = jnp.where(b > 0, 2 * b, c / 2)
        return a, b, c, jnp.where(better, value, best), s, n + 1

    # Step 2: cut the wider of (a, b) and (b, c) in the golden ratio.
    def narrowing(state):
        a, b, c, _, n = state
        return (n < max_evaluations) & (b > 0) & (c > 0) & (c - a > tolerance * b)

    def narrow(state):
        a, b, c, best, n = state
        right = c - b > b - a
        s = jnp.where(right, c - GOLDEN * (c - b), a + GOLDEN * (b - a))
        value = at(s)
        better = value < best
        # The better of s and b is the middle, the other one the border on its side.
        winner, loser = jnp.where(better, s, b), jnp.where(better, b, s)
        a, c = jnp.where(loser < winner, loser, a), jnp.where(loser < winner, c, loser)
        return a, winner, c, jnp.where(better, value, best), n + 1

    zero = jnp.zeros_like(first)
    state = (zero, zero, zero, start, first, jnp.array(1))
    a, b, c, best, _, n = lax.while_loop(searching, search, state)
    a, b, c, best, n = lax.while_loop(narrowing, narrow, (a, b, c, best, n))
    return LineMinimum(b, best, start - best, n)
