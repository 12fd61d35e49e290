"""Sizes and settings of the heterogeneity experiment."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from examples.lab import contest, sweep
from examples.lab.optimizers import (
    OPTIMIZERS,
    SECOND_PAPER,
    check_fraction,
    check_names,
    check_rate,
)
from examples.tasks import images, texts
from examples.tasks.classification import ClassificationTask


class Preset(NamedTuple):
    """Sizes of the experiment."""

    steps: int
    epochs: int  # instead of steps, unless 0
    batch_size: int
    max_length: int  # tokens
    rows: int | None  # to train on; all if None
    validation_rows: int  # to choose a learning rate by
    test_rows: int  # to report
    seeds: int  # that are reported
    fractions: tuple[float, ...]  # other ones for clipped SGD
    measured_rows: int  # in the batch that the blocks are measured on
    moments: tuple[float, ...]  # fractions of the steps after which that is done
    clipped: tuple[float, ...]  # fractions whose clipped direction is measured


_CLIPPED = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9)

PRESETS = {
    "tiny": Preset(2, 0, 4, 8, 16, 4, 4, 3, (0.5,), 4, (0.0, 1.0), (0.001, 0.05)),
    "laptop": Preset(
        100, 0, 16, 32, None, 64, 256, 5, (0.01, 0.5), 32, (0.0, 0.5, 1.0), _CLIPPED
    ),
    "epoch": Preset(0, 1, 64, 32, None, 64, 256, 3, (), 32, (0.0, 0.5, 1.0), _CLIPPED),
    "paper": Preset(
        0, 20, 32, 128, None, 1024, 4096, 5, (0.01, 0.5), 32, (0.0, 0.5, 1.0), _CLIPPED
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compares optimizers on a classifier and measures its blocks."""

    task: Annotated[
        str,
        tyro.conf.arg(
            help=f"One of {', '.join(texts.TASKS)} (texts), "
            f"{', '.join(images.TASKS)} (images)."
        ),
    ] = "rotten_tomatoes"
    model: Literal[
        "pretrained", "post_ln", "pre_ln", "vit", "post_ln_vit", "resnet"
    ] = "pretrained"
    """A checkpoint, or from scratch: encoders for texts, the others for images."""
    init: str = "minilm"
    """For a pretrained model: a folder in the Hugging Face layout, a name on the hub,
    or "minilm"."""
    data: Path | None = None
    """For texts a file of label<TAB>text lines, for images the folder of their files,
    instead of where the task has them."""
    optimizer: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"One or several of {', '.join(OPTIMIZERS)}."),
    ] = SECOND_PAPER
    preset: Literal["tiny", "laptop", "epoch", "paper"] = "laptop"
    """Sizes: seconds, up to an hour on two cores, an epoch of all rows (hours), or the
    paper's own on a GPU."""
    fraction: float = 0.05
    """Fraction of the coordinates to clip, in [0, 1)."""
    clip_norm: bool = True
    """Clip the gradient's global norm to 1 first, as the paper's code does."""
    schedule: Literal["constant", "cosine", "linear", "linear_with_warmup"] = "linear"
    """Of the learning rate; the warm-up takes a tenth of the steps."""
    full_batch: bool = False
    """Every step takes the gradient of all training rows."""
    also_try: tuple[float, ...] = ()
    """Learning rates to try besides (half-decades), where a loss is too flat for the
    search to find its way."""
    run: Path | None = None
    """The run folder; without it, runs/heterogeneity/TASK-MODEL."""
    resume: bool = False
    """Continue the run in that folder, or add optimizers to it."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_names(self.optimizer)
        check_fraction(self.fraction)
        for rate in self.also_try:
            check_rate(rate, "--also-try")
        if self.task not in (*texts.TASKS, *images.TASKS):
            raise ValueError(
                f"--task: expected one of {', '.join(texts.TASKS)}, "
                f"{', '.join(images.TASKS)}; got {self.task}."
            )

    def folder(self) -> Path:
        return self.run or Path("runs/heterogeneity") / f"{self.task}-{self.model}"

    def sizes(self) -> Preset:
        return PRESETS[self.preset]

    def contenders(self) -> list[sweep.Contender]:
        """The optimizers, and clipped SGD at other fractions if it is among them."""
        return sweep.contenders(self.optimizer, self.fraction, self.sizes().fractions)

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of a training."""
        fields = dataclasses.asdict(self)
        for name in ("optimizer", "also_try", "run", "resume"):
            del fields[name]
        if self.model != "pretrained":
            fields["init"] = None
        return {**fields, **self.sizes()._asdict(), **self.rules()}

    def rules(self) -> dict[str, Any]:
        """What keeps choosing and reporting apart."""
        names = ("seeds", "validation_rows", "test_rows")
        sizes = {name: getattr(self.sizes(), name) for name in names}
        return contest.recorded(**sizes, tail=sweep.TAIL)


def load(settings: Settings) -> ClassificationTask:
    """The task; raises what its loader does."""
    sizes = settings.sizes()
    shared = {
        "model": settings.model,
        "init": settings.init,
        "batch_size": sizes.batch_size,
        # Some may be trained on too.
        "held_out": 2 * (sizes.validation_rows + sizes.test_rows),
        "seed": 0,
        "rows": sizes.rows,
    }
    if settings.task in texts.TASKS:
        return texts.load(
            settings.task, max_length=sizes.max_length, file=settings.data, **shared
        )
    return images.load(settings.task, folder=settings.data, **shared)


def step_count(settings: Settings, task: ClassificationTask) -> int:
    sizes = settings.sizes()
    per_epoch = 1 if settings.full_batch else task.rows // sizes.batch_size
    return sizes.epochs * per_epoch or sizes.steps


def step_rows(settings: Settings, task: ClassificationTask) -> int:
    """The rows that a step takes its gradient of: a batch, or as many as fill some."""
    batches = task.rows // task.batch_size if settings.full_batch else 1
    return batches * task.batch_size
