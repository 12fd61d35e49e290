r"""Value, slope and sharpness of a loss along a direction.

Along the unit vector v = u / ||u||, with the norm over the whole pytree, a loss is

    L(x + s v) = L(x) + s <g, v> + s^2 / 2  v^T H v + O(s^3)
                  loss     slope           directional sharpness

All three come out of one evaluation. How u^T H u is computed is the `mode`; what fills
memory is the batch, not the parameters, so a batch can be cut into `microbatches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from optax_clip._trees import accumulator, tree_move, tree_norm, tree_vdot
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._modes import MODES
from optax_clip.diagnostics._problem import Loss, Options, Problem, state_problem


def _newton_step(self: Any) -> Any:
    """Distance along v to the minimum of the parabola; inf without one."""
    return _checks.quotient(-self.slope, _convexity(self))


def _predicted_decrease(self: Any) -> Any:
    """Loss that the parabola loses at `newton_step`; inf without a minimum."""
    return _checks.quotient(self.slope**2 / 2, _convexity(self))


def _predicted_change(self: Any) -> Any:
    """Change of the loss by the whole step u, to second order, <g,u> + u^T H u / 2."""
    norm = self.direction_norm
    return norm * (self.slope + norm * self.sharpness / 2)


def _convexity(self: Any) -> Any:
    return jnp.maximum(self.sharpness, 0)  # a nan stays nan


class DirectionalDerivatives(NamedTuple):
    """A loss and its first two derivatives along a unit direction v = u / ||u||.

    Attributes:
      loss: L(x).
      slope: <g, v>, loss per unit of distance; negative when v descends.
      sharpness: v^T H v, the directional sharpness; may be negative.
      direction_norm: ||u||, which turns distances along v into multiples of u.

    Examples:
      The parabola 4 - 4 s + 2 s^2 has its minimum 2 at s = 1; the step of length 1/2
      leads to 2.5. A parabola that opens downwards has no minimum.

      >>> from optax_clip import diagnostics
      >>> d = diagnostics.DirectionalDerivatives(
      ...     loss=4.0, slope=-4.0, sharpness=4.0, direction_norm=0.5)
      >>> float(d.newton_step), float(d.predicted_decrease), float(d.predicted_change)
      (1.0, 2.0, -1.5)
      >>> float(d._replace(sharpness=-4.0).newton_step)
      inf
    """

    loss: jax.Array
    slope: jax.Array
    sharpness: jax.Array
    direction_norm: jax.Array

    newton_step = property(_newton_step)
    predicted_decrease = property(_predicted_decrease)
    predicted_change = property(_predicted_change)


def directional_derivatives(
    loss: Loss, params: Any, direction: Any, *args: Any,
    shift: jax.typing.ArrayLike = 0.0, step: jax.typing.ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:  # fmt: skip
    r"""Returns loss, slope and sharpness along a direction, from one evaluation.

    .. math::
      L(x), \quad \frac{\langle g, u \rangle}{\|u\|}, \quad
      \frac{u^\top H u}{\|u\|^2}

    with the gradient g and the Hessian H at x, and the norm over the whole pytree.
    Measure in evaluation mode: with dropout every evaluation has another loss.

    Args:
      loss: a scalar function ``loss(params, *args)``, a mean over the rows of `args`.
      params: pytree of floating-point arrays, or Flax NNX's state of them.
      direction: a pytree with the structure, shapes and dtypes of `params`, which gives
        one result. Anything else must be a mapping from names to such pytrees: they are
        measured one after the other by one compiled loop that shares what does not
        depend on the direction, and give a dictionary.
      *args: what the loss needs besides the parameters: the batch. Arrays are data;
        everything else is passed on as it is and belongs to the compiled program.
      shift: distance s along v: everything is evaluated at x + s v.
      step: distance of the finite difference. By default max(e, e^2 ||x||) where e is
        the cube root of the machine epsilon: truncation and rounding errors balance,
        and the change of x keeps a third of its digits.
      **options: see :class:`Options`.

    Returns:
      A :class:`DirectionalDerivatives`, or a dictionary of them for a mapping.
      Derivatives are accumulated in float32, or float64 where the parameters are; a
      traced zero direction gives nan.

    Raises:
      TypeError: if a parameter or the loss is not real and floating-point, if
        `direction` has other dtypes than `params`, or if the mode cannot differentiate
        the loss; the error names the modes that can.
      ValueError: if `direction` does not match `params`, is zero or not finite, if the
        loss is not one finite scalar, if `microbatches` does not divide the batch, or
        if the mode is unknown.

    Examples:
      At x = (2, 1), L = (x1^2 + 4 x2^2) / 2 has the gradient (2, 4). Along (0, -1) it
      falls by 4 per unit at first, with sharpness 4, so Newton's step is 1.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> d = diagnostics.directional_derivatives(
      ...     loss, jnp.array([2.0, 1.0]), jnp.array([0.0, -0.5]))
      >>> [float(q) for q in d]
      [4.0, -4.0, 4.0, 0.5]
      >>> float(d.newton_step), float(d.predicted_decrease), float(d.predicted_change)
      (1.0, 2.0, -1.5)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, equation (1)
      and section 3.
    """
    problem = state_problem(loss, params, args, options, direction, MODES)
    moved = None if _checks.is_concrete(shift) and shift == 0 else shift
    return problem.by_name(problem.run(_derivatives, moved, step))


def largest_stable_rate(
    derivatives: DirectionalDerivatives | Sequence[DirectionalDerivatives],
) -> jax.Array:
    r"""Returns the learning rate above which steps along u raise the loss.

    .. math::
      \frac{2 \, \mathbb{E} \langle -g, u \rangle}{\mathbb{E} [u^\top H u]}

    A step r u changes the parabola of a batch by :math:`r \langle g, u \rangle +
    r^2 u^\top H u / 2`; in the mean over batches, each with its own update and its own
    loss, this is the r at which the change is 0. For SGD it is 2 divided by the batch
    sharpness.

    Args:
      derivatives: of the update that an optimizer makes with a learning rate of 1 and
        the gradient of a batch, on that batch; a sequence for several batches, or one
        whose fields have a leading axis for them.

    Returns:
      A scalar: 0 where the updates do not descend, else inf where the loss bends down
      along them.

    Raises:
      TypeError: if something else is in it, such as a dictionary of several directions.
      ValueError: if the sequence is empty.

    Examples:
      Two batches have the curvatures 1 and 3. From x = 1, SGD's steps of length 1 and 3
      descend by 1 and 9 per unit of the rate, and curve by 1 and 27: 2 (1 + 9) / 28.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x, a: 0.5 * a * x**2
      >>> x = jnp.array(1.0)
      >>> found = [diagnostics.directional_derivatives(loss, x, -a * x, a)
      ...          for a in (1.0, 3.0)]
      >>> print(f"{diagnostics.largest_stable_rate(found):.3f}, alone "
      ...       f"{diagnostics.largest_stable_rate(found[0]):.3f}")
      0.714, alone 2.000

    References:
      Andreyev and Beneventano, `Edge of Stochastic Stability
      <https://arxiv.org/abs/2412.20553>`_, 2024: batch sharpness.
    """
    if not isinstance(derivatives, DirectionalDerivatives):
        batches = list(derivatives)
        if not batches:
            raise ValueError("largest_stable_rate: expected at least one batch.")
        if not all(isinstance(each, DirectionalDerivatives) for each in batches):
            raise TypeError(
                "largest_stable_rate: expected DirectionalDerivatives of one update, "
                f"one for each batch, got {type(derivatives).__name__} of "
                f"{type(batches[0]).__name__}: choose a direction of several."
            )
        derivatives = jax.tree.map(lambda *each: jnp.stack(each), *batches)
    norm = derivatives.direction_norm
    descent = jnp.mean(-derivatives.slope * norm)
    curvature = jnp.mean(derivatives.sharpness * norm**2)
    rate = _checks.quotient(2 * descent, jnp.maximum(curvature, 0))
    return jnp.where(descent <= 0, jnp.zeros_like(rate), rate)


def directional_sharpness(
    loss: Loss, params: Any, direction: Any, *args: Any,
    **options: Unpack[Options],
) -> Any:  # fmt: skip
    r"""Returns the sharpness of the loss along a direction, :math:`u^T H u / \|u\|^2`.

    The norm is that of the whole pytree, so scaling the direction changes nothing, and
    there is no factor 1/2. It is negative where the loss bends down.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: likewise; a pytree like `params` or a mapping of names to such pytrees.
      *args: likewise; the batch.
      **options: see :class:`Options`.

    Returns:
      A scalar, or a dictionary of scalars for a mapping.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: likewise.

    Examples:
      The Hessian of (x1^2 + 4 x2^2) / 2 is diag(1, 4).

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> x = jnp.array([2.0, 1.0])
      >>> float(diagnostics.directional_sharpness(loss, x, jnp.array([0.0, 3.0])))
      4.0
      >>> axes = {"flat": jnp.array([7.0, 0.0]), "steep": jnp.array([0.0, 7.0])}
      >>> s = diagnostics.directional_sharpness(loss, x, axes)
      >>> float(s["flat"]), float(s["steep"])
      (1.0, 4.0)

      A sharpness that is the small difference of large ones, as Adafactor's may be,
      drowns in the rounding of float32. In float64, parameters, direction and all, it
      does not:

      >>> import jax
      >>> loss = lambda x, a: 0.5 * (a * x[0] ** 2 - x[1] ** 2)
      >>> x, u, a = [1.0, 2.0], [1.0, 1.0], 1 + 1e-8
      >>> s = diagnostics.directional_sharpness(loss, x, u, jnp.float32(a))
      >>> abs(float(s) - 5e-9) < 1e-9
      False
      >>> with jax.enable_x64(True):
      ...     x, u, a = jax.tree.map(jnp.float64, (x, u, a))
      ...     s = diagnostics.directional_sharpness(loss, x, u, a)
      >>> print(f"{s:.3g}")
      5e-09

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, section 3.
    """
    result = directional_derivatives(loss, params, direction, *args, **options)
    if isinstance(result, DirectionalDerivatives):
        return result.sharpness
    return {name: derivatives.sharpness for name, derivatives in result.items()}


class SharpnessRow(NamedTuple):
    """What is known of one update u, with v = u / ||u||.

    The fields are linear in the loss or do not depend on it, and `ratio` is what the
    papers average, so :func:`mean_over_batches` is right for all of them. The
    properties are not linear: take them of the mean.

    Attributes:
      loss: L(x).
      slope: <g, v>.
      sharpness: v^T H v.
      change: L(x + u) - L(x), by which the whole update changes the loss.
      ratio: sharpness over the absolute sharpness of the baseline; its mean over
        batches is the papers' mean of ratios.
      cosine: of the angle between u and the update of the baseline.
      direction_norm: ||u||.

    Examples:
      Two batches with the losses x^2 and -x^2 / 2. Their mean is convex, and so are the
      properties of the mean row: Newton's step leads from 1 to 0.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x, a: a * x**2
      >>> mean = diagnostics.mean_over_batches(
      ...     lambda a: diagnostics.sharpness_table(
      ...         loss, jnp.array(1.0), {"sgd": jnp.array(-0.5)}, a, baseline="sgd"),
      ...     [jnp.array(1.0), jnp.array(-0.5)]).mean["sgd"]
      >>> float(mean.sharpness), float(mean.newton_step), float(mean.rho)
      (0.5, 1.0, 1.0)
    """

    loss: jax.Array
    slope: jax.Array
    sharpness: jax.Array
    change: jax.Array
    ratio: jax.Array
    cosine: jax.Array
    direction_norm: jax.Array

    newton_step = property(_newton_step)
    predicted_decrease = property(_predicted_decrease)
    predicted_change = property(_predicted_change)

    @property
    def rho(self) -> Any:
        """Actual over predicted change; near 1 where the parabola can be trusted."""
        return _checks.quotient(self.change, self.predicted_change)


def sharpness_table(
    loss: Loss, params: Any, updates: Mapping[Any, Any], *args: Any,
    baseline: Any, **options: Unpack[Options],
) -> dict[Any, SharpnessRow]:  # fmt: skip
    r"""Compares updates that were proposed at the same point.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      updates: {name: update}, for example what `pseudo_updates` keeps in its state.
      *args: see :func:`directional_derivatives`; the batch.
      baseline: the name of the update that `ratio` and `cosine` refer to.
      **options: see :class:`Options`. The mode is ``"forward_over_forward"`` by
        default, because a table needs no gradient.

    Returns:
      {name: :class:`SharpnessRow`}.

    Raises:
      TypeError: see :func:`directional_derivatives`; also if `updates` is no mapping.
      ValueError: likewise; also if `baseline` does not name an update.

    Examples:
      On (x1^2 + 4 x2^2) / 2 at (2, 1), gradient descent goes along (2, 4).

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> updates = {"sgd": -jnp.array([2.0, 4.0]), "sign": -jnp.array([1.0, 1.0])}
      >>> table = diagnostics.sharpness_table(
      ...     loss, jnp.array([2.0, 1.0]), updates, baseline="sgd")
      >>> for name, row in table.items():
      ...     print(f"{name:4} {row.sharpness:.2f} {row.ratio:.2f} {row.cosine:.2f}")
      sgd  3.40 1.00 1.00
      sign 2.50 0.74 0.95
      >>> round(float(table["sign"].change), 2), round(float(table["sign"].rho), 2)
      (-3.5, 1.0)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, tables 3 to 6.
    """
    if not isinstance(updates, Mapping):
        kind = type(updates).__name__
        raise TypeError(f"updates must be a mapping of names to updates; got a {kind}.")
    _checks.check_choice("baseline", baseline, updates)
    options = {"mode": "forward_over_forward", **options}
    problem = state_problem(loss, params, args, options, updates, MODES)
    if problem.names is None:
        raise ValueError("updates must map names to updates; got one like params.")
    reference = problem.names.index(baseline)
    return problem.by_name(problem.run(_rows, reference=reference))


### what is compiled


def _derivatives(problem: Problem, shift: Any, step: Any) -> tuple:
    def measure(*part):
        # XLA moves what does not depend on v, such as L(x), out of the loop over v.
        def one(v):
            x = problem.params if shift is None else tree_move(problem.params, v, shift)
            return _along(problem, x, v, part, step)

        return problem.map(one)

    loss, slope, sharpness = problem.stream(measure)
    found = DirectionalDerivatives(loss, slope, sharpness, problem.norms)
    return loss, problem.results(found)


def _rows(problem: Problem, reference: int) -> tuple:
    base = problem.unit(reference)

    def measure(*part):
        def one(v, norm):
            loss, slope, sharpness = _along(problem, problem.params, v, part)
            moved = problem.value(tree_move(problem.params, v, norm), *part)
            # In the same loop, because every one takes a second to compile.
            return loss, slope, sharpness, moved - loss, _cosine(v, base)

        return problem.map(one, problem.norms)

    loss, slope, sharpness, change, cosine = problem.stream(measure)
    ratio, norms = sharpness / jnp.abs(sharpness[reference]), problem.norms
    rows = SharpnessRow(loss, slope, sharpness, change, ratio, cosine, norms)
    return loss, problem.results(rows)


def _cosine(v: Any, w: Any) -> jax.Array:
    """Returns the cosine of two unit vectors, which are rounded to their dtypes."""
    cosine = tree_vdot(v, w)
    if all(leaf.dtype == accumulator(leaf) for leaf in v):
        return cosine
    return cosine / (tree_norm(v) * tree_norm(w))


def _along(
    problem: Problem, x: Any, v: Any, part: tuple, step: Any = None
) -> tuple[jax.Array, ...]:
    """Returns L(x), <g, v> and v^T H v on a part of the batch, for the unit v."""
    loss, slope, sharpness = MODES[problem.settings.mode].derivatives(
        lambda x: problem.value(x, *part), x, v, step
    )
    if all(leaf.dtype == accumulator(leaf) for leaf in v):
        return loss, slope, sharpness
    norm = tree_norm(v)  # 1 up to the rounding of v to its dtypes
    return loss, slope / norm, sharpness / norm**2
