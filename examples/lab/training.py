"""A training in a run folder: interruptible, resumable, to the same bits.

    state = train(folder, loss, params, optimizer, batch_at, steps=..., seed=...)

A checkpoint of parameters and optimizer state is all that a run needs to go on after
Ctrl-C, SIGTERM or kill -9, because everything else derives from (seed, step).
"""

import contextlib
import math
import signal
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from examples.data.batching import Batch
from examples.lab import log
from examples.lab.files import Line
from examples.lab.progress import progress
from examples.lab.steps import (
    Loss,
    Metrics,
    Microbatches,
    Params,
    TrainState,
    train_step,
    updates,
)


class DivergedError(ArithmeticError):
    """The loss is not finite."""

    def __init__(self, folder: Path, step: int, loss: float) -> None:
        super().__init__(
            f"{folder}: the loss is {loss} at step {step}: lower the learning rate or "
            "clip more."
        )
        self.step = step


def train(
    folder: Path,
    loss: Loss,
    params: Params,
    optimizer: optax.GradientTransformation,
    batch_at: Callable[[int], Batch],
    *,
    steps: int,
    seed: int,
    observe: Callable[[optax.OptState], Metrics] | None = None,
    evaluate: Callable[[int, TrainState], Metrics] | None = None,
    evaluate_every: int = 200,
    evaluate_at: Container[int] | None = None,
    save_every: int = 100,
    microbatches: Microbatches | None = None,
    label: str = "training",
) -> TrainState:
    """Trains from the folder's last checkpoint, or from `params`, which stay intact.

    A line of metrics.jsonl with step t tells what was true after t updates: the loss
    on batch t, what `observe` returns about the optimizer state (jitted with the step),
    and, in a line of its own every `evaluate_every` steps and at the end (or just at
    the steps `evaluate_at`), what `evaluate` returns.

    Raises:
        DivergedError: the loss is not finite; metrics.jsonl says so too.
        SystemExit: Ctrl-C or SIGTERM came; the state is saved.
    """
    step_function = train_step(loss, optimizer, observe, microbatches)

    def due(step: int) -> bool:
        """Whether to evaluate after so many updates."""
        if evaluate_at is not None:
            return step in evaluate_at
        return step >= steps or step % evaluate_every == 0

    with (
        _checkpoints(folder) as checkpoints,
        _stop_signals() as stopped,
        progress(label, steps) as show,
    ):
        start = checkpoints.latest_step() or 0
        begin = TrainState(jax.tree.map(jnp.copy, params), optimizer.init(params))
        if start:
            begin = _restore(checkpoints, begin)
        with log.metrics(folder, start) as write:
            pending = None
            for step, state, metrics in updates(
                step_function, begin, batch_at, seed, start, steps
            ):
                # An update runs while the numbers of the one before are written.
                if pending:
                    show(_record(write, folder, *pending))
                pending = (step - 1, metrics) if metrics else None
                stop, at_end = bool(stopped), step >= steps
                measure = evaluate if due(step) else None
                saving = stop or at_end or step % save_every == 0
                if pending and (measure or saving):
                    # A state that is not finite must never become the checkpoint.
                    show(_record(write, folder, *pending))
                    pending = None
                if measure:
                    show(write(step, **measure(step, state)), aloud=True)
                if saving and step > start:
                    checkpoints.save(step, args=ocp.args.StandardSave(state._asdict()))
                if stop and not at_end:
                    raise SystemExit(
                        f"{folder}: stopped and saved after {step} of {steps} steps; "
                        "the same command with --resume continues."
                    )
    return state


def _record(
    write: Callable[..., Line], folder: Path, step: int, metrics: Metrics
) -> Line:
    values = jax.device_get(metrics)
    if not math.isfinite(values["loss"]):
        write(step, diverged=str(values["loss"]))
        raise DivergedError(folder, step, values["loss"])
    return write(step, **values)


@contextlib.contextmanager
def _checkpoints(folder: Path) -> Iterator[ocp.CheckpointManager]:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        # Saving in the background would read arrays that the next step overwrites.
        enable_async_checkpointing=False,
    )
    path = (folder / "checkpoints").resolve()
    path.mkdir(parents=True, exist_ok=True)
    with ocp.CheckpointManager(path, options=options) as manager:
        yield manager


def _restore(checkpoints: ocp.CheckpointManager, like: TrainState) -> TrainState:
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    restored = checkpoints.restore(
        checkpoints.latest_step(), args=ocp.args.StandardRestore(target)
    )
    return TrainState(**restored)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that Ctrl-C or SIGTERM makes non-empty; a second one stops at once."""
    received: list[int] = []
    before = {}

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
