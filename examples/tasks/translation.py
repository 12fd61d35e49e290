"""Translation as a task: a T5 with English-French pairs in tokens."""

import dataclasses
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from examples.data import translation, vocabulary
from examples.data.batching import Arrays, Batch, batch_at, count, whole
from examples.models import huggingface, t5
from examples.tasks.task import Task, TaskSettings

# Embedding tables may be padded; t5-small's has 28 rows more than its words need.
_SPARE_ROWS = 127
_CHECKOUT = Path(__file__).parents[2]


class TranslationSettings(TaskSettings, Protocol):
    """What `load_translation` asks of settings."""

    @property
    def dataset(self) -> str: ...
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
    train_pairs: int | None = None  # of the training rows; the seed chooses them

    def batch_at(self, step: int) -> Arrays:
        """The training batch of a step, the same for every optimizer."""
        return batch_at(self.pool(), self.batch_size, self.seed, step)

    def pool(self) -> Arrays:
        """The training rows that batches are taken from."""
        if self.train_pairs is None:
            return self.train
        rows = np.random.default_rng((self.seed, 1)).permutation(self.rows)
        chosen = np.sort(rows[: self.train_pairs])
        return {name: array[chosen] for name, array in self.train.items()}

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
            "train": count(self.pool()),
            "dropped": self.dropped,
            "held_out": len(self.held_out),
        }


def load_translation(settings: TranslationSettings) -> TranslationTask:
    """Loads and tokenises everything.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    folder = huggingface.local_folder(_path(settings.init))
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


def _path(init: str) -> str:
    """A committed checkpoint is found from every working directory."""
    committed = _CHECKOUT / init
    return str(committed) if committed.is_dir() and not Path(init).exists() else init


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
    if settings.dataset == "libreoffice":
        return translation.libreoffice_split()
    if settings.dataset == "libreoffice_untranslated":
        parts = translation.libreoffice_parts()
        return translation.Split(parts.untranslated, parts.valid)
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
