"""The pictures of a run, made from its files and nothing else.

`python -m examples.plots runs/finetune_t5` draws them again; for runs of
`examples.sharpness`, `examples.convergence` and `examples.heterogeneity` it writes the
tables, too.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from examples import (
    convergence_report,
    heterogeneity_report,
    looks,
    run_folder,
    sharpness_report,
)
from examples.optimizers import label

_WINDOW = 10  # batches in the mean of a loss curve


def plot(run: tyro.conf.Positional[Path]) -> list[Path]:
    """Draws every picture of a run of any kind."""
    settings = run / "settings.json"
    if settings.is_file() and "trajectory" in run_folder.read_settings(settings):
        return sharpness_report.write(run)
    if settings.is_file() and "clip_norm" in run_folder.read_settings(settings):
        return heterogeneity_report.write(run)
    if (run / "runs.jsonl").is_file():
        return convergence_report.write(run)
    return plot_run(run)


def plot_run(run: Path) -> list[Path]:
    """Draws every picture that a fine-tuning run has data for."""
    summary = run_folder.read_summary(run)
    painters = {"loss_curves": _loss_curves}
    if (run / "landscape.json").is_file():
        painters["landscape"] = _landscape
        painters["momentum_histogram"] = _histogram
    if summary["sharpness"]:
        painters["sharpness"] = _sharpness
    return [
        looks.draw(
            run / f"{name}.png", functools.partial(paint, run=run, summary=summary)
        )
        for name, paint in painters.items()
    ]


def _loss_curves(figure: Figure, run: Path, summary: Mapping[str, Any]) -> None:
    """Every loss, and below, how far it is from SGD's on the same batches."""
    rows, fraction = summary["optimizers"], summary["settings"]["fraction"]
    compared = "sgd" in rows and len(rows) > 1
    axes = figure.subplots(1 + compared, 1, sharex=True, squeeze=False)[:, 0]
    lines = {name: run_folder.read_metrics(run / name) for name in rows}
    losses = {
        name: np.array([line["loss"] for line in lines[name] if "loss" in line])
        for name in rows
    }
    gaps: dict[str, np.ndarray] = {}
    for name, row in rows.items():
        look = looks.look(name, fraction)
        if row["diverged"] is not None:
            look["label"] += f" (diverged at step {row['diverged']})"
        axes[0].plot(losses[name], color=look["color"], alpha=0.25, linewidth=0.7)
        axes[0].plot(*_moving_mean(losses[name]), **look)
        axes[0].plot(*_validations(lines[name]), **looks.dots(name))
        if compared:
            steps = min(len(losses[name]), len(losses["sgd"]))
            gaps[name] = losses[name][:steps] - losses["sgd"][:steps]
            axes[1].plot(*_moving_mean(gaps[name]), **look)
    axes[0].plot([], [], "ko", markersize=4, label="on held-out pairs")
    axes[0].set(ylabel="loss per token", ylim=_without_the_start(losses))
    axes[0].set_title(
        f"Training loss in nats; thin: each batch, thick: mean of {_WINDOW} batches"
    )
    axes[0].legend(fontsize=8, loc="upper right")
    if compared:
        axes[1].set(ylabel="minus SGD's", ylim=_without_the_start(gaps))
    axes[-1].set(xlabel="step")


def _validations(lines: Sequence[Mapping[str, Any]]) -> tuple[list, list]:
    found = [line for line in lines if line.get("valid_loss") is not None]
    return [x["step"] for x in found], [x["valid_loss"] for x in found]


def _without_the_start(losses: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """Limits that leave out the first tenth, where the loss falls from far above."""
    rest = [_moving_mean(x)[1] for x in losses.values() if len(x)]
    rest = [x[len(x) // 10 :] for x in rest]
    if not rest:
        return None
    low, high = min(map(np.nanmin, rest)), max(map(np.nanmax, rest))
    margin = 0.2 * (high - low) or 1.0
    return low - margin, high + margin


def _moving_mean(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean of the batches up to each."""
    window = min(_WINDOW, max(len(losses), 1))
    means = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    return np.arange(window - 1, window - 1 + len(means)), means


def _landscape(figure: Figure, run: Path, summary: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    scan = json.loads((run / "landscape.json").read_text())
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
    axes.set_title("Along each direction at the end of SGD's run; dots: lowest loss")
    axes.legend(fontsize=8)


def _histogram(figure: Figure, run: Path, summary: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    counted = json.loads((run / "histogram.json").read_text())
    of = looks.histogram(axes, counted, looks.COLOURS["sgd"])
    axes.set_title(f"SGD's momentum after {summary['settings']['steps']} steps, {of}")


def _sharpness(figure: Figure, run: Path, summary: Mapping[str, Any]) -> None:
    del run
    axes = figure.subplots()
    rows = summary["sharpness"]
    names, negative = [name for name in rows if rows[name]["ratios"]][::-1], False
    for height, name in enumerate(names):
        look = looks.look(name, summary["settings"]["fraction"])
        ratios = np.array(rows[name]["ratios"])
        dots = looks.dots(name) | {"markersize": 5}
        positive = ratios > 0
        axes.plot(ratios[positive], np.full(positive.sum(), height), **dots)
        if not positive.all():
            # A logarithmic axis has no negative numbers: show the size, say the sign.
            crosses = dots | {"marker": "x", "markersize": 6}
            axes.plot(-ratios[~positive], np.full((~positive).sum(), height), **crosses)
            negative = True
        axes.plot(abs(ratios.mean()), height, "|", color=look["color"], markersize=16)
    fraction = summary["settings"]["fraction"]
    axes.set_yticks(range(len(names)), [label(name, fraction) for name in names])
    axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xscale="log", xlabel="directional sharpness / that of SGD's direction")
    crosses = "; cross: negative, its size" if negative else ""
    axes.set_title(f"Along SGD's trajectory; dot: one measurement{crosses}; bar: mean")


if __name__ == "__main__":
    run_folder.cli(plot)
