"""What the pictures of the examples have in common: colours, lines and names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.optimizers import is_clipped, label

# Okabe and Ito's palette, which colour-blind readers tell apart: one colour for each
# family, a dashed line and a hollow marker for its clipped member.
COLOURS = {
    "sgd": "#D55E00",
    "adam": "#0072B2",
    "adam_update": "#56B4E9",
    "normalized_sgd": "#009E73",
    "adafactor": "#CC79A7",
    "lion": "#E69F00",
    "sign_sgd": "#555555",
    "norm_clipped_sgd": "#8C564B",
    "adamw": "#003F6B",
    "muon": "#000000",
    "plain_sgd": "#F0A070",
    "heavy_ball_sgd": "#A04000",
    "plain_sign_sgd": "#AAAAAA",
    "rmsprop": "#E69F00",
    "adam_eps_1e-6": "#2A8FD0",
    "adam_eps_1e-4": "#56B4E9",
    "adam_eps_1e-2": "#8FCFF2",
    "adam_eps_1": "#C0E4F8",
    "sgd_per_leaf": "#009E73",
}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


def draw(
    path: Path,
    paint: Callable[[Figure], None],
    size: tuple[float, float] = (6.4, 4.2),
) -> Path:
    """Saves what `paint` paints."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(path, dpi=150)
    return path


def look(name: str, fraction: float) -> dict[str, Any]:
    """Colour, line and name of an optimizer, the same in every picture."""
    return {
        "color": COLOURS[name.removeprefix("clipped_")],
        "linestyle": "--" if is_clipped(name) else "-",
        "label": label(name, fraction),
    }


def dots(name: str) -> dict[str, Any]:
    """Markers of an optimizer."""
    colour = COLOURS[name.removeprefix("clipped_")]
    return {
        "color": colour,
        "linestyle": "none",
        "marker": "o",
        "markersize": 4,
        "markerfacecolor": "white" if is_clipped(name) else colour,
    }


def histogram(axes: Axes, counted: Mapping[str, Any], colour: str) -> str:
    """Draws a `CoordinateHistogram`; says how many coordinates are below it."""
    edges, counts = np.array(counted["edges"]), np.array(counted["counts"])
    total = counts.sum() + counted["below"] + counted["above"] + counted["nans"]
    axes.stairs(counts / total, edges, color=colour, fill=True, alpha=0.35)
    axes.stairs(counts / total, edges, color=colour)
    axes.set(
        xscale="log",
        xlabel="magnitude of the momentum coordinate",
        ylabel="share of the coordinates",
    )
    below = counted["below"] / total
    return f"{total:,} coordinates; {below:.1%} below {edges[0]:g}"
