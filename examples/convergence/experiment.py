"""Every optimizer at its own best learning rate: `python -m examples.convergence`.

The experiment behind figure 4 and table 2 of Pan and Li, with today's competitors, and
clipped SGD at other fractions. A learning rate is searched in half-decades, until one
is better than both neighbours, by the validation loss of trainings that are in no
reported number; the winner then runs with the seeds that are reported, by their loss on
test rows (`examples.lab.contest` has these rules). Every training is a line of
runs.jsonl in the run folder, --resume repeats none of them. Tables and figures are made
again by `examples.convergence.report`.
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from rich.console import Console

from examples.convergence import by_frequency, report
from examples.data.batching import Arrays
from examples.lab import (
    command_line,
    contest,
    held_out,
    run_folder,
    sweep,
)
from examples.lab.log import Log
from examples.lab.optimizers import (
    OPTIMIZERS,
    PAPER,
    TODAYS,
    check_fraction,
    check_names,
    is_clipped,
    state_bytes,
)
from examples.models import pretrained_llama, scratch_llama, t5_scales
from examples.tasks import by_name
from examples.tasks.task import Task


class Prepared(NamedTuple):
    """A task, what keeps choosing and reporting apart, and the rows for it."""

    task: Task
    rules: dict[str, Any]
    validation: list[Arrays]
    test: list[Arrays]


class Preset(NamedTuple):
    """Sizes of the experiment."""

    steps: int
    batch_size: int
    max_length: int
    seeds: int  # that are reported
    fractions: tuple[float, ...]  # other ones for clipped SGD
    validation_rows: int  # to choose a learning rate by
    test_rows: int  # to report
    tail: int  # the training loss is the mean over so many last steps


_FRACTIONS = 0.001, 0.01, 0.2, 0.5, 0.9
PRESETS = {
    "tiny": Preset(2, 2, 20, 3, (0.5,), 2, 4, 1),
    "laptop": Preset(100, 16, 40, 3, _FRACTIONS, 64, 192, sweep.TAIL),
    "long": Preset(2000, 16, 40, 3, _FRACTIONS, 64, 192, 100),
    "paper": Preset(200, 1024, 512, 3, _FRACTIONS, 1024, 1024, sweep.TAIL),
}
# SmolLM2 has a hundred times the parameters of the project's own models. What begins
# from scratch has the most to learn.
_OTHERS = {
    pretrained_llama.NAME: {
        "laptop": Preset(25, 2, 64, 3, (0.5, 0.2, 0.01), 16, 32, 5),
        "paper": Preset(1000, 64, 1024, 5, _FRACTIONS, 64, 256, sweep.TAIL),
    },
    scratch_llama.NAME: {
        "laptop": Preset(250, 16, 32, 3, (0.01, 0.2, 0.5, 0.9), 256, 768, sweep.TAIL),
        "long": Preset(2000, 16, 32, 3, (0.2,), 256, 768, 100),
    },
}
# Where the search begins there, with its own half-decades: near the best rates of a
# trial with one seed on other texts. It goes on from there by itself.
_STARTS_OF_SMOLLM2 = {
    ("sgd", 0.05): 0.01,
    ("clipped_sgd", 0.01): 0.1,
    ("clipped_sgd", 0.05): 0.316,
    ("clipped_sgd", 0.2): 1.0,
    ("clipped_sgd", 0.5): 3.16,
    ("clipped_sgd", 0.9): 31.6,
    ("norm_clipped_sgd", 0.05): 0.316,
    ("sign_sgd", 0.05): 3.16e-5,
    ("lion", 0.05): 3.16e-5,
    ("adam", 0.05): 1e-4,
    ("adamw", 0.05): 1e-4,
    ("normalized_sgd", 0.05): 3.16e-5,
    ("clipped_normalized_sgd", 0.05): 3.16e-5,
    ("muon", 0.05): 1e-3,
    ("scale", 0.05): 1e-3,
}
_STARTS_FROM_SCRATCH = {
    ("sgd", 0.05): 0.316,
    ("clipped_sgd", 0.01): 3.16,
    ("clipped_sgd", 0.05): 31.6,
    ("clipped_sgd", 0.2): 10,
    ("clipped_sgd", 0.5): 10,
    ("clipped_sgd", 0.9): 100,
    ("clipped_sgd_per_leaf", 0.05): 3.16,
    ("clipped_sgd_per_leaf", 0.2): 10,
    ("norm_clipped_sgd", 0.05): 3.16,
    ("norm_clipped_sgd_0.1", 0.05): 31.6,
    ("nesterov_sgd", 0.05): 1,
    ("clipped_nesterov_sgd", 0.01): 3.16,
    ("clipped_nesterov_sgd", 0.05): 10,
    ("clipped_nesterov_sgd", 0.2): 10,
    ("clipped_nesterov_sgd", 0.5): 31.6,
    ("norm_clipped_nesterov_sgd", 0.05): 3.16,
    ("normalized_sgd", 0.05): 1e-3,
    ("clipped_normalized_sgd", 0.01): 1e-3,
    ("clipped_normalized_sgd", 0.05): 1e-3,
    ("clipped_normalized_sgd", 0.2): 1e-3,
    ("clipped_normalized_sgd", 0.5): 1e-3,
    ("sign_sgd", 0.05): 1e-3,
    ("adam", 0.05): 3.16e-3,
}
_STARTS = {
    pretrained_llama.NAME: _STARTS_OF_SMOLLM2,
    scratch_llama.NAME: _STARTS_FROM_SCRATCH,
}


@dataclasses.dataclass(frozen=True)
class Settings(by_name.Choice):
    """Sweeps learning rates, and trains the winners with several seeds."""

    optimizer: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"One or several of {', '.join(OPTIMIZERS)}."),
    ] = (*PAPER, *TODAYS)
    preset: Literal["tiny", "laptop", "long", "paper"] = "laptop"
    """Sizes: seconds, an hour or two on two cores, the same with thousands of steps, or
    the paper's own on a GPU."""
    fraction: float = 0.05
    """Fraction of the coordinates to clip, in [0, 1)."""
    fractions: tuple[float, ...] | None = None
    """Several, for each of the optimizers that clips; without them, --fraction, and for
    clipped SGD those of the preset too."""
    batch_size: int | None = None
    """Examples in a batch; without it, that of the preset."""
    scaled: t5_scales.Scaled | None = None
    """Weights of a T5 to multiply by --scale; others take the factor back, so that the
    model computes the same before training."""
    scale: float = 1.0
    """The factor."""
    run: Path | None = None
    """The run folder; without it, runs/convergence/TASK."""
    resume: bool = False
    """Continue the run in that folder, or add optimizers to it."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_names(self.optimizer)
        for fraction in (self.fraction, *(self.fractions or ())):
            check_fraction(fraction)
        run_folder.check_counts(self)
        if self.scaled and self.task != "translation":
            raise ValueError("--scaled is for the T5 of --task translation.")
        if not 0 < self.scale < math.inf or (self.scale == 1) == bool(self.scaled):
            raise ValueError(
                "--scaled and --scale go together: expected weights and a positive "
                f"factor other than 1, got {self.scaled} and {self.scale:g}."
            )

    def folder(self) -> Path:
        model = f"-{self.init}" if self.init in _OTHERS else ""
        return self.run or Path("runs/convergence") / (self.task + model)

    def sizes(self) -> Preset:
        own = _OTHERS.get(self.init or "", {})
        sizes = own.get(self.preset, PRESETS[self.preset])
        return sizes._replace(batch_size=self.batch_size or sizes.batch_size)

    def contenders(self) -> list[sweep.Contender]:
        """The optimizers, and clipped SGD at other fractions if it is among them.

        With --fractions, those that clip are there at each of these instead.
        """
        if self.fractions is None:
            others = self.sizes().fractions
            return sweep.contenders(self.optimizer, self.fraction, others)
        return [
            sweep.Contender(name, fraction)
            for name in self.optimizer
            for fraction in (self.fractions if is_clipped(name) else [self.fraction])
        ]

    def search(self, contender: sweep.Contender) -> dict[str, Any]:
        """Where the search of an optimizer begins, and its strides."""
        known = _STARTS.get(self.init or "", {}).get(tuple(contender))
        if known is None:
            return {"start": sweep.start(contender.name), "strides": sweep.STRIDES}
        return {"start": sweep.half_decade(known), "strides": (1,)}

    def rules(self) -> dict[str, Any]:
        """What keeps choosing and reporting apart."""
        names = ("seeds", "validation_rows", "test_rows", "tail")
        return contest.recorded(**{k: getattr(self.sizes(), k) for k in names})

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of a training."""
        fields = dataclasses.asdict(self)
        for name in ("optimizer", "run", "resume"):
            del fields[name]
        if not self.scaled:  # as in the runs from before there was a choice
            del fields["scaled"], fields["scale"]
        sizes = self.sizes()._asdict()
        return {**fields, **sizes, **self.rules(), **self.chosen()}


