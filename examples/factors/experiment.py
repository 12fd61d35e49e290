"""When does clipping lower SGD's sharpness much? `python -m examples.factors`.

One factor at a time is changed of one small experiment: SGD drives a T5 that translates
for some updates, on pairs that it was not taught, and the sharpness of SGD's direction
is compared with that of SGD with clipped coordinates. A seed of a variant is a line of
variants.jsonl in the run folder, --resume repeats none of them, and the table goes to
factors.md.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.factors import report
from examples.factors.problem import Problem, set_up
from examples.factors.variants import COMPARED, FACTORS, Variant
from examples.lab import command_line, run_folder, training
from examples.lab.contest import LEAST_SEEDS
from examples.lab.directions import (
    before_last_step,
    numbers,
    pseudo_directions,
    ratio,
    with_pseudo_updates,
)
from examples.lab.files import Line
from examples.lab.log import Log
from examples.lab.steps import Microbatches, TrainState, train_step, updates
from examples.models import t5, t5_scales
from optax_clip import diagnostics


@dataclasses.dataclass(frozen=True)
class Settings:
    """Changes one factor at a time, and measures what clipping does to SGD."""

    factor: tuple[str, ...] = tuple(FACTORS)
    """Which of the factors."""
    init: str = "examples/checkpoints/t5-enfr-mixture"
    """A folder with a T5 of the committed vocabulary in the Hugging Face layout."""
    test_size: int = 64
    """Held-out pairs, the same for all variants."""
    max_length: int = 40
    """Longest source and target in tokens; longer pairs are dropped."""
    part: int = 16
    """Pairs in memory at a time."""
    seeds: int = LEAST_SEEDS
    """How many, from 0."""
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
            small = Variant(batch_size=2, momentum_updates=2)
            grown = dataclasses.replace(small, scaled="values", scale=4.0)
            trained = dataclasses.replace(small, adam_steps=1)
            return [
                ("as it is", small),
                ("scale of weights", grown),
                ("training by Adam", trained),
            ]
        return [(name, variant) for name in self.factor for variant in FACTORS[name]]

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers."""
        names = ("init", "test_size", "max_length", "part", "seeds", "smallest")
        return {name: getattr(self, name) for name in names}


def main(settings: Settings, _: None) -> Path:
    """Runs what is missing, writes the table after each variant."""
    done = Log(
        settings.run / "variants.jsonl",
        lambda line: print(*report.row([line]), sep=" | ", flush=True),
    )
    for factor, variant in settings.variants():
        known = {"factor": factor, "variant": dataclasses.asdict(variant)}
        measure = functools.cache(lambda variant=variant: measurer(settings, variant))
        for seed in range(settings.seeds):
            done.once(
                {**known, "seed": seed},
                lambda seed=seed, measure=measure: measure()(seed),
            )
        report.write(settings.run)
    return report.write(settings.run)[0]


def measurer(settings: Settings, variant: Variant) -> Callable[[int], Line]:
    """Seed -> what a variant measures, after several updates."""
    problem = set_up(
        variant,
        settings.init,
        settings.max_length,
        settings.test_size,
        settings.run,
    )
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
    steps = variant.momentum_updates
    moments = {steps, steps - steps // 4, steps // 2}

    def measure(seed: int) -> Line:
        params = _trained(settings, variant, problem, seed)
        if variant.scaled:
            params = t5_scales.rescaled(params, variant.scaled, variant.scale)
        batch_at = functools.partial(problem.batch_at, variant.batch_size, seed)
        begin = TrainState(params, optimizer.init(params))
        measured: list[dict[str, Any]] = []
        for step, state, metrics in updates(
            step_function, begin, batch_at, seed, 0, steps
        ):
            if metrics and not np.isfinite(metrics["loss"]):
                return {"diverged": step - 1}
            if metrics and step in moments:
                rows = table(
                    before_last_step(state, "sgd"),
                    pseudo_directions(state),
                    problem.test,
                )
                measured.append({name: numbers(row) for name, row in rows.items()})
        return _summary(measured)

    return measure


def _summary(measured: list[dict[str, Any]]) -> Line:
    sharpness = {
        name: [rows[name]["sharpness"] for rows in measured] for name in COMPARED
    }
    return {
        "diverged": None,
        "loss": measured[-1]["sgd"]["loss"],
        "sharpness": sharpness,
        "ratios": {
            name: [ratio(*both) for both in zip(own, sharpness["sgd"], strict=True)]
            for name, own in sharpness.items()
        },
    }


def _trained(
    settings: Settings, variant: Variant, problem: Problem, seed: int
) -> t5.Params:
    """After Adam's steps, kept in the run folder for the variants that share them."""
    if not variant.adam_steps:
        return jax.tree.map(jnp.copy, problem.start(seed))
    shared = (
        variant.start,
        variant.adam_steps,
        variant.source_length,
        "masked" if variant.mask_source else "unmasked",
        variant.vocabulary,
        f"seed{seed}",
    )
    name = "-".join(map(str, shared))
    state = training.train(
        settings.run / "trained" / name,
        problem.loss,
        problem.start(seed),
        optax.adam(3.16e-4 if variant.start == "pretrained" else 1e-3),
        # Batches that SGD does not begin with.
        functools.partial(
            problem.batch_at, 2 if settings.smallest else 16, seed + LEAST_SEEDS
        ),
        steps=variant.adam_steps,
        seed=seed,
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
