"""Who carries the sharpness of a direction, by kind of block, in all runs: a figure.

draw(folder)      # carriers.png of the runs below it, for `examples.redraw`
figure(root)      # with what it says, for a page of the documentation
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from examples.lab import curves, looks, run_folder, tables
from examples.lab.optimizers import label
from examples.sharpness.claims import experiment
from examples.sharpness.kinds import KINDS

NAME = "carriers.png"
SHOWN = ("sgd", "clipped_sgd", "adam")
_COLOURS = dict(
    zip(KINDS, ("#D55E00", "#E69F00", "#0072B2", "#009E73", "#999999"), strict=True)
)


class Share(NamedTuple):
    """Of a kind of blocks, in the mean over epochs and runs.

    Attributes:
        norm: its fraction of the squared norm of a direction.
        sharpness: that of its sharpness, with its terms with the other kinds.
    """

    norm: float
    sharpness: float


Shares = Mapping[tuple[str, str], Mapping[str, Share]]  # (experiment, direction), kind


def shares(runs: Sequence[Mapping[str, Any]]) -> Shares:
    """What was measured at one batch of each epoch; runs without it are left out."""
    found: dict[tuple[str, str], dict[str, list[Share]]] = {}
    for run in runs:
        for directions in run.get("split", {}).values():
            for name in SHOWN:
                parts = directions[name]
                total = sum(part["within"] + part["cross"] for part in parts.values())
                by_kind = found.setdefault((experiment(run), name), {})
                for kind, part in parts.items():
                    own = (part["within"] + part["cross"]) / total
                    by_kind.setdefault(kind, []).append(Share(part["norm"], own))
    return {
        key: {kind: Share(*np.mean(own, axis=0)) for kind, own in by_kind.items()}
        for key, by_kind in found.items()
    }


def draw(folder: Path) -> list[Path]:
    """Draws the figure of a folder of runs, if any of them has the numbers."""
    found = shares(run_folder.read_summaries(folder))
    if not found:
        return []
    size = 7.6, 1.6 + 0.42 * len(found)
    return [looks.draw(folder / NAME, functools.partial(_paint, found), size)]


def figure(root: Path) -> str:
    """The figure with what it says, for a page of the documentation."""
    folder = root / "examples/results/sharpness"
    found = shares(run_folder.read_summaries(folder))
    image = f"../../examples/results/sharpness/{NAME}"
    said = (
        "Who carries the squared norm and the sharpness of a direction, by kind of "
        "block, one batch an epoch, in the mean over epochs and seeds; a share of the "
        "sharpness holds the terms with other kinds. Others are the head of the "
        "encoder."
    )
    return "\n\n".join([tables.captioned(image, said), *_list(found)])


def _list(found: Shares) -> Iterator[str]:
    """Of SGD with and without a clip the largest carrier, and the norm gains."""
    lines = []
    for who in dict.fromkeys(who for who, _ in found):
        parts = []
        for name in ("sgd", "clipped_sgd"):
            by_kind = found[who, name]
            most = max(by_kind, key=lambda kind: by_kind[kind].sharpness)
            words = [_words(kind, by_kind[kind]) for kind in {most: 0, "norm gains": 0}]
            parts.append(f"{label(name, None)} {' and '.join(words)}")
        lines.append(f"- {who}: {'; '.join(parts)}.")
    if lines:
        yield (
            "The largest carrier of the sharpness, and the norm gains (in brackets of "
            "the squared norm):"
        )
        yield "\n".join(lines)


def _words(kind: str, share: Share) -> str:
    return f"{kind} {share.sharpness:.0%} ({share.norm:.0%})"


def _paint(found: Shares, canvas: Figure) -> None:
    panels = canvas.subplots(1, 2, sharey=True)
    for axes, what in zip(panels, Share._fields, strict=True):
        for row, by_kind in enumerate(reversed(list(found.values()))):
            for kind, share in by_kind.items():
                axes.plot(
                    getattr(share, what),
                    row,
                    "o",
                    color=_COLOURS[kind],
                    label=kind,
                )
        for place in (0, 1):
            axes.axvline(place, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xlabel(f"share of the {'squared ' if what == 'norm' else ''}{what}")
    names = [
        f"{who.replace(', ', chr(10), 1)}: {label(name, None)}" for who, name in found
    ]
    panels[0].set_yticks(range(len(found)), names[::-1], fontsize=7)
    curves.legend(panels[:1], canvas)  # each kind once
