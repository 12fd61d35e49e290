"""Claim by claim, the paper and ours: `python -m examples.verdict`.

Reads the summaries that `examples.sharpness` left, in any number of run folders below
one folder, and writes verdict.md there. Seeds of the same experiment are counted
beside each other; nothing that was measured is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from examples import paper, run_folder, sharpness_report, tasks
from examples.optimizers import label
from examples.pages import Table, as_markdown
from examples.sharpness_report import Summary

RESULTS = Path(__file__).parent / "results" / "sharpness"

Directions = Mapping[str, Any]
_PAIRS = tuple(paper.RATIOS)
_CLIPPED = ("sgd", "normalized_sgd", "adafactor")


def main(folder: tyro.conf.Positional[Path] = RESULTS) -> Path:
    """Writes the verdict about every run below a folder."""
    runs = [run_folder.read_summary(p.parent) for p in folder.glob("*/summary.json")]
    if not runs:
        raise FileNotFoundError(f"{folder}: no run with a summary.json below it.")
    runs.sort(key=lambda run: (*_pair(run), run["settings"]["seed"]))
    path = folder / "verdict.md"
    run_folder.write_text(path, _markdown(runs))
    return path


def _markdown(runs: Sequence[Summary]) -> str:
    parts = [
        "# The first paper's claims, and what was measured here",
        "A cell is one epoch of one experiment: the mean over its measured batches, "
        "and in brackets how many of the batches agree. Every run below this folder is "
        "in the tables.",
    ]
    for table in (cells(runs), claims(runs)):
        parts += [f"## {table.title}", as_markdown(table)]
    parts += ["## The runs", *(f"- {sharpness_report.provenance(run)}" for run in runs)]
    return "\n\n".join(parts) + "\n"


def cells(runs: Sequence[Summary]) -> Table:
    """What holds in all 16 cells of the paper, cell by cell."""
    rows = []
    for run in runs:
        for epoch, cell in run["epochs"].items():
            found = sharpness_report.holding(cell)
            marks = [
                f"{'yes' if mean else '**no**'} ({sum(batches)}/{len(batches)})"
                for mean, batches in found
            ]
            held = sum(mean for mean, _ in found)
            rows.append([_name(run, epoch), *marks, f"{held} of 8"])
    total = [
        sum(
            sharpness_report.holding(cell)[i][0] for run in runs for cell in _cells(run)
        )
        for i in range(len(paper.INVARIANTS))
    ]
    rows.append(
        [
            "cells in which it holds",
            *map(str, total),
            f"{sum(total)} of {8 * len(rows)}",
        ]
    )
    return Table(
        "What holds in all of the paper's 16 cells",
        ["", *(one.claim for one in paper.INVARIANTS), "holding"],
        rows,
    )


def claims(runs: Sequence[Summary]) -> Table:
    """The paper's other claims."""
    rows = []
    for text, where, count, theirs in _COUNTED:
        chosen = [run for run in runs if where(run)]
        every = [cell["directions"] for run in chosen for cell in _cells(run)]
        if every:
            held = sum(count(directions) for directions in every)
            rows.append([text, theirs, f"{held} of {len(every)} cells"])
    for name in _CLIPPED:
        quotients = [
            _quotient(cell["directions"], f"clipped_{name}", name)
            for run in runs
            for cell in _cells(run)
        ]
        theirs = [
            ratios[f"clipped_{name}"] / ratios.get(name, 1.0)
            for table in paper.RATIOS.values()
            for ratios in table.values()
        ]
        rows.append(
            [
                f"sharpness of {label(f'clipped_{name}', 0.05)} / unclipped",
                f"{min(theirs):.2g} to {max(theirs):.2g}",
                f"{min(quotients):.2g} to {max(quotients):.2g}",
            ]
        )
    for run in runs:
        if found := run["correlation"]:
            low, high = found["spearman_interval"]
            rows.append(
                [
                    "coordinates with large gradients have large curvature "
                    f"(Spearman, 95 % interval): {_name(run)}",
                    "conjectured, not measured",
                    f"{found['spearman']:.2f} ({low:.2f} to {high:.2f})",
                ]
            )
    return Table("Its other claims", ["", "the paper", "here"], rows)


def _below(a: str, b: str) -> Callable[[Directions], bool]:
    return lambda directions: directions[a]["ratio"] < directions[b]["ratio"]


def _any(run: Summary) -> bool:
    return bool(run)


def _of(task: str) -> Callable[[Summary], bool]:
    return lambda run: run["settings"]["task"] == task


def _steepest(directions: Directions) -> bool:
    """SGD's slope is the lowest, in the mean over the batches."""
    slopes = {name: np.mean(row["slope"]) for name, row in directions.items()}
    return min(slopes, key=lambda name: slopes[name]) == "sgd"


def _clipping_flattens(directions: Directions) -> bool:
    slopes = {name: np.mean(row["slope"]) for name, row in directions.items()}
    return all(slopes[f"clipped_{name}"] > slopes[name] for name in _CLIPPED)


def _farther(name: str) -> Callable[[Directions], bool]:
    return lambda d: d[f"clipped_{name}"]["decrease"] > d[name]["decrease"]


# Claim, the runs it is about, when it holds of a cell, what the paper has.
_COUNTED: Sequence[
    tuple[str, Callable[[Summary], bool], Callable[[Directions], bool], str]
] = (
    (
        "Adafactor is below Adam (almost always)",
        _any,
        _below("adafactor", "adam"),
        "14 of 16 cells",
    ),
    (
        "translation: clipped SGD is above normalized SGD",
        _of("translation"),
        _below("normalized_sgd", "clipped_sgd"),
        "8 of 8 cells",
    ),
    (
        "masked language model: clipped SGD is below normalized SGD",
        _of("masked_lm"),
        _below("clipped_sgd", "normalized_sgd"),
        "8 of 8 cells",
    ),
    (
        "SGD's direction goes down most steeply (gradient correlation)",
        _any,
        _steepest,
        "said, no numbers",
    ),
    (
        "clipping makes directions less steep",
        _any,
        _clipping_flattens,
        "said, no numbers",
    ),
    *(
        (
            f"clipping lets {label(name, 0)} reduce the loss further on its line",
            _any,
            _farther(name),
            "figures 3, 5 to 8",
        )
        for name in _CLIPPED
    ),
)


def _cells(run: Summary) -> Sequence[Mapping[str, Any]]:
    return list(run["epochs"].values())


def _quotient(directions: Directions, a: str, b: str) -> float:
    return directions[a]["ratio"] / directions[b]["ratio"]


def _pair(run: Summary) -> tuple[int, str, str]:
    """The paper's order of the experiments; others come last."""
    pair = run["settings"]["task"], run["settings"]["trajectory"]
    return (_PAIRS.index(pair) if pair in _PAIRS else len(_PAIRS), *pair)


def _name(run: Summary, epoch: str | None = None) -> str:
    settings = run["settings"]
    parts = [
        tasks.TITLES[settings["task"]],
        f"{label(settings['trajectory'], 0)}'s trajectory",
        *([f"epoch {epoch}"] if epoch else []),
        *([f"seed {settings['seed']}"] if settings["seed"] else []),
    ]
    return ", ".join(parts)


def cli() -> None:
    run_folder.cli(main)


if __name__ == "__main__":
    cli()
