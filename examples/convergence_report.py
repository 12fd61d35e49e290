"""Tables and figures of a run of `examples.convergence`, made from its files.

    report.md, report.html    the best learning rates, losses, state, times; the sweep
    *.png                     figure 4, the same beside SGD on the same batches, and the
                              loss against time, state, learning rate and fraction

`python -m examples.plots RUN` makes them again.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples import looks, pages, paper, report, run_folder, tasks
from examples.optimizers import PAPER, TODAYS, label
from examples.pages import Table

Run = dict[str, Any]
Winners = dict[tuple[str, float], list[Run]]  # by optimizer and fraction: one per seed
_WINDOW = 10  # steps in the mean of a loss curve


def write(folder: Path) -> list[Path]:
    """Writes everything that the run has data for so far."""
    path = folder / "runs.jsonl"
    runs = _least_disturbed(run_folder.read_lines(path))
    content = json.loads((folder / "settings.json").read_text())
    settings, best = content["settings"], winners(runs)
    if not best:
        raise FileNotFoundError(f"{folder}: no training has ended there yet.")
    painters = {
        "loss_curves": _loss_curves,
        "loss_against_time": _against_time,
        "loss_against_state": _against_state,
        "loss_against_rate": functools.partial(_against_rate, runs),
    }
    plain = _runs_of(best, "sgd")
    if plain and len(_main(best, settings)) > 1:
        painters["loss_minus_sgd"] = functools.partial(_minus_sgd, plain)
    if plain and len(_fractions(best)) > 1:
        painters["loss_against_fraction"] = functools.partial(_against_fraction, plain)
    pictures = [
        looks.draw(
            folder / f"{name}.png", functools.partial(paint, best, settings), _SIZE
        )
        for name, paint in painters.items()
    ]
    tables = [_ranking(best, settings), sweep_table(runs)]
    page = pages.Content(
        f"Convergence: {tasks.TITLES[settings['task']]}",
        _provenance(content, runs, run_folder.day(path)),
        tables,
        pictures,
    )
    return [*pages.write(folder, page), *pictures]


_SIZE = (7.2, 4.6)


def _least_disturbed(runs: Sequence[Run]) -> list[Run]:
    """With the shortest step of an optimizer's trainings: other load adds to it."""
    shortest: dict[tuple[str, float], float] = {}
    for run in runs:
        key = run["name"], run["fraction"]
        shortest[key] = min(run["step_seconds"], shortest.get(key, np.inf))
    return [
        run | {"step_seconds": shortest[run["name"], run["fraction"]]} for run in runs
    ]


def winners(runs: Sequence[Run]) -> Winners:
    """The runs at the learning rate that was best with seed 0, in the order run."""
    best: Winners = {}
    for key in dict.fromkeys((run["name"], run["fraction"]) for run in runs):
        own = [run for run in runs if (run["name"], run["fraction"]) == key]
        finite = [run for run in own if not run["seed"] and run["loss"] is not None]
        if finite:
            rate = min(finite, key=lambda run: run["loss"])["learning_rate"]
            best[key] = [run for run in own if run["learning_rate"] == rate]
    return best


def _ranking(best: Winners, settings: Mapping[str, Any]) -> Table:
    """The best first; what diverged with a later seed is counted, not left out."""
    theirs = paper.LEARNING_RATES.get(settings["task"], {})
    plain = _runs_of(best, "sgd")
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
                f"{1e3 * runs[0]['step_seconds']:.0f} ms",
            ]
        )
    tail = min(report.TAIL, settings["steps"])
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
            "step",
        ],
        rows,
    )


def _mean_difference(runs: Sequence[Run], others: Sequence[Run]) -> str:
    found = _differences(runs, others)
    if not found:
        return "-"
    return f"{np.mean(found):+.3f} ({min(found):+.3f} to {max(found):+.3f})"


