"""What the optimizers are made of that Optax does not have: no learning rate here."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_clip._clipping import Clipper, ClipTopKState, Scope
from optax_clip._threshold.shards import AxisName
from optax_clip._trees import balance, check_leaves, promoted


def normalize_by_block_rms(
    eps: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides every block of the updates by its root mean square.

    A block is a leaf: a weight matrix or vector with :math:`P_b` coordinates.

    .. math::
      u_b \leftarrow u_b / \max(\epsilon, \operatorname{RMS}(u_b)), \qquad
      \operatorname{RMS}(u_b) = \|u_b\|_2 / \sqrt{P_b}

    A block of zeros stays zero. Normalized SGD does this *after* momentum. (One norm
    over all blocks instead, :func:`optax.normalize_by_update_norm`, would not change
    the direction of the update.)

    Args:
      eps: floor of the root mean square, in units of the updates.

    Returns:
      A stateless transformation. Updates keep shape and type, and are computed in
      float32 at least.

    Raises:
      ValueError: for a negative ``eps``.
      TypeError: at update, for a leaf that is not floating-point or complex.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> normalize = optax_clip.normalize_by_block_rms()
      >>> updates = {"a": jnp.array([3.0, -3.0]), "b": jnp.array([0.0, 0.0])}
      >>> normalize.update(updates, normalize.init(updates))[0]
      {'a': Array([ 1., -1.], dtype=float32), 'b': Array([0., 0.], dtype=float32)}

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, algorithm 2.
    """
    if isinstance(eps, (int, float)) and eps < 0:
        raise ValueError(
            "normalize_by_block_rms: expected eps >= 0, a floor of the root mean "
            f"square; got {eps}."
        )

    def normalize(block):
        if block.size == 0:
            return block
        wide = block.astype(promoted(block.dtype, jnp.float32))
        # Near 1 the squares neither overflow nor underflow.
        scale = balance(jnp.max(jnp.abs(wide)))
        unit = wide * scale.astype(wide.dtype)
        mean_square = jnp.mean(jnp.square(jnp.abs(unit)))
        # A root of 0 has no derivative, and a block of zeros none to divide by.
        zero = mean_square == 0
        rms = jnp.sqrt(jnp.where(zero, 1, mean_square))
        divisor = jnp.where(zero, 1, jnp.maximum(rms, eps * scale))
        return (unit / divisor.astype(wide.dtype)).astype(block.dtype)

    def update_fn(updates, params):
        del params
        check_leaves(updates, "normalize_by_block_rms")
        return jax.tree.map(normalize, updates)

    return optax.with_extra_args_support(optax.stateless(update_fn))


class ScaleByClippedAdamState(NamedTuple):
    """State of :func:`scale_by_clipped_adam`.

    Attributes:
      count: number of updates so far, shape ``()``, int32.
      mu: moving average of clipped gradients.
      nu: moving average of squared raw gradients.
      clip_state: the :class:`ClipTopKState` of the raw gradient.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> state = optax_clip.scale_by_clipped_adam().init(jnp.zeros(2))
      >>> state.mu, state.nu
      (Array([0., 0.], dtype=float32), Array([0., 0.], dtype=float32))
    """

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    clip_state: ClipTopKState


