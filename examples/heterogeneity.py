"""Gradient heterogeneity and optimizers: `python -m examples.heterogeneity`.

The experiments of Tomihari and Sato's second paper on one task and model. Every
optimizer trains at its own best learning rate (searched in half-decades by the final
training loss, with seed 0) with several seeds; along Adam's training the blocks of the
model are measured: gradient norms, curvature, what both mean for gradient and for sign
descent, and what clipping does to it. The run folder gets tables and figures, which
`examples.plots` makes again; `examples.heterogeneity_verdict` compares run folders.
Interrupted, a run goes on with --resume.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from examples import (
    calibration,
    convergence,
    heterogeneity_report,
    image_classification,
    run_folder,
    text_classification,
)
from examples import sweep_learning_rates as sweep
from examples.blocks import Instruments
from examples.classification import IGNORED, ClassificationTask
from examples.convergence import Contender, contenders
from examples.optimizers import (
    OPTIMIZERS,
    SECOND_PAPER,
    check_fraction,
    check_names,
    state_bytes,
)
from examples.training import Params, Parts, TrainState

Run = dict[str, Any]

TRAJECTORY = "adam"  # whose training the blocks are measured along


class Preset(NamedTuple):
    """Sizes of the experiment."""

    steps: int
    epochs: int  # instead of steps, unless 0
    batch_size: int
    max_length: int  # tokens
    rows: int | None  # to train on; all if None
    held_out: int
    seeds: int
    fractions: tuple[float, ...]  # other ones for clipped SGD
    measured_rows: int  # in the batch that the blocks are measured on
    moments: tuple[float, ...]  # shares of the steps after which that is done
    clipped: tuple[float, ...]  # fractions whose clipped direction is measured


_CLIPPED = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9)

PRESETS = {
    "tiny": Preset(2, 0, 4, 8, 16, 8, 2, (0.5,), 4, (0.0, 1.0), (0.001, 0.05)),
    "laptop": Preset(
        100, 0, 16, 32, None, 256, 5, (0.01, 0.5), 32, (0.0, 0.5, 1.0), _CLIPPED
    ),
    "paper": Preset(
        0, 20, 32, 128, None, 4096, 5, (0.01, 0.5), 32, (0.0, 0.5, 1.0), _CLIPPED
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compares optimizers on a classifier and measures its blocks."""

    task: Annotated[
        str,
        tyro.conf.arg(
            help=f"One of {', '.join(text_classification.TASKS)} (texts), "
            f"{', '.join(image_classification.TASKS)} (images)."
        ),
    ] = "rotten_tomatoes"
    model: Literal[
        "pretrained", "post_ln", "pre_ln", "vit", "post_ln_vit", "resnet"
    ] = "pretrained"
    """A checkpoint, or from scratch: encoders for texts, the others for images."""
    init: str = "minilm"
    """For a pretrained model: a folder in the Hugging Face layout, a name on the hub,
    or "minilm"."""
    data: Path | None = None
    """For texts a file of label<TAB>text lines, for images the folder of their files,
    instead of where the task has them."""
    optimizer: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"One or several of {', '.join(OPTIMIZERS)}."),
    ] = SECOND_PAPER
    preset: Literal["tiny", "laptop", "paper"] = "laptop"
    """Sizes: seconds, up to an hour on two cores, or the paper's own on a GPU."""
    fraction: float = 0.05
    """Share of the coordinates to clip, in [0, 1)."""
    clip_norm: bool = True
    """Clip the gradient's global norm to 1 first, as the paper's code does."""
    schedule: Literal["constant", "cosine", "linear", "linear_with_warmup"] = "linear"
    """Of the learning rate; the warm-up takes a tenth of the steps."""
    full_batch: bool = False
    """Every step takes the gradient of all training rows."""
    run: Path | None = None
    """The run folder; without it, runs/heterogeneity/TASK-MODEL."""
    resume: bool = False
    """Continue the run in that folder, or add optimizers to it."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_names(self.optimizer)
        check_fraction(self.fraction)
        if self.task not in (*text_classification.TASKS, *image_classification.TASKS):
            raise ValueError(
                f"--task: expected one of {', '.join(text_classification.TASKS)}, "
                f"{', '.join(image_classification.TASKS)}; got {self.task}."
            )

    def folder(self) -> Path:
        return self.run or Path("runs/heterogeneity") / f"{self.task}-{self.model}"

    def sizes(self) -> Preset:
        return PRESETS[self.preset]

    def contenders(self) -> list[Contender]:
        """The optimizers, and clipped SGD at other fractions if it is among them."""
        return contenders(self.optimizer, self.fraction, self.sizes().fractions)

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of a training."""
        fields = dataclasses.asdict(self)
        for name in ("optimizer", "run", "resume"):
            del fields[name]
        if self.model != "pretrained":
            fields["init"] = None
        return {**fields, **self.sizes()._asdict()}


