"""Curves of many optimizers in panels of a few, a band over the seeds for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.lab import looks
from examples.lab.files import Line
from examples.lab.winners import Winners

WINDOW = 10  # steps in the mean of a loss curve

Key = tuple[str, float]  # an optimizer and the fraction that it clips


def smoothed(runs: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the moving mean of each seed's losses as far as all of them went."""
    length = min(len(run["losses"]) for run in runs)
    window = min(WINDOW, length)
    kernel = np.full(window, 1 / window)
    curves = [np.convolve(run["losses"][:length], kernel, "valid") for run in runs]
    return np.arange(window - 1, length), np.stack(curves)


def loss_curves(
    best: Winners, figure: Figure, *, from_step: float = 0.25, differences: bool = False
) -> Sequence[Axes]:
    """Mean over the seeds, in a band from the lowest to the highest.

    The axis of the losses shows all means after `from_step` of the steps, that of
    `differences` from one optimizer the whole bands, and 0.
    """
    rest = [0.0] if differences else []

    def band(axes: Axes, key: Key) -> None:
        steps, curves = smoothed(best[key])
        style, mean = looks.look(*key), curves.mean(0)
        axes.fill_between(
            steps,
            curves.min(0),
            curves.max(0),
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )
        axes.plot(steps, mean, **style)
        shown = curves if differences else mean
        rest.extend(shown[..., int(from_step * len(steps)) :].ravel())

    panels = grouped([*best], figure, band)
    margin = 0.1 * (max(rest) - min(rest)) or 1.0
    panels[0].set_ylim(min(rest) - margin, max(rest) + margin)
    return panels


def styles(keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """How each is drawn; dotted where the optimizer was there at another fraction."""
    names = [name for name, _ in keys]
    return {
        key: looks.look(*key) | ({"linestyle": ":"} if key[0] in names[:i] else {})
        for i, key in enumerate(keys)
    }


def bars(axes: Axes, found: Mapping[float, Sequence[float]], **marks: Any) -> None:
    """The mean over the seeds at each place, in a bar from lowest to highest."""
    means = np.asarray([np.mean(own) for own in found.values()])
    ends = np.asarray([[min(own), max(own)] for own in found.values()])
    axes.errorbar([*found], means, np.abs(ends.T - means), capsize=3, **marks)


def minus_sgd(
    axes: Axes,
    found: Mapping[Key, Mapping[float, Sequence[float]]],
    *,
    joined: bool = True,
) -> None:
    """Of each optimizer the differences from SGD, which is a line at 0.

    Places that have no order are not joined.
    """
    for key, style in styles([*found]).items():
        marks = looks.dots(key[0]) | style | ({} if joined else {"linestyle": "none"})
        bars(axes, found[key], **marks)
    axes.axhline(0, color=looks.COLOURS["sgd"], linewidth=1, label="SGD")
    legend_beside(axes)


def legend_beside(axes: Axes) -> None:
    """The legend to the right of the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def grouped(
    keys: Sequence[Key], figure: Figure, paint: Callable[[Axes, Key], None]
) -> Sequence[Axes]:
    """Panels over the steps for a few optimizers each: more would hide each other.

    They have the same axes, and SGD and Adam in common.
    """
    groups = _families(keys)
    columns = min(len(groups), 2)
    grid = figure.subplots(
        -(-len(groups) // columns), columns, sharex=True, sharey=True, squeeze=False
    ).ravel()
    for axes, group in zip(grid, groups, strict=False):
        for key in group:
            paint(axes, key)
        axes.set_xlabel("step")
        axes.label_outer()
    for unused in grid[len(groups) :]:
        unused.set_visible(False)
    return list(grid[: len(groups)])


def legend(panels: Sequence[Axes], figure: Figure) -> None:
    """One legend for all panels, below them."""
    entries = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            entries[text] = handle
    figure.legend(
        entries.values(), [*entries], loc="outside lower center", ncols=3, fontsize=8
    )


_ORDER = ("normalized", "sign", "adafactor", "lion", "adam", "sgd", "")
_SHARED = ("sgd", "plain_sgd", "adam")


def _families(keys: Sequence[Key]) -> list[list[Key]]:
    """Related optimizers together, as few in a panel as four panels allow."""
    if len(keys) <= 5:
        return [list(keys)]
    shared = [key for key in keys if key[0] in _SHARED]
    rest = [key for key in keys if key not in shared]
    rest.sort(key=lambda key: next(i for i, f in enumerate(_ORDER) if f in key[0]))
    panels = 4 if len(rest) > 4 else 2
    return [[*shared, *part] for part in _split(rest, panels)]


def _split(keys: Sequence[Key], count: int) -> list[Sequence[Key]]:
    size, extra = divmod(len(keys), count)
    ends = np.cumsum([size + (i < extra) for i in range(count)])
    return [keys[end - size - (i < extra) : end] for i, end in enumerate(ends)]
