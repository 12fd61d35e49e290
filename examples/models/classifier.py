"""An encoder that sorts texts into classes: one linear head on its first position.

    graphdef, params = init(config, classes=2, seed=0)
    params = {**pretrained, "head": params["head"]}
    logits_BxC = logits(graphdef)(params, {"ids": ids_BxL})

The second paper's classifier: what the encoder says of <cls>, dropout, one linear map.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from examples.models.encoder import Encoder, EncoderConfig, linear
from examples.models.t5 import Array, Params, Rngs, at_least_float32


class Classifier(Encoder):
    """BERT or RoBERTa with a linear head in place of the masked-language-model one."""

    def __init__(self, config: EncoderConfig, classes: int, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.head: Any = linear(config.hidden_size, classes, rngs)

    def __call__(self, ids_BxL: Array, rngs: Rngs = None) -> Array:
        """Logits_BxC."""
        y_BxD = self.encode(ids_BxL, rngs)[:, 0]
        dropout = nnx.Dropout(self.config.hidden_dropout_prob)
        return self.head(dropout(y_BxD, deterministic=rngs is None, rngs=rngs))


def init(
    config: EncoderConfig, classes: int, seed: int | Array
) -> tuple[nnx.GraphDef, Params]:
    """Fresh float32 weights with the spread of BERT's; `seed` may be traced."""
    rngs = nnx.Rngs(jax.random.key(seed))
    graphdef, state = nnx.split(Classifier(config, classes, rngs))
    return graphdef, nnx.to_pure_dict(state)


def logits(graphdef: nnx.GraphDef) -> Callable[..., Array]:
    """`logits(params, batch, dropout_key=None)` of the `ids` of a batch."""

    def of(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
        return at_least_float32(nnx.merge(graphdef, params)(batch["ids"], rngs))

    return of