def scale_by_clipped_adam(
    fraction: optax.ScalarOrSchedule = 0.05,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = False,
    scope: Scope = "global",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates like Adam, with clipped gradients in the first moment only.

    .. math::
      m_t = \beta_1 m_{t-1} + (1 - \beta_1) \operatorname{Clip}(g_t), \qquad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
      u_t = \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    with the bias corrections of :func:`optax.scale_by_adam`, which this equals for
    ``fraction=0``, bit for bit. Where a first moment is 0, so is the update, even if
    ``eps`` rounds to 0 in half precision.

    Args:
      fraction: as in :func:`clip_top_k_coordinates`; the authors' code has 0.5.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added outside of the square root.
      eps_root: added inside of the square root.
      mu_dtype: type of the first moment; None for that of the parameters.
      nesterov: whether to look ahead, as in :func:`optax.nadam`.
      scope: as in :func:`clip_top_k_coordinates`.
      axis_name: as in :func:`clip_top_k_coordinates`.

    Returns:
      A transformation with a :class:`ScaleByClippedAdamState`.

    Raises:
      ValueError: as :func:`clip_top_k_coordinates`.
      TypeError: as :func:`clip_top_k_coordinates`.

    Examples:
      Adam's first update has magnitude 1 everywhere; clipping 8 to 2 quarters it:

      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> scale = optax_clip.scale_by_clipped_adam(fraction=0.5)
      >>> gradient = jnp.array([2.0, -8.0])
      >>> scale.update(gradient, scale.init(gradient))[0].round(4)
      Array([ 1.  , -0.25], dtype=float32)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2023, and its code.
    """
    clipper = Clipper.of(fraction, scope, axis_name)

    def init_fn(params):
        return ScaleByClippedAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
            clip_state=clipper.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        clip_state = clipper.measure(updates, state.clip_state)
        clipped = clipper.clip(updates, clip_state)
        # Moments in another type promote, and so does b1**count.
        with jax.numpy_dtype_promotion("standard"):
            mu = optax.tree.update_moment(clipped, state.mu, b1, 1)
            nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
            count = jnp.asarray(optax.safe_increment(state.count))
            if nesterov:
                ahead = optax.tree.bias_correction(mu, b1, optax.safe_increment(count))
                now = optax.tree.bias_correction(clipped, b1, count)
                mu_hat = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, ahead, now)
            else:
                mu_hat = optax.tree.bias_correction(mu, b1, count)
            nu_hat = optax.tree.bias_correction(nu, b2, count)
            scaled = jax.tree.map(
                lambda m, v: jnp.where(m == 0, m, m / (jnp.sqrt(v + eps_root) + eps)),
                mu_hat,
                nu_hat,
            )
        mu = optax.tree.cast(mu, mu_dtype)
        nu = optax.tree.cast_like(nu, state.nu)
        return scaled, ScaleByClippedAdamState(count, mu, nu, clip_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def interpolate_momentum(
    b1: ArrayLike, b2: ArrayLike, mu_dtype: DTypeLike | None
) -> optax.GradientTransformation:
    """Gives what Lion takes the sign of: :func:`optax.scale_by_lion` without its sign.

    The update is ``b1 m + (1 - b1) g``, and the next momentum ``b2 m + (1 - b2) g``.
    """

    def init_fn(params):
        return optax.ScaleByLionState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
        )

    def update_fn(updates, state, params=None):
        del params
        check_leaves(updates, "clipped_lion")
        mixed = jax.tree.map(lambda g, m: (1.0 - b1) * g + b1 * m, updates, state.mu)
        mu = optax.tree.update_moment(updates, state.mu, b2, 1)
        count = optax.safe_increment(state.count)
        return mixed, optax.ScaleByLionState(count, optax.tree.cast(mu, mu_dtype))

    return optax.GradientTransformation(init_fn, update_fn)


def keep_dtype(
    accumulator_dtype: DTypeLike | None, *steps: optax.GradientTransformation
) -> list[optax.GradientTransformation]:
    """Undoes that moments of another type give it to the updates."""
    if accumulator_dtype is None:
        return list(steps)
    inner = optax.chain(*steps)

    def update_fn(updates, state, params=None, **extra_args):
        with jax.numpy_dtype_promotion("standard"):
            new_updates, state = inner.update(updates, state, params, **extra_args)
        return optax.tree.cast_like(new_updates, updates), state

    return [optax.GradientTransformationExtraArgs(inner.init, update_fn)]


def moving_average(
    decay: ArrayLike | None,
    accumulator_dtype: DTypeLike | None,
    *,
    nesterov: bool,
) -> list[optax.GradientTransformation]:
    """Gives the papers' momentum: :func:`optax.ema` without bias correction, or none.

    With ``nesterov`` the update is ``decay m_t + (1 - decay) g_t``: the average after
    one more step with the same gradient.

    Raises:
      ValueError: for a number outside ``[0, 1)``.
    """
    if isinstance(decay, (int, float)) and not 0 <= decay < 1:
        raise ValueError(
            "clipped_sgd: expected decay, that of a moving average, in [0, 1); got "
            f"{decay}. (optax.sgd's momentum is a heavy ball: the same steps need "
            "1 / (1 - momentum) times its learning rate here.)"
        )
    if decay is None or (isinstance(decay, (int, float)) and decay == 0):
        return []
    average = optax.ema(decay, debias=False, accumulator_dtype=accumulator_dtype)
    if nesterov:
        average = _look_ahead(average, decay)
    return keep_dtype(accumulator_dtype, average)


def _look_ahead(
    average: optax.GradientTransformation, decay: ArrayLike
) -> optax.GradientTransformation:
    def update_fn(updates, state, params=None):
        ema, state = average.update(updates, state, params)
        ahead = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, ema, updates)
        return ahead, state

    return optax.GradientTransformation(average.init, update_fn)
