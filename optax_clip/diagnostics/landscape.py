"""Losses along a line, and the steps at which to take them.

`loss_along` evaluates the loss at given distances along a direction. `line_scan` finds
the distances itself: it walks until the loss exceeds its start, and begins again with a
finer grid if that happened at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import tree_move
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import matmul_precision, state_problem
from optax_clip.diagnostics._streaming import Weight, stream


def loss_along(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    steps: jax.typing.ArrayLike,
    *args: Any,
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Returns the loss at several distances along a direction.

    .. math::
      L(x + s_i\, u / \|u\|), \quad i = 1, \dots, n

    The points are evaluated one after the other, so memory holds one of them. Each is
    rounded to the dtypes of `params`: in bfloat16 small steps change nothing.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      direction: a pytree like `params`, or a mapping from names to such pytrees.
      steps: distances s in parameter space, shape (n,); for a mapping, all directions
        take the same steps.
      *args: what the loss needs besides the parameters: the batch.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      Losses of shape (n,), or a dictionary of them for a mapping.

    Raises:
      ValueError: if `direction` does not match `params`, is zero or not finite, if
        `steps` is not one-dimensional, or if the loss is not scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> x, u = jnp.array([2.0, 1.0]), jnp.array([0.0, -0.5])
      >>> diagnostics.loss_along(loss, x, u, jnp.array([0.0, 1.0, 2.0])).tolist()
      [4.0, 2.0, 4.0]

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, figure 3.
    """
    steps = _as_steps("steps", steps)
    problem = state_problem(loss, params, direction, where)

    def measure(*part):
        def one(v):
            return lax.map(
                lambda s: problem.loss(tree_move(problem.params, v, s), *part), steps
            )

        return problem.map(one)

    with matmul_precision(precision):
        return problem.by_name(stream(measure, args, microbatches, weight))