def _differences(runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    """What the same batches came to: seeds differ more than optimizers do."""
    losses = {run["seed"]: run["loss"] for run in others if run["loss"] is not None}
    return [
        run["loss"] - losses[run["seed"]]
        for run in runs
        if run["loss"] is not None and run["seed"] in losses
    ]


def sweep_table(runs: Sequence[Run]) -> Table:
    """Every learning rate that was tried."""
    own = [run for run in runs if not run["seed"]]
    rates = sorted({run["learning_rate"] for run in own})
    losses = {(r["name"], r["fraction"], r["learning_rate"]): r["loss"] for r in own}
    rows = []
    for name, fraction in dict.fromkeys((r["name"], r["fraction"]) for r in own):
        row = [label(name, fraction)]
        for rate in rates:
            loss = losses.get((name, fraction, rate), "")
            row.append("diverged" if loss is None else loss and f"{loss:.3f}")
        rows.append(row)
    return Table(
        "Every learning rate that was tried, seed 0",
        ["", *(f"{rate:g}" for rate in rates)],
        rows,
    )


def mean_loss(runs: Sequence[Run]) -> float:
    finite = [run["loss"] for run in runs if run["loss"] is not None]
    return float(np.mean(finite)) if finite else float("inf")


def _runs_of(best: Winners, optimizer: str) -> list[Run]:
    """Its runs, if it is among them."""
    return next((runs for (name, _), runs in best.items() if name == optimizer), [])


def _fractions(best: Winners) -> dict[float, list[Run]]:
    """Clipped SGD's runs by fraction."""
    found = {f: runs for (name, f), runs in best.items() if name == "clipped_sgd"}
    return dict(sorted(found.items()))


def _main(best: Winners, settings: Mapping[str, Any]) -> Winners:
    """Without the other fractions."""
    return {k: runs for k, runs in best.items() if k[1] == settings["fraction"]}


def _loss_curves(best: Winners, settings: Mapping[str, Any], figure: Figure) -> None:
    loss_curves(_main(best, settings), figure)
    figure.axes[0].set(xlabel="step")


def _minus_sgd(
    plain: Sequence[Run], best: Winners, settings: Mapping[str, Any], figure: Figure
) -> None:
    """Step by step, on the same batches."""
    losses = {run["seed"]: run["losses"] for run in plain}
    beside: Winners = {}
    for key, runs in _main(best, settings).items():
        own = [run for run in runs if run["seed"] in losses]
        if key[0] != "sgd" and own:
            beside[key] = [run | {"losses": _beside(run, losses)} for run in own]
    loss_curves(beside, figure)
    axes = figure.axes[0]
    # The first steps differ by much more than all that follows.
    curves = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
    ends = [y for curve in curves for y in curve[len(curve) * 2 // 5 :]]
    low, high = min(*ends, 0), max(*ends, 0)
    margin = 0.1 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.axhline(0, color=looks.COLOURS["sgd"], linewidth=1)
    axes.set(xlabel="step", ylabel="training loss minus SGD's on the same batches")


def _beside(run: Run, losses: Mapping[int, Sequence[float]]) -> list[float]:
    """A diverged training is shorter."""
    both = zip(run["losses"], losses[run["seed"]], strict=False)
    return [own - other for own, other in both]


def _against_time(best: Winners, settings: Mapping[str, Any], figure: Figure) -> None:
    loss_curves(_main(best, settings), figure, timed=True)
    figure.axes[0].set(xlabel="seconds of training (shortest step, compilation apart)")


def loss_curves(best: Winners, figure: Figure, *, timed: bool = False) -> None:
    """The mean over the seeds, in a band from the lowest to the highest."""
    axes, highest, lowest = figure.subplots(), [], []
    band = 0.15 if len(best) < 8 else 0.05  # many would cover each other
    for (name, fraction), runs in best.items():
        length = min(len(run["losses"]) for run in runs)
        window = min(_WINDOW, length)
        kernel = np.full(window, 1 / window)
        means = np.stack(
            [np.convolve(run["losses"][:length], kernel, "valid") for run in runs]
        )
        unit = runs[0]["step_seconds"] if timed else 1
        x = unit * np.arange(window - 1, length)
        look = looks.look(name, fraction)
        axes.plot(x, means.mean(0), **look)
        axes.fill_between(
            x, means.min(0), means.max(0), color=look["color"], alpha=band
        )
        highest.append(means.mean(0)[len(x) // 4])
        lowest.append(means.min())
    margin = 0.05 * (max(highest) - min(lowest)) or 1.0
    axes.set_ylim(min(lowest) - margin, max(highest) + margin)
    axes.set(ylabel="training loss (nats per token)")
    axes.set_title(f"Mean of {_WINDOW} batches; band: lowest to highest seed")
    axes.legend(fontsize=7, ncols=2)


def _against_state(best: Winners, settings: Mapping[str, Any], figure: Figure) -> None:
    axes = figure.subplots()
    for (name, fraction), runs in _main(best, settings).items():
        losses = [run["loss"] for run in runs if run["loss"] is not None]
        megabytes = runs[0]["state_bytes"] / 1e6
        points = looks.dots(name) | {"label": label(name, fraction)}
        axes.plot([megabytes] * len(losses), losses, **points)
    axes.set_xlim(left=-0.04 * axes.get_xlim()[1])
    axes.set(xlabel="optimizer state (MB)", ylabel="final training loss")
    _legend_beside(axes)


def _against_rate(
    runs: Sequence[Run], best: Winners, settings: Mapping[str, Any], figure: Figure
) -> None:
    axes = figure.subplots()
    for name, fraction in _main(best, settings):
        own = sorted(
            (run["learning_rate"], run["loss"])
            for run in runs
            if (run["name"], run["fraction"], run["seed"]) == (name, fraction, 0)
            and run["loss"] is not None
        )
        marks = looks.dots(name) | looks.look(name, fraction)
        axes.plot(*zip(*own, strict=True), **marks)
    # A quarter of the trainings, at rates far too high, would squeeze all others.
    swept = [run["loss"] for run in runs if not run["seed"]]
    found = [loss for loss in swept if loss is not None]
    low, high = min(found), float(np.quantile(found, 0.75))
    axes.set_ylim(low - 0.05 * (high - low), high)
    axes.set(xscale="log", xlabel="learning rate", ylabel="final training loss")
    _legend_beside(axes)


def _legend_beside(axes: Axes) -> None:
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _against_fraction(
    plain: Sequence[Run], best: Winners, settings: Mapping[str, Any], figure: Figure
) -> None:
    """With a bar from the lowest to the highest seed; Adam for comparison."""
    del settings
    axes = figure.subplots()
    found = {f: _differences(runs, plain) for f, runs in _fractions(best).items()}
    found = {fraction: own for fraction, own in found.items() if own}
    means = np.asarray([np.mean(own) for own in found.values()])
    ends = [[min(own), max(own)] for own in found.values()]
    bars = np.abs(np.asarray(ends).T - means)
    marks = looks.dots("clipped_sgd") | {"linestyle": "--", "label": "clipped SGD"}
    axes.errorbar([*found], means, bars, capsize=3, **marks)
    axes.axhline(0, color=looks.COLOURS["sgd"], linewidth=1, label="SGD")
    if own := _differences(_runs_of(best, "adam"), plain):
        colour = looks.COLOURS["adam"]
        axes.axhspan(min(own), max(own), color=colour, alpha=0.2)
        axes.axhline(float(np.mean(own)), color=colour, label="Adam")
    axes.set(
        xscale="log",
        xlabel="share of the coordinates clipped",
        ylabel="final training loss minus SGD's on the same batches",
        title="Mean over the seeds; bars and bands: lowest to highest",
    )
    axes.legend(fontsize=7)


def _provenance(content: Mapping[str, Any], runs: Sequence[Run], date: str) -> str:
    settings = content["settings"]
    names = list(dict.fromkeys(run["name"] for run in runs))
    clipped = {run["fraction"] for run in runs if run["name"] == "clipped_sgd"}
    missing = [f"{f:g}" for f in settings["fractions"] if clipped and f not in clipped]
    command = f"--task {settings['task']} --preset {settings['preset']}"
    if set(names) != {*PAPER, *TODAYS}:
        command += f" --optimizer {' '.join(names)}"
    return (
        f"`python -m examples.convergence {command}`, from `{settings['init']}`; "
        f"{settings['steps']} steps of {settings['batch_size']} examples. {date}; "
        f"{run_folder.made_with(content['made_with'])}."
        + (f" Not run: clipped SGD at {', '.join(missing)}." if missing else "")
    )
