"""Directional sharpness on one trajectory: `python -m examples.sharpness`.

The experiment behind tables 3 to 6 of Pan and Li. SGD or Adam trains a model; beside
it, the paper's seven optimizers and five of its longer version make pseudo-updates from
the same gradients. At some batches of some epochs their directional sharpness is
measured on a fixed batch, whose rows are not trained on, and at one batch of each of
these epochs the landscape along them, and which kinds of blocks carry it. The run
folder gets tables and figures, which `examples.sharpness.report` makes again.
Interrupted, a run goes on with --resume, to the same numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from examples.lab import command_line, held_out, run_folder, training
from examples.lab.directions import (
    before_last_step,
    momentum_histogram,
    numbers,
    pseudo_directions,
    with_pseudo_updates,
)
from examples.lab.steps import Metrics, Microbatches, TrainState
from examples.sharpness import one_at_a_time, report
from examples.sharpness.instruments import Instruments, curve, spacing
from examples.sharpness.kinds import SPLIT
from examples.sharpness.prediction import describe
from examples.sharpness.settings import Moment, Settings, moments
from examples.tasks import by_name
from examples.tasks.task import Task


def load(settings: Settings) -> Task:
    """The task, with enough examples for an epoch."""
    sizes = settings.sizes()
    task = by_name.load(
        settings,
        max_length=sizes.max_length,
        batch_size=sizes.batch_size,
        held_out=2 * sizes.test_size,  # some may be trained on too
        seed=settings.seed,
    )
    wanted = sizes.batches_per_epoch * sizes.batch_size
    if task.rows < wanted:
        raise ValueError(
            f"expected at least {wanted:,} training examples of at most "
            f"{sizes.max_length} tokens, got {task.rows:,}: lower --batch-size or give "
            "more data."
        )
    held_out.batch(task, sizes.test_size)
    return task


def one_epoch(settings: Settings, task: Task) -> Task:
    """The same with a training set of exactly one epoch, drawn once."""
    sizes = settings.sizes()
    rows = np.random.default_rng(settings.seed).permutation(task.rows)
    return task.taking(rows[: sizes.batches_per_epoch * sizes.batch_size])


def main(settings: Settings, task: Task) -> None:
    """Trains, measures along the way, draws."""
    sizes, at = settings.sizes(), moments(settings)
    print(describe(settings, task), flush=True)
    task = one_epoch(settings, task)
    if sizes.one_at_a_time:
        one_at_a_time.measure(settings, task, at)
    else:
        all_at_once(settings, task, at)
    folder = settings.folder()
    report.summarise(folder)
    print("\n".join(map(str, report.write(folder))))


def all_at_once(settings: Settings, task: Task, at: Mapping[int, Moment]) -> None:
    """One training, with the updates of all optimizers beside it."""
    sizes = settings.sizes()
    microbatches = Microbatches(sizes.batch_size // sizes.part, task.weight)
    optimizer = with_pseudo_updates(
        settings.trajectory, settings.rate(), settings.fractions()
    )
    folder = settings.folder()
    try:
        training.train(
            folder,
            task.train_loss,
            task.params,
            optimizer,
            task.batch_at,
            steps=max(at),
            seed=settings.seed,
            evaluate=measurer(settings, task, at),
            evaluate_at=at,
            save_every=settings.save_every,
            microbatches=microbatches if microbatches.count > 1 else None,
            label=folder.name,
        )
    except training.DivergedError as error:  # what was measured before it stays
        print(error, flush=True)


def measurer(
    settings: Settings, task: Task, at: Mapping[int, Moment]
) -> Callable[[int, TrainState], Metrics]:
    """What is measured at each moment, for `training.train`."""
    tools = Instruments(settings, task)

    def measure(step: int, state: TrainState) -> Metrics:
        moment = at[step]
        params = before_last_step(state, settings.trajectory)
        updates = pseudo_directions(state)
        derived = tools.derivatives(params, updates)
        found: dict[str, Any] = {
            **moment._asdict(),
            "sharpness": {name: numbers(d) for name, d in derived.items()},
        }
        if moment.in_figure:
            scans = tools.landscape(params, updates, spacing(derived))
            found["landscape"] = {name: curve(line) for name, line in scans.items()}
            found["momentum"] = momentum_histogram(state)
            found["split"] = {n: tools.split(params, updates[n]) for n in SPLIT}
        if step == max(at):
            found |= tools.correlations(params)
        return found

    return measure


def prepare(settings: Settings) -> Task:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    task = load(settings)
    run_folder.claim(settings, task.files)
    return task


def cli() -> None:
    command_line.run("sharpness", Settings, prepare, main)
