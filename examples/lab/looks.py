"""What figures have in common: colours, line styles and names of optimizers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from PIL import Image

from examples.lab.optimizers import is_clipped, label

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
    "norm_clipped_sgd_0.1": "#C49C94",
    "nesterov_sgd": "#B22222",
    "norm_clipped_nesterov_sgd": "#5C3A31",
    "adamw": "#003F6B",
    "muon": "#000000",
    "scale": "#7A5195",
    "plain_sgd": "#F0A070",
    "heavy_ball_sgd": "#A04000",
    "plain_sign_sgd": "#AAAAAA",
    "rmsprop": "#E69F00",
    "adam_eps_1e-6": "#2A8FD0",
    "adam_eps_1e-4": "#56B4E9",
    "adam_eps_1e-2": "#8FCFF2",
    "adam_eps_1": "#C0E4F8",
    "sgd_per_leaf": "#999933",
}
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
}
SIZE = (7.2, 4.6)  # inches: a README shows it at nearly its size


def draw(
    path: Path, paint: Callable[[Figure], None], size: tuple[float, float] = SIZE
) -> Path:
    """Saves what `paint` paints, and with it a hash of what was drawn.

    The bytes of an image differ between versions of matplotlib and its fonts; numbers
    and words do not, so their hash says whether a committed figure is still true.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        found = fingerprint(figure)
        if not path.is_file() or drawn(path) != found:
            metadata = {"Software": None, "Drawn": found}
            figure.savefig(path, dpi=150, metadata=metadata)
    return path


def fingerprint(figure: Figure) -> str:
    """A hash of the numbers and words in a figure, whatever draws it."""
    digest = hashlib.sha256(f"{_STYLE} {figure.get_size_inches()}".encode())
    for axes in figure.axes:
        for text in (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()):
            digest.update(text.encode())
        for scale, limits, automatic in (
            (axes.get_xscale(), axes.get_xlim(), axes.get_autoscalex_on()),
            (axes.get_yscale(), axes.get_ylim(), axes.get_autoscaley_on()),
        ):
            digest.update(scale.encode())
            if not automatic:
                digest.update(_rounded(limits))
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), FixedLocator):
                digest.update(_rounded(axis.get_majorticklocs()))
                if isinstance(axis.get_major_formatter(), FuncFormatter):  # our words
                    names = axis.get_ticklabels()
                    digest.update(f"{[name.get_text() for name in names]}".encode())
        for line in axes.get_lines():
            digest.update(f"{line.get_label()} {line.get_color()}".encode())
            digest.update(_rounded(line.get_xydata()))
        for patch in axes.patches:
            shape = patch.get_patch_transform().transform_path(patch.get_path())
            digest.update(_rounded(shape.vertices))
        for collection in axes.collections:
            for path in collection.get_paths():
                digest.update(_rounded(path.vertices))
        for text in axes.texts:
            digest.update(text.get_text().encode())
    for text in figure.texts:
        digest.update(text.get_text().encode())
    return digest.hexdigest()


def _rounded(numbers: Any) -> bytes:
    """Five digits: the last ones of a sum differ between processors."""
    flat = np.ma.filled(np.ma.asarray(numbers, float), np.nan).ravel()
    return " ".join(f"{x:.5g}" for x in flat).encode()


def drawn(path: Path) -> str | None:
    """The hash that `draw` left in a file."""
    with Image.open(path) as image:
        return image.info.get("Drawn")


def look(name: str, fraction: float) -> dict[str, Any]:
    """Colour, line and name of an optimizer, the same in every figure."""
    return {
        "color": COLOURS[name.removeprefix("clipped_")],
        # AdamW's curve lies on Adam's where there is little to decay.
        "linestyle": "--" if is_clipped(name) else ":" if name == "adamw" else "-",
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
        ylabel="fraction of the coordinates",
    )
    seen = np.flatnonzero(counts)
    if seen.size:
        axes.set_xlim(edges[seen[0]], edges[seen[-1] + 1])
    below = counted["below"] / total
    return f"{total:,} coordinates; {below:.1%} below {edges[0]:g}"


def signed(axes: Axes, values: Sequence[float], height: float, name: str) -> None:
    """Draws points on a logarithmic axis: a cross is a negative one's size."""
    for value in values:
        marks: dict[str, Any] = dots(name)
        if value <= 0:
            marks["marker"] = "x"
        axes.plot(abs(value), height, **marks)
