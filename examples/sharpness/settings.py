"""Sizes and settings of the sharpness experiment, and at which steps it measures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from examples.lab import paper, run_folder
from examples.lab.optimizers import (
    LONG_VERSION,
    LONG_VERSION_FRACTION,
    PAPER,
    check_fraction,
    check_rate,
)
from examples.lab.swept import Swept, swept_rate
from examples.models import pretrained_llama
from examples.tasks import by_name


class Preset(NamedTuple):
    """Sizes of the experiment, by default the paper's.

    An epoch is so many batches of the same examples.
    """

    measured_epochs: tuple[int, ...] = paper.EPOCHS
    batches_per_epoch: int = 10
    measured_batches: int = 5  # of each measured epoch
    batch_size: int = 1024
    test_size: int = 1024  # examples in the fixed batch
    part: int = 16  # examples in memory at a time
    max_length: int = 512  # tokens
    coordinates: int = 256  # in the correlation of gradient and Hessian
    within: tuple[int, int] = (32, 8)  # tensors, coordinates of each, in that within
    # Of the trajectories; None: swept on the task.
    rates: Mapping[str, float] | None = None
    one_at_a_time: bool = False  # one direction in memory; each walks the trajectory


SPACINGS = 8  # of a scan, from its start to the Newton step

PRESETS = {
    "tiny": Preset(
        measured_epochs=(1, 2),
        batches_per_epoch=2,
        measured_batches=1,
        batch_size=4,
        test_size=4,
        part=2,
        max_length=20,
        coordinates=8,
        within=(2, 4),
        rates={"sgd": 0.01, "adam": 1e-4},
    ),
    "laptop": Preset(
        batch_size=128,
        test_size=64,
        max_length=40,
        coordinates=64,
        within=(8, 8),
    ),
    "paper": Preset(rates=paper.TRAJECTORY_RATES),
}
# SmolLM2 has a hundred times the parameters of the project's own models: twelve
# directions with their states would take 14 GB.
_OF_SMOLLM2 = {
    "tiny": PRESETS["tiny"]._replace(one_at_a_time=True),
    "laptop": Preset(
        measured_epochs=(1, 2, 4),
        batches_per_epoch=4,
        measured_batches=2,
        batch_size=8,
        test_size=8,
        part=4,
        max_length=64,
        coordinates=32,
        within=(4, 8),
        one_at_a_time=True,
    ),
    "paper": PRESETS["paper"],
}


@dataclasses.dataclass(frozen=True)
class Settings(by_name.Choice):
    """Measures directional sharpness along one trajectory."""

    trajectory: Literal["sgd", "adam"] = "sgd"
    """The optimizer that moves the parameters."""
    preset: Literal["tiny", "laptop", "paper"] = "laptop"
    """Sizes: seconds, half an hour on two cores, or the paper's own on a GPU."""
    learning_rate: float | None = None
    """Of the trajectory; without it, what a committed sweep found on the task."""
    fraction: float = 0.05
    """Fraction of the coordinates to clip in the paper's seven, in [0, 1)."""
    batch_size: int | None = None
    """Examples in a batch; without it, that of the preset."""
    seed: int = 0
    run: Path | None = None
    """The run folder; without it, runs/sharpness/TASK-TRAJECTORY."""
    save_every: int = 10
    """Steps between checkpoints."""
    resume: bool = False
    """Continue the run in that folder."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_fraction(self.fraction)
        check_rate(self.learning_rate)
        run_folder.check_counts(self)
        sizes = self.sizes()
        if sizes.batch_size % sizes.part:
            raise ValueError(
                f"--batch-size must be a multiple of {sizes.part}, which are in memory "
                f"at a time; got {sizes.batch_size}."
            )

    def sizes(self) -> Preset:
        smollm2 = self.init == pretrained_llama.NAME
        sizes = (_OF_SMOLLM2 if smollm2 else PRESETS)[self.preset]
        return sizes._replace(batch_size=self.batch_size or sizes.batch_size)

    def rate(self) -> float:
        """The learning rate of the trajectory."""
        return self._chosen().rate

    def _chosen(self) -> Swept:
        if self.learning_rate is not None:
            return Swept(self.learning_rate, "given")
        return self.rate_of(self.trajectory)

    def rate_of(self, optimizer: str) -> Swept:
        """A learning rate, and where it is from."""
        if rates := self.sizes().rates:
            return Swept(rates[optimizer], f"of the preset {self.preset}")
        return swept_rate(dataclasses.asdict(self) | self.chosen(), optimizer)

    def folder(self) -> Path:
        model = f"-{self.init}" if self.init == pretrained_llama.NAME else ""
        name = f"{self.task}{model}-{self.trajectory}"
        return self.run or Path("runs/sharpness") / name

    def fractions(self) -> dict[str, float]:
        """What each optimizer clips."""
        return {
            **dict.fromkeys(PAPER, self.fraction),
            **dict.fromkeys(LONG_VERSION, LONG_VERSION_FRACTION),
        }

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers."""
        fields, chosen = dataclasses.asdict(self), self._chosen()
        for name in ("run", "save_every", "resume"):
            del fields[name]
        return {
            **fields,
            **self.sizes()._asdict(),
            **self.chosen(),
            "rates": None,
            "learning_rate": chosen.rate,
            "rate_from": chosen.source,
            "measured_on": "held-out rows",
            "fractions": self.fractions(),
        }


class Moment(NamedTuple):
    """A batch of an epoch, both counted from 1, after whose gradient to measure."""

    epoch: int
    batch: int
    in_figure: bool  # with the landscape


def moments(settings: Settings) -> dict[int, Moment]:
    """By the number of updates that were made then.

    The batches of an epoch are drawn at random, like the paper's; the one that the
    paper's figure shows is among them.
    """
    sizes = settings.sizes()
    shown = paper.FIGURE_BATCHES.get((settings.task, settings.trajectory), {})
    found = {}
    for epoch in sizes.measured_epochs:
        random = np.random.default_rng((settings.seed, epoch))
        drawn = random.permutation(sizes.batches_per_epoch) + 1
        first = min(shown.get(epoch, drawn[0]), sizes.batches_per_epoch)
        rest = drawn[drawn != first][: sizes.measured_batches - 1]
        for batch in sorted(map(int, [first, *rest])):
            step = (epoch - 1) * sizes.batches_per_epoch + batch
            found[step] = Moment(epoch, batch, in_figure=batch == first)
    return found
