"""What the pretraining programs share: refusals, loop, schedule, held-out losses."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import optax

from examples.data.batching import Batch
from examples.lab import command_line, run_folder, training
from examples.lab.held_out import mean_loss
from examples.lab.steps import Loss, Metrics, Params, TrainState, without_dropout


class Schedule(Protocol):
    """What `schedule` asks of settings."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...


class Problem(NamedTuple):
    """What is trained, on what."""

    loss: Loss
    params: Params
    optimizer: optax.GradientTransformation
    batch_at: Callable[[int], Any]
    evaluate: Callable[[int, TrainState], Metrics]


@contextlib.contextmanager
def claimed(
    program: str, settings: Any, run: Path, out: Path, committed: Path, *, resume: bool
) -> Iterator[None]:
    """Claims the run folder after the preparation inside; refuses in one sentence."""
    with command_line.refusals(f"pretrain.{program}"):
        _check(settings)
        _check_output(out, committed, settings)
        yield
        run_folder.open_run(run, dataclasses.asdict(settings), resume=resume)


def train(
    run: Path, settings: Any, problem: Problem, *, save_every: int, evaluate_every: int
) -> Params:
    """The trained parameters; an interrupted run goes on."""
    state = training.train(
        run,
        problem.loss,
        problem.params,
        problem.optimizer,
        problem.batch_at,
        steps=settings.steps,
        seed=settings.seed,
        evaluate=problem.evaluate,
        evaluate_every=evaluate_every,
        save_every=save_every,
        label=run.name,
    )
    return state.params


def schedule(settings: Schedule) -> optax.Schedule:
    """Linear warm-up, cosine to 0."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        decay_steps=settings.steps,
    )


def held_out(
    loss: Loss, batches: Sequence[Batch], weight: Callable[[Batch], Any]
) -> Callable[[int, TrainState], Metrics]:
    """The mean loss over batches that never change."""
    assess = mean_loss(without_dropout(loss), weight)

    def evaluate(step: int, state: TrainState) -> Metrics:
        del step
        return {"held_out_loss": assess(state.params, batches)}

    return evaluate


def _check(settings: Any) -> None:
    """Refuses what no run can mean, in one sentence."""
    run_folder.check_counts(settings, "--settings.")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type is float and not 0 <= value < float("inf"):
            flag = field.name.replace("_", "-")
            raise ValueError(
                f"--settings.{flag} must be positive and finite; got {value}."
            )


def _check_output(out: Path, committed: Path, settings: Any) -> None:
    """Refuses to replace committed weights by a trial's."""
    if out.resolve() == committed.resolve() and settings != type(settings)():
        raise ValueError(
            f"{out} holds the committed weights, which were made with the default "
            "settings: name another folder with --out."
        )
