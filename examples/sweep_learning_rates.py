"""Finds the learning rates of the main job: `python -m examples.sweep_learning_rates`.

Every optimizer trains as in `examples.finetune_t5`, on the same batches, for as many
steps, with the same seed; the rate with the lowest training loss at the end is chosen.
Rates are half-decades. The search walks in decades until the best one has a worse one
on both sides, then tries the half-decades beside it. About 20 minutes on 2 CPU cores.

Every run is one line of runs/sweep_learning_rates/runs.jsonl, and --resume repeats none
of them. The result, with every run in it, is examples/results/learning_rates.json.
"""

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from examples import report, run_folder
from examples.finetune_t5 import Settings
from examples.optimizers import LEARNING_RATES, OPTIMIZERS
from examples.task import Task, load_translation
from examples.training import Params, Parts, TrainState, train_step

# Where the search begins, in half-decades: -4 is 1e-2. It goes on from there by itself.
_START = {
    "sgd": 0,
    "clipped_sgd": 2,
    "normalized_sgd": -6,
    "clipped_normalized_sgd": -6,
    "plain_sgd": -1,
    "heavy_ball_sgd": -3,
    "clipped_sgd_per_leaf": 0,
    "plain_sign_sgd": -8,
    "sign_sgd": -8,
    "rmsprop": -7,
    "adam_eps_1e-4": -4,
    "adam_eps_1e-2": -2,
    "adam_eps_1": 0,
}
_START_ELSEWHERE = -5
_FARTHEST = 16  # half-decades from the start, where something else must be wrong

_DEFAULT = Settings(run=Path("runs/sweep_learning_rates"))

Run = dict[str, Any]


def main(
    settings: Annotated[Settings, tyro.conf.OmitArgPrefixes] = _DEFAULT,
    out: Path = LEARNING_RATES,
) -> None:
    """Sweeps the learning rate of each optimizer.

    Args:
        settings: those of the fine-tuning that the learning rates are for.
        out: the result; what it has of other optimizers stays.
    """
    settings.check()
    if settings.learning_rate is not None:
        raise ValueError("--learning-rate: a sweep finds it; leave it out.")
    before = _result_to_extend(out, settings)
    task = load_translation(settings)
    run_folder.open_run(settings.run, settings.training(), resume=settings.resume)
    console = Console()
    runs = run_folder.Ledger(settings.run / "runs.jsonl", said(console))
    for name in settings.optimizer:
        train = trainer(task, by_name(name, settings.fraction), settings.steps)

        def loss(half: int, name: str = name, train: Callable = train) -> float:
            """The final training loss with this rate; inf if it diverged."""
            wanted = {"optimizer": name, "learning_rate": rate(half)}
            with console.status(f"{name}, learning rate {rate(half):g}"):
                line = runs.once(wanted, lambda: outcome(train(rate(half)).losses))
            return math.inf if line["loss"] is None else line["loss"]

        search(loss, start(name))
    write_result(out, settings, [*before, *runs.lines])


def said(console: Console) -> Callable[[Run], None]:
    """Prints a finished run without its curves."""

    def say(run: Run) -> None:
        facts = [f"{k} {v}" for k, v in run.items() if not isinstance(v, list | dict)]
        console.print(", ".join(facts), soft_wrap=True)

    return say


def search(loss: Callable[[int], float], start: int) -> int:
    """The half-decade with the lowest loss, with a worse one on both sides.

    `loss` may be asked for the same half-decade again, and returns inf for a run that
    diverged.
    """
    best = start
    while (better := _lowest(loss, best, 2)) != best:
        best = better
        if abs(best - start) > _FARTHEST:
            raise ValueError(f"no best learning rate as far as {rate(best):g}.")
    return _lowest(loss, best, 1)


def best_rate(name: str, loss: Callable[[float, int], float], seeds: int) -> float:
    """An optimizer's learning rate by `loss(rate, seed=0)`; then come other seeds."""
    best = rate(search(lambda half: loss(rate(half), 0), start(name)))
    for seed in range(1, seeds):
        loss(best, seed)
    return best


def _lowest(loss: Callable[[int], float], half: int, stride: int) -> int:
    if loss(half) == math.inf:
        return half - stride
    return min((half, half - stride, half + stride), key=loss)


