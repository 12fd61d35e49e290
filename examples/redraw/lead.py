"""How much of Adam's lead over SGD other optimizers cover, on every task, in a figure.

0 is SGD's loss on held-out rows, 1 is Adam's, each at its own best learning rate, which
other held-out rows chose: the runs of `examples.redraw.what_to_try`, and the main job.
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
from examples.lab.winners import covered
from examples.redraw import what_to_try

NAME = "adams_lead.png"
COMPARED = (
    ("norm_clipped_sgd", what_to_try.DEFAULT),
    ("clipped_sgd", what_to_try.DEFAULT),
    ("sign_sgd", what_to_try.DEFAULT),
)
_SEEN = (-0.6, 1.4)  # of Adam's lead; what lies outside is drawn at the edge


class Task(NamedTuple):
    """Losses minus SGD's on the same batches, by optimizer: one for each seed."""

    title: str
    differences: Mapping[what_to_try.Key, Sequence[float]]

    def lead(self) -> float:
        """How far Adam is below SGD, in nats; the mean over the seeds."""
        return -float(np.mean(self.differences["adam", what_to_try.DEFAULT]))

    def covered(self, key: what_to_try.Key) -> tuple[float, list[float]]:
        """The fraction of the lead: of the mean, and of every seed."""
        found, lead = self.differences[key], self.lead()
        adam = self.differences["adam", what_to_try.DEFAULT]
        return covered(found, adam), [-difference / lead for difference in found]


def draw(results: Path) -> list[Path]:
    """Draws the figure of a folder of results, where there is a task for it."""
    found = list(tasks(results))
    if not found:
        return []
    size = 7.2, 1.4 + 0.55 * len(found)
    path = looks.draw(results / NAME, functools.partial(_paint, found), size)
    return [path]


def tasks(results: Path) -> Iterator[Task]:
    """Those where Adam has a lead: it is the unit."""
    found = [
        Task(column.title, {key: column.differences(key) for key in column.best})
        for column in what_to_try.columns(results)
    ]
    if (results / "finetune_t5" / "seeds.jsonl").is_file():
        summary = finetune_t5.read(results / "finetune_t5")
        fraction = summary["settings"]["fraction"]
        known = in_numbers.differences(summary).items()
        by_key = {(name, fraction): values for name, values in known}
        found.append(Task("main job: translation, T5", by_key))
    adam = ("adam", what_to_try.DEFAULT)
    yield from (t for t in found if t.differences.get(adam) and t.lead() > 0)


def figure(root: Path) -> str:
    """The figure with what it says, for a page of the documentation."""
    said = caption(root / "examples/results")
    return tables.captioned(f"../../examples/results/{NAME}", said)


def caption(results: Path) -> str:
    """What the figure says, in words."""
    key = "clipped_sgd", what_to_try.DEFAULT
    said = [
        f"{task.covered(key)[0]:.0%} ({task.title}; Adam's lead {task.lead():.3f} nats)"
        for task in tasks(results)
        if key in task.differences
    ]
    return (
        "How much of Adam's lead over SGD in held-out loss others cover; large: mean, "
        f"small: one seed. {label(*key)}: {', '.join(said)}."
    )


def _paint(found: Sequence[Task], canvas: Figure) -> None:
    axes = canvas.subplots()
    for row, task in enumerate(reversed(found)):
        for place, key in enumerate(COMPARED):
            if key not in task.differences:
                continue
            mean, seeds = task.covered(key)
            height = row + 0.22 * (1 - place)
            marks = looks.dots(key[0])
            axes.plot(np.clip(seeds, *_SEEN), [height] * len(seeds), **marks)
            marks |= {"markersize": 9, "label": label(*key)}
            axes.plot(np.clip([mean], *_SEEN), [height], **marks)
    names = [f"{task.title}\n(lead {task.lead():.3f} nats)" for task in reversed(found)]
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
