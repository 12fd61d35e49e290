"""An encoder that sorts texts into classes: one linear head on its first position.

    graphdef, params = init(config, classes=2, seed=0)
    params = {**pretrained, "head": params["head"]}
    logits = functional.logits(graphdef, "ids")
    logits_BxC = logits(params, {"ids": ids_BxL})

The second paper's classifier: what the encoder says of <cls>, dropout, one linear map.
"""

from typing import Any

from flax import nnx

from examples.models import functional
from examples.models.encoder import Encoder, EncoderConfig, linear
from examples.models.functional import Array, Params, Rngs


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
    return functional.split(Classifier(config, classes, functional.rngs(seed)))
