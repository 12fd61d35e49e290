r"""Value, slope and curvature of a loss along a direction.

Along the unit vector v = u / ||u||, with the norm over the whole pytree, a loss is

    L(x + s v) = L(x) + s <g, v> + s^2 / 2  v^T H v + O(s^3)
                  loss     slope            curvature = directional sharpness

All three come out of one evaluation. How u^T H u is computed is the `mode`; what fills
memory is the batch, not the parameters, so a batch can be cut into `microbatches`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_clip._trees import accumulator, tree_move, tree_norm, tree_vdot
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import measuring, state_problem
from optax_clip.diagnostics._products import PRODUCTS
from optax_clip.diagnostics._streaming import Weight, stream


class DirectionalDerivatives(NamedTuple):
    """A loss and its first two derivatives along a unit direction v = u / ||u||.

    Attributes:
      loss: L(x).
      slope: <g, v>, loss per unit of distance; negative when v descends.
      curvature: v^T H v, the directional sharpness; may be negative.
      direction_norm: ||u||, which turns distances along v into multiples of u.

    Examples:
      The parabola 4 - 4 s + 2 s^2 has its minimum 2 at s = 1; the step of length 1/2
      leads to 2.5. A parabola that opens downwards has no minimum.

      >>> from optax_clip import diagnostics
      >>> d = diagnostics.DirectionalDerivatives(
      ...     loss=4.0, slope=-4.0, curvature=4.0, direction_norm=0.5)
      >>> float(d.best_step), float(d.predicted_decrease), float(d.predicted_change)
      (1.0, 2.0, -1.5)
      >>> float(d._replace(curvature=-4.0).best_step)
      inf
    """

    loss: jax.Array
    slope: jax.Array
    curvature: jax.Array
    direction_norm: jax.Array

    @property
    def best_step(self) -> jax.Array:
        """Distance along v to the minimum of the parabola; inf without one."""
        return self._if_convex(-self.slope)

    @property
    def predicted_decrease(self) -> jax.Array:
        """Loss that the parabola loses at `best_step`; inf without a minimum."""
        return self._if_convex(self.slope**2 / 2)

    @property
    def predicted_change(self) -> jax.Array:
        """Second-order change of the loss by the whole step u: <g,u> + u^T H u / 2."""
        return self.direction_norm * (
            self.slope + self.direction_norm * self.curvature / 2
        )

    def _if_convex(self, numerator: jax.Array) -> jax.Array:
        # The condition is written so that a nan curvature stays nan.
        return jnp.where(self.curvature <= 0, jnp.inf, numerator / self.curvature)


def directional_derivatives(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    *args: Any,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    shift: jax.typing.ArrayLike = 0.0,
    step: jax.typing.ArrayLike | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Returns loss, slope and curvature along a direction, from one evaluation.

    .. math::
      L(x), \quad \frac{\langle g, u \rangle}{\|u\|}, \quad
      \frac{u^\top H u}{\|u\|^2}

    with the gradient g and the Hessian H at x, and the norm over the whole pytree.

    ========================  =======================================================
    mode                      how
    ========================  =======================================================
    ``forward_over_reverse``  ``jax.jvp`` of ``jax.value_and_grad``; the default
    ``forward_over_forward``  two nested ``jax.jvp``: faster, and no gradient in memory
    ``reverse_over_reverse``  gradient of <g, v>: works where ``jax.jvp`` does not, as
                              in functions with a ``jax.custom_vjp``
    ``finite_difference``     central difference of two gradients: works wherever
                              ``jax.grad`` does; truncation error of order step^2
    ========================  =======================================================

    Measure in evaluation mode: with dropout every evaluation has another loss.

    Args:
      loss: a scalar function ``loss(params, *args)``, a mean over the rows of `args`.
      params: pytree of floating-point arrays.
      direction: a pytree with the structure, shapes and dtypes of `params`; or a
        mapping from names to such pytrees, which are measured one after the other by
        one compiled loop that shares what does not depend on the direction.
      *args: what the loss needs besides the parameters: the batch.
      mode: see above.
      microbatches: cuts the leading axis of every array in `args` into that many parts
        and averages over them, so that memory holds one part (arrays without axes are
        passed on whole). None: the whole batch at once.
      weight: ``weight(*part)`` returns the scalar weight of a part, for example its
        number of tokens if the loss is a mean over tokens; the result is then that of
        the whole batch. Equal weights by default; unused without `microbatches`.
      shift: distance s along v: everything is evaluated at x + s v.
      step: distance of the finite difference. By default max(e, e^2 ||x||) where e is
        the cube root of the machine epsilon: truncation and rounding errors balance,
        and the change of x keeps a third of its digits.
      where: ``where(path)`` selects leaves by their path, for example
        ``"encoder/0/kernel"``: the direction is taken to be zero in all others.
      precision: of matrix products, see ``jax.default_matmul_precision``; None keeps
        that of the caller.

    Returns:
      A :class:`DirectionalDerivatives`, or a dictionary of them for a mapping.
      Derivatives are accumulated in float32, or float64 where the parameters are; a
      traced zero direction gives nan.

    Raises:
      ValueError: if `direction` does not match `params`, is zero or not finite, if the
        loss is not one finite scalar, if a parameter is not floating-point, if
        `microbatches` does not divide the batch, or if the mode is unknown.
      TypeError: if the mode needs ``jax.jvp`` of a function with a ``jax.custom_vjp``.

    Examples:
      At x = (2, 1), L = (x1^2 + 4 x2^2) / 2 has the gradient (2, 4). Along (0, -1) it
      falls by 4 per unit at first, with curvature 4, so the best step is 1.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> d = diagnostics.directional_derivatives(
      ...     loss, jnp.array([2.0, 1.0]), jnp.array([0.0, -0.5]))
      >>> [float(q) for q in d]
      [4.0, -4.0, 4.0, 0.5]
      >>> float(d.best_step), float(d.predicted_decrease), float(d.predicted_change)
      (1.0, 2.0, -1.5)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, equation (1)
      and section 3.
    """
    _checks.check_choice("mode", mode, _MODES)
    problem = state_problem(loss, params, direction, where)
    shifted = _checks.is_given(shift)

    def measure(*part):
        def value(x):
            return problem.loss(x, *part)

        # XLA moves what does not depend on v, such as L(x), out of the loop over v.
        def one(v):
            x = tree_move(problem.params, v, shift) if shifted else problem.params
            return _per_unit(_MODES[mode](value, x, v, step), v)

        return problem.map(one)

    with measuring(precision, mode, problem.loss, problem.params, *args):
        value, slope, curvature = stream(measure, args, microbatches, weight)
    _checks.check_finite_loss(value)
    results = DirectionalDerivatives(value, slope, curvature, problem.norms)
    return problem.by_name(results)


