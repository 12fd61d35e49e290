"""Gradient heterogeneity and optimizers: `python -m examples.heterogeneity`.

The experiments of Tomihari and Sato's second paper on one task and model. Every
optimizer trains at its own best learning rate (searched in half-decades, under the
rules of `examples.lab.contest`) with several seeds; along Adam's training the blocks of
the model are measured: gradient norms, curvature, what both mean for gradient and for
sign descent, and what clipping does to it. The run folder gets tables and figures,
which `examples.heterogeneity.report` makes again; `examples.heterogeneity.verdict`
compares run folders. Interrupted, a run goes on with --resume.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from examples.data.batching import Arrays
from examples.heterogeneity import calibration, report
from examples.heterogeneity.blocks import Instruments
from examples.heterogeneity.settings import Settings, load, step_count, step_rows
from examples.lab import command_line, contest, held_out, run_folder, sweep
from examples.lab.files import Line
from examples.lab.log import Log
from examples.lab.optimizers import OPTIMIZERS, state_bytes
from examples.lab.steps import Microbatches, Params, TrainState
from examples.lab.sweep import Contender
from examples.tasks.classification import ClassificationTask

TRAJECTORY = "adam"  # whose training the blocks are measured along


def optimizer(
    settings: Settings, contender: Contender, steps: int
) -> Callable[[Any], optax.GradientTransformation]:
    """Learning rate -> the optimizer with the run's schedule and norm clip."""

    def make(rate: Any) -> optax.GradientTransformation:
        parts = [OPTIMIZERS[contender.name](rate, contender.fraction)]
        if settings.clip_norm:
            parts.insert(0, optax.clip_by_global_norm(1.0))
        if settings.schedule != "constant":
            parts.append(optax.scale_by_schedule(shape(settings.schedule, steps)))
        return optax.chain(*parts)

    return make


def shape(name: str, steps: int) -> optax.Schedule:
    """What a schedule multiplies the learning rate by."""
    warmup = max(1, steps // 10)
    linear = optax.linear_schedule
    return {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, steps),
        "linear": linear(1.0, 0.0, steps),
        "linear_with_warmup": optax.join_schedules(
            [linear(1 / warmup, 1.0, warmup), linear(1.0, 0.0, steps - warmup)],
            [warmup],
        ),
    }[name]


class Prepared(NamedTuple):
    """A task, what keeps choosing and reporting apart, and the rows for it."""

    task: ClassificationTask
    rules: dict[str, Any]
    validation: list[Arrays]
    test: list[Arrays]


def main(settings: Settings, prepared: Prepared) -> None:
    """Searches, repeats, measures, draws."""
    folder, console, task = settings.folder(), Console(), prepared.task
    print(describe(settings, task), flush=True)
    runs = Log(folder / "runs.jsonl", sweep.said(console))
    trainings = contest.Contest(*prepared, runs=runs)
    rates = {
        one: best_rate(settings, trainings, task, one) for one in settings.contenders()
    }
    driver = Contender(TRAJECTORY, settings.fraction)
    if driver in rates:
        moments = Log(folder / "blocks.jsonl", sweep.said(console))
        measure(settings, task, rates[driver], moments)
    report.summarise(folder)
    for path in report.write(folder):
        console.print(str(path), soft_wrap=True)


def best_rate(
    settings: Settings,
    trainings: contest.Contest,
    task: ClassificationTask,
    contender: Contender,
) -> float:
    """Searches the learning rate of an optimizer and trains with every seed."""
    steps = step_count(settings, task)
    make, heads = optimizer(settings, contender, steps), HeadNorms(steps)
    size = state_bytes(make(1.0), task.params)
    trained = trainer(settings, task, make, watch=heads)
    assess = assessor(task)

    def train(rate: float, seed: int) -> sweep.Trained:
        heads.found.clear()
        return trained(rate, seed, with_head_of(task, seed))

    def more(params: Params, batches: list[Arrays]) -> Line:
        return {**assess(params, batches), "head_norm": list(heads.found)}

    return trainings.enter(
        contender._asdict() | {"state_bytes": size},
        train,
        start=sweep.start(contender.name),
        also=settings.also_try,
        more=more,
    )


