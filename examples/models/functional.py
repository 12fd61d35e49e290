"""Models as pure functions of their weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from examples.models.t5 import Array, Params, at_least_float32


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Graphdef and weights of a model that has nothing else."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def rngs(seed: int | Array) -> nnx.Rngs:
    """What fresh weights are drawn with; `seed` may be traced."""
    return nnx.Rngs(jax.random.key(seed))


def logits(graphdef: nnx.GraphDef, name: str, *frozen: Any) -> Callable[..., Array]:
    """`logits(params, batch, dropout_key=None)` of what a batch has by that name.

    `frozen` is a part of the model's state that is not among its weights.
    """

    def of(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        dropout = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
        model = nnx.merge(graphdef, params, *frozen)
        return at_least_float32(model(batch[name], dropout))

    return of
