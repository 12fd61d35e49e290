"""Documents as a task for a Llama: at every token, which one is next.

Documents are laid one after the other, with the token between them that the model knows
from its own pretraining, and cut into rows of one length: no padding, and a label at
every position.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from examples.data import documents, packed
from examples.data.batching import Arrays, Batch, count, whole
from examples.data.documents import Documents
from examples.data.subwords import Subwords
from examples.models import encoder, llama, pretrained_llama, scratch_llama
from examples.models.functional import Params
from examples.models.pretrained_llama import Loaded
from examples.tasks.task import Task, TaskSettings, check_rows


class LlamaSettings(TaskSettings, Protocol):
    """What `load_llama` asks of settings."""

    @property
    def dataset(self) -> str: ...
    @property
    def documents(self) -> Path | None: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LlamaTask(Task):
    """A Llama, and rows of tokens."""

    config: llama.LlamaConfig
    words: Subwords
    held_out: Arrays

    def held_out_batches(self) -> list[Arrays]:
        """The held-out rows; rows without labels fill the last batch."""
        padding = {"ids": self.words.pad, "labels": encoder.IGNORED}
        return whole(self.held_out, self.batch_size, padding)

    def train_loss(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The loss; a Llama has no dropout."""
        del key
        return self.eval_loss(params, batch)

    def eval_loss(self, params: Params, batch: Batch) -> jax.Array:
        """The mean cross-entropy of the next tokens."""
        return llama.make_loss(self.graphdef, self.config)(params, batch)

    def weight(self, batch: Batch) -> jax.Array:
        """The labels of a batch."""
        return encoder.label_count(batch)

    def counts(self) -> dict[str, int]:
        """How many rows there are, and how many labels."""
        labels = int(self.train["labels"].size)
        return {"train": self.rows, "held_out": count(self.held_out), "labels": labels}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScratchTask(LlamaTask):
    """A Llama whose every training begins with weights of its own."""

    def start(self, seed: int) -> Params:
        """Random weights."""
        return llama.init(self.config, seed)[1]


def load_llama(settings: LlamaSettings) -> LlamaTask:
    """A Llama by its name, its file or its folder, and documents; or a new one.

    Raises:
        ValueError, OSError, ImportError: something is missing or does not fit, said in
            one sentence.
    """
    texts = documents.load(settings.dataset, settings.documents, settings.seed)
    scratch = settings.init == scratch_llama.NAME
    return make_task(
        scratch_llama.load(texts.train)
        if scratch
        else pretrained_llama.load(settings.init),
        texts,
        kind=ScratchTask if scratch else LlamaTask,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        least_rows=settings.batch_size * settings.measured_batches,
        held_out=settings.held_out,
        seed=settings.seed,
    )


def make_task(
    loaded: Loaded,
    texts: Documents,
    *,
    max_length: int,
    batch_size: int,
    least_rows: int,
    held_out: int,
    seed: int,
    kind: type[LlamaTask] = LlamaTask,
) -> LlamaTask:
    """The task of a loaded Llama; so many held-out rows, evenly from all of them."""
    most = loaded.config.max_position_embeddings
    if not 2 <= max_length <= most:
        raise ValueError(
            f"--max-length must be from 2 to the {most} positions of this Llama; got "
            f"{max_length}."
        )
    train, valid = (
        rows_of(loaded.words, part, max_length) for part in (texts.train, texts.valid)
    )
    check_rows(f"training rows of {max_length} tokens", count(train), least_rows)
    if not count(valid):
        raise ValueError(
            f"expected a held-out row of {max_length} tokens, got a shorter text: "
            "lower the length or give more text."
        )
    chosen = np.linspace(0, count(valid) - 1, min(held_out, count(valid))).astype(int)
    return kind(
        config=loaded.config,
        graphdef=loaded.graphdef,
        params=loaded.params,
        words=loaded.words,
        files=[*loaded.files, *texts.files],
        train=train,
        held_out={name: array[chosen] for name, array in valid.items()},
        batch_size=batch_size,
        seed=seed,
    )


def rows_of(words: Subwords, texts: Sequence[str], length: int) -> Arrays:
    """Ids BxL, and at each position the token after it, be it in the next row."""
    stream_N = np.concatenate([[words.cls], packed.stream(words, texts)])
    rows = (len(stream_N) - 1) // length
    ids, labels = (
        stream_N[start : start + rows * length].reshape(rows, length).astype(np.int32)
        for start in (0, 1)
    )
    return {"ids": ids, "labels": labels}
