"""Is the curvature at a point that of the step?

Sharpness is a second derivative: it tells of a step what a parabola does. Over a step
of length t along u the mean curvature is 2 (L(t) - L(0) - t <g, u>) / t^2, which needs
no derivative but the slope; over the curvature at the point it is 1 on a parabola.
Where it is far from 1, as on jagged surfaces, sharpness explains nothing about that
step.

    ratios(curve, measured)   # of one direction at one batch, for summary.json
    table(summary), draw(summary, figure)
    agreement(summaries)      # how often the two agree: rows of the verdict,
    said(summaries)           # and a sentence
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.lab import looks
from examples.lab.optimizers import LONG_VERSION, PAPER, label
from examples.lab.tables import Table, span

Summary = Mapping[str, Any]

HALF = 0.5  # Newton steps
SHOWN = 0.125, HALF, 1.0
AGREES = 1.5  # a factor


def ratios(
    curve: Mapping[str, Sequence[float]], measured: Mapping[str, Any]
) -> list[list[float]] | None:
    """Mean curvature over each step of a scan over that at the point.

    Returns:
      Pairs of the length of a step, in Newton steps, and the ratio. None where the loss
      does not fall along the direction, or the surface is not convex there: such a line
      has no Newton step, and its scan ends where rounding begins.
    """
    newton, slope = measured["newton_step"], measured["slope"]
    if newton is None or slope is None or not (slope < 0 < newton < math.inf):
        return None
    steps, losses = (np.asarray(curve[name], float) for name in ("steps", "losses"))
    over = 2 * (losses[1:] - losses[0] - slope * steps[1:]) / steps[1:] ** 2
    pairs = zip(steps[1:] / newton, over * newton / -slope, strict=True)
    return [[round(float(t), 4), round(float(ratio), 4)] for t, ratio in pairs]


def has(summary: Summary) -> bool:
    """Whether any direction of the run has ratios."""
    cells = summary["epochs"].values()
    return any(d.get("step_curvature") for c in cells for d in c["directions"].values())


def at(found: Sequence[Sequence[float]] | None, distance: float) -> float | None:
    """The ratio at a distance in Newton steps, if the scan has been there."""
    near = [ratio for t, ratio in found or [] if abs(t - distance) < 0.01]
    return near[0] if near else None


def table(summary: Summary) -> Table:
    """The ratios at an eighth, at a half and at one Newton step."""
    fractions, epochs = summary["settings"]["fractions"], summary["epochs"]

    def cell(direction: Mapping[str, Any]) -> str:
        found = [at(direction.get("step_curvature"), t) for t in SHOWN]
        if not any(found):
            return "-"
        return ", ".join("-" if x is None else f"{x:.2f}" for x in found)

    return Table(
        "Is the curvature at the point that of the step? The mean curvature over "
        "1/8, 1/2 and 1 Newton step, over that at the point, one batch; no number "
        "where the loss does not fall along the direction",
        ["", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [
                label(name, fractions[name]),
                *(cell(c["directions"][name]) for c in epochs.values()),
            ]
            for name in (*PAPER, *LONG_VERSION)
        ],
    )


def by_direction(
    runs: Sequence[Summary], distance: float = HALF
) -> dict[str, list[float]]:
    """The ratios at a distance, in Newton steps, in every cell that has one."""
    found = {
        name: [
            ratio
            for run in runs
            for cell in run["epochs"].values()
            if (ratio := at(cell["directions"][name].get("step_curvature"), distance))
        ]
        for name in (*PAPER, *LONG_VERSION)
    }
    return {name: own for name, own in found.items() if own}


def agreeing(ratios: Sequence[float]) -> int:
    """How many are near 1."""
    return sum(1 / AGREES <= ratio <= AGREES for ratio in ratios)


def agreement(runs: Sequence[Summary]) -> list[list[str]]:
    """Rows for every direction: in how many cells the whole step is like the point."""
    return [
        [
            f"curvature over half a Newton step / at the point, {label(name, None)}",
            "not measured",
            f"{span(own)}, within a factor of {AGREES} in "
            f"{agreeing(own)} of {len(own)} cells",
        ]
        for name, own in by_direction(runs).items()
    ]


def said(runs: Sequence[Summary]) -> str:
    """The same in sentences: all directions together, then the exceptions."""
    found, every = by_direction(runs), _together(runs, HALF)
    exceptions = [
        f"{label(name, None)} ({span(own)})"
        for name, own in found.items()
        if agreeing(own) < len(own)
    ]
    cells = sum(len(run["epochs"]) * len(run["settings"]["fractions"]) for run in runs)
    elsewhere = [
        f"{agreeing(own)} of {len(own)} over {'1/8 of one' if t < 1 else 'a whole one'}"
        for t in SHOWN
        if t != HALF and (own := _together(runs, t))
    ]
    return (
        f"over half a Newton step the mean curvature was within a factor of {AGREES} "
        f"of that at the point in {agreeing(every)} of {len(every)} cells, in all "
        f"{span(every)} of it"
        + (f", not always for {', '.join(exceptions)}" if exceptions else "")
        + "".join(f"; {count}" for count in elsewhere)
        + f". In {cells - len(every)} of the {cells} cells (an epoch and a direction, "
        "one batch) there is no such step, because the held-out loss does not fall "
        "along the direction or bends down: a parabola explains nothing there."
    )


def _together(runs: Sequence[Summary], distance: float) -> list[float]:
    """The ratios of all directions."""
    return [ratio for own in by_direction(runs, distance).values() for ratio in own]


def draw(summary: Summary, figure: Figure) -> None:
    """The ratio against the length of the step, a panel for each epoch that has any."""
    fractions = summary["settings"]["fractions"]
    curves = {
        epoch: {
            name: found
            for name in (*PAPER, *LONG_VERSION)
            if (found := cell["directions"][name].get("step_curvature"))
        }
        for epoch, cell in summary["epochs"].items()
    }
    curves = {epoch: found for epoch, found in curves.items() if found}
    columns = min(len(curves), 2)
    rows = math.ceil(len(curves) / columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels, handles = grid.ravel(), {}
    for unused in panels[len(curves) :]:
        unused.set_visible(False)
    for axes, (epoch, found) in zip(panels, curves.items(), strict=False):
        for name, pairs in found.items():
            style = looks.look(name, fractions[name])
            (handles[name],) = axes.plot(*zip(*pairs, strict=True), **style)
        axes.axhspan(1 / AGREES, AGREES, color="0.9", zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(_TICKS, [f"{x:g}" for x in _TICKS])
        axes.set(title=f"epoch {epoch}", xlim=(0.11, 2.5), ylim=(0, 3))
        axes.label_outer()
    for axes in panels[max(0, len(curves) - columns) : len(curves)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("length of the step (Newton steps)")
    figure.legend(handles=[*handles.values()], loc="outside lower center", ncols=3)
    figure.supylabel("curvature over the step / at the point", fontsize=10)


_TICKS = 0.125, 0.25, 0.5, 1, 2
