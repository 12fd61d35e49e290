"""Every optimizer at its own best learning rate: `python -m examples.convergence`.

The experiment behind figure 4 and table 2 of Pan and Li, with today's competitors, and
clipped SGD at other fractions. A learning rate is searched in half-decades, until one
is better than both neighbours, by the mean training loss of the last steps with seed 0;
the winner then runs with the other seeds. Every training is a line of runs.jsonl in
the run folder, --resume repeats none of them. Tables and figures are made again by
`examples.convergence.report`.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from rich.console import Console

from examples.convergence import report
from examples.lab import command_line, run_folder, sweep
from examples.lab.files import Line
from examples.lab.log import Log
from examples.lab.optimizers import (
    OPTIMIZERS,
    PAPER,
    TODAYS,
    check_fraction,
    check_names,
    state_bytes,
)
from examples.tasks import by_name
from examples.tasks.task import Task


class Preset(NamedTuple):
    """Sizes of the experiment."""

    steps: int
    batch_size: int
    max_length: int
    seeds: int
    fractions: tuple[float, ...]  # other ones for clipped SGD


PRESETS = {
    "tiny": Preset(2, 2, 20, 2, (0.5,)),
    "laptop": Preset(100, 16, 40, 3, (0.001, 0.01, 0.2, 0.5, 0.9)),
    "paper": Preset(200, 1024, 512, 3, (0.001, 0.01, 0.2, 0.5, 0.9)),
}


@dataclasses.dataclass(frozen=True)
class Settings(by_name.Choice):
    """Sweeps learning rates, and trains the winners with several seeds."""

    optimizer: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"One or several of {', '.join(OPTIMIZERS)}."),
    ] = (*PAPER, *TODAYS)
    preset: Literal["tiny", "laptop", "paper"] = "laptop"
    """Sizes: seconds, an hour or two on two cores, or the paper's own on a GPU."""
    fraction: float = 0.05
    """Fraction of the coordinates to clip, in [0, 1)."""
    run: Path | None = None
    """The run folder; without it, runs/convergence/TASK."""
    resume: bool = False
    """Continue the run in that folder, or add optimizers to it."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_names(self.optimizer)
        check_fraction(self.fraction)

    def folder(self) -> Path:
        return self.run or Path("runs/convergence") / self.task

    def sizes(self) -> Preset:
        return PRESETS[self.preset]

    def contenders(self) -> list[sweep.Contender]:
        """The optimizers, and clipped SGD at other fractions if it is among them."""
        return sweep.contenders(self.optimizer, self.fraction, self.sizes().fractions)

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of a training."""
        fields = dataclasses.asdict(self)
        for name in ("optimizer", "run", "resume"):
            del fields[name]
        return {**fields, **self.sizes()._asdict(), "init": self.checkpoint()}


def main(settings: Settings, task: Task) -> None:
    """Searches, repeats, draws."""
    folder, console = settings.folder(), Console()
    runs = Log(folder / "runs.jsonl", sweep.said(console))
    for contender in settings.contenders():
        train = sweep.trainer(task, sweep.by_name(*contender), settings.sizes().steps)
        optimizer = OPTIMIZERS[contender.name](1.0, contender.fraction)
        size = state_bytes(optimizer, task.params)
        known = contender._asdict() | {"state_bytes": size}

        def loss(
            rate: float, seed: int, known: Line = known, train: Callable = train
        ) -> float:
            """The mean training loss of the last steps; inf if it diverged."""
            wanted = known | {"learning_rate": rate, "seed": seed}
            with console.status(str(wanted)):
                line = runs.once(
                    wanted, lambda: sweep.outcome_with_curve(train(rate, seed).losses)
                )
            return math.inf if line["loss"] is None else line["loss"]

        sweep.best_rate(contender.name, loss, settings.sizes().seeds)
    for path in report.write(folder):
        console.print(str(path), soft_wrap=True)


def prepare(settings: Settings) -> Task:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    sizes = settings.sizes()
    task = by_name.load(
        settings, max_length=sizes.max_length, batch_size=sizes.batch_size, seed=0
    )
    run_folder.claim(settings, task.files)
    return task


def cli() -> None:
    command_line.run("convergence", Settings, prepare, main)
