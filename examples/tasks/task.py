"""What an optimizer meets: a model in functional form, its training rows and losses."""

import abc
import dataclasses
from pathlib import Path
from typing import Any, Protocol, Self

import jax
import numpy as np
from flax import nnx

from examples.data.batching import Arrays, Batch, batch_at, count


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task(abc.ABC):
    """A model in functional form, and its training rows."""

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

    def start(self, seed: int) -> Any:
        """The parameters that a training with this seed begins with: the checkpoint."""
        del seed
        return self.params

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


def check_rows(what: str, available: int, wanted: int) -> None:
    """Refuses data that does not fill what is trained or measured on at a time."""
    if wanted > available:
        raise ValueError(
            f"expected at least {wanted:,} {what}, which are used at a time, got "
            f"{available:,}: lower the batches or give more data."
        )


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
