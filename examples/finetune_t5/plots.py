"""The figures of a fine-tuning run, made from its summary and nothing else."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.finetune_t5 import progress
from examples.lab import looks, tables
from examples.lab.optimizers import label

Summary = Mapping[str, Any]


def draw(run: Path, summary: Summary) -> list[tables.Figure]:
    """Draws every figure that the summary has the numbers for."""
    painters: dict[str, tuple[Callable[..., None], str]] = {
        "loss_curves": (
            _loss_curves,
            "Held-out loss of each optimizer, and its distance from SGD's with a band "
            "from the lowest to the highest seed.",
        )
    }
    if summary["landscape"]:
        painters["landscape"] = (
            _landscape,
            "Change of the loss along each optimizer's update direction at the end of "
            "SGD's run; a dot is the lowest loss of its line.",
        )
    if summary["momentum"]:
        painters["momentum"] = (
            _histogram,
            "Magnitudes of the coordinates of SGD's momentum at the end: a few are "
            "far larger than the others.",
        )
    if summary["sharpness"]:
        painters["sharpness"] = (
            _sharpness,
            "Directional sharpness along SGD's trajectory, relative to that of SGD's "
            "own direction; dot: one measurement, bar: mean, cross: negative, its "
            "size.",
        )
    return [
        tables.Figure(
            looks.draw(run / f"{name}.png", functools.partial(paint, summary=summary)),
            caption,
        )
        for name, (paint, caption) in painters.items()
    ]


def _title(what: str, summary: Summary) -> str:
    settings = summary["settings"]
    model = Path(settings["init"]).name
    return f"{what}: English-French, {model}, seed {settings['seed']}"


def _loss_curves(figure: Figure, summary: Summary) -> None:
    """The held-out losses, and below, how far they are from SGD's."""
    rows, fraction = summary["optimizers"], summary["settings"]["fraction"]
    gaps = {name: _gaps(summary, name) for name in rows}
    compared = any(len(values) for _, values in gaps.values())
    axes = figure.subplots(1 + compared, 1, sharex=True, squeeze=False)[:, 0]
    for name, row in rows.items():
        look = looks.look(name, fraction)
        if row["diverged"] is not None:
            look["label"] += f" (diverged at step {row['diverged']})"
        axes[0].plot(*_curve(row), **look)
        steps, values = gaps[name]
        if compared and len(values):
            axes[1].plot(steps, values.mean(0), **look)
            ends = values.min(0), values.max(0)
            axes[1].fill_between(steps, *ends, color=look["color"], alpha=0.15)
    axes[0].set(ylabel="loss (nats per token)")
    axes[0].set_title(_title("Held-out loss", summary) + _message(summary))
    axes[0].legend(loc="upper right", ncols=2)
    if compared:
        seeds = len(next(values for _, values in gaps.values() if len(values)))
        of = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
        axes[1].set(ylabel=f"minus SGD's\n({of})")
    axes[-1].set(xlabel="step")


Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def _curve(run: Mapping[str, Any]) -> Curve:
    """The held-out losses of a training."""
    steps, losses = np.array(run["valid_losses"], float).reshape(-1, 2).T
    return steps, losses


def _message(summary: Summary) -> str:
    """Who comes down to SGD's lowest loss, and when."""
    steps = progress.of_runs(summary["optimizers"])
    if not steps:
        return ""
    fraction = summary["settings"]["fraction"]
    sooner = ", ".join(
        f"{label(name, fraction)} after {at:.0f}"
        for name, at in steps.items()
        if name != "sgd" and at is not None
    )
    return f"\nSGD is lowest after {steps['sgd']:.0f} steps; as low: {sooner or 'none'}"


def _gaps(summary: Summary, name: str) -> Curve:
    """How far the held-out losses are from SGD's: steps, and a row for each seed."""
    rows = summary["optimizers"]
    pairs = [(rows[name], rows["sgd"])] if "sgd" in rows else []
    if summary["seeds"]:
        pairs = progress.beside_sgd(summary["seeds"], name)
    if name == "sgd" or not pairs:
        return np.empty(0), np.empty((0, 0))
    curves = [(_curve(own), _curve(sgd)) for own, sgd in pairs]
    count = min(len(steps) for pair in curves for steps, _ in pair)
    differences = [own[1][:count] - sgd[1][:count] for own, sgd in curves]
    return curves[0][0][0][:count], np.array(differences)


def _landscape(figure: Figure, summary: Summary) -> None:
    axes = figure.subplots()
    scan = summary["landscape"]
    distances, lowest = scan["steps"][1:], 0.0
    for name, losses in scan["losses"].items():
        look = looks.look(name, summary["settings"]["fraction"])
        change = np.array(losses[1:], float) - losses[0]
        axes.plot(distances, change, **look)
        best = int(np.nanargmin(change))
        lowest = min(lowest, change[best])
        if change[best] < 0:
            axes.plot(distances[best], change[best], **looks.dots(name))
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    if lowest < 0:  # beyond the valley the loss rises by nats: show the valley
        axes.set_ylim(1.15 * lowest, -0.8 * lowest)
    axes.set(
        xscale="log",
        xlabel="distance along the normalised update direction",
        ylabel="change of the loss (nats per token)",
    )
    axes.set_title(_title("Loss along each direction", summary))
    axes.legend()


def _histogram(figure: Figure, summary: Summary) -> None:
    axes = figure.subplots()
    of = looks.histogram(axes, summary["momentum"], looks.COLOURS["sgd"])
    title = _title("SGD's momentum", summary)
    axes.set_title(f"{title}\n{of}")


def _sharpness(figure: Figure, summary: Summary) -> None:
    axes = figure.subplots()
    rows, fraction = summary["sharpness"], summary["settings"]["fraction"]
    names: Sequence[str] = [name for name in rows if rows[name]["ratios"]][::-1]
    for height, name in enumerate(names):
        look = looks.look(name, fraction)
        ratios = np.array(rows[name]["ratios"])
        looks.signed(axes, rows[name]["ratios"], height, name)
        axes.plot(abs(ratios.mean()), height, "|", color=look["color"], markersize=16)
    axes.set_yticks(range(len(names)), [label(name, fraction) for name in names])
    axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xscale="log", xlabel="directional sharpness / that of SGD's direction")
    axes.set_title(
        _title("Sharpness along SGD's trajectory", summary).replace(": ", ":\n")
    )
