"""Losses along a line, and the steps at which to take them.

`loss_along` evaluates the loss at given distances along a direction. `line_scan` finds
the distances itself: it walks until the loss exceeds its start, and begins again with a
finer grid if that happened at once. From x = 3, x^2 / 2 is back at its start after 6
units:

>>> import jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> scan = diagnostics.line_scan(
...     lambda x: 0.5 * x**2, jnp.array(3.0), jnp.array(-1.0), spacing=1.0)
>>> int(scan.points), float(scan.lowest_step)
(8, 3.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import ForwardOptions, Loss, Problem, state_problem


def loss_along(
    loss: Loss, params: Any, direction: Any, *args: Any,
    steps: jax.typing.ArrayLike, **options: Unpack[ForwardOptions],
) -> Any:  # fmt: skip
    r"""Returns the loss at several distances along a direction.

    .. math::
      L(x + s_i\, u / \|u\|), \quad i = 1, \dots, n

    The points are evaluated one after the other, so memory holds one of them. Each is
    rounded to the dtypes of `params`: in bfloat16 small steps change nothing.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: likewise; a pytree like `params` or a mapping of names to such pytrees.
      *args: likewise; the batch.
      steps: distances s in parameter space, shape (n,); for a mapping, all directions
        take the same steps.
      **options: see :class:`ForwardOptions`.

    Returns:
      Losses of shape (n,), or a dictionary of them for a mapping.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: likewise; also if `steps` is not one-dimensional.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> x, u = jnp.array([2.0, 1.0]), jnp.array([0.0, -0.5])
      >>> diagnostics.loss_along(loss, x, u, steps=[0.0, 1.0, 2.0]).tolist()
      [4.0, 2.0, 4.0]

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, figure 3.
    """
    steps = jnp.asarray(steps)
    if steps.ndim != 1:
        raise ValueError(f"steps must have one axis; got shape {steps.shape}.")
    problem = state_problem(loss, params, args, options, direction)
    return problem.by_name(problem.run(_losses, steps))


def _losses(problem: Problem, steps: jax.Array) -> tuple:
    losses = problem.map(lambda v: lax.map(problem.line(v), steps))
    return None, problem.results(losses)


class LineScan(NamedTuple):
    """Losses along a direction on a grid that was fitted to them.

    Attributes:
      steps: distances along u / ||u||, increasing from 0, shape (n,).
      losses: the losses there, shape (n,).
      points: how many of them were evaluated; behind, steps and losses repeat the last
        one, so that a plot needs no care.
      refinements: how often the grid was made finer.

    Examples:
      A scan that stopped after its third point.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> scan = diagnostics.LineScan(
      ...     jnp.array([0.0, 1.0, 2.0, 2.0]), jnp.array([4.5, 2.0, 2.5, 2.5]),
      ...     points=3, refinements=0)
      >>> float(scan.lowest_step), float(scan.decrease)
      (1.0, 2.5)
    """

    steps: jax.Array
    losses: jax.Array
    points: jax.Array
    refinements: jax.Array

    @property
    def lowest_step(self) -> jax.Array:
        """The step with the lowest loss."""
        return self.steps[jnp.argmin(self._numbers())]

    @property
    def decrease(self) -> jax.Array:
        """The local loss reduction L(0) - min L."""
        return self.losses[0] - jnp.min(self._numbers())

    def _numbers(self) -> jax.Array:
        # A scan may end at a loss that is not a number.
        return jnp.where(jnp.isnan(self.losses), self.losses[0], self.losses)


def line_scan(
    loss: Loss, params: Any, direction: Any, *args: Any,
    spacing: jax.typing.ArrayLike | Mapping[Any, jax.typing.ArrayLike],
    grid: str = "arithmetic", points: int = 21, max_refinements: int = 8,
    **options: Unpack[ForwardOptions],
) -> Any:  # fmt: skip
    r"""Scans the loss along a direction until it exceeds its start.

    With ``grid="arithmetic"``, the rule of the paper, the steps are
    :math:`s_i = i\, \epsilon`; with ``grid="geometric"`` they are
    :math:`s_i = 2^{i-1} \epsilon`. In both s_0 = 0, and i ends at ``points - 1`` or
    with the first loss above that of s_0 (or not a number), which is kept. If that
    leaves at most three points, the scan begins again with :math:`\epsilon / 5`
    (:math:`\epsilon / 2^{10}`), up to `max_refinements` times.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: likewise; a pytree like `params` or a mapping of names to such pytrees.
      *args: likewise; the batch.
      spacing: the first epsilon, a distance in parameter space; or a mapping from the
        names of the directions to distances.
      grid: ``"arithmetic"`` or ``"geometric"``.
      points: the largest number of points, s_0 included.
      max_refinements: how often to begin again.
      **options: see :class:`ForwardOptions`.

    Returns:
      A :class:`LineScan`, or a dictionary of them for a mapping.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: likewise; also if `spacing` is not positive, `grid` is unknown or
        there are less than four `points`.

    Examples:
      From x = 3 the loss x^2 / 2 falls for 3 units and is back at its start after 6. A
      first grid of spacing 5 has only the points 0, 5 and 10, so it is refined.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> scan = diagnostics.line_scan(
      ...     lambda x: 0.5 * x**2, jnp.array(3.0), jnp.array(-1.0), spacing=5.0,
      ...     points=9)
      >>> scan.steps.tolist()
      [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 7.0]
      >>> scan.losses.tolist()
      [4.5, 2.0, 0.5, 0.0, 0.5, 2.0, 4.5, 8.0, 8.0]
      >>> float(scan.lowest_step), float(scan.decrease), int(scan.refinements)
      (3.0, 4.5, 1)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, appendix A.3.
    """
    _checks.check_choice("grid", grid, _GRIDS)
    _checks.check_count("points", points, least=4)
    _checks.check_count("max_refinements", max_refinements, least=0)
    problem = state_problem(loss, params, args, options, direction)
    names = problem.names or ("direction",)
    given = spacing if isinstance(spacing, Mapping) else dict.fromkeys(names, spacing)
    if set(given) != set(names):
        raise ValueError(f"spacing must have the names {list(names)}.")
    for value in given.values():
        _checks.check_positive("spacing", value)
    first = [given[name] for name in names]
    static = {"grid": grid, "points": points}
    return problem.by_name(problem.run(_scans, first, max_refinements, **static))


# The steps in units of epsilon, and what epsilon is divided by to refine them.
_GRIDS = {
    "arithmetic": (lambda i: i, 5.0),
    "geometric": (lambda i: jnp.where(i == 0, 0, 2.0 ** (i - 1)), 2.0**10),
}


def _scans(
    problem: Problem, spacing: list[Any], max_refinements: Any, grid: str, points: int
) -> tuple:
    dtype = problem.norms.dtype
    index, shrink = _GRIDS[grid]
    unit_steps = index(jnp.arange(points, dtype=dtype))
    first = jnp.stack([jnp.asarray(x, dtype) for x in spacing])

    def one(v, spacing):
        return _scan(problem.line(v), unit_steps, spacing, shrink, max_refinements)

    scans = problem.map(one, first)
    return scans.losses[:, 0], problem.results(scans)


def _scan(at, unit_steps, spacing, shrink, max_refinements) -> LineScan:
    """Walks over the grid in one loop, which returns to i = 1 to refine the grid."""
    points = unit_steps.size
    losses = jnp.full([points], at(unit_steps[0]))

    def unfinished(state):
        return state[0] < points

    def advance(state):
        i, end, spacing, losses, refinements = state
        # Keep the loss here and, until it is overwritten, behind.
        value = at(unit_steps[i] * spacing)
        losses = jnp.where(jnp.arange(points) >= i, value, losses)
        # Stop above the start, or refine if that came at once.
        above = jnp.logical_not(value <= losses[0])
        refine = above & (i < 3) & (refinements < max_refinements)
        stop = above & jnp.logical_not(refine)
        end = jnp.where(stop, i + 1, end)
        i = jnp.where(refine, 1, jnp.where(stop, points, i + 1))
        spacing = jnp.where(refine, spacing / shrink, spacing)
        return i, end, spacing, losses, jnp.where(refine, refinements + 1, refinements)

    state = (jnp.array(1), jnp.array(points), spacing, losses, jnp.array(0))
    _, end, spacing, losses, refinements = lax.while_loop(unfinished, advance, state)
    last = jnp.minimum(jnp.arange(points), end - 1)
    return LineScan(unit_steps[last] * spacing, losses, end, refinements)
