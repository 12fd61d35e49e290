"""The figures of a heterogeneity run, made from its summary and nothing else."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from examples.heterogeneity.reading import Moment, Summary, clippings, finite, name
from examples.lab import looks, tables
from examples.lab.curves import grouped, legend, loss_curves
from examples.lab.winners import Winners

Size = tuple[float, float]


def draw(folder: Path, summary: Summary) -> list[tables.Figure]:
    """Draws every figure that the summary has the numbers for."""
    painters: dict[str, tuple[Callable[[Summary, Figure], None], Size, str]] = {
        "head_norm": (
            _head_norms,
            (7.2, 5.6),
            "Norm of the linear head along the training: mean over the seeds, in a "
            "band from the lowest to the highest.",
        )
    }
    if all("curves" in one for one in summary["optimizers"]):
        painters["loss_curves"] = (
            _loss_curves,
            (7.2, 5.6),
            "Training loss of every optimizer at its best learning rate: mean over "
            "the seeds, in a band from the lowest to the highest.",
        )
    if summary["moments"]:
        painters["blocks"] = (
            _blocks,
            (7.2, 4.2),
            "Every block's gradient norm against the curvature of its Hessian, at the "
            "first measured step of Adam's training and at the last.",
        )
        painters["clipping"] = (
            _clipping,
            (7.2, 4.0),
            "How unequal the blocks of the clipped gradient are (Gini coefficient of "
            "their norms), and how sharp its direction can be at most, against the "
            "fraction that is clipped.",
        )
    return [
        tables.Figure(
            looks.draw(folder / f"{key}.png", functools.partial(paint, summary), size),
            caption,
        )
        for key, (paint, size, caption) in painters.items()
    ]


def _title(what: str, summary: Summary, seeds: str) -> str:
    return f"{what}: {name(summary)}, {seeds}"


def _seeds(summary: Summary) -> str:
    return f"{max(len(one['losses']) for one in summary['optimizers'])} seeds"


def _contenders(summary: Summary) -> dict[tuple[str, float], Mapping[str, Any]]:
    """Without clipped SGD at other fractions."""
    return {
        (one["name"], one["fraction"]): one
        for one in summary["optimizers"]
        if one["fraction"] == summary["settings"]["fraction"]
    }


def _loss_curves(summary: Summary, figure: Figure) -> None:
    best: Winners = {
        key: [{"losses": curve} for curve in one["curves"]]
        for key, one in _contenders(summary).items()
    }
    legend(loss_curves(best, figure), figure)
    figure.supylabel("training loss (nats per row)", fontsize=10)
    figure.suptitle(_title("Training loss", summary, _seeds(summary)))


def _head_norms(summary: Summary, figure: Figure) -> None:
    contenders = _contenders(summary)

    def band(axes: Axes, key: tuple[str, float]) -> None:
        runs = contenders[key]["head_norms"]
        length = min(map(len, runs))
        norms = np.array([[norm for _, norm in run[:length]] for run in runs])
        steps, style = [step for step, _ in runs[0][:length]], looks.look(*key)
        axes.fill_between(
            steps,
            norms.min(0),
            norms.max(0),
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )
        axes.plot(steps, norms.mean(0), **style)

    panels = grouped([*contenders], figure, band)
    panels[0].set(yscale="log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    legend(panels, figure)
    figure.supylabel("norm of the linear head", fontsize=10)
    figure.suptitle(_title("Linear head", summary, _seeds(summary)))


_KINDS = {
    "embed": ("#D55E00", "s"),
    "norm": ("#009E73", "^"),
    "bias": ("#56B4E9", "v"),
    "head": ("#000000", "D"),
    "matrix": ("#0072B2", "o"),
}


def _kind(block: str) -> str:
    return next((kind for kind in _KINDS if kind in block), "matrix")


def _blocks(summary: Summary, figure: Figure) -> None:
    """Gradient norm against curvature, at the first moment and at the last."""
    moments = summary["moments"]
    chosen = [moments[0], moments[-1]][: len(moments)]
    grid = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)[0]
    for axes, moment in zip(grid, chosen, strict=True):
        largest = max(block["l2"] for block in moment["blocks"].values())
        for block_name, block in moment["blocks"].items():
            curvature = max(map(abs, finite([block["top"], block["bottom"]])))
            if block["l2"] > 1e-6 * largest and curvature:
                colour, marker = _KINDS[_kind(block_name)]
                axes.plot(curvature, block["l2"], marker, color=colour, ms=4)
        correlation = moment["correlation"]["spearman"]
        axes.set(xscale="log", yscale="log", xlabel="spectral norm of the Hessian")
        axes.set_title(f"step {moment['step']}: rank correlation {correlation:.2f}")
    grid[0].set_ylabel("gradient norm of the block")
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", label=kind)
        for kind, (colour, marker) in _KINDS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(_title("Blocks", summary, "seed 0"))


def _clipping(summary: Summary, figure: Figure) -> None:
    """Gini coefficient and bound of the clipped gradient, against the fraction."""
    last: Moment = summary["moments"][-1]
    panels = figure.subplots(1, 2)
    readings: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
        (
            "Gini coefficient of the block norms",
            lambda d: d["heterogeneity"]["l2"]["gini"],
        ),
        ("bound of the sharpness", lambda d: d["bound"]),
    )
    scopes = {"global": ("#0072B2", "-", "o"), "leaf": ("#009E73", "--", "s")}
    for axes, (words, value) in zip(panels, readings, strict=True):
        for scope, by_fraction in clippings(last).items():
            colour, line, marker = scopes[scope]
            fractions = sorted(f for f in by_fraction if f)
            axes.plot(
                fractions,
                [value(by_fraction[f]) for f in fractions],
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                label=f"clipped, {scope} threshold",
            )
        for direction, colour in (("gradient", "#D55E00"), ("sign", "#555555")):
            level = value(last["directions"][direction])
            axes.axhline(level, color=colour, linewidth=1, label=f"the {direction}")
        axes.set(xscale="log", title=words, xlabel="fraction clipped")
    figure.legend(
        handles=panels[0].get_legend_handles_labels()[0],
        loc="outside lower center",
        ncols=4,
    )
    figure.suptitle(
        _title(f"Clipped gradient at step {last['step']}", summary, "seed 0")
    )
