"""What `fraction` counts, on real gradients: `python -m benchmarks.zeros` (a minute).

A language model's gradient is exactly 0 at the words that are not in the batch. The
table has both readings of a fraction, of all coordinates and of those that are not 0,
and what the package takes, with the directional sharpness of what is left. Results go
to results/zeros.json.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table

import optax_clip
from benchmarks import harness
from benchmarks.harness import Row
from examples.tasks import by_name, texts
from examples.tasks.task import Task
from optax_clip import diagnostics

FRACTIONS = (0.01, 0.05, 0.2, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which gradients."""

    batch_size: int = 16
    max_length: int = 40
    seed: int = 0
    out: Path = harness.RESULTS / "zeros.json"

    def __post_init__(self):
        harness.at_least(self, batch_size=1, max_length=8)


def main(settings: Settings) -> Row:
    """Measures, prints the table and saves what it returns."""
    occasion = harness.Occasion.now()
    rows = [
        row for name, load in TASKS.items() for row in measure(name, load(settings))
    ]
    record = {
        **occasion.provenance(harness.command("zeros", settings)),
        "rows": rows,
    }
    show(record)
    harness.save(settings.out, record)
    return record


def language(name: Literal["translation", "masked_lm"], settings: Settings) -> Task:
    """A committed model, whose embedding is also its output."""
    return by_name.load(
        by_name.Choice(task=name),
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def classification(settings: Settings) -> Task:
    """MiniLM's encoder below a fresh head: words that are absent have no gradient."""
    return texts.load(
        "catalogues",
        model="pretrained",
        init="minilm",
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        held_out=1,
        seed=settings.seed,
    )


TASKS: dict[str, Callable[[Settings], Task]] = {
    "T5, translation": functools.partial(language, "translation"),
    "BERT, masked words": functools.partial(language, "masked_lm"),
    "MiniLM, sentences": classification,
}


def measure(name: str, task: Task) -> list[Row]:
    """The rows of one model."""
    batch = task.batch_at(0)
    gradient = jax.jit(jax.grad(task.eval_loss))(task.params, batch)
    leaves = [*map(np.asarray, jax.tree.leaves(gradient))]
    magnitudes = np.sort(np.concatenate([np.abs(x).ravel() for x in leaves]))[::-1]
    # By NumPy: compiled code may take subnormal numbers for zeros.
    size, nonzero = magnitudes.size, np.count_nonzero(magnitudes)

    sharpness = functools.partial(
        diagnostics.directional_sharpness, task.eval_loss, task.params
    )

    plain = float(sharpness(gradient, batch))

    def ratio(tau: float) -> float | None:
        if not tau:
            return None  # no direction is left
        clipped = jax.tree.map(lambda g: jnp.clip(g, -tau, tau), gradient)
        return float(sharpness(clipped, batch)) / plain

    rows = []
    for fraction in FRACTIONS:
        thresholds = {
            "of all": float(magnitudes[int(fraction * size)]),
            "of non-zero": float(magnitudes[int(fraction * nonzero)]),
        }
        clip = optax_clip.clip_top_k_coordinates(fraction)
        _, state = jax.jit(clip.update)(gradient, clip.init(gradient))
        taken = float(state.threshold)
        if taken not in thresholds.values():
            raise RuntimeError(f"zeros: {taken} is neither of {thresholds}.")
        rows.append(
            {
                "gradient": name,
                "coordinates": size,
                "zeros": 1 - nonzero / size,
                "fraction": fraction,
                **{f"threshold, {k}": tau for k, tau in thresholds.items()},
                **{f"sharpness, {k}": ratio(tau) for k, tau in thresholds.items()},
                "taken": next(k for k, tau in thresholds.items() if tau == taken),
            }
        )
    return rows


NUMBERS = (
    "zeros",
    "fraction",
    "threshold, of all",
    "threshold, of non-zero",
    "sharpness, of all",
    "sharpness, of non-zero",
)


def show(record: dict[str, Any]) -> None:
    table = Table("gradient", title="a fraction of all coordinates, or of the non-zero")
    for head in (*NUMBERS, "taken"):
        table.add_column(head, justify="right")
    for row in record["rows"]:
        numbers = [row[head] for head in NUMBERS]
        words = ["-" if x is None else f"{x:.3g}" for x in numbers]
        table.add_row(row["gradient"], *words, row["taken"])
    harness.console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