def rate(half_decade: int) -> float:
    """10^(h/2) in three digits, as people write it: 0.316, 1, 3.16."""
    return float(f"{10 ** (half_decade / 2):.3g}")


class Trained(NamedTuple):
    """What a training left."""

    losses: list[float]  # the last one is not finite if it diverged
    step_seconds: float  # median
    params: Params


def trainer(
    task: Task,
    optimizer: Callable[[Any], optax.GradientTransformation],
    steps: int,
    *,
    parts: Parts | None = None,
    watch: Callable[[int, TrainState], None] | None = None,
) -> Callable[..., Trained]:
    """Learning rate (and seed) -> training; one compilation serves all of them.

    `optimizer` makes one of a learning rate; `watch` sees the state before each step
    and at the end, with the number of updates that were made.
    """
    injected = optax.inject_hyperparams(lambda learning_rate: optimizer(learning_rate))
    step_function = train_step(
        task.train_loss, injected(learning_rate=1.0), None, parts
    )

    def train(
        learning_rate: float | None, seed: int = task.seed, params: Params = task.params
    ) -> Trained:
        seeded, key = dataclasses.replace(task, seed=seed), jax.random.key(seed)
        params = jax.tree.map(jnp.copy, params)
        state = TrainState(params, injected(learning_rate=learning_rate).init(params))
        losses: list[float] = []
        times = [time.perf_counter()]
        for step in range(steps):
            if watch:
                watch(step, state)
            state, metrics = step_function(
                state, seeded.batch_at(step), jax.random.fold_in(key, step)
            )
            losses.append(float(metrics["loss"]))
            times.append(time.perf_counter())
            if not math.isfinite(losses[-1]):
                break
        if watch:
            watch(len(losses), state)
        return Trained(losses, float(np.median(np.diff(times))), state.params)

    return train


def by_name(name: str, fraction: float) -> Callable[[Any], Any]:
    """Learning rate -> one of the examples' optimizers."""
    return lambda rate: OPTIMIZERS[name](rate, fraction)


def outcome(losses: Sequence[float]) -> Run:
    """What is kept of a run; the loss of a diverged one is None."""
    finite = math.isfinite(losses[-1])
    return {
        "loss": round(report.train_loss(losses), 5) if finite else None,
        "first_loss": round(losses[0], 5),
        "diverged": None if finite else len(losses) - 1,
    }


def write_result(out: Path, settings: Settings, runs: Sequence[Run]) -> None:
    """The chosen rates, how they were chosen, and every run."""
    finished = [run for run in runs if run["loss"] is not None]
    best = {
        run["optimizer"]: run["learning_rate"]
        for run in sorted(finished, key=lambda run: -run["loss"])
    }
    order = dict.fromkeys(run["optimizer"] for run in runs)
    tail = min(report.TAIL, settings.steps)
    ordered = [
        run
        for name in order
        for run in sorted(runs, key=lambda run: run["learning_rate"])
        if run["optimizer"] == name
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(
        out,
        {
            "chosen": {name: best[name] for name in order},
            "rule": f"lowest mean training loss of the last {tail} steps",
            "command": "python -m examples.sweep_learning_rates",
            "date": datetime.date.today().isoformat(),
            "made_with": run_folder.provenance(),
            "settings": settings.training(),
            "runs": ordered,
        },
    )
    print(f"{out}: " + ", ".join(f"{name} {best[name]:g}" for name in order))


def _result_to_extend(out: Path, settings: Settings) -> list[Run]:
    """The runs of other optimizers in an earlier result with the same settings."""
    if not out.is_file():
        return []
    found = json.loads(out.read_text())
    if found["settings"] != json.loads(json.dumps(settings.training(), default=str)):
        raise ValueError(
            f"{out} was swept with other settings: give another --out, or remove it."
        )
    return [run for run in found["runs"] if run["optimizer"] not in settings.optimizer]


def start(name: str) -> int:
    return _START.get(name, _START_ELSEWHERE)


def cli() -> None:
    try:
        tyro.cli(main, prog="python -m examples.sweep_learning_rates")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise SystemExit(f"sweep_learning_rates: {error}") from None


if __name__ == "__main__":
    cli()
