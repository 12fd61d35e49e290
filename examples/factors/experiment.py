"""When does clipping lower SGD's sharpness much? `python -m examples.factors`.

One factor at a time is changed of one small experiment: a T5 is trained by Adam, then
SGD drives it for some updates, and the sharpness of SGD's direction is compared with
that of SGD with clipped coordinates. Every variant is a line of variants.jsonl in the
run folder, --resume repeats none of them, and the table goes to factors.md.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from examples.factors import report
from examples.factors.problem import Problem, rescale, set_up
from examples.factors.variants import COMPARED, FACTORS, Variant
from examples.lab import command_line, run_folder, training
from examples.lab.directions import (
    before_last_step,
    numbers,
    pseudo_directions,
    ratio,
    with_pseudo_updates,
)
from examples.lab.log import Log
from examples.lab.steps import Microbatches, TrainState, train_step, updates
from examples.models import t5
from optax_clip import diagnostics


@dataclasses.dataclass(frozen=True)
class Settings:
    """Changes one factor at a time, and measures what clipping does to SGD."""

    factor: tuple[str, ...] = tuple(FACTORS)
    """Which of the factors."""
    init: str = "examples/checkpoints/t5-enfr-small"
    """A folder with a T5 of the committed vocabulary in the Hugging Face layout."""
    test_size: int = 64
    """Pairs in the fixed batch."""
    max_length: int = 40
    """Longest source and target in tokens; longer pairs are dropped."""
    part: int = 16
    """Pairs in memory at a time."""
    seed: int = 0
    run: Path = Path("runs/factors")
    """The run folder."""
    resume: bool = False
    """Continue the run in that folder."""
    smallest: bool = False
    """Two variants, a few pairs: a trial."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        run_folder.check_counts(self)
        unknown = [name for name in self.factor if name not in FACTORS]
        if unknown or not self.factor:
            raise ValueError(
                f"--factor: expected some of {', '.join(map(repr, FACTORS))}; got "
                f"{', '.join(unknown) or 'none'}."
            )

    def variants(self) -> list[tuple[str, Variant]]:
        if self.smallest:
            small = Variant(adam_steps=1, batch_size=2, momentum_updates=2)
            return [
                ("as it is", small),
                ("padding", dataclasses.replace(small, mask_source=False)),
            ]
        return [(name, variant) for name in self.factor for variant in FACTORS[name]]

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers."""
        names = ("init", "test_size", "max_length", "part", "seed", "smallest")
        return {name: getattr(self, name) for name in names}


def main(settings: Settings, _: None) -> Path:
    """Runs what is missing, writes the table after each variant."""
    done = Log(
        settings.run / "variants.jsonl",
        lambda line: print(*report.row(line), sep=" | ", flush=True),
    )
    for factor, variant in settings.variants():
        wanted = {"factor": factor, "variant": dataclasses.asdict(variant)}
        done.once(wanted, functools.partial(measure, settings, variant))
        report.write(settings.run)
    return report.write(settings.run)[0]


def measure(settings: Settings, variant: Variant) -> dict[str, Any]:
    """Trains one variant and measures it, after several updates."""
    problem = set_up(
        variant, settings.init, settings.max_length, settings.seed, settings.run
    )
    params = _trained(settings, variant, problem)
    params = rescale(params, variant.embedding_scale)
    fractions = dict.fromkeys(COMPARED, variant.fraction)
    optimizer = with_pseudo_updates("sgd", variant.rate, fractions)
    count = -(-variant.batch_size // settings.part)
    step_function = train_step(
        problem.loss,
        optimizer,
        microbatches=Microbatches(count, t5.token_count) if count > 1 else None,
    )
    table = jax.jit(
        functools.partial(
            diagnostics.sharpness_table,
            problem.loss,
            baseline="sgd",
            microbatches=-(-settings.test_size // settings.part),
            weight=t5.token_count,
        )
    )
    test = problem.batch_at(settings.test_size, settings.seed + 1, 0)
    batch_at = functools.partial(
        problem.batch_at, variant.batch_size, settings.seed + 2
    )
    begin, steps = TrainState(params, optimizer.init(params)), variant.momentum_updates
    moments = {steps, steps - steps // 4, steps // 2}
    measured: list[dict[str, Any]] = []
    for step, state, metrics in updates(
        step_function, begin, batch_at, settings.seed, 0, steps
    ):
        if metrics and not np.isfinite(metrics["loss"]):
            return {"diverged": step - 1}
        if metrics and step in moments:
            rows = table(before_last_step(state, "sgd"), pseudo_directions(state), test)
            measured.append({name: numbers(row) for name, row in rows.items()})
    return {
        "diverged": None,
        "loss": measured[-1]["sgd"]["loss"],
        "sharpness": {
            name: [m[name]["sharpness"] for m in measured] for name in COMPARED
        },
        "ratios": {
            name: [ratio(m[name]["sharpness"], m["sgd"]["sharpness"]) for m in measured]
            for name in COMPARED
        },
    }


def _trained(settings: Settings, variant: Variant, problem: Problem) -> t5.Params:
    """After Adam's steps, kept in the run folder for the variants that share them."""
    if not variant.adam_steps:
        return problem.params
    shared = (
        variant.start,
        variant.adam_steps,
        variant.source_length,
        "masked" if variant.mask_source else "unmasked",
        variant.vocabulary,
    )
    name = "-".join(map(str, shared))
    state = training.train(
        settings.run / "trained" / name,
        problem.loss,
        problem.params,
        optax.adam(3.16e-4 if variant.start == "pretrained" else 1e-3),
        functools.partial(
            problem.batch_at, 2 if settings.smallest else 16, settings.seed
        ),
        steps=variant.adam_steps,
        seed=settings.seed,
        save_every=200,
        label=name,
    )
    return state.params


def prepare(settings: Settings) -> None:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    run_folder.open_run(settings.run, settings.decisive(), resume=settings.resume)


def cli() -> None:
    command_line.run("factors", Settings, prepare, main)
