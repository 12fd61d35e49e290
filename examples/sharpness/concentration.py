"""Who carries the sharpness: `python -m examples.sharpness.concentration` (5 minutes).

SGD trains the committed T5 on translation for a while, with several seeds. Then, on
fixed held-out pairs: which fraction of the sharpness of SGD's direction goes away with
its top k coordinates, and what the loss does along the directions of SGD, of SGD with
5 % of its coordinates clipped, and of Adam. The numbers and the README's first figure
go to examples/results/concentration.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from examples.data.batching import Arrays
from examples.lab import command_line, files, held_out, provenance, run_folder, swept
from examples.lab.directions import (
    before_last_step,
    pseudo_directions,
    with_pseudo_updates,
)
from examples.lab.optimizers import check_rate
from examples.lab.steps import TrainState, train_step, updates
from examples.sharpness import hero
from examples.tasks.translation import TranslationTask, load_translation
from optax_clip import diagnostics

FOLDER = Path(__file__).parents[1] / "results" / "concentration"
# Along the normalized directions; the first is where the others begin.
DISTANCES = (0.0, *np.geomspace(0.01, 10, 31).tolist())
FRACTIONS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures which coordinates carry the sharpness of SGD's direction."""

    steps: int = 50
    """Updates of SGD before anything is measured."""
    seeds: int = 3
    rate: float | None = None
    """SGD's learning rate; without it, the one that was swept on this task."""
    fraction: float = 0.05
    """Fraction of the coordinates that clipped SGD clips."""
    test_size: int = 64
    """Held-out pairs to measure on, the same for every seed."""
    init: str = "examples/checkpoints/t5-enfr-mixture"
    """A folder with a T5 in the Hugging Face layout, or a name on the hub."""
    out: Path = FOLDER
    batch_size: int = 16
    max_length: int = 40
    measured_batches: int = 1
    held_out: int = 384
    dataset: Literal["libreoffice_untranslated", "en_fr", "opus_books"] = (
        "libreoffice_untranslated"
    )
    pairs: Path | None = None
    seed: int = 0


def main(settings: Settings, task: TranslationTask, batch: Arrays, rate: float) -> None:
    """Trains and measures with each seed, draws."""
    options = {"microbatches": max(settings.test_size // 16, 1), "weight": task.weight}

    def jitted(measure: Any) -> Any:
        return jax.jit(functools.partial(measure, task.eval_loss, **options))

    tools = {
        "masked": jitted(diagnostics.masked_sharpness),
        "derivatives": jitted(diagnostics.directional_derivatives),
        "loss": jitted(diagnostics.loss_along),
    }
    fractions = sorted({*FRACTIONS, settings.fraction})
    optimizer = with_pseudo_updates(
        "sgd", rate, dict.fromkeys(hero.COMPARED, settings.fraction)
    )
    step_function = train_step(task.train_loss, optimizer)
    seeds: list[dict[str, Any]] = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        seeded = dataclasses.replace(task, seed=seed)
        params = jax.tree.map(jnp.copy, task.params)  # a step gives them away
        begin = TrainState(params, optimizer.init(params))
        state = begin
        for _, state, _ in updates(  # noqa: B007
            step_function, begin, seeded.batch_at, seed, 0, settings.steps
        ):
            pass
        seeds.append({"seed": seed, **measured(state, batch, fractions, tools)})
        print(f"seed {seed}: {seeds[-1]['sharpness']}", flush=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": dataclasses.asdict(settings) | {"out": None, "rate": rate},
        "sessions": [provenance.session()],
        "distances": DISTANCES,
        "seeds": seeds,
    }
    files.write_json(settings.out / "concentration.json", content)
    print("\n".join(map(str, hero.write(settings.out))))


def measured(
    state: TrainState, batch: Any, fractions: Sequence[float], tools: dict[str, Any]
) -> dict[str, Any]:
    """Where the sharpness is, and the loss along each direction."""
    params, directions = before_last_step(state, "sgd"), pseudo_directions(state)
    top = []
    for fraction in fractions:
        mask = diagnostics.top_coordinates(directions["sgd"], fraction)
        found = tools["masked"](params, directions["sgd"], batch, mask=mask)
        top.append(
            {
                "fraction": fraction,
                "norm": float(found.norm),
                "slope": float(found.slope_fraction),
                "sharpness": float(found.sharpness_fraction),
            }
        )
    derived = jax.device_get(tools["derivatives"](params, directions, batch))
    losses = tools["loss"](params, directions, batch, steps=jnp.asarray(DISTANCES))
    return {
        "top": top,
        "sharpness": {name: float(d.sharpness) for name, d in derived.items()},
        "curves": {name: own.tolist() for name, own in jax.device_get(losses).items()},
    }


def prepare(settings: Settings) -> tuple[TranslationTask, Arrays, float]:
    """Everything that can be refused, before any work."""
    run_folder.check_counts(settings)
    check_rate(settings.rate)
    task = load_translation(settings)
    asked = {**dataclasses.asdict(settings), "task": "translation"}
    rate = settings.rate or swept.swept_rate(asked, "sgd").rate
    return task, held_out.batch(task, settings.test_size), rate


def cli() -> None:
    command_line.run(
        "sharpness.concentration", Settings, prepare, lambda s, made: main(s, *made)
    )


if __name__ == "__main__":
    cli()