def load(settings: Settings) -> ClassificationTask:
    """The task; raises what its loader does."""
    sizes = settings.sizes()
    shared = {
        "model": settings.model,
        "init": settings.init,
        "batch_size": sizes.batch_size,
        "held_out": sizes.held_out,
        "seed": 0,
        "rows": sizes.rows,
    }
    if settings.task in text_classification.TASKS:
        return text_classification.load(
            settings.task, max_length=sizes.max_length, file=settings.data, **shared
        )
    return image_classification.load(settings.task, folder=settings.data, **shared)


def step_count(settings: Settings, task: ClassificationTask) -> int:
    sizes = settings.sizes()
    per_epoch = 1 if settings.full_batch else task.rows // sizes.batch_size
    return sizes.epochs * per_epoch or sizes.steps


def step_rows(settings: Settings, task: ClassificationTask) -> int:
    """The rows that a step takes its gradient of: a batch, or as many as fill some."""
    batches = task.rows // task.batch_size if settings.full_batch else 1
    return batches * task.batch_size


def optimizer(
    settings: Settings, contender: Contender, steps: int
) -> Callable[[Any], optax.GradientTransformation]:
    """Learning rate -> the optimizer with the run's schedule and norm clip."""

    def make(rate: Any) -> optax.GradientTransformation:
        parts = [OPTIMIZERS[contender.name](rate, contender.fraction)]
        if settings.clip_norm:
            parts.insert(0, optax.clip_by_global_norm(1.0))
        if settings.schedule != "constant":
            parts.append(optax.scale_by_schedule(shape(settings.schedule, steps)))
        return optax.chain(*parts)

    return make


def shape(name: str, steps: int) -> optax.Schedule:
    """A schedule's share of the learning rate."""
    warmup = max(1, steps // 10)
    linear = optax.linear_schedule
    return {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, steps),
        "linear": linear(1.0, 0.0, steps),
        "linear_with_warmup": optax.join_schedules(
            [linear(1 / warmup, 1.0, warmup), linear(1.0, 0.0, steps - warmup)],
            [warmup],
        ),
    }[name]


def main(settings: Settings, task: ClassificationTask) -> None:
    """Searches, repeats, measures, draws."""
    folder, console = settings.folder(), Console()
    print(describe(settings, task), flush=True)
    runs = run_folder.Ledger(folder / "runs.jsonl", sweep.said(console))
    competition = Competition(settings, task, runs)
    rates = {one: competition.best_rate(one) for one in settings.contenders()}
    driver = Contender(TRAJECTORY, settings.fraction)
    if driver in rates:
        moments = run_folder.Ledger(folder / "blocks.jsonl", sweep.said(console))
        measure(settings, task, rates[driver], moments)
    for path in heterogeneity_report.write(folder):
        console.print(str(path), soft_wrap=True)


class Competition:
    """Trains with every rate and seed that is needed, each once."""

    def __init__(
        self, settings: Settings, task: ClassificationTask, runs: run_folder.Ledger
    ) -> None:
        self.settings, self.task, self.runs = settings, task, runs
        self.steps = step_count(settings, task)
        self.assess = assessor(task)

    def best_rate(self, contender: Contender) -> float:
        """By the final training loss with seed 0; the other seeds follow."""
        make = optimizer(self.settings, contender, self.steps)
        size = state_bytes(make(1.0), self.task.params)
        heads = HeadNorms(self.steps)
        train = trainer(self.settings, self.task, make, watch=heads)

        def loss(rate: float, seed: int) -> float:
            """The mean of the last steps; inf if it diverged."""
            wanted = contender._asdict() | {"learning_rate": rate, "seed": seed}
            known = wanted | {"state_bytes": size}
            line = self.runs.once(known, lambda: self.outcome(train, heads, rate, seed))
            return math.inf if line["loss"] is None else line["loss"]

        return sweep.best_rate(contender.name, loss, self.settings.sizes().seeds)

    def outcome(
        self, train: Callable, heads: "HeadNorms", rate: float, seed: int
    ) -> Run:
        """What is kept of a training."""
        heads.found.clear()
        trained = train(rate, seed, with_head_of(self.task, seed))
        found = {**self.assess(trained.params), "head_norm": list(heads.found)}
        return convergence.outcome(trained) | found


