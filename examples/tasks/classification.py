"""Classification tasks: rows of one class each, and a model with a linear head.

`examples.tasks.texts` and `examples.tasks.images` load them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.data.batching import Arrays, Batch, count, whole
from examples.models.functional import Params
from examples.tasks.task import Task

IGNORED = -1  # the label of a row of padding

Logits = Callable[..., jax.Array]  # of parameters, batch, dropout key -> logits_BxC


def check_model(kind: str, model: str, models: Sequence[str]) -> None:
    """Refuses a model that is not for texts, or not for images."""
    if model not in models:
        raise ValueError(
            f"--model: for {kind} expected one of {', '.join(models)}; got {model}."
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationTask(Task):
    """A classifier, and rows with a label each.

    `params["head"]` is the linear head: `kernel`, a column for each class, and `bias`.
    A batch holds what `logits` reads, and int32 `labels` of shape (B,).
    """

    config: Any  # of the model
    logits: Logits
    classes: tuple[str, ...]
    dropout: bool  # whether `logits` has a use for a dropout key
    held_out: Arrays

    def held_out_batches(self) -> list[Arrays]:
        """The held-out rows; rows of padding fill the last batch."""
        fill = dict.fromkeys(self.held_out, 0) | {"labels": IGNORED}
        return whole(self.held_out, self.batch_size, fill)

    def train_loss(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The mean loss with dropout, where the checkpoint has any."""
        return self._loss(params, batch, key if self.dropout else None)

    def eval_loss(self, params: Params, batch: Batch) -> jax.Array:
        """The mean loss without dropout."""
        return self._loss(params, batch, None)

    def _loss(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """The mean cross-entropy of the rows that have a label."""
        given_B = batch["labels"] != IGNORED
        logits_BxC = self.logits(params, batch, key)
        loss_B = optax.softmax_cross_entropy_with_integer_labels(
            logits_BxC, jnp.where(given_B, batch["labels"], 0)
        )
        total = loss_B.sum(where=given_B)
        return total / jnp.maximum(given_B.sum(), 1).astype(total.dtype)

    def weight(self, batch: Batch) -> jax.Array:
        """The labelled rows of a batch."""
        return (batch["labels"] != IGNORED).sum()

    def counts(self) -> dict[str, int]:
        """How many rows and classes there are."""
        return {
            "train": self.rows,
            "held_out": count(self.held_out),
            "classes": len(self.classes),
        }
