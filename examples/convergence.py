"""Every optimizer at its own best learning rate: `python -m examples.convergence`.

The experiment behind figure 4 and table 2 of Pan and Li, with today's competitors, and
clipped SGD at other fractions. A learning rate is searched in half-decades, until one
is better than both neighbours, by the mean training loss of the last steps with seed 0;
the winner then runs with the other seeds. Every training is a line of runs.jsonl in
the run folder, --resume repeats none of them. Tables and figures are made again by
`examples.plots`.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro
from rich.console import Console

from examples import convergence_report, run_folder, tasks
from examples import sweep_learning_rates as sweep
from examples.optimizers import OPTIMIZERS, PAPER, TODAYS, check_names
from examples.report import train_loss
from examples.tasks import AnyTask, TaskName, TaskOptions

Run = dict[str, Any]


class Preset(NamedTuple):
    """Sizes of the experiment."""

    steps: int
    batch_size: int
    max_length: int
    seeds: int
    fractions: tuple[float, ...]  # other ones for clipped SGD


PRESETS = {
    "tiny": Preset(2, 2, 20, 2, (0.5,)),
    "laptop": Preset(150, 16, 40, 3, (0.001, 0.01, 0.2, 0.5, 0.9)),
    "paper": Preset(200, 1024, 512, 3, (0.001, 0.01, 0.2, 0.5, 0.9)),
}


class Contender(NamedTuple):
    """An optimizer, and what it clips."""

    name: str
    fraction: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sweeps learning rates, and trains the winners with several seeds."""

    optimizer: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"One or several of {', '.join(OPTIMIZERS)}."),
    ] = (*PAPER, *TODAYS)
    task: TaskName = "translation"
    preset: Literal["tiny", "laptop", "paper"] = "laptop"
    """Sizes: seconds, an hour on two cores, or the paper's own on a GPU."""
    fraction: float = 0.05
    """Share of the coordinates to clip, in [0, 1)."""
    init: str | None = None
    """A folder with a model in the Hugging Face layout, a name on the hub, or
    "minilm"; without it, the project's own for the task."""
    dataset: Literal["en_fr", "opus_books"] = "en_fr"
    """The committed pairs, or the paper's data from the Hugging Face hub."""
    pairs: Path | None = None
    """A file of English<TAB>French lines, instead of the dataset."""
    documents: Path | None = None
    """For the language models: a file with a text on each line, instead of reviews."""
    run: Path | None = None
    """The run folder; without it, runs/convergence/TASK."""
    resume: bool = False
    """Continue the run in that folder, or add optimizers to it."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_names(self.optimizer)
        if not 0 <= self.fraction < 1:
            raise ValueError(f"--fraction must be in [0, 1); got {self.fraction}.")

    def folder(self) -> Path:
        return self.run or Path("runs/convergence") / self.task

    def sizes(self) -> Preset:
        return PRESETS[self.preset]

    def contenders(self) -> list[Contender]:
        """The optimizers, and clipped SGD at other fractions if it is among them."""
        first = [Contender(name, self.fraction) for name in self.optimizer]
        others = [Contender("clipped_sgd", f) for f in self.sizes().fractions]
        return first + (others if "clipped_sgd" in self.optimizer else [])

    def options(self) -> TaskOptions:
        sizes = self.sizes()
        return TaskOptions(
            self.task,
            sizes.max_length,
            sizes.batch_size,
            start=self.init,
            dataset=self.dataset,
            pairs=self.pairs,
            documents=self.documents,
        )

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of a training."""
        fields = dataclasses.asdict(self)
        for name in ("optimizer", "run", "resume"):
            del fields[name]
        return {**fields, **self.sizes()._asdict(), "init": self.options().init}


def main(settings: Settings, task: AnyTask) -> None:
    """Searches, repeats, draws."""
    folder, console = settings.folder(), Console()
    runs = run_folder.Ledger(folder / "runs.jsonl", sweep.said(console))
    for contender in settings.contenders():
        train = sweep.trainer(task, *contender, settings.sizes().steps)
        known = contender._asdict() | {"state_bytes": state_bytes(contender, task)}

        def loss(
            rate: float, seed: int, known: Run = known, train: Callable = train
        ) -> float:
            """The mean training loss of the last steps; inf if it diverged."""
            wanted = known | {"learning_rate": rate, "seed": seed}
            with console.status(str(wanted)):
                line = runs.once(wanted, lambda: outcome(train(rate, seed)))
            return math.inf if line["loss"] is None else line["loss"]

        half = sweep.search(
            lambda half, loss=loss: loss(sweep.rate(half), 0),
            sweep.start(contender.name),
        )
        for seed in range(1, settings.sizes().seeds):
            loss(sweep.rate(half), seed)
    for path in convergence_report.write(folder):
        console.print(str(path), soft_wrap=True)


def outcome(trained: sweep.Trained) -> Run:
    """What is kept of a training; the loss of a diverged one is None."""
    losses, seconds = trained
    finite = math.isfinite(losses[-1])
    return {
        "loss": round(train_loss(losses), 5) if finite else None,
        "diverged": None if finite else len(losses) - 1,
        "step_seconds": round(seconds, 4),
        "losses": [round(x, 4) for x in losses if math.isfinite(x)],
    }


def state_bytes(contender: Contender, task: AnyTask) -> int:
    """What the optimizer keeps between steps."""
    optimizer = OPTIMIZERS[contender.name](1.0, contender.fraction)
    state = jax.eval_shape(optimizer.init, task.params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def prepare(settings: Settings) -> AnyTask:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    task = tasks.load(settings.options())
    identity = settings.decisive() | {"files": run_folder.fingerprint(*task.files)}
    run_folder.open_run(settings.folder(), identity, resume=settings.resume)
    return task


def cli() -> None:
    settings = tyro.cli(Settings, prog="python -m examples.convergence")
    try:
        task = prepare(settings)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise SystemExit(f"convergence: {error}") from None
    main(settings, task)


if __name__ == "__main__":
    cli()