def trainer(
    settings: Settings,
    task: ClassificationTask,
    make: Callable[[Any], optax.GradientTransformation],
    watch: Callable[[int, TrainState], None],
) -> Callable[..., sweep.Trained]:
    """Learning rate, seed and parameters -> training."""
    steps, rows = step_count(settings, task), step_rows(settings, task)
    microbatches = Microbatches(rows // task.batch_size, task.weight)
    whole = dataclasses.replace(task, batch_size=rows)
    return sweep.trainer(
        whole,
        make,
        steps,
        microbatches=microbatches if settings.full_batch else None,
        watch=watch,
    )


class HeadNorms:
    """The norm of the linear head at some twenty steps, and at the end."""

    def __init__(self, steps: int) -> None:
        self.every, self.steps = max(1, steps // 20), steps
        self.found: list[tuple[int, float]] = []

    def __call__(self, step: int, state: TrainState) -> None:
        if step % self.every == 0 or step == self.steps:
            norm = float(_norm(state.params["head"]["kernel"]))
            self.found.append((step, round(norm, 5)))


_norm = jax.jit(jnp.linalg.norm)


def with_head_of(task: ClassificationTask, seed: int) -> Params:
    """The parameters with a head drawn by another seed; seed 0 keeps the task's."""
    if not seed:
        return task.params
    kernel = task.params["head"]["kernel"]
    draw = jax.random.normal(jax.random.key(seed), kernel.shape, kernel.dtype)
    head = task.params["head"] | {"kernel": draw * jnp.std(kernel)}
    return task.params | {"head": head}


def assessor(
    task: ClassificationTask,
) -> Callable[[Params, list[Arrays]], Line]:
    """(parameters, batches) -> the metrics; none if they are not finite."""
    logits = jax.jit(lambda params, batch: task.logits(params, batch, None))

    def assess(params: Params, batches: list[Arrays]) -> Line:
        labels_N = np.concatenate([batch["labels"] for batch in batches])
        logits_NxC = np.concatenate([logits(params, batch) for batch in batches])
        if not np.isfinite(logits_NxC).all():
            return {}
        found = calibration.assess(logits_NxC, labels_N)
        return {name: round(value, 5) for name, value in found.items()}

    return assess


def measure(
    settings: Settings,
    task: ClassificationTask,
    rate: float,
    moments: Log,
) -> None:
    """Trains with Adam once more, and measures the blocks on its way."""
    steps, sizes = step_count(settings, task), settings.sizes()
    at = sorted({round(fraction * steps) for fraction in sizes.moments})
    wanted = [{"trajectory": TRAJECTORY, "step": step} for step in at]
    if all(moments.find(one) for one in wanted):
        return
    instruments = Instruments(task, sizes.measured_rows, sizes.clipped)

    def watch(step: int, state: TrainState) -> None:
        if step in at:
            moments.once(
                wanted[at.index(step)], lambda: instruments.measure(state.params)
            )

    make = optimizer(settings, Contender(TRAJECTORY, settings.fraction), steps)
    trainer(settings, task, make, watch)(rate, 0)


def describe(settings: Settings, task: ClassificationTask) -> str:
    """What is about to happen, for people."""
    counts = task.counts()
    return (
        f"{settings.task}, {settings.model}"
        f"{f' ({settings.init})' if settings.model == 'pretrained' else ''}: "
        f"{optax.tree.size(task.params):,} parameters, {counts['train']:,} rows of "
        f"{counts['classes']} classes, {counts['held_out']:,} held out; "
        f"{len(settings.contenders())} optimizers, each at its best learning rate, "
        f"{step_count(settings, task)} steps of {step_rows(settings, task)} rows, "
        f"{settings.sizes().seeds} seeds. Results go to {settings.folder()}."
    )


def prepare(settings: Settings) -> Prepared:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    task, rules = load(settings), settings.rules()
    parts = held_out.split(
        task, validation_rows=rules["validation_rows"], test_rows=rules["test_rows"]
    )
    run_folder.claim(settings, task.files, counts=task.counts())
    return Prepared(task, rules, *parts)


def cli() -> None:
    command_line.run("heterogeneity", Settings, prepare, main)
