"""The figures of a fine-tuning run, made from its summary and nothing else."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.lab import looks, tables
from examples.lab.optimizers import label

Summary = Mapping[str, Any]
_WINDOW = 10  # batches in the mean of a loss curve


def draw(run: Path, summary: Summary) -> list[tables.Figure]:
    """Draws every figure that the summary has the numbers for."""
    painters: dict[str, tuple[Callable[..., None], str]] = {
        "loss_curves": (
            _loss_curves,
            f"Training loss of each optimizer (thick: {_thick(summary)}; thin: each "
            "batch; dots: held-out pairs) and its distance from SGD's on the same "
            "batches.",
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


def _thick(summary: Summary) -> str:
    pool = any(row.get("pool_losses") for row in summary["optimizers"].values())
    return "all training pairs" if pool else f"mean of {_WINDOW} batches"


def _title(what: str, summary: Summary) -> str:
    settings = summary["settings"]
    model = Path(settings["init"]).name
    return f"{what}: English-French, {model}, seed {settings['seed']}"


def _loss_curves(figure: Figure, summary: Summary) -> None:
    """Every loss, and below, how far it is from SGD's on the same batches."""
    rows, fraction = summary["optimizers"], summary["settings"]["fraction"]
    compared = "sgd" in rows and len(rows) > 1
    axes = figure.subplots(1 + compared, 1, sharex=True, squeeze=False)[:, 0]
    losses = {name: np.array(row["losses"]) for name, row in rows.items()}
    curves = {name: _curve(row) for name, row in rows.items()}
    held_out = [
        (steps, losses)
        for row in rows.values()
        if row["valid_losses"]
        for steps, losses in [np.array(row["valid_losses"], float).T]
    ]
    gaps: dict[str, Curve] = {}
    for name, row in rows.items():
        look = looks.look(name, fraction)
        if row["diverged"] is not None:
            look["label"] += f" (diverged at step {row['diverged']})"
        axes[0].plot(losses[name], color=look["color"], alpha=0.25, linewidth=0.7)
        axes[0].plot(*curves[name], **look)
        if row["valid_losses"]:
            axes[0].plot(*zip(*row["valid_losses"], strict=True), **looks.dots(name))
        if compared:
            gaps[name] = _gap(rows[name], rows["sgd"])
            axes[1].plot(*gaps[name], **look)
    axes[0].plot([], [], "ko", markersize=4, label="on held-out pairs")
    axes[0].set(
        ylabel="loss (nats per token)",
        ylim=_without_the_start([*curves.values(), *held_out]),
    )
    axes[0].set_title(_title("Training loss", summary))
    axes[0].legend(loc="lower left")
    if compared:
        axes[1].set(ylabel="minus SGD's", ylim=_without_the_start(gaps.values()))
    axes[-1].set(xlabel="step")


Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def _curve(row: Mapping[str, Any]) -> Curve:
    """The losses on all training pairs; in runs of before, means of batches."""
    if row.get("pool_losses"):
        steps, losses = np.array(row["pool_losses"], float).T
        return steps, losses
    return _moving_mean(np.array(row["losses"]))


def _gap(row: Mapping[str, Any], of_sgd: Mapping[str, Any]) -> Curve:
    """How far a curve is from SGD's at the same steps."""
    if row.get("pool_losses") and of_sgd.get("pool_losses"):
        steps, (own, sgd) = _curve(of_sgd)[0], (_curve(x)[1] for x in (row, of_sgd))
        count = min(len(own), len(sgd))
        return steps[:count], own[:count] - sgd[:count]
    losses, sgd = (np.array(x["losses"]) for x in (row, of_sgd))
    count = min(len(losses), len(sgd))
    return _moving_mean(losses[:count] - sgd[:count])


def _without_the_start(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """Limits that leave out the first tenth, where the loss may fall from far above."""
    rest = [x[-(-len(x) // 10) :] for _, x in curves if len(x) > 1]
    if not rest:
        return None
    low, high = min(map(np.nanmin, rest)), max(map(np.nanmax, rest))
    margin = 0.2 * (high - low) or 1.0
    return low - margin, high + margin


def _moving_mean(losses: np.ndarray) -> Curve:
    """Steps, and the mean of the batches up to each."""
    window = min(_WINDOW, max(len(losses), 1))
    means = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    return np.arange(window - 1, window - 1 + len(means)), means


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
