"""The main job with several seeds: `python -m examples.finetune_t5.seeds`.

A seed decides which pairs are trained on, and when. Every optimizer has the learning
rate of the committed sweep, whose seed is none of these. Every training is one line of
the run folder's seeds.jsonl, which `examples.finetune_t5.report` puts into its tables
where this run folder is called seeds/ and lies beside a summary.json.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from examples.finetune_t5.experiment import Settings
from examples.finetune_t5.measurements import Instruments
from examples.lab import command_line, run_folder
from examples.lab.log import Log
from examples.lab.optimizers import learning_rates
from examples.lab.steps import TrainState
from examples.lab.sweep import outcome_with_curve, said, trainer
from examples.tasks.translation import TranslationTask, load_translation

_DEFAULT = Settings(run=Path("runs/finetune_t5_seeds"))


def main(
    settings: Annotated[Settings, tyro.conf.OmitArgPrefixes] = _DEFAULT,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Trains with each optimizer and seed.

    Args:
        settings: those of the fine-tuning; its seed is not used.
        seeds: of the batches.
    """
    settings.check()
    rates = learning_rates(settings.optimizer, settings.learning_rate)
    task = load_translation(settings)
    asked = settings.training() | {"learning_rates": rates}
    run_folder.open_run(settings.run, asked, resume=settings.resume)
    runs = Log(settings.run / "seeds.jsonl", said(Console()))
    instruments = Instruments(task, settings.measured_batches, measured_at=())
    for name, rate in rates.items():
        train = training(settings, task, instruments, name)
        for seed in seeds:
            wanted = {"optimizer": name, "learning_rate": rate, "seed": seed}
            runs.once(wanted, functools.partial(train, rate, seed))


def training(
    settings: Settings, task: TranslationTask, instruments: Instruments, name: str
) -> Callable[[float | None, int], dict[str, Any]]:
    """(learning rate, seed) -> what is kept of a training with one optimizer."""
    at, curve = settings.evaluated_at(), []

    def watch(step: int, state: TrainState) -> None:
        if step in at:
            curve.append([step, round(instruments.held_out_loss(state.params), 5)])

    train = trainer(task, settings.optimizer_of(name), settings.steps, watch=watch)

    def run(rate: float | None, seed: int) -> dict[str, Any]:
        curve.clear()
        trained = train(rate, seed)
        return {
            **outcome_with_curve(trained.losses),
            "valid_losses": list(curve),
            "chrf": instruments.translate(trained.params)["chrf"],
        }

    return run


def cli() -> None:
    command_line.report("finetune_t5.seeds", main)


if __name__ == "__main__":
    cli()
