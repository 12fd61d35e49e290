"""What the models share: pure functions of their weights, made of few pieces."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Array = jax.Array
Params = dict[str, Any]
Rngs = nnx.Rngs | None  # None: no dropout
KeysValues = tuple[Array, Array]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Graphdef and weights of a model that has nothing else."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def rngs(seed: int | Array) -> nnx.Rngs:
    """What fresh weights are drawn with; `seed` may be traced."""
    return nnx.Rngs(jax.random.key(seed))


def dropout_rngs(key: Array | None) -> Rngs:
    return None if key is None else nnx.Rngs(dropout=key)


def logits(graphdef: nnx.GraphDef, name: str, *frozen: Any) -> Callable[..., Array]:
    """`logits(params, batch, dropout_key=None)` of what a batch has by that name.

    `frozen` is a part of the model's state that is not among its weights.
    """

    def of(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        model = nnx.merge(graphdef, params, *frozen)
        return at_least_float32(model(batch[name], dropout_rngs(dropout_key)))

    return of


def mean_cross_entropy(logits_BxTxV: Array, ids_BxT: Array, given_BxT: Array) -> Array:
    """The mean over the ids that are given, and 0 where none is."""
    loss_BxT = optax.softmax_cross_entropy_with_integer_labels(
        at_least_float32(logits_BxTxV), jnp.where(given_BxT, ids_BxT, 0)
    )
    total = loss_BxT.sum(where=given_BxT)
    return total / jnp.maximum(given_BxT.sum(), 1).astype(total.dtype)


class Embed(nnx.Module):
    """A table of vectors. `nnx.Embed` would cast to the dtype it was made with."""

    def __init__(self, rows: int, columns: int, stddev: float, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(stddev)
        self.embedding = nnx.Param(normal(rngs.params(), (rows, columns), jnp.float32))

    def __call__(self, ids: Array) -> Array:
        return jnp.take(self.embedding[...], ids, axis=0)  # NaN outside of the table

    def attend(self, y_BxTxD: Array) -> Array:
        return y_BxTxD @ self.embedding[...].T


def linear(
    inputs: int, outputs: int, stddev: float, rngs: nnx.Rngs, *, use_bias: bool = False
) -> nnx.Linear:
    normal = nnx.initializers.normal(stddev)
    return nnx.Linear(inputs, outputs, use_bias=use_bias, kernel_init=normal, rngs=rngs)


def dropout(y: Array, rate: float, rngs: Rngs) -> Array:
    return nnx.Dropout(rate)(y, deterministic=rngs is None, rngs=rngs)


def attend(scores: Array, mask: Array | None, dtype: jnp.dtype) -> Array:
    """How much of each value is taken: the softmax of scores where the mask is true."""
    scores = at_least_float32(scores)
    if mask is not None:
        # Not -inf: a row of nothing but padding must not become NaN.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    # As exp of a difference. In second derivatives of a softmax, which divides, XLA
    # does not see what it has computed before: 651 products instead of 469 of a T5.
    return jnp.exp(jax.nn.log_softmax(scores)).astype(dtype)


def write(cache: KeysValues, new: KeysValues, position: int | Array) -> KeysValues:
    """Put keys and values into longer ones, from that position on."""
    (k, v), (new_k, new_v), update = cache, new, jax.lax.dynamic_update_slice_in_dim
    return update(k, new_k, position, axis=1), update(v, new_v, position, axis=1)


def at_least_float32(y: Array) -> Array:
    return y.astype(jnp.promote_types(y.dtype, jnp.float32))
