"""Translation as a task: a T5 with English-French pairs in tokens."""

import dataclasses
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from examples.data import translation, vocabulary
from examples.data.batching import Arrays, Batch, count, whole
from examples.models import huggingface, t5
from examples.tasks.task import Task, TaskSettings, check_rows

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
    tuning: list[translation.Pair]  # as many other held-out pairs, or fewer

    def held_out_batches(self) -> list[Arrays]:
        """The held-out pairs; rows of padding fill the last batch."""
        return self._whole(self.held_out_arrays)

    def tuning_batches(self) -> list[Arrays]:
        """The other held-out pairs, to choose by what is not reported."""
        if not self.tuning:
            raise ValueError(
                f"expected more than the {len(self.held_out)} held-out pairs that are "
                "reported, to choose by the others: give more pairs or lower "
                "--held-out."
            )
        length = self.held_out_arrays["source"].shape[1]
        return self._whole(translation.tokenise(self.tuning, self.words, length).arrays)

    def _whole(self, arrays: Arrays) -> list[Arrays]:
        padding = dict.fromkeys(arrays, self.config.pad_token_id)
        return whole(arrays, self.batch_size, padding)

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
    split = _split(settings)  # before what may have to be fetched
    folder = huggingface.local_folder(_path(settings.init))
    config, graphdef, params = huggingface.load(folder)
    words, spiece = vocabulary_of(folder, config.vocab_size)
    train = translation.tokenise(split.train, words, settings.max_length)
    wanted = settings.batch_size * settings.measured_batches
    check_rows("training pairs", count(train.arrays), wanted)
    held_out, tuning = _samples(
        split.valid, words, settings.max_length, settings.held_out
    )
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
        tuning=tuning,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _path(init: str) -> str:
    """A committed checkpoint is found from every working directory."""
    committed = _CHECKOUT / init
    return str(committed) if committed.is_dir() and not Path(init).exists() else init


def vocabulary_of(folder: Path, rows: int) -> tuple[vocabulary.Vocabulary, Path]:
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


def _samples(
    pairs: list[translation.Pair],
    words: vocabulary.Vocabulary,
    max_length: int,
    count: int,
) -> tuple[list[translation.Pair], list[translation.Pair]]:
    """So many of the short enough pairs, evenly from all, and of the others."""
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
    reported, others = _evenly(fitting, count)
    return reported, _evenly(others, count)[0]


def _evenly(pairs: list[translation.Pair], count: int) -> tuple[list, list]:
    """So many, evenly from all of them, and those that are left."""
    rows = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    taken = set(rows.tolist())
    left = [pair for row, pair in enumerate(pairs) if row not in taken]
    return [pairs[row] for row in rows], left
