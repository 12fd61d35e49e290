"""The model and the data of a variant."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.data import batching, translation, vocabulary
from examples.factors.variants import Variant
from examples.lab.steps import without_dropout
from examples.models import huggingface, t5


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model and its data, as a variant has them."""

    loss: Callable[..., jax.Array]
    params: t5.Params
    arrays: batching.Arrays

    def batch_at(self, size: int, seed: int, step: int) -> batching.Arrays:
        return batching.batch_at(self.arrays, size, seed, step)


def set_up(
    variant: Variant, init: str, max_length: int, seed: int, folder: Path
) -> Problem:
    """The model and the pairs of a variant; `folder` keeps its vocabulary."""
    pairs = translation.committed_split().train
    config, graphdef, params = huggingface.load(init)
    words = vocabulary.load()
    if variant.vocabulary != words.size:
        words = _vocabulary(folder, pairs, variant.vocabulary)
        config = dataclasses.replace(config, vocab_size=words.size)
    if variant.start == "random":
        graphdef, params = t5.init(config, seed)
    arrays = translation.tokenise(pairs, words, max_length).arrays
    extra = variant.source_length - arrays["source"].shape[1]
    arrays["source"] = np.pad(arrays["source"], ((0, 0), (0, max(extra, 0))))
    loss = t5.make_loss(graphdef, config, mask_source=variant.mask_source)
    return Problem(without_dropout(loss), params, arrays)


def rescale(params: t5.Params, scale: float) -> t5.Params:
    """The same function of the tokens, with an embedding `scale` times as large.

    What the layers add to the embedding grows with it; the norm before the output
    layer, which is the embedding once more, takes the factor back.
    """
    if scale == 1:
        return params

    def scaled(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if name == "['embed']['embedding']" or "['output']['kernel']" in name:
            return x * scale
        return x / scale if name == "['decoder']['norm']['scale']" else x

    return jax.tree_util.tree_map_with_path(scaled, params)


def _vocabulary(
    folder: Path, pairs: list[translation.Pair], size: int
) -> vocabulary.Vocabulary:
    """A vocabulary of another size, trained on the same pairs."""
    path = folder / f"spiece-{size}.model"
    if not path.is_file():
        sentences = [text for pair in pairs for text in (pair.english, pair.french)]
        path.write_bytes(vocabulary.train(sentences, size))
    return vocabulary.load(path)