def directional_sharpness(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    *args: Any,
    **options: Any,
) -> Any:
    r"""Returns the curvature of the loss along a direction, :math:`u^T H u / \|u\|^2`.

    The norm is that of the whole pytree, so scaling the direction changes nothing, and
    there is no factor 1/2. Negative where the loss bends down.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: likewise; a pytree like `params` or a mapping of names to such pytrees.
      *args: likewise; the batch.
      **options: the keywords of :func:`directional_derivatives`.

    Returns:
      A scalar, or a dictionary of scalars for a mapping.

    Raises:
      ValueError: see :func:`directional_derivatives`.
      TypeError: likewise.

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

      A curvature that is the small difference of large ones, as Adafactor's may be,
      drowns in the rounding of float32. In float64, parameters, direction and all, it
      does not:

      >>> import jax
      >>> loss = lambda x, a: 0.5 * (a * x[0] ** 2 - x[1] ** 2)
      >>> x, u, a = [1.0, 2.0], [1.0, 1.0], 1 + 1e-8
      >>> float(diagnostics.directional_sharpness(loss, x, u, jnp.float32(a)))
      0.0
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
        return result.curvature
    return {name: derivatives.curvature for name, derivatives in result.items()}


### modes: functions of (loss of x alone, x, v) that return loss, <g, v> and v^T H v


def _contracted(product: Callable) -> Callable:
    def derivatives(f, x, v, step):
        loss, gradient, hv = product(f, x, v, step)
        return loss, tree_vdot(gradient, v), tree_vdot(v, hv)

    return derivatives


def _forward_over_reverse(f, x, v, step):
    del step
    # The slope comes with the loss. As <g, v> it would cost the gradient, which XLA
    # else leaves out: a tenth of the time.
    (loss, _), (slope, hv) = jax.jvp(jax.value_and_grad(f), (x,), (v,))
    return loss, slope, tree_vdot(v, hv)


def _forward_over_forward(f, x, v, step):
    del step

    def slope(x):
        return jax.jvp(f, (x,), (v,))

    (loss, first), (_, second) = jax.jvp(slope, (x,), (v,))
    return loss, first, second


_MODES = {name: _contracted(product) for name, product in PRODUCTS.items()} | {
    "forward_over_reverse": _forward_over_reverse,
    "forward_over_forward": _forward_over_forward,
}


def _per_unit(derivatives, v):
    """Divides out ||v||, which is 1 up to the rounding of v to its dtypes."""
    loss, slope, curvature = derivatives
    if all(x.dtype == accumulator(x) for x in jax.tree.leaves(v)):
        return loss, slope, curvature
    norm = tree_norm(v)
    return loss, slope / norm, curvature / norm**2
