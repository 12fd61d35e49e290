"""The test loss of frequent and of rare tokens, in runs of language models."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from examples.data.batching import Arrays
from examples.lab import tables, token_frequency
from examples.lab.curves import minus_sgd
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.steps import Params
from examples.lab.winners import Run, Winners, of
from examples.tasks.llama import LlamaTask
from examples.tasks.task import Task

GROUPS = 10
"""So many groups of tokens, from the most frequent ones to the rarest."""


def measurer(task: Task) -> Callable[[Params, list[Arrays]], Line]:
    """What the training of a language model keeps besides its loss."""
    if not isinstance(task, LlamaTask):
        return lambda *_: {}
    groups = token_frequency.groups_of(task.train["labels"], GROUPS)
    assess = token_frequency.assessor(task, groups, GROUPS)
    return lambda params, batches: {"by_frequency": assess(params, batches)}


def losses(runs: Sequence[Line]) -> list[list[float]]:
    """Of each group those of the seeds that have all groups."""
    kept = [run["by_frequency"] for run in runs if _complete(run)]
    return [list(of_group) for of_group in zip(*kept, strict=True)]


def differences_from_sgd(
    best: Winners,
) -> dict[tuple[str, float], list[list[float]]]:
    """Of each optimizer and group the losses minus SGD's, seed by seed."""
    plain = {
        run["seed"]: run["by_frequency"] for run in of(best, "sgd") if _complete(run)
    }
    found = {}
    for key, runs in best.items():
        minus = [
            np.subtract(run["by_frequency"], plain[run["seed"]]).tolist()
            for run in runs
            if _complete(run) and run["seed"] in plain
        ]
        if minus and key[0] != "sgd":
            found[key] = [list(of_group) for of_group in zip(*minus, strict=True)]
    return found


def draw(best: Winners, figure: Figure) -> None:
    """The differences against the group, with a bar from lowest to highest seed."""
    axes = figure.subplots()
    places = range(1, GROUPS + 1)
    found = differences_from_sgd(best)
    minus_sgd(
        axes,
        {key: dict(zip(places, own, strict=True)) for key, own in found.items()},
    )
    axes.set(
        xticks=places,
        xlabel="tenth of the training labels, from frequent tokens to rare ones",
        ylabel="test loss minus SGD's",
    )


def figure(root: Path) -> str:
    """The figure of the long training with what it says, for a page."""
    run = Run.read(root / "examples/results/long_training/causal_lm-scratch")
    place = f"../../examples/results/long_training/{run.folder.name}"
    shown = tables.captioned(
        f"{place}/loss_by_frequency.png",
        f"After {run.settings['steps']:,} steps from scratch, test loss minus "
        "SGD's, by how frequent a token is. Bars: lowest to highest seed.",
        f"[Report]({place}/report.md).",
    )
    rows = [
        [label(*key), *map(str, map(bootstrap, (run.minus_sgd(key), first, last)))]
        for key, (first, *_, last) in differences_from_sgd(run.best).items()
    ]
    found = tables.Table(
        "Test loss minus SGD's, with 95 % bootstrap intervals over "
        f"{run.rules.seeds} seeds",
        ["", "all tokens", "the most frequent tenth", "the rarest tenth"],
        rows,
    )
    return f"{shown}\n\n{found.titled()}"


def _complete(run: Line) -> bool:
    return None not in run.get("by_frequency", [None])
