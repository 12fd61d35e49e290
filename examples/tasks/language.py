"""Documents as tasks: masked tokens, or the next one, to be predicted by an encoder.

Documents are cut to one length, not dropped, and their masks are drawn once: the loss
of a row is the same function in every epoch, as the papers' is.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from examples.data import masking, reviews, subwords
from examples.data.batching import Arrays, Batch, count, padded, whole
from examples.models import checkpoint, encoder, huggingface_encoder, minilm
from examples.models.functional import Params
from examples.tasks.task import Task, TaskSettings, check_rows


class LanguageSettings(TaskSettings, Protocol):
    """What `load_masked_lm` and `load_causal_lm` ask; `init` may be "minilm"."""

    @property
    def documents(self) -> Path | None: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LanguageTask(Task):
    """An encoder, and documents in tokens."""

    config: encoder.EncoderConfig
    words: subwords.Subwords
    held_out: Arrays

    def held_out_batches(self) -> list[Arrays]:
        """The held-out documents; rows of padding fill the last batch."""
        padding = {"ids": self.words.pad, "positions": 0, "labels": encoder.IGNORED}
        return whole(self.held_out, self.batch_size, padding)

    def train_loss(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The loss with dropout, where the checkpoint has any."""
        config = self.config
        drops = config.hidden_dropout_prob or config.attention_probs_dropout_prob
        loss = encoder.make_loss(self.graphdef, config)
        return loss(params, batch, key if drops else None)

    def eval_loss(self, params: Params, batch: Batch) -> jax.Array:
        """The loss without dropout."""
        return encoder.make_loss(self.graphdef, self.config)(params, batch)

    def weight(self, batch: Batch) -> jax.Array:
        """The labels of a batch."""
        return encoder.label_count(batch)

    def counts(self) -> dict[str, int]:
        """How many documents there are, and how many labels."""
        return {
            "train": self.rows,
            "held_out": count(self.held_out),
            "labels": int((self.train["labels"] != encoder.IGNORED).sum()),
        }


class Loaded(NamedTuple):
    """An encoder and its subwords, and the files that they are from."""

    config: encoder.EncoderConfig
    graphdef: nnx.GraphDef
    params: Params
    words: subwords.Subwords
    files: list[Path]


def load_encoder(init: str, *, head: bool = True) -> Loaded:
    """A folder in the Hugging Face layout, a name on the hub, or "minilm".

    Without `head`, one that has no masked-LM head will do; it gets a new one.
    """
    mini = init == minilm.NAME
    folder = minilm.encoder_folder() if mini else checkpoint.local_folder(init)
    if mini and head:
        config, graphdef, params = minilm.load(folder)
    else:
        fresh = None if head else 0
        config, graphdef, params = huggingface_encoder.load(folder, fresh_head=fresh)
    words = subwords.for_checkpoint(folder, config.vocab_size, config.pad_token_id)
    files = [*checkpoint.weight_files(folder), folder / "tokenizer.json"]
    files += [minilm.HEAD / checkpoint.WEIGHTS] if mini and head else []
    return Loaded(config, graphdef, params, words, files)


def check_length(length: int, config: encoder.EncoderConfig, init: str) -> None:
    """Refuses rows that the encoder has no positions for."""
    if not 3 <= length <= config.max_length:
        raise ValueError(
            f"--max-length must be from 3 to the {config.max_length} positions of "
            f"{init}; got {length}."
        )


def load_masked_lm(settings: LanguageSettings) -> LanguageTask:
    """An encoder that predicts masked tokens, and documents with fixed masks.

    Raises:
        ValueError, OSError, ImportError: something is missing or does not fit, said in
            one sentence.
    """
    return _load(settings, causal=False)


def load_causal_lm(settings: LanguageSettings) -> LanguageTask:
    """A causal encoder that predicts the next token, and documents; raises as above."""
    return _load(settings, causal=True)


def _load(settings: LanguageSettings, *, causal: bool) -> LanguageTask:
    loaded = load_encoder(settings.init)
    config, words = loaded.config, loaded.words
    if config.causal != causal:
        kinds = {True: "a causal one", False: "one that looks both ways"}
        raise ValueError(
            f"{settings.init}: expected {kinds[causal]}, got {kinds[config.causal]}: "
            f"{'the masked-LM' if config.causal else 'the causal-LM'} task is not its."
        )
    L = settings.max_length
    check_length(L, config, settings.init)
    split = reviews.load(settings.documents, settings.seed)
    valid = split.valid[: settings.held_out]
    wanted = settings.batch_size * settings.measured_batches
    check_rows("training documents", len(split.train), wanted)
    ids_BxL = padded(words.encode([*split.train, *valid], L), L, words.pad)
    arrays = masking.causal_lm(ids_BxL, words.pad)
    if not causal:
        noise_BxLx3 = masking.fixed_noise(len(ids_BxL), L, settings.seed)
        arrays = masking.masked_lm(ids_BxL, noise_BxLx3, words)
    train, held_out = (
        {name: array[rows] for name, array in arrays.items()}
        for rows in np.split(np.arange(len(ids_BxL)), [len(split.train)])
    )
    data = settings.documents or reviews.package_file()
    return LanguageTask(
        config=config,
        graphdef=loaded.graphdef,
        params=loaded.params,
        words=words,
        files=[*loaded.files, data],
        train=train,
        held_out=held_out,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
