"""Pretrains a small T5 as T5 was: `python -m examples.pretrain t5-mixture`.

The data is a mixture: spans to fill in, of all training text in both languages, and
sentences of two thirds of LibreOffice's help to translate, with T5's prefix. The
optimizer is T5's, Adafactor with updates relative to the size of each weight, at a rate
that lets weights grow, as T5's did, though not as far: `examples.finetune_t5` starts
from a model that translates. About 70 minutes on 2 CPU cores. Interrupted, it goes on
with `--resume`.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from examples.data import mixture, span_corruption, translation, vocabulary
from examples.data.batching import Arrays, count
from examples.lab.steps import Metrics, TrainState, without_dropout
from examples.models import huggingface, t5
from examples.pretrain import geometry, mixture_card, shared

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "t5-enfr-mixture"
_HELD_OUT_BATCHES = 8  # of each objective


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result."""

    steps: int = 5000
    windows: int = 8  # of spans to fill in, in a batch
    source_length: int = 64  # tokens of a corrupted window, eos included
    target_tokens: int = 864  # of sentences to translate in a batch: 18 to 36 rows
    learning_rate: float = 0.03  # at the peak, relative to the RMS of each weight
    final_learning_rate: float = 0.003
    warmup_steps: int = 100
    held_fraction: float = 0.75  # of the steps, before the rate goes down linearly
    # Scores of attention are products of queries and keys, and softmax is no
    # scale-invariant function: relative updates as large as elsewhere saturate it.
    queries_and_keys: float = 0.25  # their updates, relative to those of the others
    dropout_rate: float = 0.0
    d_model: int = 192
    d_kv: int = 32
    num_heads: int = 6
    d_ff: int = 768
    num_layers: int = 4  # in the encoder, and as many in the decoder
    seed: int = 0


class Data(NamedTuple):
    """Text for both objectives, in tokens."""

    stream: np.ndarray
    buckets: list[Arrays]


def main(
    settings: Settings = Settings(),
    run: Path = Path("runs/pretrain_t5_mixture"),
    out: Path = CHECKPOINT,
    resume: bool = False,
    save_every: int = 100,
    evaluate_every: int = 250,
) -> None:
    """Pretrains a small T5 from scratch by span corruption and translation.

    Args:
        settings: what decides the result.
        run: the run folder: settings, metrics, checkpoints.
        out: where the weights and their model card go at the end.
        resume: continue the run in that folder.
        save_every: steps between checkpoints.
        evaluate_every: steps between losses on the held-out text.
    """
    with shared.claimed("t5-mixture", settings, run, out, CHECKPOINT, resume=resume):
        words, train, valid = prepare(settings)
    config = model_config(settings, words)
    graphdef, params = t5.init(config, settings.seed)
    loss = t5.make_loss(graphdef, config)
    if not settings.dropout_rate:
        loss = without_dropout(loss)
    problem = shared.Problem(
        mixture.joint_loss(loss, t5.token_count),
        params,
        optimizer(settings),
        batches(settings, words, train, settings.seed),
        held_out(loss, batches(settings, words, valid, seed=1)),
    )
    trained = shared.train(
        run, settings, problem, save_every=save_every, evaluate_every=evaluate_every
    )
    huggingface.save(out, config, trained)
    # Measured as they are committed: in half precision.
    mixture_card.write(
        out,
        run,
        *huggingface.load(out),
        words,
        predicted_growth(settings),
        text_tokens=len(train.stream),
        pairs=sum(map(count, train.buckets)),
    )
    print(f"{out}: weights, model card, loss curve and geometry")


def prepare(settings: Settings) -> tuple[vocabulary.Vocabulary, Data, Data]:
    """The vocabulary, and the training and held-out text of both objectives.

    Raises:
        ValueError: the text is too short for these settings, or no T5 has them.
    """
    words = vocabulary.load()
    model_config(settings, words)
    stories, pages = translation.committed_split(), translation.libreoffice_parts()
    train = Data(
        text(words, [*stories.train, *pages.translated, *pages.untranslated]),
        mixture.bucketed(pages.translated, words),
    )
    valid = Data(
        text(words, [*stories.valid, *pages.valid]),
        mixture.bucketed(pages.valid, words),
    )
    for data in (train, valid):
        batches(settings, words, data, settings.seed)(0)
    return words, train, valid


def model_config(settings: Settings, words: vocabulary.Vocabulary) -> t5.T5Config:
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


def text(words: vocabulary.Vocabulary, pairs: list[translation.Pair]) -> np.ndarray:
    """The tokens of both languages, one after the other."""
    languages = [[pair.english for pair in pairs], [pair.french for pair in pairs]]
    return span_corruption.stream(languages, words)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """T5's Adafactor, with smaller updates of queries and keys."""
    adafactor = optax.adafactor(
        schedule(settings),
        min_dim_size_to_factor=32,
        multiply_by_parameter_scale=True,
        clipping_threshold=1.0,
        momentum=None,
    )
    scale = optax.scale(settings.queries_and_keys)
    return optax.chain(adafactor, optax.masked(scale, queries_and_keys))


def queries_and_keys(tree: Any) -> Any:
    """True at the weights of queries and keys."""

    def is_one(path: tuple, leaf: Any) -> bool:
        del leaf
        return any(getattr(key, "key", None) in ("query", "key") for key in path)

    return jax.tree_util.tree_map_with_path(is_one, tree)


def schedule(settings: Settings) -> optax.Schedule:
    """Linear warm-up, held at the peak, and linearly down."""
    warmup = min(settings.warmup_steps, settings.steps // 2)
    held = max(warmup, round(settings.held_fraction * settings.steps))
    peak = settings.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(
                peak, settings.final_learning_rate, settings.steps - held
            ),
        ],
        [warmup, held],
    )


def predicted_growth(settings: Settings) -> dict[str, float]:
    """How many times as large matrices become if their updates are orthogonal to them.

    An update of the relative size r makes a weight sqrt(1 + r^2) times as large then.
    """
    rates = np.asarray(jax.vmap(schedule(settings))(np.arange(settings.steps)))
    half = float(np.sum(rates.astype(np.float64) ** 2)) / 2
    slow = settings.queries_and_keys**2
    return {
        kind: math.exp(half * (slow if kind in ("query", "key") else 1.0))
        for kind in geometry.RELEASED
    }


def batches(
    settings: Settings, words: vocabulary.Vocabulary, data: Data, seed: int
) -> Callable[[int], dict[str, Arrays]]:
    """Step number to batch."""
    sizes = settings.windows, settings.source_length

    def batch_at(step: int) -> dict[str, Arrays]:
        return {
            "spans": span_corruption.batch_at(data.stream, words, *sizes, seed, step),
            "translation": mixture.batch_at(
                data.buckets, settings.target_tokens, seed, step
            ),
        }

    return batch_at


def held_out(
    loss: Callable[..., jax.Array], batch_at: Callable[[int], dict[str, Arrays]]
) -> Callable[[int, TrainState], Metrics]:
    """The losses of both objectives on batches that never change."""
    batches = [batch_at(step) for step in range(_HELD_OUT_BATCHES)]
    spans, sentences = (
        shared.held_out(loss, [batch[name] for batch in batches], t5.token_count)
        for name in ("spans", "translation")
    )

    def evaluate(step: int, state: TrainState) -> Metrics:
        return {
            "held_out_loss": sentences(step, state)["held_out_loss"],
            "held_out_span_loss": spans(step, state)["held_out_loss"],
        }

    return evaluate
