"""Table and figures of a run of `examples.stability`, made from its files.

`python -m examples.stability.report RUN` makes them again.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from examples.lab import command_line, files, looks, provenance, run_folder, tables
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.statistics import Interval, bootstrap
from examples.lab.swept import swept_rate
from examples.tasks import by_name

FOUND = (
    "The largest stable learning rate, found by search, against the one that the "
    "sharpness of the direction predicts before training; a mark is a seed, on the "
    "line both are the same."
)


def write(folder: Path) -> list[Path]:
    """Writes everything that the run has data for so far."""
    runs = files.read_lines(folder / "runs.jsonl")
    content = run_folder.read_settings(folder)
    if not runs:
        raise FileNotFoundError(f"{folder}: nothing has been measured there yet.")
    settings = content["settings"]
    figures = [
        tables.Figure(
            looks.draw(folder / "predicted.png", lambda figure: _found(runs, figure)),
            FOUND,
        ),
        tables.Figure(
            looks.draw(folder / "along.png", lambda figure: _along(runs, figure)),
            "The predicted rate over the rate that it trains with, along trainings at "
            "half of the largest stable rate: geometric mean over the seeds, lowest "
            "to highest; where batch sharpness settles at 2 / rate it is 1.",
        ),
    ]
    report = tables.Report(
        f"Does sharpness predict the learning rate? {by_name.TITLES[settings['task']]}",
        _introduction(settings, runs),
        figures,
        [_table(runs)],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "report.md"), *(f.path for f in figures)]


def _introduction(settings: Mapping[str, Any], runs: Sequence[Line]) -> str:
    trainings = sum(len(run["tried"]) for run in runs)
    return (
        f"SGD without momentum from `{settings['init']}`, {settings['steps']} steps of "
        f"{settings['batch_size']} examples. Predicted is 2 <g, u> / u^T H u in the "
        f"mean over {settings['batches']} batches before training. A rate is stable if "
        f"the mean loss of the last {settings['tail']} steps is not above the start's "
        "on the same batches; the search ends within a factor of "
        f"{settings['resolution']:g}, after {trainings} trainings. Intervals are 95 % "
        "bootstrap over the seeds."
    )


def said(root: Path) -> str:
    """How well the prediction does, as figures and a list for a page."""
    place = "examples/results/stability"
    figures, items = [], []
    for path in sorted((root / place).glob("*/settings.json")):
        runs = files.read_lines(path.parent / "runs.jsonl")
        settings = run_folder.read_settings(path.parent)["settings"]
        parts = [
            f"{_name(fraction)} {10**middle.mean:.2f} [{10**middle.low:.2f}, "
            f"{10**middle.high:.2f}]"
            for fraction, own in _by_fraction(runs).items()
            if (middle := _quotient(own))
        ]
        items.append(
            f"- **The largest rate with which {settings['steps']} steps end below "
            "their start, over the predicted one**, "
            f"{by_name.TITLES[settings['task']]} from "
            f"`{by_name.name_of(settings['init'])}`: {'; '.join(parts)} "
            f"(geometric means over {len({run['seed'] for run in runs})} seeds, 95 % "
            "bootstrap, which is too narrow for so few; batches of "
            f"{settings['batch_size']}, {settings['batches']} to predict from; a rate "
            f"{settings['resolution']:g} times as large as the one found was not "
            f"stable; [report](../../{place}/{path.parent.name}/report.md)). "
            f"{_failed(runs)}The rate that a sweep with momentum chose, over the "
            f"predicted one: {', '.join(_chosen(settings, runs, root))}. At the end of "
            f"SGD's trainings at half of the largest rate it was {_at_the_end(runs)} "
            "times the rate that they train with; batch sharpness is said to settle "
            "where that is 1 (2412.20553)."
        )
        image = f"../../{place}/{path.parent.name}/predicted.png"
        figures.append(tables.captioned(image, FOUND) + "\n")
    return "\n".join([*figures, *items])


def _failed(runs: Sequence[Line]) -> str:
    """How often no rate was predicted, because the loss bends down or rises."""
    failed = sum(not run["predicted"] for run in runs)
    return f"No rate was predicted in {failed} of {len(runs)} cells. " if failed else ""


def _at_the_end(runs: Sequence[Line]) -> str:
    """What is predicted there for SGD, over the rate; the lowest and the highest."""
    last = [(run["along"][-1][1], run["found"]) for run in _by_fraction(runs)[0.0]]
    found = [predicted / (rate / 2) for predicted, rate in last if predicted]
    return f"{min(found):.1f} to {max(found):.1f}" if found else "-"


def _chosen(
    settings: Mapping[str, Any], runs: Sequence[Line], root: Path
) -> Iterator[str]:
    """The rates of sweeps on the same task, over what is predicted in the mean."""
    results = root / "examples/results/convergence"
    for fraction, own in _by_fraction(runs).items():
        predicted = [np.log(run["predicted"]) for run in own if run["predicted"]]
        name = "clipped_sgd" if fraction else "sgd"
        try:
            rate = swept_rate(settings, name, results, fraction=fraction or 0.05).rate
        except ValueError:
            yield f"{_name(fraction)} not swept"
        else:
            yield f"{_name(fraction)} {rate / np.exp(np.mean(predicted)):.2f}"


def _quotient(own: Sequence[Line]) -> Interval | None:
    """Log10 of what was found over what was predicted, where that is a number."""
    both = [
        np.log10(run["found"] / run["predicted"]) for run in own if run["predicted"]
    ]
    return bootstrap(both) if both else None


def _by_fraction(runs: Sequence[Line]) -> dict[float, list[Line]]:
    found: dict[float, list[Line]] = {}
    for run in runs:
        found.setdefault(run["fraction"], []).append(run)
    return found


def _name(fraction: float) -> str:
    return label("clipped_sgd" if fraction else "sgd", fraction)


def _table(runs: Sequence[Line]) -> tables.Table:
    rows = []
    for fraction, own in _by_fraction(runs).items():
        both = [(run["predicted"], run["found"]) for run in own if run["predicted"]]
        middle = _quotient(own)
        rows.append(
            [
                _name(fraction),
                ", ".join(f"{predicted:.3g}" for predicted, _ in both) or "-",
                ", ".join(f"{run['found']:.3g}" for run in own),
                f"{10**middle.mean:.2g} [{10**middle.low:.2g}, {10**middle.high:.2g}]"
                if middle
                else "-",
            ]
        )
    return tables.Table(
        "Largest stable learning rate, seed by seed",
        ["", "predicted", "found", "found / predicted, geometric mean"],
        rows,
    )


# Of SGD and clipped SGD, which have one colour; by fraction.
_MARKS = "os^D"
_LINES = "-", "--", "-.", ":"


def _look(fraction: float) -> dict[str, Any]:
    name = "clipped_sgd" if fraction else "sgd"
    return looks.dots(name) | {"label": label(name, fraction)}


def _found(runs: Sequence[Line], figure: Figure) -> None:
    axes = figure.subplots()
    for (fraction, own), mark in zip(_by_fraction(runs).items(), cycle(_MARKS)):
        both = [(r["predicted"], r["found"]) for r in own if r["predicted"]]
        if both:
            axes.plot(*zip(*both, strict=True), **_look(fraction) | {"marker": mark})
    ends = [r[key] for r in runs for key in ("predicted", "found") if r["predicted"]]
    if ends:
        line = [min(ends), max(ends)]
        axes.plot(line, line, color="0.6", linewidth=0.8)
        axes.legend()
    axes.set(xscale="log", yscale="log", xlabel="predicted rate", ylabel="found rate")
    axes.set_title("Largest stable learning rate")


def _along(runs: Sequence[Line], figure: Figure) -> None:
    axes = figure.subplots()
    for (fraction, own), line in zip(_by_fraction(runs).items(), cycle(_LINES)):
        steps = [step for step, _ in own[0]["along"]]
        over_rate = [
            [np.nan if p is None else p / (run["found"] / 2) for _, p in run["along"]]
            for run in own
        ]
        logs = np.ma.masked_invalid(np.log(over_rate))  # none where the loss bends down
        ends = logs.min(0), logs.mean(0), logs.max(0)
        low, middle, high = np.ma.exp(np.ma.stack(ends))
        colour = looks.COLOURS["sgd"]
        axes.fill_between(steps, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.plot(steps, middle, line, color=colour, label=_name(fraction))
    axes.axhline(1, color="0.6", linewidth=0.8, label="batch sharpness = 2 / rate")
    axes.set(yscale="log", xlabel="step", ylabel="predicted rate / rate")
    axes.yaxis.set_major_locator(LogLocator(2))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("Along trainings at half of the largest stable rate")
    axes.legend()


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the table and the figures of a run again."""
    print("\n".join(map(str, write(run))))


if __name__ == "__main__":
    command_line.report("stability.report", main)
