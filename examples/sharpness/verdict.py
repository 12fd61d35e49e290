"""Claim by claim, the paper and ours: `python -m examples.sharpness.verdict`.

Reads the summaries that `examples.sharpness` left, in any number of run folders below
one folder, and writes verdict.md there. Seeds of the same experiment are counted
beside each other; nothing that was measured is left out.
"""

from collections.abc import Sequence
from pathlib import Path

import tyro

from examples.lab import command_line, paper, provenance, run_folder
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.tables import Made, Table, Verdict, span
from examples.sharpness.claims import claims, experiment, holding, name, quotients
from examples.sharpness.report import Summary, introduction

RESULTS = Path(__file__).parents[1] / "results" / "sharpness"

_PAIRS = tuple(paper.RATIOS)


def main(folder: tyro.conf.Positional[Path] = RESULTS) -> Path:
    """Writes the verdict about every run below a folder."""
    runs = run_folder.read_summaries(folder)
    runs.sort(key=lambda run: (*_pair(run), run["settings"]["seed"]))
    verdict = Verdict(
        "The first paper's claims, and what was measured here",
        "A cell is one epoch of one experiment: the mean over its measured batches. "
        f"Every run below this folder is in the tables. The {len(runs)} runs are what "
        "is independent: cells of one run depend on each other, and runs of two seeds "
        "share their model. In the claims that are counted below nothing is corrected "
        "for their number.",
        [cells(runs), over_seeds(runs), distances(runs), claims(runs)],
        [
            Made(name(run), introduction(run), provenance.described(run["sessions"]))
            for run in runs
        ],
    )
    return verdict.write(folder / "verdict.md")


def cells(runs: Sequence[Summary]) -> Table:
    """What holds in all 16 cells of the paper: counts, and the exceptions by name."""
    rows = []
    found = [
        (run, epoch, holding(cell))
        for run in runs
        for epoch, cell in run["epochs"].items()
    ]
    for i, one in enumerate(paper.INVARIANTS):
        batches = [holds for _, _, every in found for holds in every[i][1]]
        exceptions: dict[str, list[str]] = {}
        for run, epoch, every in found:
            if not every[i][0]:
                exceptions.setdefault(name(run), []).append(epoch)
        rows.append(
            [
                one.claim,
                f"{len(runs) - len(exceptions)} of {len(runs)}",
                f"{sum(every[i][0] for _, _, every in found)} of {len(found)}",
                f"{sum(batches)} of {len(batches)}",
                "; ".join(
                    f"{who}: epoch{'s' * (len(epochs) > 1)} {', '.join(epochs)}"
                    for who, epochs in exceptions.items()
                )
                or "none",
            ]
        )
    held = sum(mean for _, _, every in found for mean, _ in every)
    batches = [x for _, _, every in found for _, both in every for x in both]
    rows.append(
        [
            "all together",
            "",
            f"{held} of {len(found) * len(paper.INVARIANTS)}",
            f"{sum(batches)} of {len(batches)}",
            "",
        ]
    )
    return Table(
        "What holds in all of the paper's 16 cells",
        [
            "",
            "runs in which it holds in every cell",
            "cells here",
            "batches here",
            "cells in which it does not hold",
        ],
        rows,
    )


def over_seeds(runs: Sequence[Summary]) -> Table:
    """The mean ratio of each experiment at each epoch, with an interval."""
    found: dict[tuple[str, str], list[Summary]] = {}
    for run in runs:
        for epoch in run["epochs"]:
            found.setdefault((experiment(run), epoch), []).append(run)
    rows = []
    for (who, epoch), own in found.items():
        row = [who, epoch, str(len(own))]
        for column in paper.COLUMNS:
            ratios = [
                run["epochs"][epoch]["directions"][column]["ratio"] for run in own
            ]
            row.append("-" if None in ratios else _interval(ratios))
        rows.append(row)
    names = (label(column, None) for column in paper.COLUMNS)
    return Table(
        "Sharpness over that of SGD's direction: the mean over the seeds, with its 95 "
        "% bootstrap interval, which is too narrow for so few",
        ["", "epoch", "seeds", *names],
        rows,
    )


def _interval(ratios: Sequence[float]) -> str:
    found = bootstrap(ratios)
    if len(ratios) == 1:
        return f"{found.mean:.2g}"
    return f"{found.mean:.2g} [{found.low:.2g}, {found.high:.2g}]"


def distances(runs: Sequence[Summary]) -> Table:
    """How far each ratio is from the paper's at the same epoch."""
    rows = []
    for run in runs:
        theirs = paper.reported(run["settings"])
        found = {
            column: quotients(run, theirs, column)
            for column in paper.COLUMNS
            if any(int(epoch) in theirs for epoch in run["epochs"])
        }
        if found:
            rows.append([name(run), *(span(found[c]) for c in paper.COLUMNS)])
    return Table(
        "Our ratio over the paper's at the same epoch: 1 is the paper's, lowest to "
        "highest epoch",
        ["", *(label(column, None) for column in paper.COLUMNS)],
        rows,
    )


def _pair(run: Summary) -> tuple[int, str, str]:
    """The paper's order of the experiments; others come last."""
    pair = run["settings"]["task"], run["settings"]["trajectory"]
    return (_PAIRS.index(pair) if pair in _PAIRS else len(_PAIRS), *pair)


def cli() -> None:
    command_line.report("sharpness.verdict", main)


if __name__ == "__main__":
    cli()
