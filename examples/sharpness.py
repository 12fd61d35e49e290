"""Directional sharpness on one trajectory: `python -m examples.sharpness`.

The experiment behind tables 3 to 6 of Pan and Li. SGD or Adam trains a model; beside
it, the paper's seven optimizers and five of its longer version make pseudo-updates from
the same gradients. At some batches of some epochs their directional sharpness is
measured on a fixed batch, and at one batch of each of these epochs the landscape along
them. The run folder gets tables and figures, which `examples.plots` makes again.
Interrupted, a run goes on with --resume, to the same numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples import paper, run_folder, sharpness_report, tasks, training
from examples.directions import (
    before_last_step,
    momentum_histogram,
    numbers,
    pseudo_directions,
    with_pseudo_updates,
)
from examples.optimizers import (
    LONG_VERSION,
    LONG_VERSION_FRACTION,
    PAPER,
    check_fraction,
    check_rate,
    state_bytes,
)
from examples.task import Task
from examples.training import Metrics, TrainState
from optax_clip import diagnostics


class Preset(NamedTuple):
    """Sizes of the experiment; an epoch is so many batches of the same examples."""

    measured_epochs: tuple[int, ...]
    batches_per_epoch: int
    measured_batches: int  # of each measured epoch
    batch_size: int
    test_size: int  # examples in the fixed batch
    part: int  # examples in memory at a time
    max_length: int  # tokens
    coordinates: int  # in the correlation of gradient and Hessian
    adapting_steps: int  # of Adam, before anything is measured
    rates: Mapping[str, float]  # learning rates that drive the trajectories

    @property
    def adapting_batch(self) -> int:
        """Examples in a batch of Adam's."""
        return min(16, self.batch_size)


_SPACINGS = 8  # of a scan, from its start to the best step that the parabola predicts
_SWEPT = {"sgd": 0.1, "adam": 3.16e-4}  # examples/results/learning_rates.json