def trainer(
    settings: Settings,
    task: ClassificationTask,
    make: Callable[[Any], optax.GradientTransformation],
    watch: Callable[[int, TrainState], None],
) -> Callable[..., sweep.Trained]:
    """Learning rate, seed and parameters -> training."""
    steps, rows = step_count(settings, task), step_rows(settings, task)
    parts = Parts(rows // task.batch_size, task.weight)
    whole = dataclasses.replace(task, batch_size=rows)
    return sweep.trainer(
        whole, make, steps, parts=parts if settings.full_batch else None, watch=watch
    )


class HeadNorms:
    """The norm of the linear head at some twenty steps, and at the end."""

    def __init__(self, steps: int) -> None:
        self.every, self.steps = max(1, steps // 20), steps
        self.found: list[tuple[int, float]] = []

    def __call__(self, step: int, state: TrainState) -> None:
        if step % self.every == 0 or step == self.steps:
            norm = float(_norm(state.params["head"]["kernel"]))
            self.found.append((step, round(norm, 5)))


_norm = jax.jit(jnp.linalg.norm)


def with_head_of(task: ClassificationTask, seed: int) -> Params:
    """The parameters with a head drawn by another seed; seed 0 keeps the task's."""
    if not seed:
        return task.params
    kernel = task.params["head"]["kernel"]
    draw = jax.random.normal(jax.random.key(seed), kernel.shape, kernel.dtype)
    head = task.params["head"] | {"kernel": draw * jnp.std(kernel)}
    return task.params | {"head": head}


def assessor(task: ClassificationTask) -> Callable[[Params], Run]:
    """Parameters -> the metrics on what is held out; none if they are not finite."""
    batches = task.held_out_batches()
    labels_N = np.concatenate([batch["labels"] for batch in batches])
    given_N = labels_N != IGNORED
    logits = jax.jit(lambda params, batch: task.logits(params, batch, None))

    def assess(params: Params) -> Run:
        logits_NxC = np.concatenate([logits(params, batch) for batch in batches])
        if not np.isfinite(logits_NxC).all():
            return {}
        found = calibration.assess(logits_NxC[given_N], labels_N[given_N])
        return {name: round(value, 5) for name, value in found.items()}

    return assess


def measure(
    settings: Settings,
    task: ClassificationTask,
    rate: float,
    moments: run_folder.Ledger,
) -> None:
    """Trains with Adam once more, and measures the blocks on its way."""
    steps, sizes = step_count(settings, task), settings.sizes()
    at = sorted({round(share * steps) for share in sizes.moments})
    wanted = [{"trajectory": TRAJECTORY, "step": step} for step in at]
    if all(moments.find(one) for one in wanted):
        return
    instruments = Instruments(task, sizes.measured_rows, sizes.clipped)

    def watch(step: int, state: TrainState) -> None:
        if step in at:
            moments.once(
                wanted[at.index(step)], lambda: instruments.measure(state.params)
            )

    make = optimizer(settings, Contender(TRAJECTORY, settings.fraction), steps)
    trainer(settings, task, make, watch)(rate, 0)


def describe(settings: Settings, task: ClassificationTask) -> str:
    """What is about to happen, for people."""
    counts = task.counts()
    return (
        f"{settings.task}, {settings.model}"
        f"{f' ({settings.init})' if settings.model == 'pretrained' else ''}: "
        f"{optax.tree.size(task.params):,} parameters, {counts['train']:,} rows of "
        f"{counts['classes']} classes, {counts['held_out']:,} held out; "
        f"{len(settings.contenders())} optimizers, each at its best learning rate, "
        f"{step_count(settings, task)} steps of {step_rows(settings, task)} rows, "
        f"{settings.sizes().seeds} seeds. Results go to {settings.folder()}."
    )


def prepare(settings: Settings) -> ClassificationTask:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    task = load(settings)
    run_folder.claim(settings, task.files, counts=task.counts())
    return task


def cli() -> None:
    run_folder.experiment("heterogeneity", Settings, prepare, main)


if __name__ == "__main__":
    cli()
