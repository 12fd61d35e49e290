"""The figures of a convergence run, made from its lines and nothing else."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.convergence import by_frequency
from examples.lab import looks, tables
from examples.lab.curves import bars, legend, legend_beside, loss_curves
from examples.lab.files import Line
from examples.lab.optimizers import is_clipped, label
from examples.lab.winners import Rules, Winners, at_fraction, differences, of
from examples.models import t5_scales
from examples.tasks import by_name

Settings = Mapping[str, Any]


def draw(
    folder: Path, best: Winners, runs: Sequence[Line], settings: Settings
) -> list[tables.Figure]:
    """Draws every figure that the runs have the numbers for."""
    plain, own = of(best, "sgd"), at_fraction(best, settings["fraction"])
    painters: dict[str, tuple[Callable[[Figure], None], str]] = {
        "loss_curves": (
            functools.partial(_loss_curves, own, settings),
            "Training loss of every optimizer at its best learning rate: mean over "
            "the seeds, in a band from the lowest to the highest.",
        ),
        "loss_against_rate": (
            functools.partial(_against_rate, runs, own, settings),
            "Final validation loss against the learning rate, one seed; the best rate "
            "of each optimizer is the lowest point of its line.",
        ),
    }
    if plain and len(own) > 1:
        painters["loss_minus_sgd"] = (
            functools.partial(_minus_sgd, plain, own, settings),
            "The same losses minus SGD's on the same batches: below the line an "
            "optimizer is ahead of SGD.",
        )
    if plain and _families(best):
        painters["loss_against_fraction"] = (
            functools.partial(_against_fraction, plain, best, settings),
            "Final test loss minus SGD's on the same batches, against the fraction "
            "that is clipped; bars and band: lowest to highest seed.",
        )
    if by_frequency.differences_from_sgd(best):
        painters["loss_by_frequency"] = (
            functools.partial(_by_frequency, best, settings),
            "Test loss minus SGD's by how frequent the token is; each group has about "
            "a tenth of the training labels; bars: lowest to highest seed.",
        )
    return [
        tables.Figure(looks.draw(folder / f"{name}.png", paint, (7.2, 5.4)), caption)
        for name, (paint, caption) in painters.items()
    ]


def _title(what: str, settings: Settings, seeds: str | None = None) -> str:
    task, model = by_name.TITLES[settings["task"]], by_name.name_of(settings["init"])
    if scaled := t5_scales.of(settings):
        model += f", {scaled}"
    seeds = seeds or f"{settings['seeds']} seeds"
    return f"{what}: {task}, {model}, {seeds}"


def _families(best: Winners) -> dict[str, dict[float, list[Line]]]:
    """The runs by fraction of what clips, where there are several."""
    found: dict[str, dict[float, list[Line]]] = {}
    for (name, fraction), runs in sorted(best.items()):
        if is_clipped(name):
            found.setdefault(name, {})[fraction] = runs
    return {name: own for name, own in found.items() if len(own) > 1}


def _loss_curves(best: Winners, settings: Settings, figure: Figure) -> None:
    legend(loss_curves(best, figure), figure)
    figure.supylabel("training loss (nats per token)", fontsize=10)
    figure.suptitle(_title("Training loss", settings))


def _minus_sgd(
    plain: Sequence[Line], best: Winners, settings: Settings, figure: Figure
) -> None:
    """Step by step, on the same batches."""
    losses = {run["seed"]: run["losses"] for run in plain}
    compared: Winners = {}
    for key, runs in best.items():
        own = [run for run in runs if run["seed"] in losses]
        if key[0] != "sgd" and own:
            compared[key] = [run | {"losses": _minus(run, losses)} for run in own]
    panels = loss_curves(compared, figure, from_step=0.4, differences=True)
    for axes in panels:
        axes.axhline(0, color=looks.COLOURS["sgd"], linewidth=1, label="SGD")
    legend(panels, figure)
    figure.supylabel("training loss minus SGD's on the same batches", fontsize=10)
    figure.suptitle(_title("Distance from SGD", settings))


def _minus(run: Line, losses: Mapping[int, Sequence[float]]) -> list[float]:
    """A diverged training is shorter."""
    both = zip(run["losses"], losses[run["seed"]], strict=False)
    return [own - other for own, other in both]


def _against_rate(
    runs: Sequence[Line], best: Winners, settings: Settings, figure: Figure
) -> None:
    axes, rules = figure.subplots(), Rules.of(settings)
    what = rules.chosen_by
    swept = [run for run in rules.choosing(runs) if run[what] is not None]
    for name, fraction in best:
        own = sorted(
            (run["learning_rate"], run[what])
            for run in swept
            if (run["name"], run["fraction"]) == (name, fraction)
        )
        marks = looks.dots(name) | looks.look(name, fraction)
        axes.plot(*zip(*own, strict=True), **marks)
    # A quarter of the trainings, at rates far too high, would squeeze all others.
    found = [run[what] for run in swept]
    low, high = min(found), float(np.quantile(found, 0.75))
    axes.set_ylim(low - 0.05 * (high - low), high)
    axes.set(xscale="log", xlabel="learning rate", ylabel="final validation loss")
    axes.set_title(_title("Final loss", settings, f"seed {rules.selection_seed}"))
    legend_beside(axes)


def _by_frequency(best: Winners, settings: Settings, figure: Figure) -> None:
    by_frequency.draw(best, figure)
    figure.suptitle(_title("Frequent and rare tokens", settings))


def _against_fraction(
    plain: Sequence[Line], best: Winners, settings: Settings, figure: Figure
) -> None:
    """With a bar from the lowest to the highest seed; Adam for comparison."""
    axes, rules = figure.subplots(), Rules.of(settings)
    what = rules.reported
    for name, family in _families(best).items():
        found = {f: differences(runs, plain, what) for f, runs in family.items()}
        found = {fraction: own for fraction, own in found.items() if own}
        said = "clipped SGD" if name == "clipped_sgd" else label(name, None)
        marks = looks.dots(name) | {"linestyle": "--", "label": said}
        bars(axes, found, **marks)
    axes.axhline(0, color=looks.COLOURS["sgd"], linewidth=1, label="SGD")
    if own := differences(of(best, "adam"), plain, what):
        colour = looks.COLOURS["adam"]
        axes.axhspan(min(own), max(own), color=colour, alpha=0.2)
        axes.axhline(float(np.mean(own)), color=colour, label="Adam")
    axes.set(
        xscale="log",
        xlabel="fraction of the coordinates clipped",
        ylabel="final test loss minus SGD's",
        title=_title("Which fraction to clip", settings),
    )
    axes.legend()