PRESETS = {
    "tiny": Preset(
        measured_epochs=(1, 2),
        batches_per_epoch=2,
        measured_batches=1,
        batch_size=4,
        test_size=4,
        part=2,
        max_length=20,
        coordinates=8,
        adapting_steps=1,
        rates=_SWEPT,
    ),
    "laptop": Preset(
        measured_epochs=paper.EPOCHS,
        batches_per_epoch=10,
        measured_batches=5,
        batch_size=128,
        test_size=64,
        part=16,
        max_length=40,
        coordinates=64,
        # The paper's t5-small had learnt translation before; ours has to be taught. The
        # encoders' pretraining was their task.
        adapting_steps=400,
        rates=_SWEPT,
    ),
    "paper": Preset(
        measured_epochs=paper.EPOCHS,
        batches_per_epoch=10,
        measured_batches=5,
        batch_size=1024,
        test_size=1024,
        part=16,
        max_length=512,
        coordinates=256,
        adapting_steps=0,
        rates=paper.TRAJECTORY_RATES,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(tasks.Choice):
    """Measures directional sharpness along one trajectory."""

    trajectory: Literal["sgd", "adam"] = "sgd"
    """The optimizer that moves the parameters."""
    preset: Literal["tiny", "laptop", "paper"] = "laptop"
    """Sizes: seconds, half an hour on two cores, or the paper's own on a GPU."""
    learning_rate: float | None = None
    """Of the trajectory; without it, that of the preset."""
    fraction: float = 0.05
    """Share of the coordinates to clip in the paper's seven, in [0, 1)."""
    batch_size: int | None = None
    """Examples in a batch; without it, that of the preset."""
    seed: int = 0
    run: Path | None = None
    """The run folder; without it, runs/sharpness/TASK-TRAJECTORY."""
    save_every: int = 10
    """Steps between checkpoints."""
    resume: bool = False
    """Continue the run in that folder."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_fraction(self.fraction)
        check_rate(self.learning_rate)
        run_folder.check_counts(self)
        sizes = self.sizes()
        if sizes.batch_size % sizes.part:
            raise ValueError(
                f"--batch-size must be a multiple of {sizes.part}, which are in memory "
                f"at a time; got {sizes.batch_size}."
            )

    def sizes(self) -> Preset:
        sizes = PRESETS[self.preset]
        return sizes._replace(
            batch_size=self.batch_size or sizes.batch_size,
            adapting_steps=sizes.adapting_steps if self.task == "translation" else 0,
        )

    def rate(self) -> float:
        return self.learning_rate or self.sizes().rates[self.trajectory]

    def folder(self) -> Path:
        name = f"{self.task}-{self.trajectory}"
        return self.run or Path("runs/sharpness") / name

    def fractions(self) -> dict[str, float]:
        """What each optimizer clips."""
        return {
            **dict.fromkeys(PAPER, self.fraction),
            **dict.fromkeys(LONG_VERSION, LONG_VERSION_FRACTION),
        }

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers."""
        fields = dataclasses.asdict(self)
        for name in ("run", "save_every", "resume"):
            del fields[name]
        return {
            **fields,
            **self.sizes()._asdict(),
            "init": self.checkpoint(),
            "rates": None,
            "learning_rate": self.rate(),
            "fractions": self.fractions(),
        }


class Moment(NamedTuple):
    """A batch of an epoch, both counted from 1, after whose gradient to measure."""

    epoch: int
    batch: int
    pictured: bool  # with the landscape


def moments(settings: Settings) -> dict[int, Moment]:
    """By the number of updates that were made then.

    The batches of an epoch are drawn at random, like the paper's; the one that the
    paper's figure shows is among them.
    """
    sizes = settings.sizes()
    pictured = paper.PICTURED_BATCHES.get((settings.task, settings.trajectory), {})
    found = {}
    for epoch in sizes.measured_epochs:
        random = np.random.default_rng((settings.seed, epoch))
        drawn = random.permutation(sizes.batches_per_epoch) + 1
        first = min(pictured.get(epoch, drawn[0]), sizes.batches_per_epoch)
        rest = drawn[drawn != first][: sizes.measured_batches - 1]
        for batch in sorted(map(int, [first, *rest])):
            step = (epoch - 1) * sizes.batches_per_epoch + batch
            found[step] = Moment(epoch, batch, pictured=batch == first)
    return found


def load(settings: Settings) -> Task:
    """The task, with enough examples for an epoch."""
    sizes = settings.sizes()
    task = tasks.load(
        settings,
        max_length=sizes.max_length,
        batch_size=sizes.batch_size,
        seed=settings.seed,
    )
    wanted = sizes.batches_per_epoch * sizes.batch_size
    if task.rows < wanted:
        raise ValueError(
            f"expected at least {wanted:,} training examples of at most "
            f"{sizes.max_length} tokens, got {task.rows:,}: lower --batch-size or give "
            "more data."
        )
    if wanted < sizes.test_size:
        raise ValueError(
            f"expected epochs of at least {sizes.test_size} examples, the size of the "
            f"fixed batch, got {wanted}: raise --batch-size."
        )
    return task


def one_epoch(settings: Settings, task: Task) -> Task:
    """The same with a training set of exactly one epoch, drawn once."""
    sizes = settings.sizes()
    rows = np.random.default_rng(settings.seed).permutation(task.rows)
    return task.taking(rows[: sizes.batches_per_epoch * sizes.batch_size])


def adapt(settings: Settings, task: Task) -> Task:
    """The task with a model that Adam has begun to teach it, in a run of its own."""
    sizes = settings.sizes()
    if not sizes.adapting_steps:
        return task
    taught = dataclasses.replace(
        task, batch_size=sizes.adapting_batch, seed=settings.seed + 2
    )
    state = training.train(
        settings.folder() / "adapting",
        task.train_loss,
        task.params,
        optax.adam(sizes.rates["adam"]),
        taught.batch_at,
        steps=sizes.adapting_steps,
        seed=settings.seed,
        label="adapting",
    )
    return dataclasses.replace(task, params=state.params)


def main(settings: Settings, task: Task) -> None:
    """Trains, measures along the way, draws."""
    sizes, at = settings.sizes(), moments(settings)
    print(describe(settings, task), flush=True)
    task = one_epoch(settings, adapt(settings, task))
    parts = training.Parts(sizes.batch_size // sizes.part, task.weight)
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
            parts=parts if parts.count > 1 else None,
            label=folder.name,
        )
    except training.DivergedError as error:  # what was measured before it stays
        print(error, flush=True)
    print("\n".join(map(str, sharpness_report.write(folder))))


def measurer(
    settings: Settings, task: Task, at: Mapping[int, Moment]
) -> Callable[[int, TrainState], Metrics]:
    """What is measured at each moment, for `training.train`."""
    sizes = settings.sizes()
    batch = jax.device_put(task.fixed_batch(sizes.test_size))
    stream = {"microbatches": sizes.test_size // sizes.part, "weight": task.weight}

    def jitted(measure: Callable, **options: Any) -> Callable:
        return jax.jit(functools.partial(measure, task.eval_loss, **options, **stream))

    derivatives = jitted(
        diagnostics.directional_derivatives, mode="forward_over_forward"
    )
    scan = jitted(diagnostics.line_scan)
    correlate = jitted(
        diagnostics.gradient_hessian_correlation, coordinates=sizes.coordinates
    )

    def measure(step: int, state: TrainState) -> Metrics:
        moment = at[step]
        params = before_last_step(state, settings.trajectory)
        updates = pseudo_directions(state)
        derived = jax.device_get(derivatives(params, updates, batch))
        found: dict[str, Any] = {
            **moment._asdict(),
            "sharpness": {name: numbers(d) for name, d in derived.items()},
        }
        if moment.pictured:
            scans = jax.device_get(scan(params, updates, _spacing(derived), batch))
            found["landscape"] = {name: _curve(line) for name, line in scans.items()}
            found["momentum"] = momentum_histogram(state)
        if step == max(at):
            key = jax.random.key(settings.seed)
            correlation = correlate(params, key, batch)
            found["correlation"] = {
                k: np.asarray(v).tolist() for k, v in correlation._asdict().items()
            }
        return found

    return measure


class Prediction(NamedTuple):
    """What a run will take."""

    state_bytes: int  # parameters, and the states and updates of all optimizers
    flops: float  # of the matrix products


def predict(settings: Settings, task: Task) -> Prediction:
    """From shapes alone: memory exactly, products by the usual rule.

    A token takes 6 operations for each parameter in a gradient (forward 2, backward 4),
    twice as many in the sharpness of a direction, and 2 in a point of a landscape. The
    activations of a part, and attention's products, come on top.
    """
    sizes, at = settings.sizes(), moments(settings)
    optimizer = with_pseudo_updates(
        settings.trajectory, settings.rate(), settings.fractions()
    )
    params = sum(x.nbytes for x in jax.tree.leaves(task.params))
    tokens, directions = optax.tree.size(task.fixed_batch(1)), len(settings.fractions())
    points = 2 * _SPACINGS + 1
    scanned = directions * points * sum(moment.pictured for moment in at.values())
    rows = (
        6 * max(at) * sizes.batch_size
        + 6 * sizes.adapting_steps * sizes.adapting_batch
        + 12 * len(at) * directions * sizes.test_size
        + 2 * scanned * sizes.test_size
        + 12 * sizes.coordinates * sizes.test_size
    )
    return Prediction(
        params + state_bytes(optimizer, task.params),
        float(rows * tokens * optax.tree.size(task.params)),
    )


def describe(settings: Settings, task: Task) -> str:
    """What is about to happen, for people."""
    sizes, needs = settings.sizes(), predict(settings, task)
    return (
        f"{settings.checkpoint()}: {optax.tree.size(task.params):,} parameters; after "
        f"{sizes.adapting_steps} steps of Adam, {settings.trajectory} with rate "
        f"{settings.rate():g} on epochs of {sizes.batches_per_epoch} "
        f"batches of {sizes.batch_size}; sharpness of {len(settings.fractions())} "
        f"directions at {sizes.measured_batches} batches of epochs "
        f"{', '.join(map(str, sizes.measured_epochs))}, on {sizes.test_size} fixed "
        f"examples. That takes {needs.state_bytes / 1e9:.1f} GB besides activations, "
        f"and about {needs.flops / 1e12:.2g} TFLOP. Results go to {settings.folder()}."
    )


def _spacing(derived: Mapping[str, diagnostics.DirectionalDerivatives]) -> Any:
    """A part of each best step; a parabola's scan ends at twice of it.

    Where the parabola has no minimum ahead, that of the farthest one.
    """
    best = {name: float(d.best_step) for name, d in derived.items()}
    usable = [s for s in best.values() if 0 < s < np.inf]
    farthest = max(usable, default=1.0)
    return {
        name: jnp.asarray((s if 0 < s < np.inf else farthest) / _SPACINGS)
        for name, s in best.items()
    }


def _curve(scan: diagnostics.LineScan) -> dict[str, list[float]]:
    """As far as the scan went."""
    seen = ~np.isnan(scan.losses)
    return {"steps": scan.steps[seen].tolist(), "losses": scan.losses[seen].tolist()}


def prepare(settings: Settings) -> Task:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    task = load(settings)
    run_folder.claim(settings, task.files)
    return task


def cli() -> None:
    run_folder.experiment("sharpness", Settings, prepare, main)


if __name__ == "__main__":
    cli()
