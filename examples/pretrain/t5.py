"""Pretrains a small T5 from scratch: `python -m examples.pretrain t5`.

Span corruption on both languages of the training stories, 5.7 M parameters, about 40
minutes on 2 CPU cores (a few minutes on a GPU). The committed result is what
`examples.finetune_t5` starts from, because the loss around random weights has another
geometry than around trained ones. Interrupted, it goes on with `--resume`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optax
import tyro

from examples.data import span_corruption, translation, vocabulary
from examples.data.batching import Arrays
from examples.lab.steps import without_dropout
from examples.models import huggingface, t5
from examples.pretrain import model_card, shared

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "t5-enfr-small"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result."""

    steps: int = 3200
    batch_size: int = 32  # windows; twice as many at half the steps learnt less
    source_length: int = 64  # tokens of a corrupted window, eos included
    learning_rate: float = 1e-2  # at the peak, relative to the RMS of each weight
    warmup_steps: int = 200
    b2: float = 0.98
    max_gradient_norm: float = 1.0
    dropout_rate: float = 0.0  # fresh masks in each of 9 epochs regularise enough
    d_model: int = 192
    d_kv: int = 32
    num_heads: int = 6
    d_ff: int = 768
    num_layers: int = 4  # in the encoder, and as many in the decoder
    seed: int = 0


def main(
    settings: Settings = Settings(),
    run: Path = Path("runs/pretrain_t5"),
    out: Path = CHECKPOINT,
    resume: bool = False,
    save_every: int = 100,
    evaluate_every: int = 200,
) -> None:
    """Pretrains a small T5 from scratch by span corruption.

    Args:
        settings: what decides the result.
        run: the run folder: settings, metrics, checkpoints.
        out: where the weights and their model card go at the end.
        resume: continue the run in that folder.
        save_every: steps between checkpoints.
        evaluate_every: steps between losses on the held-out stories.
    """
    with shared.claimed("t5", settings, run, out, CHECKPOINT, resume=resume):
        words, train, valid = prepare(settings)
    config = model_config(settings, words)
    graphdef, params = t5.init(config, settings.seed)
    loss = t5.make_loss(graphdef, config)
    problem = shared.Problem(
        loss if settings.dropout_rate else without_dropout(loss),
        params,
        optimizer(settings),
        batches(settings, words, train, settings.seed),
        shared.held_out(loss, held_out(settings, words, valid), t5.token_count),
    )
    trained = shared.train(
        run, settings, problem, save_every=save_every, evaluate_every=evaluate_every
    )
    huggingface.save(out, config, trained)
    model_card.write(out, run, params, model_card.T5, vocab_size=words.size)
    print(f"{out}: weights, model card and loss curve")


def prepare(
    settings: Settings,
) -> tuple[vocabulary.Vocabulary, np.ndarray, np.ndarray]:
    """The vocabulary, and the training and held-out text in tokens.

    Raises:
        ValueError: the text is too short for these settings, or no T5 has them.
    """
    words = vocabulary.load()
    model_config(settings, words)
    train, valid = (text(words, pairs) for pairs in translation.committed_split())
    for stream in (train, valid):
        batches(settings, words, stream, settings.seed)(0)
    return words, train, valid


def model_config(settings: shared.Sizes, words: vocabulary.Vocabulary) -> t5.T5Config:
    return t5.T5Config(
        vocab_size=words.size,
        d_model=settings.d_model,
        d_kv=settings.d_kv,
        num_heads=settings.num_heads,
        d_ff=settings.d_ff,
        num_layers=settings.num_layers,
        num_decoder_layers=settings.num_layers,
        dropout_rate=settings.dropout_rate,
    )


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Adam relative to the size of each weight.

    T5's embedding starts at scale 1 and its queries at 0.01: one absolute rate for both
    is too small for the former or unstable for the latter.
    """
    return optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.scale_by_adam(b2=settings.b2),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(shared.schedule(settings)),
    )


def text(words: vocabulary.Vocabulary, pairs: list[translation.Pair]) -> np.ndarray:
    """The tokens of both languages, one after the other."""
    languages = [[pair.english for pair in pairs], [pair.french for pair in pairs]]
    return span_corruption.stream(languages, words)


def batches(
    settings: Settings, words: vocabulary.Vocabulary, stream: np.ndarray, seed: int
) -> Callable[[int], Arrays]:
    """Step number to batch."""
    sizes = settings.batch_size, settings.source_length
    return lambda step: span_corruption.batch_at(stream, words, *sizes, seed, step)


def held_out(
    settings: Settings, words: vocabulary.Vocabulary, stream: np.ndarray
) -> list[Arrays]:
    """The held-out text, with masks that never change."""
    sizes = settings.batch_size, settings.source_length
    count = span_corruption.batches_per_epoch(stream, *sizes)
    batch_at = batches(settings, words, stream, seed=1)
    return [batch_at(step) for step in range(count)]


def cli() -> None:
    tyro.cli(main, prog="python -m examples.pretrain_t5")
