"""What the winners of a run of `examples.convergence` cost in seconds and memory.

`python -m examples.convergence.wall_time RUN` trains some of them again, at the rates
that were chosen there and from the same start, with the reported seeds: a step of each
in turn, so that a machine that is busy is busy for all of them. Timed are the steps
alone, compiled before; between them the test loss is taken. A seed is a line of
runs.jsonl in the run folder, --resume repeats none.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from examples.convergence import experiment
from examples.data.batching import Batch
from examples.lab import (
    command_line,
    files,
    held_out,
    looks,
    provenance,
    run_folder,
    sweep,
    tables,
)
from examples.lab.curves import Key, styles
from examples.lab.files import Line
from examples.lab.log import Log
from examples.lab.optimizers import label, state_bytes
from examples.lab.statistics import bootstrap
from examples.lab.steps import Metrics, Step, TrainState, train_step, updates
from examples.lab.winners import Run
from examples.tasks import by_name

COMPARED: tuple[Key, ...] = (
    ("sgd", 0.05),
    ("norm_clipped_sgd", 0.05),
    ("clipped_sgd", 0.05),
    ("clipped_sgd", 0.2),
    ("clipped_sgd_per_leaf", 0.05),
    ("sign_sgd", 0.05),
    ("adam", 0.05),
)
SHOWN = "translation-t5-enfr-mixture"  # the run that a page has
MOMENTS = 20  # of a training, where its test loss is taken


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains winners of a run again, in turn, and takes the time."""

    of: tyro.conf.Positional[Path]
    """The folder of a run of examples.convergence."""
    run: Path = Path("runs/wall_time")
    """The run folder."""
    resume: bool = False
    """Continue the run in that folder."""

    def folder(self) -> Path:
        return self.run


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A task with its test rows, and the winners with their rates."""

    inputs: experiment.Prepared
    steps: int
    seeds: int
    rates: Mapping[Key, float]


class Timed:
    """A step that was compiled before, and the seconds that it took in all."""

    def __init__(self, step: Step) -> None:
        self.step, self.seconds = step, 0.0

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        begin = time.perf_counter()
        found = jax.block_until_ready(self.step(state, batch, key))
        self.seconds += time.perf_counter() - begin
        return found


def main(settings: Settings, prepared: Prepared) -> None:
    """Trains seed after seed, writes the report after each."""
    runs = Log(settings.run / "runs.jsonl")
    train = trainer(prepared)
    for seed in range(prepared.seeds):
        runs.once({"seed": seed}, functools.partial(train, seed))
        print(*write(settings.run), sep="\n")


def trainer(prepared: Prepared) -> Callable[[int], Line]:
    """Seed -> of each optimizer the seconds and test losses along its training."""
    task, steps = prepared.inputs.task, prepared.steps
    assess = held_out.assessor(task)
    made = {
        key: sweep.by_name(*key)(learning_rate)
        for key, learning_rate in prepared.rates.items()
    }
    compiled = {key: train_step(task.train_loss, own) for key, own in made.items()}
    every = max(1, steps // MOMENTS)

    def begin(key: Key, seed: int) -> TrainState:
        params = jax.tree.map(jnp.copy, task.start(seed))
        return TrainState(params, made[key].init(params))

    def train(seed: int) -> Line:
        batch_at = dataclasses.replace(task, seed=seed).batch_at
        along = {key: [] for key in made}
        timed = {key: Timed(step) for key, step in compiled.items()}
        for key, step in compiled.items():  # before the clock runs
            found = step(begin(key, seed), batch_at(0), jax.random.key(seed))
            jax.block_until_ready(found)
        in_turn = zip(
            *(
                updates(timed[key], begin(key, seed), batch_at, seed, 0, steps)
                for key in made
            ),
            strict=True,
        )
        for states in in_turn:
            for key, (step, state, _) in zip(made, states, strict=True):
                if step % every == 0 or step == steps:
                    loss = assess(state.params, prepared.inputs.test)
                    along[key].append((step, timed[key].seconds, loss))
        return {
            "trainings": [
                {
                    "name": key[0],
                    "fraction": key[1],
                    "learning_rate": prepared.rates[key],
                    "state_bytes": state_bytes(made[key], task.params),
                    "along": along[key],
                }
                for key in made
            ]
        }

    return train


def prepare(settings: Settings) -> Prepared:
    """Everything that can be refused, before any work; claims the run folder last."""
    found = Run.read(settings.of)
    if COMPARED[0] not in found.best:
        raise ValueError(
            f"{settings.of}: expected a run of examples.convergence with SGD in it."
        )
    again = _settings(found)
    inputs = experiment.load(again)
    same = again.decisive() | {"files": run_folder.fingerprint(*inputs.task.files)}
    same = json.loads(json.dumps(same, default=str))
    if other := [k for k, x in found.settings.items() if same.get(k) != x]:
        raise ValueError(
            f"{settings.of}: its {', '.join(other)} are no longer what they were then: "
            "run examples.convergence again."
        )
    rates = {
        key: found.best[key][0]["learning_rate"]
        for key in COMPARED
        if key in found.best
    }
    asked = {
        "of": str(settings.of),
        "task": found.settings["task"],
        "init": found.settings["init"],
        "steps": found.settings["steps"],
        "batch_size": found.settings["batch_size"],
        "seeds": found.rules.seeds,
        "files": same["files"],
        "rates": [[*key, rate] for key, rate in rates.items()],
    }
    run_folder.open_run(settings.run, asked, resume=settings.resume)
    return Prepared(inputs, asked["steps"], asked["seeds"], rates)


def _settings(found: Run) -> experiment.Settings:
    """Those of a run, as far as they decide what is trained on."""
    fields = {field.name for field in dataclasses.fields(experiment.Settings)}
    known = {k: v for k, v in found.settings.items() if k in fields - {"fractions"}}
    for name in ("pairs", "documents"):
        known[name] = Path(known[name]) if known.get(name) else None
    return experiment.Settings(**known)


def write(folder: Path) -> list[Path]:
    """Writes the report and the figure, of the seeds that have ended."""
    content = run_folder.read_settings(folder)
    found = _by_optimizer(files.read_lines(folder / "runs.jsonl"))
    settings = content["settings"]
    figure = tables.Figure(
        looks.draw(folder / "wall_time.png", functools.partial(_draw, found)),
        "Test loss against the seconds that the steps took; a thin line is a seed.",
    )
    report = tables.Report(
        f"Wall time and memory: {by_name.TITLES[settings['task']]}",
        f"From `{settings['init']}`, {settings['steps']} steps of "
        f"{settings['batch_size']} examples at the rates of `{settings['of']}`, with "
        "the same seeds and test rows. A step of each optimizer in turn; seconds are "
        "those of the steps, without compiling, batches and test losses. Intervals are "
        "95 % bootstrap over the seeds, and too narrow for so few.",
        [figure],
        [_table(found)],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "report.md"), figure.path]


def _by_optimizer(runs: Sequence[Line]) -> dict[Key, list[Line]]:
    found: dict[Key, list[Line]] = {}
    for run in runs:
        for training in run["trainings"]:
            key = training["name"], training["fraction"]
            found.setdefault(key, []).append(training)
    return found


class Cost(NamedTuple):
    """What an optimizer costs beside SGD, and brings: one number for each seed."""

    seconds: list[float]  # a step
    slower: list[float]  # times SGD's seconds
    same_steps: list[float]  # test loss minus SGD's, after as many steps
    same_time: list[float]  # and after SGD's seconds


def costs(found: Mapping[Key, Sequence[Line]]) -> dict[Key, Cost]:
    """Of each optimizer, beside the same seed of SGD."""
    plain = next(own for key, own in found.items() if key[0] == "sgd")
    measured = {}
    for key, own in found.items():
        pairs = [
            (np.asarray(one["along"], float), np.asarray(other["along"], float))
            for one, other in zip(own, plain, strict=True)
        ]
        measured[key] = Cost(
            [a[-1, 1] / a[-1, 0] for a, _ in pairs],
            [a[-1, 1] / b[-1, 1] for a, b in pairs],
            [a[-1, 2] - b[-1, 2] for a, b in pairs],
            [_loss_after(a, b[-1, 1]) - b[-1, 2] for a, b in pairs],
        )
    return measured


def _table(found: Mapping[Key, Sequence[Line]]) -> tables.Table:
    rows = []
    for key, cost in costs(found).items():
        slower = cost.slower
        is_sgd = key[0] == "sgd"
        rows.append(
            [
                label(*key),
                f"{found[key][0]['state_bytes'] / 1e6:.1f} MB",
                f"{np.mean(cost.seconds):.3f}",
                f"{np.mean(slower):.3f} ({min(slower):.3f} to {max(slower):.3f})",
                "-" if is_sgd else str(bootstrap(cost.same_steps)),
                "-" if is_sgd else str(bootstrap(cost.same_time)),
            ]
        )
    return tables.Table(
        "The cost of a step, and the test loss after SGD's steps and SGD's seconds",
        [
            "",
            "optimizer's state",
            "seconds a step",
            "of SGD's",
            "minus SGD's, same steps",
            "minus SGD's, same seconds at most",
        ],
        rows,
    )


def figure(root: Path) -> str:
    """The figure and the table of a run, for a page."""
    path = root / "examples/results/wall_time" / SHOWN / "settings.json"
    if not path.is_file():
        return "Not measured yet."
    found = _by_optimizer(files.read_lines(path.parent / "runs.jsonl"))
    place = f"../../{path.parent.relative_to(root)}"
    settings = run_folder.read_settings(path.parent)["settings"]
    shown = tables.captioned(
        f"{place}/wall_time.png",
        f"Test loss of {by_name.TITLES[settings['task']]} from "
        f"`{by_name.name_of(settings['init'])}`, against the seconds that the steps "
        "took. A thin line is a seed.",
        f"[Report]({place}/report.md).",
    )
    return f"{shown}\n\n{_table(found).titled()}"


def _loss_after(along: np.ndarray, seconds: float) -> float:
    """The test loss after so many seconds, between two that were taken on a line."""
    return float(np.interp(seconds, along[:, 1], along[:, 2]))


def _draw(found: Mapping[Key, Sequence[Line]], figure: Figure) -> None:
    axes = figure.subplots()
    for key, style in styles([*found]).items():
        along = np.asarray([one["along"] for one in found[key]], float)
        for one in along:
            thin = style | {"label": None, "linewidth": 0.5, "alpha": 0.5}
            axes.plot(one[:, 1], one[:, 2], **thin)
        axes.plot(along[..., 1].mean(0), along[..., 2].mean(0), **style)
    axes.set(xlabel="seconds of steps", ylabel="test loss")
    axes.set_title("The same winners, by the clock")
    # A rate that ends well may begin badly.
    ends = [one["along"][-1][2] for own in found.values() for one in own]
    first = max(one["along"][0][2] for own in found.values() for one in own)
    axes.set_ylim(min(ends) - 0.02, first + 0.05)
    axes.legend()


if __name__ == "__main__":
    command_line.run("convergence.wall_time", Settings, prepare, main)
