"""Does measured sharpness predict the learning rate? `python -m examples.stability`.

For SGD without momentum and the same with its gradients clipped at several fractions:
the largest learning rate that the sharpness of the direction allows, measured before
training on some batches; the largest one with which training ends below its start,
found by search; and how the first moves along a training at half of the second. A seed
and a fraction are a line of runs.jsonl in the run folder, --resume repeats none.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax
from rich.console import Console

import optax_clip
from examples.lab import command_line, run_folder, sweep
from examples.lab.contest import LEAST_SEEDS
from examples.lab.files import Line
from examples.lab.log import Log
from examples.lab.steps import TrainState
from examples.stability import report
from examples.stability.prediction import (
    Direction,
    ends_below_its_start,
    largest_stable,
    predictor,
)
from examples.tasks import by_name
from examples.tasks.task import Task


class Preset(NamedTuple):
    """Sizes of the experiment."""

    steps: int
    batch_size: int
    max_length: int
    seeds: int
    fractions: tuple[float, ...]  # 0 is SGD
    batches: int  # that the sharpness is measured on
    moments: int  # along a training
    tail: int  # last batches, on which the losses of start and end are compared
    resolution: float  # of the search, a factor


PRESETS = {
    "tiny": Preset(4, 2, 20, LEAST_SEEDS, (0.0, 0.5), 2, 2, 1, 4.0),
    "laptop": Preset(100, 16, 40, LEAST_SEEDS, (0.0, 0.01, 0.05, 0.2), 8, 10, 10, 1.2),
}


@dataclasses.dataclass(frozen=True)
class Settings(by_name.Choice):
    """Predicts the largest stable learning rate, and finds it."""

    preset: Literal["tiny", "laptop"] = "laptop"
    """Sizes: seconds, or an hour and a half on two cores."""
    run: Path | None = None
    """The run folder; without it, runs/stability/TASK."""
    resume: bool = False
    """Continue the run in that folder."""

    def folder(self) -> Path:
        return self.run or Path("runs/stability") / self.task

    def sizes(self) -> Preset:
        return PRESETS[self.preset]

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers."""
        fields = dataclasses.asdict(self)
        for name in ("run", "resume"):
            del fields[name]
        return {**fields, **self.sizes()._asdict(), **self.chosen()}


def clipping(fraction: float) -> tuple[Direction, Callable[[Any], Any]]:
    """What is done to a gradient, and the optimizer that steps along it."""
    if not fraction:
        return lambda gradient: gradient, optax.sgd
    clip = optax_clip.clip_top_k_coordinates(fraction)

    def direction(gradient: Any) -> Any:
        return clip.update(gradient, clip.init(gradient))[0]

    return direction, lambda rate: optax.chain(clip, optax.sgd(rate))


def main(settings: Settings, task: Task) -> None:
    """Predicts and searches with each fraction and seed, draws."""
    folder, console, sizes = settings.folder(), Console(), settings.sizes()
    runs = Log(folder / "runs.jsonl", sweep.said(console))
    for fraction in sizes.fractions:
        measure = measurer(task, fraction, sizes)
        for seed in range(sizes.seeds):
            wanted = {"fraction": fraction, "seed": seed}
            runs.once(wanted, lambda seed=seed, measure=measure: measure(seed))
    for path in report.write(folder):
        console.print(str(path), soft_wrap=True)


def measurer(task: Task, fraction: float, sizes: Preset) -> Callable[[int], Line]:
    """Seed -> what is predicted, what is found, and how the prediction moves."""
    direction, optimizer = clipping(fraction)
    predict = predictor(task.eval_loss, direction)
    every = max(1, sizes.steps // sizes.moments)
    along: list[tuple[int, float]] = []
    watching: list[list] = []  # the batches to measure on, while that is wanted

    def watch(step: int, state: TrainState) -> None:
        if watching and step % every == 0:
            along.append((step, predict(state.params, watching[0])))

    train = sweep.trainer(task, optimizer, sizes.steps, watch=watch)
    loss = jax.jit(task.train_loss)

    def measure(seed: int) -> Line:
        seeded = dataclasses.replace(task, seed=seed)
        # Behind those that are trained on.
        first = sizes.steps
        batches = [seeded.batch_at(first + i) for i in range(sizes.batches)]
        start, key = task.start(seed), jax.random.key(seed)
        predicted = predict(start, batches)
        # With the keys that the training has at these steps.
        before = [
            float(loss(start, seeded.batch_at(step), jax.random.fold_in(key, step)))
            for step in range(sizes.steps - sizes.tail, sizes.steps)
        ]
        tried: list[tuple[float, bool]] = []

        def stable(rate: float) -> bool:
            losses = train(rate, seed).losses
            tried.append((rate, ends_below_its_start(losses, before)))
            return tried[-1][1]

        usable = predicted if 0 < predicted < float("inf") else 1.0
        found = largest_stable(stable, usable, resolution=sizes.resolution)
        along.clear()
        watching.append(batches)
        train(found / 2, seed)
        watching.clear()
        return {
            "predicted": predicted,
            "found": found,
            "tried": tried,
            "along": list(along),
        }

    return measure


def prepare(settings: Settings) -> Task:
    """Everything that can be refused, before any work; claims the run folder last."""
    sizes = settings.sizes()
    task = by_name.load(
        settings, max_length=sizes.max_length, batch_size=sizes.batch_size, seed=0
    )
    run_folder.claim(settings, task.files)
    return task


def cli() -> None:
    command_line.run("stability", Settings, prepare, main)
