"""What a fine-tuning run works on: a model, its words and its data.

`Task` is what an optimizer meets; `TranslationTask` is a T5 with English-French pairs,
and `examples.language_task` an encoder with documents.
"""

import abc
import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import jax
import numpy as np
from flax import nnx

from examples.data import translation, vocabulary
from examples.data.batching import Arrays, batch_at, count, whole
from examples.models import huggingface, t5
from examples.training import Batch

# Embedding tables may be padded; t5-small's has 28 rows more than its words need.
_SPARE_ROWS = 127


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task(abc.ABC):
    """A model in functional form, and its training rows: what an optimizer meets."""

    graphdef: nnx.GraphDef
    params: Any
    files: list[Path]  # what the numbers depend on, besides settings and code
    train: Arrays
    batch_size: int
    seed: int

    def batch_at(self, step: int) -> Arrays:
        """The training batch of a step, the same for every optimizer."""
        return batch_at(self.train, self.batch_size, self.seed, step)

    def fixed_batch(self, rows: int) -> Arrays:
        """Training rows that are drawn once, to measure on."""
        return batch_at(self.train, rows, self.seed + 1, 0)

    @property
    def rows(self) -> int:
        """How many there are to train on."""
        return count(self.train)

    def taking(self, rows: np.ndarray) -> Self:
        """The same task with these of its training rows alone."""
        train = {name: array[rows] for name, array in self.train.items()}
        return dataclasses.replace(self, train=train)

    @abc.abstractmethod
    def held_out_batches(self) -> list[Arrays]:
        """What is held out, in batches of one size; rows of padding fill the last."""

    @abc.abstractmethod
    def train_loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """The mean loss with dropout, where the checkpoint has any."""

    @abc.abstractmethod
    def eval_loss(self, params: Any, batch: Batch) -> jax.Array:
        """The mean loss without dropout."""

    @abc.abstractmethod
    def weight(self, batch: Batch) -> jax.Array:
        """Of a batch in a mean over several: the count that its loss is the mean of."""

    @abc.abstractmethod
    def counts(self) -> dict[str, int]:
        """How many rows there are of which kind."""


class TaskSettings(Protocol):
    """What the loading of any task asks of settings."""

    @property
    def init(self) -> str: ...
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


class TranslationSettings(TaskSettings, Protocol):
    """What `load_translation` asks of settings."""

    @property
    def dataset(self) -> Literal["en_fr", "opus_books"]: ...
    @property
    def pairs(self) -> Path | None: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TranslationTask(Task):
    """A T5, and English-French pairs in tokens."""

    config: t5.T5Config
    words: vocabulary.Vocabulary
    spiece: Path
    dropped: int  # pairs that were too long
    held_out: list[translation.Pair]
    held_out_arrays: Arrays

    def held_out_batches(self) -> list[Arrays]:
        """The held-out pairs; rows of padding fill the last batch."""
        padding = dict.fromkeys(self.held_out_arrays, self.config.pad_token_id)
        return whole(self.held_out_arrays, self.batch_size, padding)

    def train_loss(self, params: t5.Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The loss with dropout, where the checkpoint has any."""
        loss = t5.make_loss(self.graphdef, self.config)
        return loss(params, batch, key if self.config.dropout_rate else None)

    def eval_loss(self, params: t5.Params, batch: Batch) -> jax.Array:
        """The loss without dropout."""
        return t5.make_loss(self.graphdef, self.config)(params, batch)

    def weight(self, batch: Batch) -> jax.Array:
        """The target tokens of a batch."""
        return t5.token_count(batch, self.config.pad_token_id)

    def counts(self) -> dict[str, int]:
        """How many pairs there are, and how many were too long."""
        return {
            "train": self.rows,
            "dropped": self.dropped,
            "held_out": len(self.held_out),
        }


def load_translation(settings: TranslationSettings) -> TranslationTask:
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
    if rows > (available := count(train.arrays)):
        raise ValueError(
            f"expected at least --batch-size x --measured-batches = {rows} training "
            f"pairs, got {available}: lower one of the two."
        )
    held_out = _sample(split.valid, words, settings.max_length, settings.held_out)
    arrays = translation.tokenise(held_out, words, settings.max_length).arrays
    data = [settings.pairs] if settings.pairs else []
    return TranslationTask(
        config=config,
        graphdef=graphdef,
        params=params,
        words=words,
        spiece=spiece,
        files=[*huggingface.weight_files(folder), spiece, *data],
        train=train.arrays,
        dropped=train.dropped,
        held_out=held_out,
        held_out_arrays=arrays,
        batch_size=settings.batch_size,
        seed=settings.seed,
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


def _split(settings: TranslationSettings) -> translation.Split:
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
