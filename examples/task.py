"""What a fine-tuning run works on: a model, its words and its pairs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from flax import nnx

from examples.data import translation, vocabulary
from examples.models import huggingface, t5

# Embedding tables may be padded; t5-small's has 28 rows more than its words need.
_SPARE_ROWS = 127


class TaskSettings(Protocol):
    """What `load_task` asks of settings."""

    @property
    def init(self) -> str: ...
    @property
    def dataset(self) -> Literal["en_fr", "opus_books"]: ...
    @property
    def pairs(self) -> Path | None: ...
    @property
    def max_length(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def measured_batches(self) -> int: ...
    @property
    def held_out(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """Settings for `load_task` of programs that hold nothing out."""

    init: str
    dataset: Literal["en_fr", "opus_books"]
    pairs: Path | None
    max_length: int
    batch_size: int
    measured_batches: int = 1
    held_out: int = 1
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A model in functional form, and the pairs in tokens."""

    config: t5.T5Config
    graphdef: nnx.GraphDef
    params: t5.Params
    words: vocabulary.Vocabulary
    spiece: Path
    weights: list[Path]
    train: translation.Tokenised
    held_out: list[translation.Pair]
    held_out_arrays: translation.Arrays
    batch_size: int
    seed: int

    def batch_at(self, step: int) -> translation.Arrays:
        """The training batch of a step, the same for every optimizer."""
        return translation.batch_at(self.train.arrays, self.batch_size, self.seed, step)

    def fixed_batch(self, rows: int) -> translation.Arrays:
        """Training pairs that are drawn once, to measure on."""
        return translation.batch_at(self.train.arrays, rows, self.seed + 1, 0)

    def counts(self) -> dict[str, int]:
        """How many pairs there are, and how many were too long."""
        return {
            "train": len(self.train.arrays["source"]),
            "dropped": self.train.dropped,
            "held_out": len(self.held_out),
        }

    @property
    def arrays(self) -> translation.Arrays:
        """All training examples."""
        return self.train.arrays

    def weight(self, batch: Mapping[str, Any]) -> jax.Array:
        """Of a batch in a mean over several: its target tokens."""
        return t5.token_count(batch, self.config.pad_token_id)

    def train_loss(
        self, params: t5.Params, batch: translation.Arrays, key: jax.Array
    ) -> jax.Array:
        """The loss with dropout, where the checkpoint has any."""
        loss = t5.make_loss(self.graphdef, self.config)
        return loss(params, batch, key if self.config.dropout_rate else None)

    def eval_loss(self, params: t5.Params, batch: translation.Arrays) -> jax.Array:
        """The loss without dropout."""
        return t5.make_loss(self.graphdef, self.config)(params, batch)


def load_task(settings: TaskSettings) -> Task:
    """Loads and tokenises everything.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    folder = huggingface.local_folder(settings.init)
    config, graphdef, params = huggingface.load(folder)
    words, spiece = _vocabulary(folder, config.vocab_size)
    split = _split(settings)
    train = translation.tokenise(split.train, words, settings.max_length)
    rows = settings.batch_size * settings.measured_batches
    if rows > (available := len(train.arrays["source"])):
        raise ValueError(
            f"expected at least --batch-size x --measured-batches = {rows} training "
            f"pairs, got {available}: lower one of the two."
        )
    held_out = _sample(split.valid, words, settings.max_length, settings.held_out)
    arrays = translation.tokenise(held_out, words, settings.max_length).arrays
    return Task(
        config,
        graphdef,
        params,
        words,
        spiece,
        huggingface.weight_files(folder),
        train,
        held_out,
        arrays,
        settings.batch_size,
        settings.seed,
    )


def _vocabulary(folder: Path, rows: int) -> tuple[vocabulary.Vocabulary, Path]:
    """The checkpoint's own spiece.model, or the committed one where that fits."""
    own = folder / "spiece.model"
    path = own if own.is_file() else vocabulary.COMMITTED
    words = vocabulary.load(path)
    if not words.size <= rows <= words.size + _SPARE_ROWS:
        where = (
            "its own" if path == own else "it has no spiece.model, and the committed"
        )
        raise ValueError(
            f"{folder}: {where} vocabulary of {words.size:,} ids does not fit its "
            f"embedding of {rows:,} rows: put the checkpoint's spiece.model beside it."
        )
    return words, path


def _split(settings: TaskSettings) -> translation.Split:
    if settings.pairs:
        return translation.file_split(settings.pairs, settings.seed)
    if settings.dataset == "opus_books":
        return translation.opus_books_split(settings.seed)
    return translation.committed_split()


def _sample(
    pairs: list[translation.Pair],
    words: vocabulary.Vocabulary,
    max_length: int,
    count: int,
) -> list[translation.Pair]:
    """So many of the pairs that are short enough, evenly from all of them."""
    source = words.encode([translation.PREFIX + pair.english for pair in pairs])
    target = words.encode([pair.french for pair in pairs])
    fitting = [
        pair
        for pair, s, t in zip(pairs, source, target, strict=True)
        if max(len(s), len(t)) <= max_length
    ]
    if not fitting:
        raise ValueError(
            f"expected held-out pairs of at most {max_length} tokens, got none among "
            f"{len(pairs)}: raise --max-length."
        )
    rows = np.linspace(0, len(fitting) - 1, min(count, len(fitting)))
    return [fitting[row] for row in rows.astype(int)]
