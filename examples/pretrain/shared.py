"""What the pretraining programs share: schedule, held-out losses, refusals."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import optax

from examples.data.batching import Batch
from examples.lab import run_folder
from examples.lab.steps import Loss, Metrics, TrainState, without_dropout
from optax_clip import diagnostics


class Schedule(Protocol):
    """What `schedule` asks of settings."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...


class Sizes(Protocol):
    """What a T5's configuration is made from."""

    @property
    def d_model(self) -> int: ...
    @property
    def d_kv(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def dropout_rate(self) -> float: ...


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
    jitted = jax.jit(without_dropout(loss))

    def evaluate(step: int, state: TrainState) -> Metrics:
        del step
        found = diagnostics.mean_over_batches(
            lambda batch: jitted(state.params, batch), batches, weight=weight
        )
        return {"held_out_loss": float(found.mean)}

    return evaluate


def check(settings: Any) -> None:
    """Refuses what no run can mean, in one sentence."""
    run_folder.check_counts(settings, "--settings.")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type is float and not 0 <= value < float("inf"):
            flag = field.name.replace("_", "-")
            raise ValueError(
                f"--settings.{flag} must be positive and finite; got {value}."
            )


def check_output(out: Path, committed: Path, settings: Any, defaults: Any) -> None:
    """Refuses to replace committed weights by a trial's."""
    if out.resolve() == committed.resolve() and settings != defaults:
        raise ValueError(
            f"{out} holds the committed weights, which were made with the default "
            "settings: name another folder with --out."
        )
