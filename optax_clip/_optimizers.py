"""The papers' optimizers: chains of this package's transformations and Optax's.

Each equals, with ``fraction=0`` and bit for bit, the plain Optax chain that it extends.

>>> import jax.numpy as jnp
>>> import optax_clip
>>> optimizer = optax_clip.clipped_sgd(learning_rate=1.0, fraction=0.5, decay=0.0)
>>> gradient = jnp.array([2.0, -8.0])
>>> optimizer.update(gradient, optimizer.init(gradient))[0]   # -8 was clipped to -2
Array([-2.,  2.], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_clip._clipping import Scope, clip_numerator, clip_top_k_coordinates
from optax_clip._scaling import (
    interpolate_momentum,
    keep_dtype,
    moving_average,
    normalize_by_block_rms,
    scale_by_clipped_adam,
)

Mask = Any | Callable[[optax.Params], Any]
"""A tree of booleans, or a function that makes one of the parameters."""


def clipped_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    fraction: optax.ScalarOrSchedule = 0.05,
    decay: ArrayLike | None = 0.9,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes SGD with momentum on gradients whose top coordinates are clipped.

    .. math::
      m_t = \beta m_{t-1} + (1 - \beta) \operatorname{Clip}(g_t), \qquad
      x_t = x_{t-1} - \eta m_t, \qquad m_0 = 0

    The momentum is the paper's moving average, as :func:`optax.ema` has it. The heavy
    ball of :func:`optax.sgd` and PyTorch, :math:`m_t = \beta m_{t-1} + g_t`, makes the
    same steps with a learning rate of :math:`(1 - \beta) \eta`.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: fraction of the coordinates to clip; see
        :func:`~optax_clip.clip_top_k_coordinates`.
      decay: :math:`\beta` in ``[0, 1)``; None or 0 for no momentum.
      nesterov: whether to step along :math:`\beta m_t + (1 - \beta)
        \operatorname{Clip}(g_t)` instead of :math:`m_t`.
      accumulator_dtype: type of the momentum; None for that of the parameters.
      scope: one threshold, ``"global"``, or one per leaf, ``"leaf"``.
      weight_decay: strength of decoupled weight decay (multiplied by the learning
        rate).
      mask: a tree of booleans, or a function of the parameters that returns one: where
        weight decay applies.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`~optax_clip.clip_top_k_coordinates`, and for a ``decay``
        outside ``[0, 1)``.

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
        clip_top_k_coordinates(fraction, scope=scope),
        *moving_average(decay, accumulator_dtype, nesterov=nesterov),
        *_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped_normalized_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    fraction: optax.ScalarOrSchedule = 0.05,
    decay: ArrayLike | None = 0.9,
    nesterov: bool = False,
    eps: float = 0.0,
    accumulator_dtype: DTypeLike | None = None,
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes SGD whose momentum is normalized, every tensor by its root mean square.

    .. math::
      m_t = \beta m_{t-1} + (1 - \beta) \operatorname{Clip}(g_t), \qquad
      x_{b,t} = x_{b,t-1} - \eta \sqrt{P_b} \, m_{b,t} / \|m_{b,t}\|_2

    for every tensor :math:`b` of :math:`P_b` coordinates: each moves by a root mean
    square of :math:`\eta`, or not at all where its momentum is zero. ``fraction=0``
    is plain normalized SGD.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: as in :func:`clipped_sgd`.
      decay: as in :func:`clipped_sgd`.
      nesterov: as in :func:`clipped_sgd`; the normalization comes behind it.
      eps: floor of the root mean square that divides.
      accumulator_dtype: as in :func:`clipped_sgd`.
      scope: as in :func:`clipped_sgd`.
      weight_decay: as in :func:`clipped_sgd`.
      mask: as in :func:`clipped_sgd`.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`clipped_sgd`, and for a negative ``eps``.

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
        clip_top_k_coordinates(fraction, scope=scope),
        *moving_average(decay, accumulator_dtype, nesterov=nesterov),
        normalize_by_block_rms(eps),
        *_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped_adafactor(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    fraction: optax.ScalarOrSchedule = 0.05,
    scope: Scope = "global",
    min_dim_size_to_factor: int | None = None,
    decay_rate: ArrayLike = 0.8,
    decay_offset: ArrayLike = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ArrayLike | None = 1.0,
    momentum: ArrayLike | None = None,
    dtype_momentum: DTypeLike = jnp.float32,
    weight_decay_rate: optax.ScalarOrSchedule | None = None,
    eps: ArrayLike = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes Adafactor with the top coordinates clipped in the numerator.

    With :math:`V_t` Adafactor's factored second moment of the raw gradient,

    .. math::
      U_t = \operatorname{Clip}(g_t) / \sqrt{V_t}, \qquad
      x_t = x_{t-1} - \rho_t \max(10^{-3}, \operatorname{RMS}(x_{t-1}))
        \, U_t / \max(1, \operatorname{RMS}(U_t) / d)

    without momentum. The paper factors every matrix, and so does this by default, where
    :func:`optax.adafactor` leaves those with less than 128 rows or columns; of a leaf
    with more than two dimensions the two largest are factored. All but ``fraction``
    and ``scope`` has the names that it has in :func:`optax.adafactor`.

    Args:
      learning_rate: :math:`\rho_t`, a scalar or a schedule; None for the relative step
        :math:`\min(10^{-2}, 1 / \sqrt{t})`.
      fraction: as in :func:`clipped_sgd`.
      scope: as in :func:`clipped_sgd`.
      min_dim_size_to_factor: the smallest dimension that is factored; None for any.
      decay_rate: exponent of the second moment's decay :math:`1 - t^{-0.8}`.
      decay_offset: number of updates to subtract from :math:`t` there.
      multiply_by_parameter_scale: whether to multiply by
        :math:`\max(10^{-3}, \operatorname{RMS}(x))` of each block.
      clipping_threshold: :math:`d`, a bound on each block's root mean square; None for
        none.
      momentum: decay of a moving average of the updates; None for none, the paper's.
      dtype_momentum: its type.
      weight_decay_rate: strength of weight decay, as in :func:`optax.adafactor` *not*
        multiplied by the learning rate; None for none.
      eps: added to the squared gradient.
      factored: whether to factor at all.
      weight_decay_mask: as `mask` in :func:`clipped_sgd`.

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
    second_moment = optax.scale_by_factored_rms(
        factored, decay_rate, decay_offset, min_dim_size_to_factor or 1, eps
    )
    steps: list[optax.GradientTransformation] = [
        clip_numerator(second_moment, fraction, scope=scope)
    ]
    if clipping_threshold is not None:
        steps.append(optax.clip_by_block_rms(clipping_threshold))
    rate = _relative_step if learning_rate is None else learning_rate
    steps.append(optax.scale_by_learning_rate(rate, flip_sign=False))
    if multiply_by_parameter_scale:
        steps.append(optax.scale_by_param_block_rms())
    if momentum is not None:
        average = optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum)
        steps += keep_dtype(dtype_momentum, average)
    if weight_decay_rate is not None:
        steps.append(optax.add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return optax.chain(*steps, optax.scale(-1))


def clipped_adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    fraction: optax.ScalarOrSchedule = 0.05,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = False,
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes Adam with the top coordinates of the gradient clipped.

    The first moment averages clipped gradients, and the second moment raw ones: see
    :func:`scale_by_clipped_adam`. With ``weight_decay`` this is a clipped AdamW. To
    clip Adam's *update* instead, chain :func:`optax.scale_by_adam` and
    :func:`clip_top_k_coordinates`.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: as in :func:`clipped_sgd`; the authors' code has 0.5 for Adam.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added outside of the square root.
      eps_root: added inside of the square root.
      mu_dtype: type of the first moment; None for that of the parameters.
      nesterov: whether to look ahead, as in :func:`optax.nadam`.
      scope: as in :func:`clipped_sgd`.
      weight_decay: as in :func:`clipped_sgd`.
      mask: as in :func:`clipped_sgd`.

    Returns:
      An optimizer, whose updates have the type of the gradients.

    Raises:
      ValueError: as :func:`~optax_clip.clip_top_k_coordinates`.

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
    scale = scale_by_clipped_adam(
        fraction,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
        scope=scope,
    )
    return optax.chain(
        *keep_dtype(mu_dtype, scale),
        *_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped_lion(
    learning_rate: optax.ScalarOrSchedule,
    *,
    fraction: optax.ScalarOrSchedule = 0.5,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    scope: Scope = "global",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes Lion with its sign replaced by clipping.

    .. math::
      c_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
      m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t, \qquad
      x_t = x_{t-1} - \eta \operatorname{Clip}(c_t)

    Lion steps along :math:`\operatorname{sign}(c_t)`. As ``fraction`` approaches 1 all
    magnitudes become the threshold :math:`\tau`, and this is Lion with a learning rate
    of :math:`\tau \eta`.

    Args:
      learning_rate: :math:`\eta`, a scalar or a schedule.
      fraction: fraction of the coordinates of :math:`c_t` to clip; 0.5 is that of the
        authors' code.
      b1: how much of the momentum is in the update.
      b2: decay rate of the momentum.
      mu_dtype: type of the momentum; None for that of the parameters.
      scope: as in :func:`clipped_sgd`.
      weight_decay: as in :func:`clipped_sgd`; :func:`optax.lion` has 0.001.
      mask: as in :func:`clipped_sgd`.

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
        *keep_dtype(
            mu_dtype,
            interpolate_momentum(b1, b2, mu_dtype),
            clip_top_k_coordinates(fraction, scope=scope),
        ),
        *_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _decayed_weights(weight_decay, mask) -> list[optax.GradientTransformation]:
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return []
    return [optax.add_decayed_weights(weight_decay, mask)]


def _relative_step(count: ArrayLike) -> jax.Array:
    """Returns Adafactor's ``min(1e-2, 1 / sqrt(t))``, with ``t = count + 1``."""
    return jnp.minimum(1e-2, 1 / jnp.sqrt(jnp.asarray(count, float) + 1))
