"""The best learning rate of each optimizer, and trainings with several seeds at it.

Rates are half-decades. The search walks in decades until the best one has a worse one
on both sides, then in half-decades. Which trainings may choose a rate and which are
reported is what `examples.lab.contest` has rules for.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from examples.lab.files import Line
from examples.lab.optimizers import OPTIMIZERS
from examples.lab.steps import Microbatches, Params, TrainState, train_step, updates
from examples.tasks.task import Task

TAIL = 25  # the training loss of a run is the mean over so many last steps

# Where the search begins, in half-decades: -4 is 1e-2. It goes on from there by itself.
_START = {
    "sgd": 0,
    "clipped_sgd": 2,
    "norm_clipped_sgd": 0,
    "norm_clipped_sgd_0.1": 2,
    "nesterov_sgd": 0,
    "clipped_nesterov_sgd": 2,
    "norm_clipped_nesterov_sgd": 0,
    "normalized_sgd": -6,
    "clipped_normalized_sgd": -6,
    "plain_sgd": -1,
    "heavy_ball_sgd": -3,
    "clipped_sgd_per_leaf": 0,
    "plain_sign_sgd": -5,
    "sign_sgd": -8,
    "rmsprop": -7,
    "adam_eps_1e-4": -4,
    "adam_eps_1e-2": -2,
    "adam_eps_1": 0,
}
_START_ELSEWHERE = -5
STRIDES = 2, 1  # of the search, in half-decades
_FARTHEST = 16  # half-decades from the start, where something else must be wrong


class Contender(NamedTuple):
    """An optimizer, and the fraction that it clips."""

    name: str
    fraction: float


def contenders(
    names: Sequence[str], fraction: float, fractions: Sequence[float]
) -> list[Contender]:
    """The optimizers, and clipped SGD at other fractions if it is among them."""
    first = [Contender(name, fraction) for name in names]
    others = [Contender("clipped_sgd", other) for other in fractions]
    return first + (others if "clipped_sgd" in names else [])


def search(
    loss: Callable[[int], float], start: int, strides: Sequence[int] = STRIDES
) -> int:
    """The half-decade with the lowest loss, with a worse one on both sides.

    `loss` may be asked for the same half-decade again, and returns inf for a run that
    diverged.
    """
    best = start
    for stride in strides:
        while (better := _lowest(loss, best, stride)) != best:
            best = better
            if abs(best - start) > _FARTHEST:
                raise ValueError(f"no best learning rate as far as {rate(best):g}.")
    return best


def _lowest(loss: Callable[[int], float], half: int, stride: int) -> int:
    if loss(half) == math.inf:
        return half - stride
    return min((half, half - stride, half + stride), key=loss)


def rate(half_decade: int) -> float:
    """10^(h/2) in three digits, as people write it: 0.316, 1, 3.16."""
    return float(f"{10 ** (half_decade / 2):.3g}")


def start(name: str) -> int:
    return _START.get(name, _START_ELSEWHERE)


class Trained(NamedTuple):
    """What a training left; the last loss is not finite if it diverged."""

    losses: list[float]
    params: Params


def trainer(
    task: Task,
    optimizer: Callable[[Any], optax.GradientTransformation],
    steps: int,
    *,
    microbatches: Microbatches | None = None,
    watch: Callable[[int, TrainState], None] | None = None,
) -> Callable[..., Trained]:
    """Learning rate (and seed) -> training; one compilation serves all of them.

    `optimizer` makes one of a learning rate; `watch` sees the state before each step
    and at the end, with the number of updates that were made.
    """
    injected = optax.inject_hyperparams(lambda learning_rate: optimizer(learning_rate))
    step_function = train_step(
        task.train_loss, injected(learning_rate=1.0), None, microbatches
    )

    def train(
        learning_rate: float | None, seed: int = task.seed, params: Params | None = None
    ) -> Trained:
        batch_at = dataclasses.replace(task, seed=seed).batch_at
        given = task.start(seed) if params is None else params
        params = jax.tree.map(jnp.copy, given)
        begin = TrainState(params, injected(learning_rate=learning_rate).init(params))
        losses: list[float] = []
        for step, state, metrics in updates(
            step_function, begin, batch_at, seed, 0, steps
        ):
            if metrics:
                losses.append(float(metrics["loss"]))
            if watch:
                watch(step, state)
            if losses and not math.isfinite(losses[-1]):
                break
        return Trained(losses, state.params)

    return train


def by_name(name: str, fraction: float) -> Callable[[Any], Any]:
    """Learning rate -> one of the examples' optimizers."""
    return lambda rate: OPTIMIZERS[name](rate, fraction)


def half_decade(rate: float) -> int:
    """The half-decade nearest to a learning rate."""
    return round(2 * math.log10(rate))


def outcome(losses: Sequence[float], tail: int = TAIL) -> Line:
    """What is kept of a run; the loss of a diverged one is None."""
    finite = math.isfinite(losses[-1])
    return {
        "loss": round(train_loss(losses, tail), 5) if finite else None,
        "first_loss": round(losses[0], 5),
        "diverged": None if finite else len(losses) - 1,
    }


def outcome_with_curve(losses: Sequence[float], tail: int = TAIL) -> Line:
    """The same, and every loss."""
    curve = [round(x, 4) for x in losses if math.isfinite(x)]
    return {**outcome(losses, tail), "losses": curve}


def train_loss(losses: Sequence[float], tail: int = TAIL) -> float:
    """One number for a run: the mean loss of its last steps."""
    return float(np.mean(losses[-tail:]))


def said(console: Console) -> Callable[[Line], None]:
    """Prints a finished run without its curves."""

    def say(run: Line) -> None:
        facts = [f"{k} {v}" for k, v in run.items() if not isinstance(v, list | dict)]
        console.print(", ".join(facts), soft_wrap=True)

    return say
