"""Finds the learning rates of the main job: `python -m examples.finetune_t5.sweep`.

Every optimizer trains as in `examples.finetune_t5` for as many steps, with a seed that
is not reported; the rate with the lowest loss on held-out pairs that are not reported
is chosen (`examples.lab.sweep` says how it is searched). About 20 minutes on 2 CPU
cores.

Every run is one line of runs/sweep_learning_rates/runs.jsonl, and --resume repeats none
of them. The result, with every run in it, is examples/results/learning_rates.json.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from examples.finetune_t5.experiment import Settings
from examples.lab import command_line, held_out, run_folder
from examples.lab.files import Line, write_json
from examples.lab.log import Log
from examples.lab.optimizers import LEARNING_RATES
from examples.lab.sweep import outcome, rate, said, search, start, trainer
from examples.tasks.translation import load_translation

_DEFAULT = Settings(run=Path("runs/sweep_learning_rates"), seed=100)


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
    batches, assess = task.tuning_batches(), held_out.assessor(task)
    run_folder.open_run(settings.run, _asked(settings), resume=settings.resume)
    console = Console()
    runs = Log(settings.run / "runs.jsonl", said(console))
    for name in settings.optimizer:
        train = trainer(task, settings.optimizer_of(name), settings.steps)

        def work(half: int, train: Callable = train) -> Line:
            trained = train(rate(half))
            line = outcome(trained.losses)
            diverged = line["loss"] is None
            loss = None if diverged else round(assess(trained.params, batches), 5)
            return {**line, "tuning_loss": loss}

        def loss(half: int, name: str = name, work: Callable = work) -> float:
            """What a rate is chosen by; inf if its training diverged."""
            wanted = {"optimizer": name, "learning_rate": rate(half)}
            with console.status(f"{name}, learning rate {rate(half):g}"):
                line = runs.once(wanted, functools.partial(work, half))
            found = line["tuning_loss"]
            return math.inf if found is None else found

        search(loss, start(name))
    write_result(out, settings, [*before, *runs.lines], len(task.tuning))


def write_result(
    out: Path, settings: Settings, runs: Sequence[Line], pairs: int
) -> None:
    """The chosen rates, how they were chosen, and every run."""
    finished = [run for run in runs if run["tuning_loss"] is not None]
    best = {
        run["optimizer"]: run["learning_rate"]
        for run in sorted(finished, key=lambda run: -run["tuning_loss"])
    }
    order = dict.fromkeys(run["optimizer"] for run in runs)
    ordered = [
        run
        for name in order
        for run in sorted(runs, key=lambda run: run["learning_rate"])
        if run["optimizer"] == name
    ]
    before = json.loads(out.read_text())["sessions"] if out.is_file() else []
    ours = run_folder.read_settings(settings.run)["sessions"]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        out,
        {
            "chosen": {name: best[name] for name in order},
            "rule": f"lowest loss on {pairs} held-out pairs that are not reported",
            "sessions": [*before, *(one for one in ours if one not in before)],
            "settings": _asked(settings),
            "runs": ordered,
        },
    )
    print(f"{out}: " + ", ".join(f"{name} {best[name]:g}" for name in order))


def _asked(settings: Settings) -> dict[str, Any]:
    """What decides the result: the seed of the batches is the sweep's own."""
    return settings.training() | {"seed": settings.seed}


def _result_to_extend(out: Path, settings: Settings) -> list[Line]:
    """The runs of other optimizers in an earlier result with the same settings."""
    if not out.is_file():
        return []
    found = json.loads(out.read_text())
    if found["settings"] != _asked(settings):
        raise ValueError(
            f"{out} was swept with other settings: give another --out, or remove it."
        )
    return [run for run in found["runs"] if run["optimizer"] not in settings.optimizer]


def cli() -> None:
    command_line.report("finetune_t5.sweep", main)


if __name__ == "__main__":
    cli()
