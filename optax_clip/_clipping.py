"""Top-k coordinate clipping, of gradients and of numerators.

.. code-block:: text

  clip_top_k_coordinates   g -> Clip(g)                 before momentum
  clip_numerator(inner)    g -> Clip(g) / d(g)          where inner is g -> g / d(g)

Both measure a threshold (``_threshold.threshold``) and clip leaf by leaf
(``_clip_leaf``); a `Clipper` is what they share.

>>> import jax.numpy as jnp
>>> import optax
>>> import optax_clip
>>> optimizer = optax.chain(optax_clip.clip_top_k_coordinates(0.25), optax.sgd(1.0))
>>> gradient = jnp.array([1.0, -8.0, 3.0, 2.0])
>>> optimizer.update(gradient, optimizer.init(gradient))[0]   # -8 was clipped to -3
Array([-1.,  3., -3., -2.], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clip import _threshold
from optax_clip._clip_leaf import clip_to, magnitude, scale_down
from optax_clip._coordinatewise import check_coordinatewise
from optax_clip._threshold.keys import convert, unsigned
from optax_clip._threshold.shards import AxisName
from optax_clip._trees import check_leaves, path_name

Scope = Literal["global", "leaf"]
"""One threshold for all leaves together, or one for each."""


class ClipTopKState(NamedTuple):
    """State of :func:`clip_top_k_coordinates`.

    Attributes:
      count: number of updates so far, shape ``()``, int32.
      threshold: the last threshold; shape ``()`` for ``scope="global"``, and
        ``(leaves,)`` in the order of ``jax.tree.leaves`` for ``scope="leaf"``. In
        float32, or float64 where a leaf is.
      clipped_fraction: fraction of the coordinates above it, same
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
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the coordinates of largest magnitude to the largest of the others.

    With :math:`N` coordinates and :math:`m = \lfloor \text{fraction} \cdot N \rfloor`,
    let :math:`\tau` be the :math:`(m + 1)`-th largest magnitude. Then

    .. math::
      g_i \leftarrow \operatorname{sign}(g_i) \min(|g_i|, \tau).

    At most :math:`m` coordinates change; ties at :math:`\tau` do not. ``fraction=0``
    is the identity, bit for bit; as ``fraction`` approaches 1 the direction approaches
    that of the gradient's signs, which is :func:`optax.scale_by_sign`.

    Coordinates that are exactly 0 count like all others, unless that would make the
    threshold 0 and stop training: where more than :math:`1 - \text{fraction}` of them
    are 0, as in a language model's embedding or in LoRA at its start, :math:`N` is the
    number of the others. A threshold of 0 then means that the whole gradient is 0.

    Put it *before* momentum. For Adam and Adafactor, whose second moment must see the
    raw gradient, use :func:`clip_numerator` or the optimizers of this package. An
    optimizer's *update* is clipped by this transformation behind it, as in
    ``optax.chain(optax.scale_by_adam(), clip_top_k_coordinates(0.5), ...)``.

    Inside :func:`optax.masked` and :func:`optax.partition` "global" means all leaves
    that the wrapper hands over; for one threshold over everything, chain this
    transformation outside of them.

    Inside :func:`jax.shard_map` a leaf is a shard of the whole one along the axes over
    which it varies, and replicated along the others, as its type says: thresholds are
    those of the whole leaves, and equal on all devices.

    The clip is differentiable: a clipped coordinate moves with the threshold, and that
    with the coordinates of its magnitude.

    Args:
      fraction: fraction of the coordinates to clip, in ``[0, 1)``: a number, a scalar
        array (clamped to the range), or a schedule of the number of updates.
      scope: ``"global"`` for one threshold over all leaves (the paper's), ``"leaf"``
        for one per leaf.
      axis_name: where types do not say it, inside ``jax.shard_map(check_vma=False)``
        and :func:`jax.pmap`: the mapped axis, or a tuple of them, over which all
        leaves are split. None clips every shard by itself there.

    Returns:
      A transformation with a :class:`ClipTopKState`; see also :func:`clip_metrics`.
      Updates keep shape and type. NaN counts as infinitely large, is never the
      threshold and passes through; infinities are clipped. Of a complex leaf the
      modulus is clipped and the phase kept.

    Raises:
      ValueError: for a fraction outside ``[0, 1)`` or an unknown scope; at update, for
        leaves on different meshes, or an ``axis_name`` that is not bound.
      TypeError: for a fraction that is no number and no schedule; at init or update,
        for a leaf that is not floating-point or complex.

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
    clipper = Clipper.of(fraction, scope, axis_name)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        state = clipper.measure(updates, state)
        return clipper.clip(updates, state), state

    return optax.GradientTransformationExtraArgs(clipper.init, update_fn)


def clip_numerator(
    inner: optax.GradientTransformation,
    fraction: optax.ScalarOrSchedule = 0.05,
    *,
    scope: Scope = "global",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the gradient in the numerator of a transformation that divides it.

    Adafactor, RMSProp and their kin map the gradient to :math:`u_i = g_i / d_i`, with
    :math:`d_i` from their second moments. This wrapper gives

    .. math::
      u_i \leftarrow u_i \min(1, \tau / |g_i|)
        = \operatorname{sign}(g_i) \min(|g_i|, \tau) / d_i

    where :math:`d_i` has seen the raw gradient; chaining
    :func:`clip_top_k_coordinates` before ``inner`` would be another algorithm. What
    divides an infinite coordinate cannot be known: its update becomes NaN. Where the
    gradient is 0, so is the update, whatever it was divided by.

    Args:
      inner: a transformation that scales the current gradient coordinate by
        coordinate, such as :func:`optax.scale_by_factored_rms` or
        :func:`optax.scale_by_rms`. One with momentum mixes gradients of several steps,
        and needs a rule of its own: see :func:`~optax_clip.clipped_adam`.
      fraction: as in :func:`clip_top_k_coordinates`.
      scope: as in :func:`clip_top_k_coordinates`.
      axis_name: as in :func:`clip_top_k_coordinates`.

    Returns:
      A transformation with a :class:`ClipNumeratorState`.

    Raises:
      ValueError: as :func:`clip_top_k_coordinates`; at init, for an ``inner`` that is
        known to do something else: one with a momentum (Adam, Lion), or one that
        multiplies matrices (Muon, Shampoo).
      TypeError: as :func:`clip_top_k_coordinates`, and for an ``inner`` that is no
        transformation.

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
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            "clip_numerator: expected an optax.GradientTransformation as inner; got "
            f"{type(inner).__name__}."
        )
    clipper = Clipper.of(fraction, scope, axis_name)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        inner_state = inner.init(params)
        if not clipper.never:
            check_coordinatewise(inner, inner_state)
        return ClipNumeratorState(inner_state, clipper.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        clip_state = clipper.measure(updates, state.clip_state)
        scaled, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        clipped = clipper.scale_down(scaled, updates, clip_state)
        return clipped, ClipNumeratorState(inner_state, clip_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def clip_metrics(
    opt_state: optax.OptState, params: optax.Params | None = None
) -> dict[str, jax.Array]:
    """Returns the last thresholds and clipped fractions, wherever they are in a state.

    A clip is called by the labels on the way to it, those of :func:`optax.partition`
    and :func:`optax.named_chain`, and keeps that name whatever else joins the chain
    behind it: ``"threshold"``, ``"encoder/threshold"``. A second clip with the same
    labels is ``"threshold_2"``, in the order of the state; give them names of your own
    by :func:`optax.named_chain`.

    Args:
      opt_state: the state of any optimizer, under any wrapper of Optax; that of a
        Flax ``nnx.Optimizer``, or its ``nnx.state``; one that was restored as nested
        dictionaries.
      params: the parameters, to name the entries of ``scope="leaf"`` by their leaves:
        ``"threshold/encoder/kernel"``. Without them such a clip's arrays are vectors.

    Returns:
      A flat mapping with the arrays ``"threshold"`` and ``"clipped_fraction"`` of every
      clip. Nothing waits for the device: ``jax.tree.map(float, metrics)`` does.

    Raises:
      ValueError: if nothing in the state clips, or if the parameters have another
        number of leaves than a vector of thresholds.

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
    clips: dict[tuple, dict[str, Any]] = {}
    leaves = jax.tree.leaves_with_path(opt_state, is_leaf=_is_variable)
    for path, leaf in leaves:
        *parent, name = map(_key_name, path) if path else (None,)
        if name in ClipTopKState._fields:
            labels = tuple(
                k.key
                for k in path[:-1]
                if isinstance(k, jax.tree_util.DictKey)
                and isinstance(k.key, str)
                and k.key not in _FIELDS
            )
            clip = clips.setdefault(tuple(parent), {"labels": labels})
            clip[name] = leaf.get_value() if _is_variable(leaf) else leaf
    found = [
        clip for clip in clips.values() if len(clip) == len(ClipTopKState._fields) + 1
    ]
    if not found:
        raise ValueError(
            "clip_metrics: expected an optimizer state with a clip of this package in "
            f"it; among its {len(leaves)} leaves there is none."
        )
    metrics, taken = {}, {}
    for clip in found:
        labels = "".join(f"{label}/" for label in clip["labels"])
        taken[labels] = number = taken.get(labels, 0) + 1
        suffix = "" if number == 1 else f"_{number}"
        for field in ("threshold", "clipped_fraction"):
            metrics |= _by_leaf(f"{labels}{field}{suffix}", clip[field], params)
    return metrics


# Names in the states of Optax and Flax that are no labels, where a state was made into
# dictionaries.
_FIELDS = frozenset(
    {"opt_state", "inner_state", "inner_states", "inner_opt_state", "clip_state"}
)


def _by_leaf(
    name: str, values: jax.Array, params: optax.Params | None
) -> dict[str, jax.Array]:
    if params is None or jnp.ndim(values) == 0:
        return {name: values}
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    if len(paths) != len(values):
        raise ValueError(
            f"clip_metrics: expected params with the {len(values)} leaves of {name!r}; "
            f"got {len(paths)}."
        )
    return {f"{name}/{path}": values[i] for i, path in enumerate(paths)}


def _is_variable(node: Any) -> bool:
    """Returns whether this is a variable of Flax NNX, which would change later."""
    return hasattr(node, "get_value")


def _key_name(key: Any) -> Any:
    return next(
        getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)
    )


# What the transformations of this package share.


class Clipper(NamedTuple):
    """A fraction, a scope and what they mean for a tree of updates.

    Attributes:
      fraction: the fraction to clip at a number of updates: a number, or an array.
      scope: see :func:`clip_top_k_coordinates`.
      axis_name: see :func:`clip_top_k_coordinates`.
      never: whether nothing will ever be clipped. Then nothing is compiled for it, and
        not only for speed: with a select in between, a compiler may round a moving
        average otherwise than in the plain chain.
    """

    fraction: Callable[[jax.Array], Any]
    scope: Scope
    axis_name: AxisName | None
    never: bool

    @classmethod
    def of(
        cls, fraction: optax.ScalarOrSchedule, scope: Scope, axis_name: AxisName | None
    ) -> Clipper:
        """Checks the arguments of a transformation."""
        if scope not in get_args(Scope):
            raise ValueError(
                f"clipping: expected scope to be one of {get_args(Scope)}; got "
                f"{scope!r}. For other groups of leaves use optax.partition."
            )
        if callable(fraction):
            return cls(_scheduled(fraction), scope, axis_name, never=False)
        number = known_fraction(fraction)
        never = not isinstance(number, jax.Array) and number == 0
        return cls(lambda _: number, scope, axis_name, never)

    def init(self, params: optax.Params) -> ClipTopKState:
        """Returns the state before the first update: nothing clipped."""
        check_leaves(params, "clipping")
        leaves = jax.tree.leaves(params)
        shape = (len(leaves),) if self.scope == "leaf" else ()
        wide = any(jnp.finfo(jnp.result_type(leaf)).bits == 64 for leaf in leaves)
        return ClipTopKState(
            count=jnp.zeros((), jnp.int32),
            threshold=jnp.zeros(shape, jnp.float64 if wide else jnp.float32),
            clipped_fraction=jnp.zeros(shape, jnp.float32),
        )

    def measure(self, updates: optax.Updates, state: ClipTopKState) -> ClipTopKState:
        """Returns the next state, with the thresholds of these updates."""
        check_leaves(updates, "clipping")
        leaves = [magnitude(leaf) for leaf in jax.tree.leaves(updates)]
        if self.scope == "leaf" and state.threshold.shape != (len(leaves),):
            raise ValueError(
                "clipping: expected updates with as many leaves as the parameters at "
                f"init, {state.threshold.size}; got {len(leaves)}."
            )
        double = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in leaves)
        if double and state.threshold.dtype != jnp.float64:
            raise TypeError(
                "clipping: expected updates in at most the precision of the parameters "
                "at init, single; got double: convert them, or the parameters."
            )
        fraction = self.fraction(state.count)
        state = state._replace(count=jnp.asarray(optax.safe_increment(state.count)))
        if not leaves:
            return state
        groups = tuple(
            range(len(leaves)) if self.scope == "leaf" else [0] * len(leaves)
        )
        if self.never:
            found = _threshold.largest(leaves, groups, self.axis_name)
        else:
            found = _threshold.threshold(leaves, groups, fraction, self.axis_name)
        tau = convert(found.value, state.threshold.dtype)
        return state._replace(
            threshold=tau.reshape(state.threshold.shape),
            clipped_fraction=found.clipped_fraction.reshape(state.threshold.shape),
        )

    def clip(self, updates: optax.Updates, state: ClipTopKState) -> optax.Updates:
        """Returns the updates, clipped to the thresholds that were measured."""
        if self.never:
            return updates
        leaves, treedef = jax.tree.flatten(updates)
        clipped = map(clip_to, map(jnp.asarray, leaves), _scalars(state, len(leaves)))
        return treedef.unflatten(clipped)

    def scale_down(
        self, scaled: optax.Updates, updates: optax.Updates, state: ClipTopKState
    ) -> optax.Updates:
        r"""Maps :math:`u` to :math:`u \min(1, \tau / |g|)`, and 0 / 0 to 0."""
        if self.never:
            return scaled
        leaves, treedef = jax.tree.flatten(scaled)
        references = [jnp.asarray(g) for g in treedef.flatten_up_to(updates)]
        # An epsilon that is 0 in half precision makes 0 / 0 of a gradient of 0.
        kept = [
            jnp.where((g == 0) & jnp.isnan(u), jnp.zeros_like(u), u)
            for u, g in zip(leaves, references, strict=True)
        ]
        thresholds = _scalars(state, len(leaves))
        return treedef.unflatten(map(scale_down, kept, thresholds, references))


def _scheduled(schedule: optax.Schedule) -> Callable[[jax.Array], jax.Array]:
    return lambda count: jnp.asarray(schedule(count))


def known_fraction(fraction: Any) -> Any:
    """Returns a number in ``[0, 1)``, or a traced array, which is clamped later.

    Raises:
      TypeError: for what is no number.
      ValueError: for a number outside ``[0, 1)``, or an array with axes.
    """
    if isinstance(fraction, bool) or not isinstance(
        fraction, (int, float, np.number, np.ndarray, jax.Array)
    ):
        raise TypeError(
            "clipping: expected the fraction of the coordinates as a number, a scalar "
            f"array or a schedule; got {fraction!r}."
        )
    if jnp.ndim(fraction) != 0:
        raise ValueError(
            "clipping: expected a scalar fraction of the coordinates; got one of shape "
            f"{jnp.shape(fraction)}."
        )
    if isinstance(fraction, jax.core.Tracer):
        return fraction
    if isinstance(fraction, jax.Array):  # clamped, as if it were traced
        dtype = np.float64 if fraction.dtype == np.float64 else np.float32
        return np.clip(
            np.asarray(fraction, dtype), 0, np.nextafter(dtype(1), dtype(0))
        )[()]
    if not 0 <= float(fraction) < 1:
        raise ValueError(
            "clipping: expected a fraction of the coordinates in [0, 1); got "
            f"{fraction}. (For 1, the gradient's signs, use optax.scale_by_sign.)"
        )
    return fraction if isinstance(fraction, np.floating) else float(fraction)


def _scalars(state: ClipTopKState, number: int) -> list[jax.Array]:
    """Returns the threshold of each leaf."""
    tau = state.threshold
    return [tau] * number if tau.ndim == 0 else jax.jit(_unstack)(tau)


@jax.custom_jvp
def _unstack(tau: jax.Array) -> list[jax.Array]:
    """Returns the numbers of a vector as scalars.

    A slice would become part of the clip that reads it, and a compiler would find no
    two clips with the same code. A reduction stays apart, and has many results.
    """
    scalars = []
    for start in range(0, len(tau), 32):
        piece = tau[start : start + 32]
        bits = jax.lax.bitcast_convert_type(piece, unsigned(tau.dtype))
        zero, index = jnp.zeros((), bits.dtype), np.arange(len(bits))
        only = [jnp.where(index == i, bits, zero) for i in index]
        scalars += jax.lax.reduce(tuple(only), (zero,) * len(only), _bitwise_or, (0,))
    return [jax.lax.bitcast_convert_type(bits, tau.dtype) for bits in scalars]


@_unstack.defjvp
def _unstack_tangent(primals: tuple, tangents: tuple) -> tuple:
    return _unstack(*primals), [*tangents[0]]


def _bitwise_or(
    a: Sequence[jax.Array], b: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    return tuple(x | y for x, y in zip(a, b, strict=True))
