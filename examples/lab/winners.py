"""What a sweep found: the winners, and the table of all learning rates.

A run is a line of a sweep's log: name, fraction, learning_rate, seed, loss, losses.
"""

from collections.abc import Sequence

import numpy as np

from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.tables import Table

Winners = dict[tuple[str, float], list[Line]]  # by optimizer and fraction: one per seed


def winners(runs: Sequence[Line]) -> Winners:
    """The runs at the learning rate that was best with seed 0, in the order run."""
    best: Winners = {}
    for key in dict.fromkeys((run["name"], run["fraction"]) for run in runs):
        own = [run for run in runs if (run["name"], run["fraction"]) == key]
        finite = [run for run in own if not run["seed"] and run["loss"] is not None]
        if finite:
            rate = min(finite, key=lambda run: run["loss"])["learning_rate"]
            best[key] = [run for run in own if run["learning_rate"] == rate]
    return best


def at_fraction(best: Winners, fraction: float) -> Winners:
    """Without clipped SGD at other fractions."""
    return {key: runs for key, runs in best.items() if key[1] == fraction}


def mean_loss(runs: Sequence[Line]) -> float:
    """Over the seeds that did not diverge; inf if all did."""
    finite = [run["loss"] for run in runs if run["loss"] is not None]
    return float(np.mean(finite)) if finite else float("inf")


def sweep_table(runs: Sequence[Line]) -> Table:
    """Every learning rate that was tried with seed 0."""
    rates = sorted({run["learning_rate"] for run in runs})
    losses = {(r["name"], r["fraction"], r["learning_rate"]): r["loss"] for r in runs}
    rows = []
    for name, fraction in dict.fromkeys((r["name"], r["fraction"]) for r in runs):
        row = [label(name, fraction)]
        for rate in rates:
            loss = losses.get((name, fraction, rate), "")
            row.append("diverged" if loss is None else loss and f"{loss:.3f}")
        rows.append(row)
    return Table(
        "Every learning rate that was tried, seed 0",
        ["", *(f"{rate:g}" for rate in rates)],
        rows,
    )


def of(best: Winners, optimizer: str) -> list[Line]:
    """The runs of an optimizer, if it is among the winners."""
    return next((runs for (name, _), runs in best.items() if name == optimizer), [])
