"""How much of Adam's lead over SGD other optimizers cover, on every task, in a figure.

0 is SGD's loss on held-out rows, 1 is Adam's, each at its own best learning rate, which
other held-out rows chose: the runs of the convergence that kept the rules, longer ones,
those with other batches and weights of another scale, and the main job.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from examples.finetune_t5 import in_numbers
from examples.finetune_t5 import report as finetune_t5
from examples.lab import looks, tables
from examples.lab.optimizers import label
from examples.lab.winners import Covered
from examples.models import t5_scales
from examples.redraw import what_to_try

NAME = "adams_lead.png"
FOLDERS = "convergence", "long_training", "batch_size", "scale_of_weights"
# What is drawn, and with which marker.
COMPARED = {
    ("norm_clipped_sgd", what_to_try.DEFAULT): "o",
    ("clipped_sgd", what_to_try.DEFAULT): "o",
    ("clipped_sgd", 0.2): "s",
    ("sign_sgd", what_to_try.DEFAULT): "o",
}
_SEEN = (-0.6, 1.4)  # of Adam's lead; what lies outside is drawn at the edge


class Task(NamedTuple):
    """What the others have of Adam's lead over SGD, which is in nats."""

    title: str
    lead: float
    covered: Mapping[what_to_try.Key, Covered]


def draw(results: Path) -> list[Path]:
    """Draws the figure of a folder of results, where there is a task for it."""
    found = list(tasks(results))
    if not found:
        return []
    size = 7.2, 1.4 + 0.6 * len(found)
    path = looks.draw(results / NAME, functools.partial(_paint, found), size)
    return [path]


def tasks(results: Path) -> Iterator[Task]:
    """Those where Adam has a lead: it is the unit."""
    found = [
        (_title(column), {key: column.covered(key) for key in column.best})
        for name in FOLDERS
        for column in what_to_try.columns(results / name)
    ]
    if (results / "finetune_t5" / "seeds").is_dir():
        summary = finetune_t5.read(results / "finetune_t5")
        fraction, shares = summary["settings"]["fraction"], in_numbers.covered(summary)
        by_key = {(name, fraction): share for name, share in shares.items()}
        found.append(("main job: translation, T5", by_key))
    for title, shares in found:
        known = {key: share for key, share in shares.items() if share}
        adam = known.get(("adam", what_to_try.DEFAULT))
        if adam and known.keys() & COMPARED.keys():
            yield Task(title, adam.lead, known)


def _title(column: what_to_try.Column) -> str:
    """The task, the model and what is special about the run."""
    settings = column.settings
    sizes = f"{settings['steps']:,} steps of {settings['batch_size']}"
    what = filter(None, [column.title, t5_scales.of(settings)])
    return f"{', '.join(what)}; {sizes}"


def figure(root: Path) -> str:
    """The figure and its means, for a page of the documentation."""
    found = list(tasks(root / "examples/results"))
    return "\n\n".join(
        [
            tables.captioned(f"../../examples/results/{NAME}", CAPTION),
            means(found).titled(),
        ]
    )


CAPTION = (
    "How much of Adam's lead over SGD in held-out loss others cover. Large: the mean "
    "over the seeds; small: the way of one seed over the mean lead; what lies "
    "outside is drawn at the edge."
)


def means(found: Sequence[Task]) -> tables.Table:
    """What the large marks of the figure say."""
    rows = [
        [
            task.title,
            f"{task.lead:.3f}",
            *(
                own.percent if (own := task.covered.get(key)) else "-"
                for key in COMPARED
            ),
        ]
        for task in found
    ]
    heads = ["task; steps of so many examples", "Adam's lead in nats"]
    return tables.Table(
        "What the large marks say", [*heads, *(label(*key) for key in COMPARED)], rows
    )


def _paint(found: Sequence[Task], canvas: Figure) -> None:
    axes = canvas.subplots()
    for row, task in enumerate(reversed(found)):
        for place, (key, marker) in enumerate(COMPARED.items()):
            if not (own := task.covered.get(key)):
                continue
            seeds = own.of_mean_lead
            height = row + 0.18 * (1.5 - place)
            marks = looks.dots(key[0]) | {"marker": marker}
            axes.plot(np.clip(seeds, *_SEEN), [height] * len(seeds), **marks)
            marks |= {"markersize": 9, "label": label(*key)}
            axes.plot(np.clip([own.mean], *_SEEN), [height], **marks)
    names = [
        f"{task.title.replace('; ', chr(10))}; lead {task.lead:.3f}"
        for task in reversed(found)
    ]
    axes.set_yticks(range(len(found)), names)
    for place, name in ((0, "SGD"), (1, "Adam")):
        axes.axvline(place, color="0.6", linewidth=0.8, zorder=0)
        axes.text(place, len(found) - 0.45, name, ha="center", color="0.4")
    axes.set(
        xlim=(_SEEN[0] - 0.05, _SEEN[1] + 0.05),
        ylim=(-0.6, len(found) - 0.2),
        xlabel="fraction of Adam's lead that is covered",
    )
    once = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    canvas.legend(
        once.values(), once.keys(), loc="outside upper center", ncols=len(COMPARED)
    )