def loss_on_plane(
    loss: Callable[..., jax.Array],
    params: Any,
    first: Any,
    second: Any,
    first_steps: jax.typing.ArrayLike,
    second_steps: jax.typing.ArrayLike,
    *args: Any,
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    r"""Returns the loss on a grid in the plane of two directions.

    .. math::
      L(x + s_i\, u / \|u\| + t_j\, w / \|w\|)

    The directions are taken as they are: the axes of the grid are at right angles only
    if the directions are.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      first: the direction u, a pytree like `params`.
      second: the direction w, likewise.
      first_steps: distances s along u, shape (n,).
      second_steps: distances t along w, shape (m,).
      *args: what the loss needs besides the parameters: the batch.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      Losses of shape (n, m).

    Raises:
      ValueError: see :func:`loss_along`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> diagnostics.loss_on_plane(
      ...     loss, jnp.zeros(2), jnp.array([5.0, 0.0]), jnp.array([0.0, 5.0]),
      ...     [0.0, 2.0], [0.0, 1.0, 2.0]).tolist()
      [[0.0, 2.0, 8.0], [2.0, 4.0, 10.0]]
    """
    s, t = (
        _as_steps("first_steps", first_steps),
        _as_steps("second_steps", second_steps),
    )
    directions = {"first": first, "second": second}
    problem = state_problem(loss, params, directions, where)
    u, w = problem.units()
    grid = jnp.meshgrid(s, t, indexing="ij")

    def measure(*part):
        def at(point):
            x = tree_move(tree_move(problem.params, u, point[0]), w, point[1])
            return problem.loss(x, *part)

        return lax.map(at, tuple(axis.ravel() for axis in grid))

    with matmul_precision(precision):
        losses = stream(measure, args, microbatches, weight)
    return losses.reshape(s.size, t.size)


def _as_steps(name: str, steps: jax.typing.ArrayLike) -> jax.Array:
    steps = jnp.asarray(steps)
    if steps.ndim != 1:
        raise ValueError(f"{name} must have one axis; got shape {steps.shape}.")
    return steps


class LineScan(NamedTuple):
    """Losses along a direction on a grid that was fitted to them.

    Attributes:
      steps: distances along u / ||u||, increasing from 0, shape (points,).
      losses: the losses there; nan where the scan had stopped already.
      refinements: how often the grid was made finer.

    Examples:
      A scan that stopped after its third point.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> scan = diagnostics.LineScan(
      ...     jnp.arange(4.0), jnp.array([4.5, 2.0, 2.5, jnp.nan]), refinements=0)
      >>> float(scan.best_step), float(scan.decrease)
      (1.0, 2.5)
    """

    steps: jax.Array
    losses: jax.Array
    refinements: jax.Array

    @property
    def best_step(self) -> jax.Array:
        """The step with the lowest loss."""
        return self.steps[jnp.nanargmin(self.losses)]

    @property
    def decrease(self) -> jax.Array:
        """The local loss reduction L(0) - min L."""
        return self.losses[0] - jnp.nanmin(self.losses)


def line_scan(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    spacing: Any,
    *args: Any,
    grid: str = "arithmetic",
    points: int = 21,
    max_refinements: int = 8,
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Scans the loss along a direction until it exceeds its start.

    With ``grid="arithmetic"``, the rule of the paper, the steps are
    :math:`s_i = i\, \epsilon`; with ``grid="geometric"`` they are
    :math:`s_i = 2^{i-1} \epsilon`. In both s_0 = 0, and i ends at ``points - 1`` or
    with the first loss above that of s_0 (or not a number), which is kept. If that
    leaves at most three points, the scan begins again with :math:`\epsilon / 5`
    (:math:`\epsilon / 2^{10}`), up to `max_refinements` times.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      direction: a pytree like `params`, or a mapping from names to such pytrees.
      spacing: the first epsilon, a distance in parameter space; or a mapping from the
        names of the directions to distances.
      *args: what the loss needs besides the parameters: the batch.
      grid: ``"arithmetic"`` or ``"geometric"``.
      points: the largest number of points, s_0 included.
      max_refinements: how often to begin again.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      A :class:`LineScan`, or a dictionary of them for a mapping.

    Raises:
      ValueError: see :func:`loss_along`; also if `spacing` is not positive, `grid` is
        unknown or there are less than four `points`.

    Examples:
      From x = 3 the loss x^2 / 2 falls for 3 units and is back at its start after 6. A
      first grid of spacing 5 has only the points 0, 5 and 10, so it is refined.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> scan = diagnostics.line_scan(
      ...     lambda x: 0.5 * x**2, jnp.array(3.0), jnp.array(-1.0), 5.0, points=9)
      >>> scan.steps.tolist()
      [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
      >>> scan.losses.tolist()
      [4.5, 2.0, 0.5, 0.0, 0.5, 2.0, 4.5, 8.0, nan]
      >>> float(scan.best_step), float(scan.decrease), int(scan.refinements)
      (3.0, 4.5, 1)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, appendix A.3.
    """
    _checks.check_choice("grid", grid, _GRIDS)
    if points < 4:
        raise ValueError(f"points must be at least 4; got {points}.")
    problem = state_problem(loss, params, direction, where)
    index, shrink = _GRIDS[grid]
    unit_steps = index(jnp.arange(points, dtype=problem.norms.dtype))

    def one(v, spacing):
        at = problem.line(v, args, microbatches, weight)
        return _scan(at, unit_steps, spacing, shrink, max_refinements)

    with matmul_precision(precision):
        scans = problem.map(one, problem.values("spacing", spacing))
    _checks.check_finite_loss(scans.losses[:, 0])
    return problem.by_name(scans)


# The steps in units of epsilon, and what epsilon is divided by to refine them.
_GRIDS = {
    "arithmetic": (lambda i: i, 5.0),
    "geometric": (lambda i: jnp.where(i == 0, 0, 2.0 ** (i - 1)), 2.0**10),
}


def _scan(at, unit_steps, spacing, shrink, max_refinements) -> LineScan:
    """Walks over the grid in one loop, which returns to i = 1 to refine the grid."""
    points, dtype = unit_steps.size, unit_steps.dtype
    losses = jnp.full([points], jnp.nan, jax.eval_shape(at, unit_steps[0]).dtype)

    def unfinished(state):
        return state[0] < points

    def advance(state):
        i, spacing, losses, refinements = state
        losses = losses.at[i].set(at(unit_steps[i] * spacing))
        above = (i > 0) & jnp.logical_not(losses[i] <= losses[0])
        refine = above & (i < 3) & (refinements < max_refinements)
        losses = jnp.where(refine & (jnp.arange(points) > 0), jnp.nan, losses)
        i = jnp.where(refine, 1, jnp.where(above, points, i + 1))
        spacing = jnp.where(refine, spacing / shrink, spacing)
        return i, spacing, losses, refinements + refine

    state = (jnp.array(0), jnp.asarray(spacing, dtype), losses, jnp.array(0))
    _, spacing, losses, refinements = lax.while_loop(unfinished, advance, state)
    return LineScan(unit_steps * spacing, losses, refinements)
