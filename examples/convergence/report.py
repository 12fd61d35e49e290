"""Tables and figures of a run of `examples.convergence`, made from its files.

    report.md    the best learning rates, losses and state; the sweep
    *.png        figure 4, the same relative to SGD on the same batches, and the loss
                 against learning rate and fraction

`python -m examples.convergence.report RUN` makes them again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from examples.convergence import plots
from examples.lab import command_line, files, paper, provenance, run_folder, tables
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.sweep import TAIL
from examples.lab.tables import Table
from examples.lab.winners import Winners, mean_loss, of, sweep_table, winners
from examples.tasks import by_name


def write(folder: Path) -> list[Path]:
    """Writes everything that the run has data for so far."""
    runs = files.read_lines(folder / "runs.jsonl")
    content, best = run_folder.read_settings(folder), winners(runs)
    if not best:
        raise FileNotFoundError(f"{folder}: no training has ended there yet.")
    settings = content["settings"]
    figures = plots.draw(folder, best, runs, settings)
    report = tables.Report(
        f"Convergence: {by_name.TITLES[settings['task']]}",
        _introduction(settings, runs),
        figures,
        [_ranking(best, settings), sweep_table([r for r in runs if not r["seed"]])],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "report.md"), *(figure.path for figure in figures)]


def _introduction(settings: Mapping[str, Any], runs: Sequence[Line]) -> str:
    clipped = {run["fraction"] for run in runs if run["name"] == "clipped_sgd"}
    missing = [f"{f:g}" for f in settings["fractions"] if clipped and f not in clipped]
    return (
        f"Every optimizer at its own best learning rate, from `{settings['init']}`; "
        f"{settings['steps']} steps of {settings['batch_size']} examples. The rate was "
        "chosen by the final training loss with seed 0, which is one of the seeds in "
        "the means."
        + (f" Not run: clipped SGD at {', '.join(missing)}." if missing else "")
    )


def _ranking(best: Winners, settings: Mapping[str, Any]) -> Table:
    """The best first; what diverged with a later seed is counted, not left out."""
    theirs = paper.LEARNING_RATES.get(settings["task"], {})
    plain = of(best, "sgd")
    rows = []
    for (name, fraction), runs in sorted(best.items(), key=lambda x: mean_loss(x[1])):
        finite = [run["loss"] for run in runs if run["loss"] is not None]
        diverged = len(runs) - len(finite)
        reported = "relative" if name in theirs and theirs[name] is None else "-"
        if theirs.get(name) is not None and fraction in (0.05, settings["fraction"]):
            reported = f"{theirs[name]:g}"
        rows.append(
            [
                label(name, fraction),
                f"{runs[0]['learning_rate']:g}",
                reported,
                f"**{np.mean(finite):.3f}**",
                f"{min(finite):.3f} to {max(finite):.3f}"
                + (f", {diverged} diverged" if diverged else ""),
                _mean_difference(runs, plain) if name != "sgd" else "-",
                f"{runs[0]['state_bytes'] / 1e6:.1f} MB",
            ]
        )
    tail = min(TAIL, settings["steps"])
    return Table(
        f"Mean training loss of the last {tail} of {settings['steps']} steps, at the "
        f"best learning rate; {settings['seeds']} seeds",
        [
            "optimizer",
            "learning rate",
            "the paper's",
            "loss",
            "lowest to highest",
            "minus SGD's, seed by seed",
            "state",
        ],
        rows,
    )


def _mean_difference(runs: Sequence[Line], others: Sequence[Line]) -> str:
    found = plots.differences(runs, others)
    if not found:
        return "-"
    return f"{np.mean(found):+.3f} ({min(found):+.3f} to {max(found):+.3f})"


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the report and the figures of a run again."""
    print("\n".join(map(str, write(run))))


if __name__ == "__main__":
    command_line.report("convergence.report", main)
