"""The papers' optimizers: chains of this package's transformations and Optax's.

Each equals, with ``fraction=0`` and bit for bit, the plain Optax chain that it extends.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_clip._clipping import (
    ClipTopKState,
    Scope,
    check_fraction,
    check_scope,
    clip_by,
    clip_numerator,
    clip_top_k_coordinates,
    init_state,
    measure,
)
from optax_clip._normalization import normalize_by_block_rms
from optax_clip._trees import check_leaves

Mask = Any | Callable[[optax.Params], Any]


def clipped_sgd(
    learning_rate: optax.ScalarOrSchedule,
    fraction: optax.ScalarOrSchedule = 0.05,
    momentum: ArrayLike | None = 0.9,
    *,
    scope: Scope = "global",
    refresh_every: int = 1,
    tolerance: ArrayLike = 0.0,
    accumulator_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum on gradients whose top coordinates are clipped.

    .. math::
      m_t = \beta m_{t-1} + (1 - \beta) \operatorname{Clip}(g_t), \qquad
      x_t = x_{t-1} - \eta m_t, \qquad m_0 = 0

    The momentum is the paper's moving average. Optax's and PyTorch's heavy ball,
    :math:`m_t = \beta m_{t-1} + g_t`, makes the same steps with a learning rate of
    :math:`(1 - \beta) \eta`.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: share of the coordinates to clip; see
        :func:`~optax_clip.clip_top_k_coordinates`.
      momentum: :math:`\beta` in ``[0, 1)``; None or 0 for none.
      scope: one threshold, ``"global"``, or one per leaf, ``"leaf"``.
      refresh_every: recompute the threshold at every so-many-th update.
      tolerance: share of the coordinates by which the clipped ones may be fewer; see
        :func:`~optax_clip.clip_top_k_coordinates`.
      accumulator_dtype: type of the momentum; None for that of the parameters.
      weight_decay: strength of decoupled weight decay (multiplied by the learning
        rate).
      weight_decay_mask: tree of booleans, or a function of the parameters that gives
        one: where weight decay applies.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`~optax_clip.clip_top_k_coordinates`.

    Examples:
      The coordinate 8 is clipped to 2, and the first moving average is a tenth:

      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> optimizer = optax_clip.clipped_sgd(learning_rate=10.0, fraction=0.5)
      >>> params = jnp.array([0.0, 0.0])
      >>> gradient = jnp.array([2.0, -8.0])
      >>> optimizer.update(gradient, optimizer.init(params), params)[0].round(4)
      Array([-2.,  2.], dtype=float32)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, algorithm 1.
    """
    return optax.chain(
        clip_top_k_coordinates(
            fraction, scope=scope, refresh_every=refresh_every, tolerance=tolerance
        ),
        *_moving_average(momentum, accumulator_dtype),
        *_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped_normalized_sgd(
    learning_rate: optax.ScalarOrSchedule,
    fraction: optax.ScalarOrSchedule = 0.05,
    momentum: ArrayLike | None = 0.9,
    *,
    eps: float = 0.0,
    scope: Scope = "global",
    refresh_every: int = 1,
    tolerance: ArrayLike = 0.0,
    accumulator_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD whose momentum is normalized, every tensor by its root mean square.

    .. math::
      m_t = \beta m_{t-1} + (1 - \beta) \operatorname{Clip}(g_t), \qquad
      x_{b,t} = x_{b,t-1} - \eta \sqrt{P_b} \, m_{b,t} / \|m_{b,t}\|_2

    for every tensor :math:`b` of :math:`P_b` coordinates: each moves by a root mean
    square of :math:`\eta`, or not at all where its momentum is zero. ``fraction=0``
    is plain normalized SGD.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: as in :func:`clipped_sgd`.
      momentum: as in :func:`clipped_sgd`.
      eps: floor of the root mean square that divides.
      scope: as in :func:`clipped_sgd`.
      refresh_every: as in :func:`clipped_sgd`.
      tolerance: as in :func:`clipped_sgd`.
      accumulator_dtype: as in :func:`clipped_sgd`.
      weight_decay: as in :func:`clipped_sgd`.
      weight_decay_mask: as in :func:`clipped_sgd`.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`~optax_clip.clip_top_k_coordinates`, and for a negative
        ``eps``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> optimizer = optax_clip.clipped_normalized_sgd(0.5, fraction=0.5)
      >>> params = jnp.array([0.0, 0.0])
      >>> gradient = jnp.array([2.0, -8.0])
      >>> optimizer.update(gradient, optimizer.init(params), params)[0].round(4)
      Array([-0.5,  0.5], dtype=float32)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, algorithm 2.
    """
    return optax.chain(
        clip_top_k_coordinates(
            fraction, scope=scope, refresh_every=refresh_every, tolerance=tolerance
        ),
        *_moving_average(momentum, accumulator_dtype),
        normalize_by_block_rms(eps),
        *_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped_adafactor(
    learning_rate: optax.ScalarOrSchedule | None = None,
    fraction: optax.ScalarOrSchedule = 0.05,
    *,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    eps: float = 1e-30,
    multiply_by_parameter_scale: bool = True,
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adafactor with the top coordinates clipped in the numerator.

    With :math:`V_t` Adafactor's factored second moment of the raw gradient,

    .. math::
      U_t = \operatorname{Clip}(g_t) / \sqrt{V_t}, \qquad
      x_t = x_{t-1} - \rho_t \max(10^{-3}, \operatorname{RMS}(x_{t-1}))
        \, U_t / \max(1, \operatorname{RMS}(U_t) / d)

    without momentum. Every leaf of two dimensions is factored whatever its size; of a
    leaf with more, the two largest dimensions, as in Optax.

    Args:
      learning_rate: :math:`\rho_t`, a scalar or a schedule; None for the relative step
        :math:`\min(10^{-2}, 1 / \sqrt{t})`.
      fraction: as in :func:`clipped_sgd`.
      decay_rate: exponent of the second moment's decay :math:`1 - t^{-0.8}`.
      clipping_threshold: :math:`d`, a bound on each block's root mean square; None for
        none.
      eps: added to the squared gradient.
      multiply_by_parameter_scale: whether to multiply by
        :math:`\max(10^{-3}, \operatorname{RMS}(x))` of each block.
      scope: as in :func:`clipped_sgd`.
      weight_decay: strength of weight decay, as in :func:`optax.adafactor` *not*
        multiplied by the learning rate; None for none.
      weight_decay_mask: as in :func:`clipped_sgd`.

    Returns:
      An optimizer. Its update needs the parameters.

    Raises:
      ValueError: as :func:`~optax_clip.clip_numerator`, and for an update without the
        parameters that it needs.

    Examples:
      The first update of a vector divides each coordinate by its own magnitude, here
      after 8 was clipped to 2, and is scaled to a root mean square of at most 1:

      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> optimizer = optax_clip.clipped_adafactor(1.0, fraction=0.5)
      >>> params = jnp.array([3.0, 3.0])
      >>> gradient = jnp.array([2.0, -8.0])
      >>> optimizer.update(gradient, optimizer.init(params), params)[0].round(4)
      Array([-3.  ,  0.75], dtype=float32)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, algorithms 3 and 4.

      Shazeer and Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory
      Cost <https://arxiv.org/abs/1804.04235>`_, 2018.
    """
    if learning_rate is None:
        learning_rate = _relative_step
    second_moment = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=1, epsilon=eps
    )
    steps: list[optax.GradientTransformation] = [
        clip_numerator(second_moment, fraction, scope=scope)
    ]
    if clipping_threshold is not None:
        steps.append(optax.clip_by_block_rms(clipping_threshold))
    steps.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        steps.append(optax.scale_by_param_block_rms())
    if weight_decay is not None:
        steps.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    return optax.chain(*steps, optax.scale(-1))


def clipped_adam(
    learning_rate: optax.ScalarOrSchedule,
    fraction: optax.ScalarOrSchedule = 0.05,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    clip: Literal["gradient", "update"] = "gradient",
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with the top coordinates clipped, of the gradient or of the update.

    With ``clip="gradient"`` the first moment averages clipped gradients, and the
    second moment raw ones:

    .. math::
      m_t = \beta_1 m_{t-1} + (1 - \beta_1) \operatorname{Clip}(g_t), \qquad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
      x_t = x_{t-1} - \eta \, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    With ``clip="update"`` both see raw gradients, and the final
    :math:`\hat m_t / (\sqrt{\hat v_t} + \epsilon)` is clipped.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: as in :func:`clipped_sgd`; the authors' code has 0.5 for Adam.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added outside of the square root.
      eps_root: added inside of the square root.
      mu_dtype: type of the first moment; None for that of the parameters.
      clip: what to clip.
      scope: as in :func:`clipped_sgd`.
      weight_decay: as in :func:`clipped_sgd`.
      weight_decay_mask: as in :func:`clipped_sgd`.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`~optax_clip.clip_top_k_coordinates`, and for an unknown
        ``clip``.

    Examples:
      Adam's first update has magnitude 1 everywhere; clipping 8 to 2 quarters it:

      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> optimizer = optax_clip.clipped_adam(learning_rate=1.0, fraction=0.5)
      >>> params = jnp.array([0.0, 0.0])
      >>> gradient = jnp.array([2.0, -8.0])
      >>> optimizer.update(gradient, optimizer.init(params), params)[0].round(4)
      Array([-1.  ,  0.25], dtype=float32)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2023, and its code.
    """
    if clip == "gradient":
        steps = [
            _scale_by_clipped_adam(fraction, scope, b1, b2, eps, eps_root, mu_dtype)
        ]
    elif clip == "update":
        steps = [
            _only_floats(),
            optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype),
            clip_top_k_coordinates(fraction, scope=scope),
        ]
    else:
        raise ValueError(
            f"clipped_adam: expected clip to be 'gradient' or 'update'; got {clip!r}."
        )
    return optax.chain(
        *_keep_dtype(mu_dtype, *steps),
        *_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped_lion(
    learning_rate: optax.ScalarOrSchedule,
    fraction: optax.ScalarOrSchedule = 0.5,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    *,
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lion with its sign replaced by clipping.

    .. math::
      c_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
      m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t, \qquad
      x_t = x_{t-1} - \eta \operatorname{Clip}(c_t)

    Lion steps along :math:`\operatorname{sign}(c_t)`. As ``fraction`` approaches 1 all
    magnitudes become the threshold :math:`\tau`, and this is Lion with a learning rate
    of :math:`\tau \eta`.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: share of the coordinates of :math:`c_t` to clip; the authors' code has
        0.5.
      b1: how much of the momentum is in the update.
      b2: decay rate of the momentum.
      mu_dtype: type of the momentum; None for that of the parameters.
      scope: as in :func:`clipped_sgd`.
      weight_decay: as in :func:`clipped_sgd`.
      weight_decay_mask: as in :func:`clipped_sgd`.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`~optax_clip.clip_top_k_coordinates`.

    Examples:
      At first :math:`c` is a tenth of the gradient:

      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> optimizer = optax_clip.clipped_lion(learning_rate=10.0, fraction=0.5)
      >>> params = jnp.array([0.0, 0.0])
      >>> gradient = jnp.array([2.0, -8.0])
      >>> optimizer.update(gradient, optimizer.init(params), params)[0].round(4)
      Array([-2.,  2.], dtype=float32)

    References:
      Chen et al., `Symbolic Discovery of Optimization Algorithms
      <https://arxiv.org/abs/2302.06675>`_, 2023.

      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2023, and its code.
    """
    return optax.chain(
        *_keep_dtype(
            mu_dtype,
            _interpolate_momentum(b1, b2, mu_dtype),
            clip_top_k_coordinates(fraction, scope=scope),
        ),
        *_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


# The pieces of the chains that Optax does not have.


def _moving_average(momentum, accumulator_dtype) -> list[optax.GradientTransformation]:
    if momentum is None or (isinstance(momentum, (int, float)) and momentum == 0):
        return []
    average = optax.ema(momentum, debias=False, accumulator_dtype=accumulator_dtype)
    return _keep_dtype(accumulator_dtype, average)


def _decayed_weights(weight_decay, mask) -> list[optax.GradientTransformation]:
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return []
    return [optax.add_decayed_weights(weight_decay, mask)]


def _keep_dtype(
    accumulator_dtype: DTypeLike | None, *steps: optax.GradientTransformation
) -> list[optax.GradientTransformation]:
    """Undo that Optax's moments give their own type to the updates."""
    if accumulator_dtype is None:
        return list(steps)
    inner = optax.chain(*steps)

    def update_fn(updates, state, params=None, **extra_args):
        new_updates, state = inner.update(updates, state, params, **extra_args)
        return optax.tree.cast_like(new_updates, updates), state

    return [optax.GradientTransformationExtraArgs(inner.init, update_fn)]


def _only_floats() -> optax.GradientTransformation:
    """Refuse what Optax's moments would silently turn into floats."""

    def update_fn(updates, params):
        del params
        check_leaves(updates, "clipping")
        return updates

    return optax.stateless(update_fn)


def _relative_step(count: ArrayLike) -> jax.Array:
    """Adafactor's ``min(1e-2, 1 / sqrt(t))``, with ``t = count + 1``."""
    return jnp.minimum(1e-2, 1 / jnp.sqrt(jnp.asarray(count) + 1.0))


class ScaleByClippedAdamState(NamedTuple):
    """State of clipped Adam's moments.

    Attributes:
      count: number of updates so far, shape ``()``, int32.
      mu: moving average of clipped gradients.
      nu: moving average of squared raw gradients.
      clip_state: thresholds of the raw gradient.
    """

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    clip_state: ClipTopKState


def _scale_by_clipped_adam(
    fraction, scope, b1, b2, eps, eps_root, mu_dtype
) -> optax.GradientTransformation:
    """``optax.scale_by_adam``, but with clipped gradients in the first moment."""
    check_fraction(fraction)
    check_scope(scope)

    def init_fn(params):
        return ScaleByClippedAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
            clip_state=init_state(params, scope),
        )

    def update_fn(updates, state, params=None):
        del params
        check_leaves(updates, "clipping")
        clip_state = measure(updates, state.clip_state, fraction, scope)
        clipped = clip_by(clip_state, fraction, updates)
        mu = optax.tree.update_moment(clipped, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = jnp.asarray(optax.safe_increment(state.count))
        updates = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v + eps_root) + eps),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        mu = optax.tree.cast(mu, mu_dtype)
        nu = optax.tree.cast_like(nu, state.nu)
        return updates, ScaleByClippedAdamState(count, mu, nu, clip_state)

    return optax.GradientTransformation(init_fn, update_fn)


def _interpolate_momentum(b1, b2, mu_dtype) -> optax.GradientTransformation:
    """What Lion takes the sign of."""

    def init_fn(params):
        return optax.ScaleByLionState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
        )

    def update_fn(updates, state, params=None):
        del params
        check_leaves(updates, "clipping")
        mixed = jax.tree.map(lambda g, m: (1.0 - b1) * g + b1 * m, updates, state.mu)
        mu = optax.tree.update_moment(updates, state.mu, b2, 1)
        count = optax.safe_increment(state.count)
        return mixed, optax.ScaleByLionState(count, optax.tree.cast(mu, mu_dtype))

    return optax.GradientTransformation(init_fn, update_fn)
