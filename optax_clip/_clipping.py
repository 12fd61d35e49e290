"""Top-k coordinate clipping, of gradients and of numerators.

:func:`clip_top_k_coordinates` and :func:`clip_numerator` share one order statistic,
``_threshold.threshold``, and one rule, :func:`clip_by`; they differ in what they clip
by it.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clip import _threshold
from optax_clip._keys import (
    common_dtype,
    convert,
    infinity_key,
    magnitude_key,
    unsigned,
    with_sign_of,
)
from optax_clip._shards import AxisName
from optax_clip._trees import check_leaves

Scope = Literal["global", "leaf"]
"""One threshold for all leaves together, or one for each."""


class ClipTopKState(NamedTuple):
    """State of :func:`clip_top_k_coordinates`.

    Attributes:
      count: number of updates so far, shape ``()``, int32.
      threshold: the last threshold; shape ``()`` for ``scope="global"``, and
        ``(leaves,)`` in the order of ``jax.tree.leaves`` for ``scope="leaf"``. In
        float32, or float64 where a leaf is.
      clipped_fraction: share of the coordinates above it when it was computed, same
        shape, float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> clip = optax_clip.clip_top_k_coordinates(scope="leaf")
      >>> state = clip.init({"a": jnp.zeros(3), "b": jnp.zeros(4)})
      >>> int(state.count), state.threshold.shape
      (0, (2,))
    """

    count: jax.Array
    threshold: jax.Array
    clipped_fraction: jax.Array


class ClipNumeratorState(NamedTuple):
    """State of :func:`clip_numerator`.

    Attributes:
      inner_state: state of the wrapped transformation.
      clip_state: the :class:`ClipTopKState` of the raw gradient.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> state = optax_clip.clip_numerator(optax.scale_by_rms()).init(jnp.zeros(3))
      >>> type(state.inner_state).__name__, type(state.clip_state).__name__
      ('ScaleByRmsState', 'ClipTopKState')
    """

    inner_state: Any
    clip_state: ClipTopKState


def clip_top_k_coordinates(
    fraction: optax.ScalarOrSchedule = 0.05,
    *,
    scope: Scope = "global",
    refresh_every: int = 1,
    tolerance: ArrayLike = 0.0,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clip the coordinates of largest magnitude to the largest of the others.

    With :math:`N` coordinates and :math:`m = \lfloor \text{fraction} \cdot N \rfloor`,
    let :math:`\tau` be the :math:`(m + 1)`-th largest magnitude. Then

    .. math::
      g_i \leftarrow \operatorname{sign}(g_i) \min(|g_i|, \tau).

    At most :math:`m` coordinates change; ties at :math:`\tau` do not. ``fraction=0``
    is the identity, bit for bit; as ``fraction`` approaches 1 the direction approaches
    that of the gradient's signs, which is :func:`optax.scale_by_sign`.

    Put it *before* momentum. For Adam and Adafactor, whose second moment must see the
    raw gradient, use :func:`clip_numerator` or the optimizers of this package.

    Inside :func:`optax.masked` and :func:`optax.partition` "global" means all leaves
    that the wrapper hands over; for one threshold over everything, chain this
    transformation outside of them.

    Inside :func:`jax.shard_map` a leaf is a part of the whole one along the axes over
    which it varies, and one and the same along the others, as its type says: thresholds
    are those of the whole leaves, and equal on all devices.

    Args:
      fraction: share of the coordinates to clip, in ``[0, 1)``: a number, a scalar
        array (clamped to the range), or a schedule of the number of updates.
      scope: ``"global"`` for one threshold over all leaves (the paper's), ``"leaf"``
        for one per leaf.
      refresh_every: recompute the threshold at every so-many-th update, and reuse it
        in between, when the state keeps the numbers of the update that computed it,
        and more or fewer coordinates than ``fraction`` may exceed it. A threshold of 0
        is not reused.
      tolerance: 0 for the exact :math:`\tau`. Otherwise any :math:`\tau` will do that
        clips at most ``fraction`` of the coordinates and at most ``tolerance`` fewer
        (ties aside), so that the search can stop earlier: often after one pass over
        the gradient.
      axis_name: where types do not say it, inside ``jax.shard_map(check_vma=False)``
        and :func:`jax.pmap`: the mapped axis, or a tuple of them, over which all
        leaves are split. None clips every part by itself there.

    Returns:
      A transformation with a :class:`ClipTopKState`; see also :func:`clip_metrics`.
      Updates keep shape and type. NaN counts as infinitely large, is never the
      threshold and passes through; infinities are clipped. Of a complex leaf the
      modulus is clipped and the phase kept.

    Raises:
      ValueError: for a fraction or a tolerance outside ``[0, 1)``, an unknown scope, or
        ``refresh_every < 1``; at update, for leaves on different meshes, or an
        ``axis_name`` that is not bound.
      TypeError: at init or update, for a leaf that is not floating-point or complex.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> clip = optax_clip.clip_top_k_coordinates(fraction=0.25)
      >>> gradient = {"a": jnp.array([1.0, -8.0]), "b": jnp.array([3.0, 2.0])}
      >>> state = clip.init(gradient)
      >>> updates, state = clip.update(gradient, state)
      >>> updates["a"], updates["b"]
      (Array([ 1., -3.], dtype=float32), Array([3., 2.], dtype=float32))
      >>> state.threshold, state.clipped_fraction
      (Array(3., dtype=float32), Array(0.25, dtype=float32))

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, section 4 and
      appendix A.2.
    """
    check_fraction(fraction)
    check_scope(scope)
    check_tolerance(tolerance)
    # inject_hyperparams turns numbers into arrays; only what is known can be checked.
    always = isinstance(refresh_every, int) and refresh_every == 1
    if not isinstance(refresh_every, jax.core.Tracer) and refresh_every < 1:
        raise ValueError(
            "clip_top_k_coordinates: expected refresh_every >= 1, the number of "
            f"updates that share a threshold; got {refresh_every}."
        )

    def init_fn(params):
        return init_state(params, scope)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        check_leaves(updates, "clipping")
        if always:
            state = measure(updates, state, fraction, scope, tolerance, axis_name)
            return clip_by(state, fraction, updates), state
        due = state.count % refresh_every == 0
        state = jax.lax.cond(
            due,
            lambda: measure(updates, state, fraction, scope, tolerance, axis_name),
            lambda: advance(state),
        )
        # That of a gradient of zeros says nothing about the next one.
        usable = due | (state.threshold > 0)
        tau = jnp.where(usable, state.threshold, jnp.inf)
        return clip_by(state._replace(threshold=tau), fraction, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def clip_numerator(
    inner: optax.GradientTransformation,
    fraction: optax.ScalarOrSchedule = 0.05,
    *,
    scope: Scope = "global",
    tolerance: ArrayLike = 0.0,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clip the gradient in the numerator of a transformation that divides it.

    Adafactor, RMSProp and their kin map the gradient to :math:`u_i = g_i / d_i`, with
    :math:`d_i` from their second moments. This wrapper gives

    .. math::
      u_i \leftarrow u_i \min(1, \tau / |g_i|)
        = \operatorname{sign}(g_i) \min(|g_i|, \tau) / d_i

    where :math:`d_i` has seen the raw gradient; chaining
    :func:`clip_top_k_coordinates` before ``inner`` would be another algorithm. What
    divides an infinite coordinate cannot be known: its update becomes NaN.

    Args:
      inner: a transformation that scales the current gradient coordinate by
        coordinate, such as :func:`optax.scale_by_factored_rms` or
        :func:`optax.scale_by_rms`. One with momentum mixes gradients of several steps,
        and needs a rule of its own: see :func:`~optax_clip.clipped_adam`.
      fraction: as in :func:`clip_top_k_coordinates`.
      scope: as in :func:`clip_top_k_coordinates`.
      tolerance: as in :func:`clip_top_k_coordinates`.
      axis_name: as in :func:`clip_top_k_coordinates`.

    Returns:
      A transformation with a :class:`ClipNumeratorState`.

    Raises:
      ValueError: for a fraction or a tolerance outside ``[0, 1)``, or an unknown scope;
        at update, as :func:`clip_top_k_coordinates`.
      TypeError: at init or update, for a leaf that is not floating-point or complex.

    Examples:
      The third gradient, 8, is clipped to 2, a quarter of it, and so is its update:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> gradient = jnp.array([1.0, 2.0, -8.0])
      >>> halve = optax.scale(0.5)
      >>> tx = optax_clip.clip_numerator(halve, fraction=0.34)
      >>> tx.update(gradient, tx.init(gradient))[0]
      Array([ 0.5,  1. , -1. ], dtype=float32)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, algorithms 3 and 4.
    """
    check_fraction(fraction)
    check_scope(scope)
    check_tolerance(tolerance)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        return ClipNumeratorState(inner.init(params), init_state(params, scope))

    def update_fn(updates, state, params=None, **extra_args):
        check_leaves(updates, "clipping")
        clip_state = measure(
            updates, state.clip_state, fraction, scope, tolerance, axis_name
        )
        scaled, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        clipped = clip_by(clip_state, fraction, scaled, reference=updates)
        return clipped, ClipNumeratorState(inner_state, clip_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def clip_metrics(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The last thresholds and clipped fractions, wherever they are in a state.

    Args:
      opt_state: the state of any optimizer: under :func:`optax.chain`,
        :func:`optax.partition`, :func:`optax.inject_hyperparams`,
        :class:`optax.MultiSteps` and other wrappers.

    Returns:
      A flat mapping with the arrays ``"threshold"`` and ``"clipped_fraction"``, and no
      transfer to the host. Where there are several clips, each has its number, in the
      order of the state, and the labels on the way to it in front:
      ``"0/encoder/threshold"``. Empty if nothing clips.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> optimizer = optax_clip.clipped_sgd(0.1, fraction=0.5)
      >>> params = jnp.array([1.0, 4.0])
      >>> _, state = optimizer.update(params, optimizer.init(params))
      >>> optax_clip.clip_metrics(state)
      {'threshold': Array(1., dtype=float32),
       'clipped_fraction': Array(0.5, dtype=float32)}
    """
    nodes = jax.tree.leaves_with_path(
        opt_state, is_leaf=lambda node: isinstance(node, ClipTopKState)
    )
    found = [node for node in nodes if isinstance(node[1], ClipTopKState)]
    metrics = {}
    for i, (path, state) in enumerate(found):
        labels = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        prefix = "/".join([str(i), *labels, ""]) if len(found) > 1 else ""
        metrics[prefix + "threshold"] = state.threshold
        metrics[prefix + "clipped_fraction"] = state.clipped_fraction
    return metrics


# What the transformations of this package share.


def check_fraction(fraction: optax.ScalarOrSchedule) -> None:
    """Refuse a number outside ``[0, 1)``; the values of arrays are clamped instead."""
    if callable(fraction):
        return
    if not isinstance(fraction, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(
            "clipping: expected the fraction of the coordinates as a number, a scalar "
            f"array or a schedule; got {fraction!r}."
        )
    if jnp.ndim(fraction) != 0:
        raise ValueError(
            "clipping: expected a scalar fraction of the coordinates; got one of shape "
            f"{jnp.shape(fraction)}."
        )
    if isinstance(fraction, jax.Array):
        return
    if not 0 <= float(fraction) < 1:
        raise ValueError(
            "clipping: expected a fraction of the coordinates in [0, 1); got "
            f"{fraction}. (For 1, the gradient's signs, use optax.scale_by_sign.)"
        )


def check_tolerance(tolerance: ArrayLike) -> None:
    """Refuse what is no share of the coordinates; the values of arrays are believed."""
    if isinstance(tolerance, jax.Array):  # inject_hyperparams makes them
        return
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise ValueError(
            "clipping: expected a tolerance, a share of the coordinates, in [0, 1); "
            f"got {tolerance!r}."
        )


def is_zero(fraction: optax.ScalarOrSchedule) -> bool:
    """Whether nothing will ever be clipped.

    Then nothing is compiled for it, and not only for speed: with a select in between, a
    compiler may round a moving average otherwise than in the plain chain.
    """
    if callable(fraction) or isinstance(fraction, jax.core.Tracer):
        return False
    return float(fraction) == 0


def check_scope(scope: str) -> None:
    """Refuse an unknown scope."""
    if scope not in get_args(Scope):
        raise ValueError(
            f"clipping: expected scope to be one of {get_args(Scope)}; got {scope!r}. "
            "For other groups of leaves use optax.partition."
        )


def init_state(params: optax.Params, scope: Scope) -> ClipTopKState:
    """The state before the first update: nothing clipped."""
    check_leaves(params, "clipping")
    leaves = jax.tree.leaves(params)
    shape = (len(leaves),) if scope == "leaf" else ()
    wide = any(jnp.finfo(jnp.result_type(leaf)).bits == 64 for leaf in leaves)
    return ClipTopKState(
        count=jnp.zeros((), jnp.int32),
        threshold=jnp.zeros(shape, jnp.float64 if wide else jnp.float32),
        clipped_fraction=jnp.zeros(shape, jnp.float32),
    )


def measure(
    updates: optax.Updates,
    state: ClipTopKState,
    fraction: optax.ScalarOrSchedule,
    scope: Scope,
    tolerance: ArrayLike = 0.0,
    axis_name: AxisName | None = None,
) -> ClipTopKState:
    """The next state, with the thresholds of these updates."""
    leaves = [_modulus(leaf) for leaf in jax.tree.leaves(updates)]
    if scope == "leaf" and state.threshold.shape != (len(leaves),):
        raise ValueError(
            "clipping: expected updates with as many leaves as the parameters at init, "
            f"{state.threshold.size}; got {len(leaves)}."
        )
    double = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in leaves)
    if double and state.threshold.dtype != jnp.float64:
        raise TypeError(
            "clipping: expected updates in at most the precision of the parameters "
            "at init, single; got double: convert them, or the parameters."
        )
    if callable(fraction):
        fraction = jnp.asarray(fraction(state.count))
    state = advance(state)
    if not leaves:
        return state
    groups = range(len(leaves)) if scope == "leaf" else [0] * len(leaves)
    if is_zero(fraction):
        value, share = _threshold.largest(leaves, groups, axis_name)
    else:
        value, share = _threshold.threshold(
            leaves, groups, fraction, tolerance, axis_name
        )
    return state._replace(
        threshold=convert(value, state.threshold.dtype).reshape(state.threshold.shape),
        clipped_fraction=share.reshape(state.clipped_fraction.shape),
    )


def advance(state: ClipTopKState) -> ClipTopKState:
    """The next state, with the thresholds of the last one."""
    return state._replace(count=jnp.asarray(optax.safe_increment(state.count)))


def clip_by(
    state: ClipTopKState,
    fraction: optax.ScalarOrSchedule,
    updates: optax.Updates,
    reference: optax.Updates | None = None,
) -> optax.Updates:
    r"""Map :math:`u` to :math:`u \min(1, \tau / |r|)`, with ``reference`` :math:`r`.

    Args:
      state: holds :math:`\tau`, one or one per leaf.
      fraction: what the state was measured for.
      updates: the tree to clip.
      reference: the tree whose magnitudes count, by default ``updates``, whose clipped
        coordinates then become the threshold itself, without rounding.

    Returns:
      ``updates``, changed only where a magnitude exceeds its threshold.
    """
    if is_zero(fraction):
        return updates
    leaves, treedef = jax.tree.flatten(updates)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    references = leaves if reference is None else treedef.flatten_up_to(reference)
    tau = state.threshold
    thresholds = [tau] * len(leaves) if tau.ndim == 0 else _one_by_one(tau)
    clip = _clip_to if reference is None else _scale_down
    clipped = [
        clip(leaf, tau, _modulus(ref))
        for leaf, ref, tau in zip(leaves, references, thresholds, strict=True)
    ]
    return treedef.unflatten(clipped)


def _one_by_one(tau: jax.Array) -> list[jax.Array]:
    """The numbers of a vector as scalars.

    A slice would become part of the clip that reads it, and a compiler would find no
    two clips with the same code. A reduction stays apart, and has many results.
    """
    scalars = []
    for start in range(0, len(tau), 32):
        part = jax.lax.bitcast_convert_type(
            tau[start : start + 32], unsigned(tau.dtype)
        )
        only = [jnp.where(np.arange(len(part)) == i, part, 0) for i in range(len(part))]
        zeros = (np.zeros((), part.dtype),) * len(part)
        scalars += jax.lax.reduce(tuple(only), zeros, _bitwise_or, (0,))
    return [jax.lax.bitcast_convert_type(bits, tau.dtype) for bits in scalars]


def _bitwise_or(
    a: Sequence[jax.Array], b: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    return tuple(x | y for x, y in zip(a, b, strict=True))


@jax.jit  # leaves of one shape are traced once
def _clip_to(leaf: jax.Array, tau: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Replace what exceeds ``tau`` by ``tau`` itself, with its own sign or phase."""
    if jnp.iscomplexobj(leaf):
        limit = _phase(leaf) * tau.astype(magnitude.dtype)
    else:
        limit = with_sign_of(convert(tau, leaf.dtype), leaf)
    return jnp.where(exceeds(magnitude, tau), limit, leaf)


def _scale_down(leaf: jax.Array, tau: jax.Array, magnitude: jax.Array) -> jax.Array:
    """``leaf tau / magnitude`` where that exceeds ``tau``."""
    above = exceeds(magnitude, tau)
    wide = jnp.promote_types(tau.dtype, magnitude.dtype)
    # Not 0 elsewhere, or the derivative would be NaN there; and not the quotient of
    # the magnitudes first, which underflows.
    divisor = jnp.where(above, jnp.abs(magnitude).astype(wide), 1)
    scaled = leaf.astype(jnp.promote_types(leaf.dtype, wide)) / divisor * tau
    return jnp.where(above, scaled.astype(leaf.dtype), leaf)


def _phase(z: jax.Array) -> jax.Array:
    """``z / |z|``, also where the modulus overflows."""
    largest = jnp.maximum(jnp.abs(z.real), jnp.abs(z.imag))
    infinite = jnp.isinf(largest)
    half = jnp.where(infinite | (largest == 0), 1, largest / 2)

    def part(x):
        at_infinity = jnp.where(jnp.isinf(x), jnp.sign(x), 0)
        return jnp.where(infinite, at_infinity, x / 2 / half)

    x, y = part(z.real), part(z.imag)
    length = jnp.sqrt(jnp.square(x) + jnp.square(y))
    return jax.lax.complex(x / length, y / length)


def exceeds(leaf: jax.Array, tau: jax.Array) -> jax.Array:
    """Whether ``|leaf| > tau``, and not NaN, as the threshold was counted."""
    dtype = common_dtype([leaf, tau])
    key = magnitude_key(leaf, dtype)
    return (key > magnitude_key(tau, dtype)) & (key <= infinity_key(dtype))


def _modulus(leaf: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf
