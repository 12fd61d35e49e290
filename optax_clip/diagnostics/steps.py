"""How far to go along a direction, found by forward passes alone.

Both searches walk in factors of two until the loss turns, then narrow the bracket. They
run in compiled loops, one evaluation in memory at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import matmul_precision, state_problem
from optax_clip.diagnostics._streaming import Weight

GOLDEN = (5**0.5 - 1) / 2
SMALLEST = 2.0**-20
"""Relative to the first step. Below, rounding decides whether a loss is lower."""


class BestStep(NamedTuple):
    """The lowest loss found along a direction.

    Attributes:
      step: its distance along u / ||u||; 0 if no step above 2^-20 of the first one
        lowers the loss.
      loss: the loss there.
      decrease: L(0) minus that loss.
      evaluations: how many forward passes this took.

    Examples:
      Uphill no step lowers the loss, so the best one is none.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> up = diagnostics.best_step(lambda x: x**2, jnp.array(2.0), jnp.array(1.0))
      >>> float(up.step), float(up.loss), float(up.decrease)
      (0.0, 4.0, 0.0)
    """

    step: jax.Array
    loss: jax.Array
    decrease: jax.Array
    evaluations: jax.Array


def best_step(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    *args: Any,
    first: jax.typing.ArrayLike | None = None,
    tolerance: float = 1e-2,
    max_evaluations: int = 64,
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Finds the distance along a direction at which the loss is lowest.

    Doubles (or halves) a first step until the loss turns upwards again, then narrows
    the bracket by golden sections.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      direction: a pytree like `params`, or a mapping from names to such pytrees.
      *args: what the loss needs besides the parameters: the batch.
      first: distance of the first step; by default ||u||, the step itself.
      tolerance: width of the last bracket relative to the step.
      max_evaluations: the largest number of forward passes.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      A :class:`BestStep`, or a dictionary of them for a mapping.

    Raises:
      ValueError: see :func:`loss_along`; also if there is nothing to evaluate.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> best = diagnostics.best_step(
      ...     lambda x: 0.5 * (x - 3) ** 2, jnp.array(0.0), jnp.array(1.0))
      >>> round(float(best.step), 1), round(float(best.decrease), 2)
      (3.0, 4.5)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, appendix A.3.
    """
    _checks.check_count("max_evaluations", max_evaluations)
    problem = state_problem(loss, params, direction, where)
    if first is not None:
        _checks.check_positive("first", first)

    def one(v, norm):
        at = problem.line(v, args, microbatches, weight)
        return _minimize(
            at, norm if first is None else first, tolerance, max_evaluations
        )

    with matmul_precision(precision):
        found = problem.map(one, problem.norms)
    _checks.check_finite_loss(found.loss + found.decrease)
    return problem.by_name(found)


class CriticalSharpness(NamedTuple):
    """Where a direction stops to lower the loss.

    Attributes:
      sharpness: 2 / multiple; on a quadratic u^T H u / <-g, u>, which is the
        directional sharpness if u = -g.
      multiple: the smallest multiple of u that does not lower the loss; inf if none
        was found, 0 if none above 2^-20 of the first one lowers it.
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

    sharpness: jax.Array
    multiple: jax.Array
    evaluations: jax.Array


def critical_sharpness(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    *args: Any,
    first: jax.typing.ArrayLike = 1.0,
    tolerance: float = 1 / 16,
    max_evaluations: int = 48,
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Finds 2 / eta, where x + eta u is the first point not to lower the loss.

    .. math::
      \lambda_c = \frac{2}{\eta_c}, \quad
      \eta_c = \min \{ \eta > 0 : L(x + \eta u) \ge L(x) \}

    For a gradient step u = -g on a quadratic, :math:`\lambda_c` is the directional
    sharpness. An exponential search brackets eta, a binary search narrows it: a few
    forward passes, no derivative.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      direction: a pytree like `params`, or a mapping from names to such pytrees.
      *args: what the loss needs besides the parameters: the batch.
      first: the first multiple of u to try.
      tolerance: width of the last bracket relative to the multiple.
      max_evaluations: the largest number of forward passes.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      A :class:`CriticalSharpness`, or a dictionary of them for a mapping.

    Raises:
      ValueError: see :func:`loss_along`; also if there is nothing to evaluate.

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
    _checks.check_positive("first", first)
    _checks.check_count("max_evaluations", max_evaluations)
    problem = state_problem(loss, params, direction, where)

    def one(v, norm):
        at = problem.line(v, args, microbatches, weight)
        start = at(jnp.zeros_like(norm))

        def raises(multiple):
            return jnp.logical_not(at(multiple * norm) < start)

        found = _first_true(raises, first, tolerance, max_evaluations, norm.dtype)
        return start, CriticalSharpness(2 / found[0], *found)

    with matmul_precision(precision):
        start, found = problem.map(one, problem.norms)
    _checks.check_finite_loss(start)
    return problem.by_name(found)


def _first_true(raises, first, tolerance, max_evaluations, dtype):
    """Brackets the switch from False to True by factors of two, then by halves."""

    def unfinished(state):
        low, high, n = state
        bracketed = (low > 0) & jnp.isfinite(high)
        found = bracketed & (high - low <= tolerance * high)
        return (n < max_evaluations) & ~found & (high > SMALLEST * first)

    def advance(state):
        low, high, n = state
        lowered, open_ended = low > 0, jnp.isinf(high)
        between = jnp.where(lowered, (low + high) / 2, high / 2)
        s = jnp.where(open_ended, jnp.where(lowered, 2 * low, first), between)
        up = raises(s)
        return jnp.where(up, low, s), jnp.where(up, s, high), n + 1

    zero, infinity = jnp.zeros([], dtype), jnp.full([], jnp.inf, dtype)
    low, high, n = lax.while_loop(unfinished, advance, (zero, infinity, jnp.array(0)))
    return jnp.where(low > 0, high, 0), n + 1  # one more for the start


def _minimize(at, first, tolerance, max_evaluations):
    """Brackets a minimum by factors of two, then narrows by golden sections."""
    first = jnp.asarray(first)
    start = at(jnp.zeros_like(first))

    # Invariant: L(b) is the lowest seen; 0 = a until a larger step is better.
    def searching(state):
        _, b, c, _, _, n = state
        return (
            (n < max_evaluations) & ((b == 0) | jnp.isinf(c)) & (c > SMALLEST * first)
        )

    def search(state):
        a, b, c, best, s, n = state
        value = at(s)
        better = value < best
        a, b, c = (
            jnp.where(better, b, a),
            jnp.where(better, s, b),
            jnp.where(better, c, s),
        )
        s = jnp.where(b > 0, 2 * b, c / 2)
        return a, b, c, jnp.where(better, value, best), s, n + 1

    def narrowing(state):
        a, b, c, _, n = state
        return (n < max_evaluations) & (b > 0) & (c - a > tolerance * b)

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
    state = (zero, zero, jnp.full_like(first, jnp.inf), start, first, jnp.array(1))
    a, b, c, best, _, n = lax.while_loop(searching, search, state)
    a, b, c, best, n = lax.while_loop(narrowing, narrow, (a, b, c, best, n))
    return BestStep(b, best, start - best, n)
