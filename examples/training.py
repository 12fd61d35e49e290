"""The training loop of the examples: functional, interruptible, resumable.

    state = train(folder, loss, params, optimizer, batch_at, steps=..., seed=...)

Batch and dropout key of a step derive from (seed, step) alone, so a checkpoint of
parameters and optimizer state is all that a run needs to go on, bit for bit, after
Ctrl-C, SIGTERM or kill -9.
"""

import contextlib
import math
import signal
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from examples.run_folder import Line, metrics_log

Params = Any
Batch = Mapping[str, Any]
Metrics = Mapping[str, Any]
Loss = Callable[..., jax.Array]  # of parameters, batch and dropout key


class TrainState(NamedTuple):
    params: Params
    opt_state: optax.OptState


class DivergedError(ArithmeticError):
    """The loss is not finite."""

    def __init__(self, folder: Path, step: int, loss: float) -> None:
        super().__init__(
            f"{folder}: the loss is {loss} at step {step}: lower the learning rate or "
            "clip more."
        )
        self.step = step


class Parts(NamedTuple):
    """How to take the gradient of a batch that does not fit into memory at once."""

    count: int
    weight: Callable[[Batch], jax.Array]  # of a part in the mean, such as its tokens


def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    observe: Callable[[optax.OptState], Metrics] | None = None,
    parts: Parts | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """(state, batch, key) -> (state, metrics), jitted; the old state is given away."""
    value_and_grad = _in_parts(loss, parts) if parts else jax.value_and_grad(loss)

    def step(
        state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        value, grads = value_and_grad(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(grads)}
        metrics |= observe(opt_state) if observe else {}
        return TrainState(params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


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
    parts: Parts | None = None,
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
    step_function = train_step(loss, optimizer, observe, parts)
    key = jax.random.key(seed)
    with (
        _checkpoints(folder) as checkpoints,
        _stop_signals() as stopped,
        _progress(label, steps) as show,
    ):
        start = checkpoints.latest_step() or 0
        state = TrainState(jax.tree.map(jnp.copy, params), optimizer.init(params))
        if start:
            state = _restore(checkpoints, state)
        with metrics_log(folder, start) as log:
            pending = None
            for step in range(start, steps + 1):
                stop, at_end = bool(stopped), step >= steps
                evaluating = evaluate and (
                    at_end or step % evaluate_every == 0
                    if evaluate_at is None
                    else step in evaluate_at
                )
                saving = stop or at_end or step % save_every == 0
                if pending and (evaluating or saving):
                    # A state that is not finite must never become the checkpoint.
                    show(_record(log, folder, *pending))
                    pending = None
                if evaluating:
                    show(log(step, **evaluate(step, state)), aloud=True)
                if saving and step > start:
                    checkpoints.save(step, args=ocp.args.StandardSave(state._asdict()))
                if at_end:
                    break
                if stop:
                    raise SystemExit(
                        f"{folder}: stopped and saved after {step} of {steps} steps; "
                        "the same command with --resume continues."
                    )
                state, metrics = step_function(
                    state, batch_at(step), jax.random.fold_in(key, step)
                )
                # Step t runs while the numbers of step t - 1 are fetched and written.
                if pending:
                    show(_record(log, folder, *pending))
                pending = (step, metrics)
    return state


def _in_parts(loss: Loss, parts: Parts) -> Callable:
    """`jax.value_and_grad(loss)`, one part of the batch after the other."""
    value_and_grad = jax.value_and_grad(loss)

    def mean(params: Params, batch: Batch, key: jax.Array) -> Any:
        def weighted(part: Batch, key: jax.Array) -> Any:
            weight = parts.weight(part).astype(jnp.float32)
            found = (jnp.ones([]), value_and_grad(params, part, key))
            return jax.tree.map(lambda x: x * weight.astype(x.dtype), found)

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, weighted(*part)), None

        split = jax.tree.map(
            lambda x: jnp.reshape(x, (parts.count, -1, *x.shape[1:])), batch
        )
        keys = jax.random.split(key, parts.count)
        shapes = jax.eval_shape(weighted, jax.tree.map(lambda x: x[0], split), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (total, sums), _ = jax.lax.scan(add, zeros, (split, keys))
        return jax.tree.map(lambda x: x / total.astype(x.dtype), sums)

    return mean


def _record(
    log: Callable[..., Line], folder: Path, step: int, metrics: Metrics
) -> Line:
    values = jax.device_get(metrics)
    if not math.isfinite(values["loss"]):
        log(step, diverged=str(values["loss"]))
        raise DivergedError(folder, step, values["loss"])
    return log(step, **values)


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


@contextlib.contextmanager
def _progress(label: str, steps: int) -> Iterator[Callable[..., None]]:
    """A bar with loss and rate on a terminal; a line per evaluation everywhere."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=steps, loss="", rate="")

        def show(line: Line, *, aloud: bool = False) -> None:
            bar.update(task, completed=line["step"] + ("loss" in line))
            if "loss" in line:
                speed = bar.tasks[task].speed or 0.0
                bar.update(
                    task, loss=f"loss {line['loss']:.3f}", rate=f"{speed:.1f} steps/s"
                )
            if aloud:
                numbers = ", ".join(
                    f"{name} {value:.4g}"
                    for name, value in line.items()
                    if isinstance(value, int | float)
                )
                console.print(f"{label}: {numbers}", highlight=False)

        yield show
