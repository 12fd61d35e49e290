"""Rows that nothing is trained on: some to choose a learning rate by, others to report.

validation, test = split(task, validation_rows=16, test_rows=32)
loss = assessor(task)
loss(params, test)  # the mean over all labels of these batches
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from examples.data.batching import Arrays, Batch, count
from examples.lab.steps import Params
from examples.tasks.task import Task


def split(
    task: Task, *, validation_rows: int, test_rows: int
) -> tuple[list[Arrays], list[Arrays]]:
    """Validation and test batches, each whole, from all over the held-out rows.

    A row that the task also trains on, a second copy and padding are in neither.
    """
    wanted = validation_rows + test_rows
    what = f"{validation_rows} to choose learning rates by and {test_rows} to report"
    rows, chosen = _distinct(task, wanted, what)
    places = np.linspace(0, wanted - 1, validation_rows).round().astype(int)
    parts = chosen[places], np.delete(chosen, places)
    validation, test = (_batches(task, rows, part) for part in parts)
    return validation, test


def batch(task: Task, size: int) -> Arrays:
    """One batch to measure on, from all over the held-out rows, as in `split`."""
    rows, chosen = _distinct(task, size, "to measure on")
    return {name: array[chosen] for name, array in rows.items()}


def assessor(task: Task) -> Callable[[Params, Sequence[Batch]], float]:
    """(parameters, batches) -> the mean loss without dropout over their labels."""
    return mean_loss(task.eval_loss, task.weight)


def mean_loss(
    loss: Callable[[Params, Batch], jax.Array], weight: Callable[[Batch], Any]
) -> Callable[[Params, Sequence[Batch]], float]:
    """(parameters, batches) -> the mean over batches, each of its weight, if any."""

    @jax.jit
    def weighted(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return loss(params, batch), weight(batch)

    def assess(params: Params, batches: Sequence[Batch]) -> float:
        found = [jax.device_get(weighted(params, batch)) for batch in batches]
        losses, weights = np.asarray(found, np.float64).T
        counted = weights > 0
        return float(losses[counted] @ weights[counted] / weights.sum())

    return assess


def _distinct(task: Task, wanted: int, what: str) -> tuple[Arrays, np.ndarray]:
    """All held-out rows, and so many of them that differ from what is trained on."""
    batches = task.held_out_batches()
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    kept, seen = [], set(_contents(task.train))
    for row, content in enumerate(_contents(rows)):
        labelled = task.weight({name: a[row : row + 1] for name, a in rows.items()})
        if content not in seen and labelled > 0:
            seen.add(content)
            kept.append(row)
    if len(kept) < wanted:
        raise ValueError(
            f"expected at least {wanted} held-out rows that are not trained on too, "
            f"{what}, got {len(kept)}: give more data."
        )
    return rows, np.asarray(kept)[np.linspace(0, len(kept) - 1, wanted).astype(int)]


def _contents(rows: Arrays) -> Iterator[bytes]:
    """What is in each row."""
    arrays = [rows[name] for name in sorted(rows)]
    for row in range(count(rows)):
        yield b"".join(array[row].tobytes() for array in arrays)


def _batches(task: Task, rows: Arrays, chosen: np.ndarray) -> list[Arrays]:
    size = task.batch_size
    if len(chosen) % size:
        raise ValueError(
            f"expected held-out rows in whole batches of {size}, got {len(chosen)}."
        )
    return [
        {name: array[chosen[i : i + size]] for name, array in rows.items()}
        for i in range(0, len(chosen), size)
    ]