def main(settings: Settings, prepared: Prepared) -> None:
    """Searches, repeats, draws."""
    folder, console = settings.folder(), Console()
    task = prepared.task
    runs = Log(folder / "runs.jsonl", sweep.said(console))
    trainings = contest.Contest(*prepared, runs=runs)
    more = by_frequency.measurer(task)
    Log(folder / "before.jsonl", sweep.said(console)).once({}, trainings.before)
    for contender in settings.contenders():
        make = sweep.by_name(*contender)
        size = state_bytes(make(1.0), task.params)
        trainings.enter(
            contender._asdict() | {"state_bytes": size},
            sweep.trainer(task, make, settings.sizes().steps),
            more=more,
            **settings.search(contender),
        )
        report.write(folder)
    for path in report.write(folder):
        console.print(str(path), soft_wrap=True)


def prepare(settings: Settings) -> Prepared:
    """Everything that can be refused, before any work; claims the run folder last."""
    prepared = load(settings)
    run_folder.claim(settings, prepared.task.files)
    return prepared


def load(settings: Settings) -> Prepared:
    """The task, and the rows to choose by and to report."""
    settings.check()
    sizes, rules = settings.sizes(), settings.rules()
    rows = {name: rules[name] for name in ("validation_rows", "test_rows")}
    task = by_name.load(
        settings,
        max_length=sizes.max_length,
        batch_size=sizes.batch_size,
        held_out=2 * sum(rows.values()),  # some may be trained on too
        seed=0,
    )
    if settings.scaled:
        params = t5_scales.rescaled(task.params, settings.scaled, settings.scale)
        task = dataclasses.replace(task, params=params)
    return Prepared(task, rules, *held_out.split(task, **rows))


def cli() -> None:
    command_line.run("convergence", Settings, prepare, main)
