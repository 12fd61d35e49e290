"""What `fraction` counts, on real gradients: `python -m benchmarks.zeros` (a minute).

A language model's gradient is exactly 0 at the words that are not in the batch. The
table has both readings of a fraction, of all coordinates and of those that are not 0,
and what the package takes, with the directional sharpness of what is left. Results go
to results/zeros.json.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table

import optax_clip
from benchmarks import harness
from benchmarks.harness import Row
from examples.tasks import by_name
from optax_clip import diagnostics

FRACTIONS = (0.01, 0.05, 0.2, 0.5, 0.9)
TASKS = {"translation": None, "masked_lm": None, "masked_lm, MiniLM": "minilm"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which gradients."""

    batch_size: int = 16
    max_length: int = 40
    seed: int = 0
    minilm: bool = True  # fetches its encoder once
    out: Path = harness.RESULTS / "zeros.json"

    def __post_init__(self):
        harness.at_least(self, batch_size=1, max_length=8)


def main(settings: Settings) -> Row:
    """Measures, prints the table and saves what it returns."""
    occasion = harness.Occasion.now()
    rows: list[Row] = []
    for name, init in TASKS.items():
        if init is None or settings.minilm:
            rows += measure(name, init, settings)
    record = {
        **occasion.provenance(harness.command("zeros", settings)),
        "rows": rows,
    }
    show(record)
    harness.save(settings.out, record)
    return record


def measure(name: str, init: str | None, settings: Settings) -> list[Row]:
    """The rows of one model."""
    choice = by_name.Choice(task=name.split(",")[0], init=init)
    task = by_name.load(
        choice,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    batch = task.batch_at(0)
    gradient = jax.jit(jax.grad(task.eval_loss))(task.params, batch)
    leaves = jax.tree.leaves(gradient)
    size = sum(leaf.size for leaf in leaves)
    nonzero = sum(int(jnp.count_nonzero(leaf)) for leaf in leaves)
    magnitudes = np.sort(np.concatenate([np.abs(x).ravel() for x in leaves]))[::-1]

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


def show(record: dict[str, Any]) -> None:
    table = Table("gradient", title="a fraction of all coordinates, or of the non-zero")
    heads = ("zeros", "fraction", "threshold, of all", "threshold, of non-zero")
    for head in (*heads, "sharpness, of all", "sharpness, of non-zero", "taken"):
        table.add_column(head, justify="right")
    for row in record["rows"]:
        numbers = [row[head] for head in table_heads(table)[1:-1]]
        words = ["-" if x is None else f"{x:.3g}" for x in numbers]
        table.add_row(row["gradient"], *words, row["taken"])
    harness.console().print(table)


def table_heads(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
