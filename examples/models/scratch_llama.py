"""A small Llama that has learned nothing, with subwords made of the documents.

    config, graphdef, params, words, files = load(texts)

Embedding and layers have about as many parameters each, as in the small models that
people train from the beginning.
"""

from collections.abc import Sequence

import tokenizers

from examples.data import subwords
from examples.models import llama
from examples.models.pretrained_llama import Loaded

NAME = "scratch"
VOCABULARY = 2048
_TEXTS = 2_000  # of which the subwords are made


def load(texts: Sequence[str], vocabulary: int = VOCABULARY) -> Loaded:
    """Random weights of seed 0, and so many subwords of the first of the texts.

    Raises:
        ValueError: the texts have not so many subwords.
    """
    made = subwords.train(texts[:_TEXTS], vocabulary)
    words = subwords.of(tokenizers.Tokenizer.from_str(made), "the documents")
    config = llama.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=256,
        eos_token_id=words.sep,
    )
    return Loaded(config, *llama.init(config, 0), words, [])
