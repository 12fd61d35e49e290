"""The model and the data of a variant."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

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
    start: Callable[[int], t5.Params]  # of a seed
    train: batching.Arrays
    test: batching.Arrays

    def batch_at(self, size: int, seed: int, step: int) -> batching.Arrays:
        return batching.batch_at(self.train, size, seed, step)


def set_up(
    variant: Variant, init: str, max_length: int, test_size: int, folder: Path
) -> Problem:
    """The model and the pairs of a variant; `folder` keeps its vocabulary."""
    parts = translation.libreoffice_parts()
    config, graphdef, params = huggingface.load(init)
    words = vocabulary.load()
    if variant.vocabulary != words.size:
        words = _vocabulary(folder, parts.untranslated, variant.vocabulary)
        config = dataclasses.replace(config, vocab_size=words.size)

    def start(seed: int) -> t5.Params:
        return t5.init(config, seed)[1] if variant.start == "random" else params

    if variant.start == "random":
        graphdef, _ = t5.init(config, 0)
    loss = t5.make_loss(graphdef, config, mask_source=variant.mask_source)
    train, test = (
        _rows(pairs, words, max_length, variant.source_length)
        for pairs in (
            parts.untranslated,
            _new(parts.valid, [*parts.translated, *parts.untranslated]),
        )
    )
    if test_size > batching.count(test):
        raise ValueError(
            f"--test-size: expected at most the {batching.count(test)} held-out pairs "
            f"of this length, got {test_size}."
        )
    evenly = np.linspace(0, batching.count(test) - 1, test_size).astype(int)
    test = {name: array[evenly] for name, array in test.items()}
    return Problem(without_dropout(loss), start, train, test)


def _rows(
    pairs: list[translation.Pair],
    words: vocabulary.Vocabulary,
    max_length: int,
    source_length: int,
) -> batching.Arrays:
    arrays = translation.tokenise(pairs, words, max_length).arrays
    extra = source_length - arrays["source"].shape[1]
    arrays["source"] = np.pad(arrays["source"], ((0, 0), (0, max(extra, 0))))
    return arrays


def _new(
    pairs: list[translation.Pair], known: list[translation.Pair]
) -> list[translation.Pair]:
    """The pairs with a source that no training has, each once."""
    seen = {pair.english for pair in known}
    return [p for p in {p.english: p for p in pairs}.values() if p.english not in seen]


def _vocabulary(
    folder: Path, pairs: list[translation.Pair], size: int
) -> vocabulary.Vocabulary:
    """A vocabulary of another size, trained on the same pairs."""
    path = folder / f"spiece-{size}.model"
    if not path.is_file():
        sentences = [text for pair in pairs for text in (pair.english, pair.french)]
        path.write_bytes(vocabulary.train(sentences, size))
    return vocabulary.load(path)
