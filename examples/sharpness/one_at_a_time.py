"""The same measurements with one direction in memory: for models of 100 M parameters.

The trajectory is walked again for every direction, which costs its gradients again and
holds only what moves the parameters and the states of one optimizer. A measurement is a
line of directions.jsonl; a direction whose lines are all there is not walked again.
"""

import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.lab import log
from examples.lab.directions import numbers
from examples.lab.files import Line, jsonable, write_lines
from examples.lab.optimizers import OPTIMIZERS
from examples.lab.progress import progress
from examples.lab.steps import Microbatches, Params, gradient_of
from examples.sharpness.instruments import Instruments, curve, spacing
from examples.sharpness.kinds import SPLIT
from examples.sharpness.settings import Moment, Settings
from examples.tasks.task import Task
from optax_clip import diagnostics


def measure(settings: Settings, task: Task, at: Mapping[int, Moment]) -> None:
    """Walks once for each direction; leaves the metrics.jsonl of an ordinary run."""
    done = log.Log(settings.folder() / "directions.jsonl")
    tools, walk = Instruments(settings, task), Walk(settings, task)
    for name in settings.fractions():
        if done.find({"walked": name}) is None:
            facts = _walked(name, walk, tools, done, at)
            done.append({"walked": name, **facts})
        lines = [jsonable(line) for line in assembled(done.lines, at)]
        write_lines(settings.folder() / "metrics.jsonl", lines)


def _walked(
    name: str, walk: "Walk", tools: Instruments, done: log.Log, at: Mapping[int, Moment]
) -> Line:
    """Measures one direction at every moment; returns the losses on the way."""
    losses, begin = [], time.monotonic()
    with progress(name, max(at)) as show:
        for step, params, update, loss in walk.along(name, max(at)):
            losses.append(loss)
            show({"step": step, "loss": loss})
            if not math.isfinite(loss):
                break
            if step in at:
                wanted = {"direction": name, "step": step}
                found = functools.partial(
                    _measured, name, step == max(at), at[step], tools, params, update
                )
                done.once(wanted, found)
    return {"losses": losses, "seconds": time.monotonic() - begin}


def _measured(
    name: str,
    last: bool,
    moment: Moment,
    tools: Instruments,
    params: Params,
    update: Params,
) -> Line:
    derived = tools.derivatives(params, update)
    found: Line = {"sharpness": numbers(derived)}
    if moment.in_figure:
        (far,) = spacing({name: derived}).values()
        found["landscape"] = curve(tools.landscape(params, update, far))
        if name in SPLIT:
            found["split"] = tools.split(params, update)
        if name == "sgd":
            counted = diagnostics.coordinate_histogram(update)
            found["momentum"] = {k: v.tolist() for k, v in counted._asdict().items()}
    if last and name == "sgd":
        found |= tools.correlations(params)
    return found


class Walk:
    """The trajectory, with the update of one optimizer beside it."""

    def __init__(self, settings: Settings, task: Task) -> None:
        sizes = settings.sizes()
        self.task, self.seed = task, settings.seed
        self.fractions = settings.fractions()
        mover = OPTIMIZERS[settings.trajectory](
            settings.rate(), self.fractions[settings.trajectory]
        )
        count = sizes.batch_size // sizes.part
        microbatches = Microbatches(count, task.weight) if count > 1 else None
        self._gradient = jax.jit(gradient_of(task.train_loss, microbatches))
        self._begin = mover.init

        def move(params: Params, state: Any, grads: Params) -> tuple[Params, Any]:
            updates, state = mover.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._move = jax.jit(move, donate_argnums=(0, 1))

    def along(
        self, name: str, steps: int
    ) -> Iterator[tuple[int, Params, Params, float]]:
        """Yields the step, counted from 1, its parameters, the update and the loss.

        The update is the one that the optimizer would make there, of its own past.
        """
        relative = "adafactor" in name
        optimizer = OPTIMIZERS[name](None if relative else 1.0, self.fractions[name])
        observe = jax.jit(optimizer.update, donate_argnums=1)
        params = jax.tree.map(jnp.copy, self.task.params)
        state, moving = optimizer.init(params), self._begin(params)
        key = jax.random.key(self.seed)
        for step in range(steps):
            batch = self.task.batch_at(step)
            loss, grads = self._gradient(params, batch, jax.random.fold_in(key, step))
            update, state = observe(grads, state, params)
            yield step + 1, params, update, float(loss)
            del update
            params, moving = self._move(params, moving, grads)
            del grads  # before the next one is taken


def assembled(lines: list[Line], at: Mapping[int, Moment]) -> list[Line]:
    """The lines of an ordinary run: at each moment what all directions have."""
    walks = [line for line in lines if "walked" in line]
    losses = walks[0]["losses"]
    found: list[Line] = [
        {"step": step, "loss": loss} for step, loss in enumerate(losses) if loss
    ]
    names = [walk["walked"] for walk in walks]
    for step, moment in at.items():
        measured = {x["direction"]: x for x in lines if x.get("step") == step}
        own = {name: measured[name] for name in names if name in measured}
        if len(own) < len(names):
            break
        line: Line = {"step": step, **moment._asdict()}
        for part in ("sharpness", "landscape", "split"):
            values = {n: one[part] for n, one in own.items() if part in one}
            line |= {part: values} if values else {}
        for part in ("momentum", "correlation", "correlation_within"):
            line |= {part: own["sgd"][part]} if part in own["sgd"] else {}
        found.append(line)
    if losses[-1] is None:
        found.append({"step": len(losses) - 1, "diverged": "nan"})
    found[-1]["seconds"] = sum(walk["seconds"] for walk in walks)
    return found
