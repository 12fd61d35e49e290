"""Gives MiniLM a masked-LM head: `python -m examples.pretrain mlm-head`.

The encoder all-MiniLM-L6-v2 is published without the head that its pretraining had. A
new one learns on movie reviews while the encoder stays as it is; only the head is
saved. Interrupted, it goes on with `--resume`.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.data import packed, reviews, subwords
from examples.data.batching import Batch
from examples.lab.steps import Params
from examples.models import encoder, huggingface_encoder, minilm
from examples.pretrain import model_card, shared


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result."""

    init: str = minilm.NAME  # or a folder with an encoder, with or without a head
    documents: Path | None = None  # one per line, instead of the reviews
    steps: int = 1200
    batch_size: int = 16  # windows
    length: int = 64  # tokens of a window, cls and sep included
    learning_rate: float = 3e-3  # at the peak
    warmup_steps: int = 50
    seed: int = 0


def main(
    settings: Settings = Settings(),
    run: Path = Path("runs/minilm-mlm-head"),
    out: Path = minilm.HEAD,
    resume: bool = False,
    save_every: int = 50,
    evaluate_every: int = 100,
) -> None:
    """Trains a masked-LM head on a frozen encoder.

    Args:
        settings: what decides the result.
        run: the run folder: settings, metrics, checkpoints.
        out: where the head and its model card go at the end.
        resume: continue the run in that folder.
        save_every: steps between checkpoints.
        evaluate_every: steps between losses on the held-out reviews.
    """
    with shared.claimed("mlm_head", settings, run, out, minilm.HEAD, resume=resume):
        problem = prepare(settings)
    trained = shared.train(
        run, settings, problem, save_every=save_every, evaluate_every=evaluate_every
    )
    minilm.save_head(out, trained)
    model_card.write(
        out,
        run,
        problem.params,
        model_card.HEAD,
        name=out.name,
        package=minilm.PACKAGE,
        data=settings.documents or reviews.PRETRAINING,
        objective=model_card.MASKED,
    )
    print(f"{out}: head, model card and loss curve")


def prepare(settings: Settings) -> shared.Problem:
    """A fresh head, and what it learns.

    The frozen encoder travels with the batches: closed over, it would be compiled in.
    """
    mini = settings.init == minilm.NAME
    folder = minilm.encoder_folder() if mini else Path(settings.init)
    loaded = huggingface_encoder.load(folder, fresh_head=settings.seed)
    config, graphdef, params = loaded
    words = subwords.for_checkpoint(folder, config.vocab_size, config.pad_token_id)
    split = reviews.load(settings.documents, settings.seed)
    train, valid = (
        packed.stream(words, texts) for texts in (split.pretraining, split.valid)
    )
    sizes = words, settings.batch_size, settings.length
    masked_at = packed.batches(train, *sizes, settings.seed)
    frozen = {name: part for name, part in params.items() if name != "head"}
    # Where there is nothing to know yet, a token is as likely as it is frequent.
    counts_V = np.bincount(train, minlength=config.vocab_size) + 1
    head = params["head"] | {"bias": jnp.log(counts_V / counts_V.sum())}
    full_loss = encoder.make_loss(graphdef, config)

    def loss(head: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        del key
        return full_loss({**batch["encoder"], "head": head}, batch)

    held_out = [{"encoder": frozen, **batch} for batch in packed.sample(valid, *sizes)]
    return shared.Problem(
        loss,
        head,
        optax.adam(shared.schedule(settings)),
        lambda step: {"encoder": frozen, **masked_at(step)},
        shared.held_out(loss, held_out, encoder.label_count),
    )
