"""The figures of a sharpness run, made from its summary and nothing else."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.lab import looks, paper, tables
from examples.lab.optimizers import LONG_VERSION, PAPER, label
from examples.sharpness import step_curvature
from examples.tasks import by_name

Summary = Mapping[str, Any]


class _Painter(NamedTuple):
    paint: Callable[[Summary, Figure], None]
    size: tuple[float, float]
    drawable: Callable[[Summary], Any]  # whether the summary has its numbers
    caption: str


def draw(run: Path, summary: Summary) -> list[tables.Figure]:
    """Draws every figure that the summary has the numbers for."""
    return [
        tables.Figure(
            looks.draw(
                run / f"{name}.png",
                functools.partial(painter.paint, summary),
                painter.size,
            ),
            painter.caption,
        )
        for name, painter in _PAINTERS.items()
        if painter.drawable(summary)
    ]


def subject(summary: Summary) -> str:
    """What a run is about, for titles."""
    settings = summary["settings"]
    return (
        f"{by_name.TITLES[settings['task']]}, {Path(settings['init']).name}, "
        f"{label(settings['trajectory'], 0)}'s trajectory, seed {settings['seed']}"
    )


def _grid(figure: Figure, summary: Summary, *, sharey: bool = True) -> list[Axes]:
    """A panel for each measured epoch, all with the same axes."""
    count = len(summary["epochs"])
    columns = min(count, 2)
    grid = figure.subplots(
        -(-count // columns), columns, sharex=True, sharey=sharey, squeeze=False
    )
    for unused in grid.ravel()[count:]:
        unused.set_visible(False)
    return list(grid.ravel()[:count])


def _ratios(summary: Summary, figure: Figure) -> None:
    """Ours as dots, the paper's as crosses, epoch by epoch."""
    settings, theirs = summary["settings"], paper.reported(summary["settings"])
    names = paper.COLUMNS[::-1]
    ticks = [label(name, settings["fraction"]) for name in names]
    panels = _grid(figure, summary)
    for axes, (epoch, cell) in zip(panels, summary["epochs"].items(), strict=True):
        for height, name in enumerate(names):
            ratios = [r for r in cell["directions"][name]["ratios"] if r is not None]
            looks.signed(axes, ratios, height, name)
        if reported := theirs.get(int(epoch)):
            heights = np.arange(len(names)) - 0.3
            marks = [reported[name] for name in names]
            axes.plot(marks, heights, "k+", markersize=7, label="the paper's mean")
        axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
        axes.set(xscale="log", title=f"epoch {epoch}")
        axes.set_yticks(range(len(names)), ticks)
    if theirs:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right")
    figure.supxlabel("sharpness / that of SGD's direction", fontsize=10)
    figure.suptitle(f"Sharpness ratios: {subject(summary)}")


_ROUNDING = 1e-6  # of a loss in single precision


def _landscape(summary: Summary, figure: Figure) -> None:
    """Figures 3 and 5 to 8, on a logarithmic axis of the distance."""
    settings, lowest, distances = summary["settings"], 0.0, []
    panels = _grid(figure, summary)
    for axes, (epoch, cell) in zip(panels, summary["epochs"].items(), strict=True):
        falling = 0
        for name in PAPER:
            curve = cell["directions"][name]["curve"]
            change = np.array(curve["losses"]) - curve["losses"][0]
            style = looks.look(name, settings["fraction"])
            axes.plot(curve["steps"][1:], change[1:], **style)
            best = int(np.argmin(change))
            if change[best] < -_ROUNDING * abs(curve["losses"][0]):
                falling += 1
                axes.plot(curve["steps"][best], change[best], **looks.dots(name))
                distances += curve["steps"][1:]
            lowest = min(lowest, float(change[best]))
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.set(xscale="log", title=f"epoch {epoch}, batch {cell['in_figure']}")
        axes.set_xlabel("distance along the normalised direction")
        axes.label_outer()
        if falling < len(PAPER):
            said = f"The loss falls along {falling or 'none'} of the {len(PAPER)}."
            axes.text(0.03, 0.04, said, transform=axes.transAxes, fontsize=8)
    if lowest < 0:  # what only rises, and how far, would hide the valleys
        panels[0].set_ylim(1.15 * lowest, -0.5 * lowest)
        panels[0].set_xlim(min(distances) / 1.5, max(distances) * 1.5)
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.supylabel("change of the loss (nats per token)", fontsize=10)
    figure.suptitle(f"Loss along each direction: {subject(summary)}")


def _reductions(summary: Summary, figure: Figure) -> None:
    """The local loss reduction of every direction."""
    fractions, names = summary["settings"]["fractions"], (*PAPER, *LONG_VERSION)[::-1]
    panels = _grid(figure, summary)
    for axes, (epoch, cell) in zip(panels, summary["epochs"].items(), strict=True):
        for height, name in enumerate(names):
            style = looks.look(name, fractions[name])
            whole = style["linestyle"] == "-"
            axes.barh(
                height,
                cell["directions"][name]["decrease"],
                color=style["color"] if whole else "white",
                edgecolor=style["color"],
                hatch=None if whole else "////",
            )
        axes.set_title(f"epoch {epoch}")
        axes.set_yticks(range(len(names)), [label(n, fractions[n]) for n in names])
        axes.tick_params(axis="y", labelsize=8)
    figure.supxlabel("local loss reduction (nats per token)", fontsize=10)
    figure.suptitle(f"How far each direction goes down: {subject(summary)}")


def _momentum(summary: Summary, figure: Figure) -> None:
    """Figure 1, at the end."""
    axes = figure.subplots()
    of = looks.histogram(axes, summary["momentum"], looks.COLOURS["sgd"])
    axes.set_title(f"SGD's momentum: {subject(summary)}\n{of}")


def _step_curvature(summary: Summary, figure: Figure) -> None:
    step_curvature.draw(summary, figure)
    figure.suptitle(f"Is the point like the step? {subject(summary)}")


def _has(key: str) -> Callable[[Summary], bool]:
    """Whether every direction of every epoch has a number."""

    def has(summary: Summary) -> bool:
        cells = summary["epochs"].values()
        return all(key in d for cell in cells for d in cell["directions"].values())

    return has


_PAINTERS: Mapping[str, _Painter] = {
    "ratios": _Painter(
        _ratios,
        (7.6, 5.2),
        lambda _: True,
        "Sharpness along each optimizer's direction, relative to that along SGD's; "
        "dot: one batch (x: negative, its size). Left of the line a direction is less "
        "sharp than SGD's.",
    ),
    "landscape": _Painter(
        _landscape,
        (7.6, 6.4),
        _has("curve"),
        "Change of the loss along each optimizer's update direction; a dot is the "
        "lowest loss that its line reaches.",
    ),
    "reductions": _Painter(
        _reductions,
        (7.6, 7.2),
        _has("decrease"),
        "The largest decrease of the loss along each direction, at one batch of each "
        "measured epoch; hatched: clipped.",
    ),
    "step_curvature": _Painter(
        _step_curvature,
        (7.6, 6.8),
        step_curvature.has,
        "The mean curvature over a step, from losses alone, over the curvature at the "
        "point where it begins: 1 on a parabola, in the band within a factor of "
        f"{step_curvature.AGREES}. Where the loss falls along no direction there is no "
        "panel.",
    ),
    "momentum": _Painter(
        _momentum,
        (6.4, 3.6),
        lambda summary: summary.get("momentum"),
        "Magnitudes of the coordinates of SGD's momentum: a few are far larger than "
        "the others.",
    ),
}
