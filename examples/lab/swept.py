"""The learning rate that a committed sweep found for an optimizer on a task.

    rate, source = swept_rate({"task": "translation", "init": ...}, "sgd")

A rate that was swept elsewhere is no substitute: the best ones differ tenfold between
tasks.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from examples.lab.winners import Run

RESULTS = Path(__file__).parents[1] / "results" / "convergence"

# What two runs must have in common for a rate to be that of both.
_TASK = ("task", "init", "dataset", "pairs", "documents")


class Swept(NamedTuple):
    """A learning rate, and the run that it won in."""

    rate: float
    source: str


def swept_rate(
    settings: Mapping[str, Any],
    optimizer: str,
    results: Path = RESULTS,
    *,
    fraction: float = 0.05,
) -> Swept:
    """The rate of an optimizer on the task that the settings describe."""
    wanted = tuple(str(settings.get(name)) for name in _TASK)
    found = [
        Swept(rate, source)
        for task, source, rates in _runs(results)
        if task == wanted and (rate := rates.get((optimizer, fraction)))
    ]
    if not found:
        named = ", ".join(f"{k} {v}" for k, v in zip(_TASK[:3], wanted, strict=False))
        raise ValueError(
            f"no learning rate of {optimizer} was swept on this task ({named}): run "
            "examples.convergence on it first, or give --learning-rate."
        )
    return found[0]


@functools.cache
def _runs(
    results: Path,
) -> list[tuple[tuple[str, ...], str, dict[tuple[str, float], float]]]:
    """Of every run: its task, its name, its best rates."""
    found = []
    for run in Run.below(results):
        rates = {key: runs[0]["learning_rate"] for key, runs in run.best.items()}
        task = tuple(str(run.settings.get(name)) for name in _TASK)
        source = f"results/{results.name}/{run.folder.name}"
        found.append((task, source, rates))
    return found
