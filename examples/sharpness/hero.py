"""The README's first figure: who carries the sharpness, and what clipping them does.

`python -m examples.sharpness.concentration` measures what it shows.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from examples.lab import looks, provenance, tables
from examples.lab.optimizers import label
from examples.lab.tables import Table

Seeds = Sequence[Mapping[str, Any]]

COMPARED = ("sgd", "clipped_sgd", "adam")


def write(folder: Path) -> list[Path]:
    """Writes report.md and hero.png of the numbers in concentration.json."""
    content = json.loads((folder / "concentration.json").read_text())
    settings, seeds = content["settings"], content["seeds"]
    paint = functools.partial(_paint, content)
    figure = tables.Figure(
        looks.draw(folder / "hero.png", paint, (8.4, 3.7)), caption(settings, seeds)
    )
    report = tables.Report(
        "Which coordinates carry the sharpness of SGD's direction",
        f"A T5 (`{settings['init']}`) after {settings['steps']} updates of SGD on "
        f"English-French at rate {settings['rate']:g}, measured on "
        f"{settings['test_size']} held-out pairs, {len(seeds)} seeds.",
        [figure],
        [_top(seeds), _along(settings, seeds)],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "report.md"), figure.path]


def caption(settings: Mapping[str, Any], seeds: Seeds) -> str:
    """What the figure says, in words."""
    percent = 100 * settings["fraction"]
    carried = _means(seeds)[settings["fraction"]]
    ratios = [f"{_mean_ratio(seeds, name):.2f}" for name in ("clipped_sgd", "adam")]
    falls = [
        f"{np.mean([_decrease(seed, name) for seed in seeds]):.4f}" for name in COMPARED
    ]
    return (
        f"Left: the top {percent:g} % of the coordinates of SGD's direction carry "
        f"{carried['sharpness']:.1%} of its sharpness, {carried['slope']:.0%} of its "
        f"slope and {carried['norm']:.0%} of its squared norm. Right: along that "
        f"direction the held-out loss can fall by {falls[0]} nats, with "
        f"{percent:g} % clipped ({ratios[0]} times the sharpness) by {falls[1]}, "
        f"along Adam's ({ratios[1]} times) by {falls[2]}, each seed at its own "
        f"best distance. Lines: mean of {len(seeds)} seeds; bands: lowest to highest."
    )


def _mean_ratio(seeds: Seeds, name: str) -> float:
    ratios = [seed["sharpness"][name] / abs(seed["sharpness"]["sgd"]) for seed in seeds]
    return float(np.mean(ratios))


def _means(seeds: Seeds) -> dict[float, dict[str, float]]:
    """By fraction: what the top coordinates carry, mean over the seeds."""
    return {
        rows[0]["fraction"]: {
            key: float(np.mean([row[key] for row in rows])) for key in rows[0]
        }
        for rows in zip(*(seed["top"] for seed in seeds), strict=True)
    }


def _decrease(seed: Mapping[str, Any], name: str) -> float:
    losses = seed["curves"][name]
    return losses[0] - min(losses)


def _paint(content: Mapping[str, Any], figure: Figure) -> None:
    settings, seeds = content["settings"], content["seeds"]
    left, right = figure.subplots(1, 2)
    _carried(left, seeds)
    _landscape(right, content)
    figure.suptitle(
        f"A T5 on English-French after {settings['steps']} steps of SGD, "
        f"{len(seeds)} seeds"
    )


def _carried(axes: Axes, seeds: Seeds) -> None:
    fractions = [row["fraction"] for row in seeds[0]["top"]]
    for key, colour, line in (
        ("sharpness", "#D55E00", "-"),
        ("norm", "#555555", ":"),
    ):
        values = np.array([[row[key] for row in seed["top"]] for seed in seeds])
        axes.fill_between(
            fractions,
            values.min(0),
            values.max(0),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        words = "squared norm" if key == "norm" else key
        axes.plot(fractions, values.mean(0), line, color=colour, label=words)
    axes.set(
        xscale="log",
        ylim=(0, 1.05),
        xlabel="top coordinates of SGD's direction",
        title="What the top coordinates carry",
    )
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    axes.legend()


def _landscape(axes: Axes, content: Mapping[str, Any]) -> None:
    distances, lowest = content["distances"][1:], 0.0
    for name in COMPARED:
        style = looks.look(name, content["settings"]["fraction"])
        losses = np.array([seed["curves"][name] for seed in content["seeds"]], float)
        change = losses[:, 1:] - losses[:, :1]
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(distances, change.min(0), change.max(0), **band)
        axes.plot(distances, change.mean(0), **style)
        lowest = min(lowest, change.min())
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(
        xscale="log",
        ylim=(1.1 * lowest, -0.45 * lowest),
        xlabel="distance along the normalized direction",
        title="Change of the held-out loss (nats per token)",
    )
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()


def _top(seeds: Seeds) -> Table:
    return Table(
        "What the top coordinates carry, mean over the seeds (lowest to highest)",
        ["top coordinates", "squared norm", "slope", "sharpness"],
        [
            [
                f"{100 * rows[0]['fraction']:g} %",
                *(
                    _spread([row[key] for row in rows], ".1%")
                    for key in ("norm", "slope", "sharpness")
                ),
            ]
            for rows in zip(*(seed["top"] for seed in seeds), strict=True)
        ],
    )


def _along(settings: Mapping[str, Any], seeds: Seeds) -> Table:
    return Table(
        "Along each direction, mean over the seeds (lowest to highest)",
        ["direction", "sharpness", "largest decrease of the loss"],
        [
            [
                label(name, settings["fraction"]),
                _spread([seed["sharpness"][name] for seed in seeds], ".3g"),
                _spread([_decrease(seed, name) for seed in seeds], ".3g"),
            ]
            for name in COMPARED
        ],
    )


def _spread(values: Sequence[float], spec: str) -> str:
    return f"{np.mean(values):{spec}} ({min(values):{spec}} to {max(values):{spec}})"
