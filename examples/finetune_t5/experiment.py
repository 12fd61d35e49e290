"""Fine-tunes a T5 on English-French: `python -m examples.finetune_t5` (the main job).

One checkpoint that translates, thousands of pairs that it was not taught to translate
(it has read both sides, apart), each seen once,
and on the same batches SGD, SGD with the norm of its gradient clipped, SGD with 5 % of
its coordinates clipped, and Adam, each at the rate that `examples.finetune_t5.sweep`
chose by other held-out pairs. Along SGD's trajectory the paper's seven optimizers make
pseudo-updates, and their directional sharpness is measured. Everything goes to
runs/finetune_t5; interrupted, it goes on with --resume, to the same numbers.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import optax
import tyro

import optax_clip
from examples.data import translation
from examples.finetune_t5 import report
from examples.finetune_t5.measurements import TRAJECTORY, Instruments
from examples.lab import command_line, files, log, run_folder, training
from examples.lab.directions import momentum_histogram, with_pseudo_updates
from examples.lab.optimizers import (
    OPTIMIZERS,
    PAPER,
    check_fraction,
    check_names,
    check_rate,
    is_clipped,
    learning_rates,
    state_bytes,
    tuning_note,
)
from examples.lab.steps import Metrics
from examples.models import huggingface
from examples.tasks.translation import TranslationTask, load_translation


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fine-tunes a T5 on English-French pairs with several optimizers."""

    optimizer: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"One or several of {', '.join(OPTIMIZERS)}."),
    ] = ("sgd", "norm_clipped_sgd", "clipped_sgd", "adam")
    learning_rate: float | None = None
    """For a single optimizer; without it, that of the committed sweep."""
    fraction: float = 0.05
    """Fraction of the coordinates to clip, in [0, 1)."""
    schedule: Literal["linear", "constant"] = "linear"
    """How the learning rate goes: to 0 along a line, or not at all, as in the paper."""
    steps: int = 80
    batch_size: int = 48
    """Pairs in each step's batch; four trainings with larger ones take too long for a
    first try, and with smaller ones their noise hides the differences."""
    max_length: int = 32
    """Longest source and target in tokens; longer pairs are dropped."""
    evaluations: int = 8
    """How often, evenly spaced, to take the loss on the held-out pairs."""
    measurements: int = 2
    """How often, evenly spaced, to measure the sharpness."""
    measured_batches: int = 1
    """Size, in batches, of the fixed sample of training pairs for the sharpness."""
    held_out: int = 384
    """Held-out pairs, which are translated at the start and at the end."""
    init: str = "examples/checkpoints/t5-enfr-mixture"
    """A folder with a T5 in the Hugging Face layout, or a name on the hub."""
    dataset: Literal["libreoffice_untranslated", "en_fr", "opus_books"] = (
        "libreoffice_untranslated"
    )
    """Pages of LibreOffice's help that the checkpoint's pretraining did not translate,
    dialogues of two games, or the papers' data from the Hugging Face hub."""
    pairs: Path | None = None
    """A file of English<TAB>French lines, instead of the dataset."""
    seed: int = 0
    run: Path = Path("runs/finetune_t5")
    """The run folder."""
    save_every: int = 50
    """Steps between checkpoints."""
    resume: bool = False
    """Continue the run in that folder."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        check_names(self.optimizer)
        check_fraction(self.fraction)
        check_rate(self.learning_rate)
        if self.pairs and self.dataset != Settings.dataset:
            raise ValueError("--pairs and --dataset exclude each other: choose one.")
        run_folder.check_counts(self)

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers; where and how often they are saved does not."""
        fields = dataclasses.asdict(self)
        for name in ("run", "save_every", "resume"):
            del fields[name]
        return fields | {"pairs": self.pairs and str(self.pairs)}

    def training(self) -> dict[str, Any]:
        """What the best learning rate depends on."""
        fields = self.decisive()
        return {name: fields[name] for name in _TRAINING}

    def optimizer_of(self, name: str) -> Callable[[Any], optax.GradientTransformation]:
        """Peak learning rate -> optimizer, with its rate scheduled."""
        return lambda rate: OPTIMIZERS[name](self.scheduled(rate), self.fraction)

    def scheduled(self, rate: Any) -> Any:
        """The learning rate as a function of the step; Adafactor's None stays."""
        if self.schedule == "constant" or rate is None:
            return rate
        return optax.linear_schedule(rate, 0.0, self.steps)

    def evaluated_at(self) -> set[int]:
        """The numbers of updates after which the validation loss is taken."""
        return {0, *_evenly(self.evaluations, self.steps), *self.measured_at()}

    def measured_at(self) -> set[int]:
        """The numbers of updates after which the sharpness is measured."""
        return set(_evenly(self.measurements, self.steps))


def _evenly(count: int, steps: int) -> list[int]:
    return [max(1, round(steps * (i + 1) / count)) for i in range(count)]


_TRAINING = (
    "fraction",
    "schedule",
    "steps",
    "batch_size",
    "max_length",
    "init",
    "dataset",
    "pairs",
)


def prepare(settings: Settings) -> tuple[TranslationTask, dict[str, float | None]]:
    """Everything that can be refused, before any work; claims the run folder last."""
    settings.check()
    rates = learning_rates(settings.optimizer, settings.learning_rate)
    task = load_translation(settings)
    # Names may come to mean other files between a run and its continuation.
    identity = settings.decisive() | {
        "learning_rates": rates,
        "files": run_folder.fingerprint(*task.files),
    }
    run_folder.open_run(settings.run, identity, resume=settings.resume)
    return task, rates


def main(
    settings: Settings, task: TranslationTask, rates: dict[str, float | None]
) -> None:
    """Fine-tunes with each optimizer, measures along the way, reports."""
    print(describe(settings, task), flush=True)
    instruments = Instruments(task, settings.measured_batches, settings.measured_at())
    start = settings.run / "start.json"
    if not start.is_file():
        files.write_json(start, instruments.translate(task.params))
    for name, rate in rates.items():
        fine_tune(settings, task, instruments, name, rate)
    blank = translation.blank_lines(settings.pairs) if settings.pairs else 0
    report.summarise(settings.run, list(rates), task.counts() | {"blank": blank})
    report.write(settings.run)
    report.show(settings.run)


def fine_tune(
    settings: Settings,
    task: TranslationTask,
    instruments: Instruments,
    name: str,
    rate: float | None,
) -> None:
    """Trains with one optimizer and leaves everything about it in a sub-folder."""
    folder = settings.run / name
    plain = settings.optimizer_of(name)(rate)
    facts = {
        "learning_rate": rate,
        "state_bytes": state_bytes(plain, task.params),
        "diverged": None,
    }
    optimizer = optax.named_chain(("optimizer", plain))
    if name == TRAJECTORY:
        fractions = dict.fromkeys(PAPER, settings.fraction)
        optimizer = with_pseudo_updates(name, settings.scheduled(rate), fractions)
    try:
        state = training.train(
            folder,
            task.train_loss,
            task.params,
            optimizer,
            task.batch_at,
            steps=settings.steps,
            seed=settings.seed,
            # Those of the optimizer itself, not of the pseudo-updates.
            observe=_clip_metrics if is_clipped(name) else None,
            evaluate=instruments.evaluate,
            evaluate_at=settings.evaluated_at(),
            save_every=settings.save_every,
            label=name,
        )
    except training.DivergedError as error:
        files.write_json(folder / "facts.json", facts | {"diverged": error.step})
        return
    huggingface.save(folder / "model", task.config, state.params, jnp.float32)
    (folder / "model" / "spiece.model").write_bytes(task.spiece.read_bytes())
    translated = instruments.translate(state.params)
    files.write_json(folder / "translations.json", translated)
    if name == TRAJECTORY:
        sharpness = log.read_metrics(folder)[-1]["sharpness"]
        landscape = instruments.landscape(state, sharpness)
        files.write_json(settings.run / "landscape.json", landscape)
        histogram = momentum_histogram(state)
        files.write_json(settings.run / "histogram.json", histogram)
    files.write_json(folder / "facts.json", facts)


def describe(settings: Settings, task: TranslationTask) -> str:
    """What is about to happen, for people."""
    counts = task.counts()
    blank = translation.blank_lines(settings.pairs) if settings.pairs else 0
    skipped = f"{blank:,} blank lines of {settings.pairs} skipped. " if blank else ""
    return (
        f"{settings.init}: {optax.tree.size(task.params):,} parameters; "
        f"{counts['train']:,} pairs to train on, of which {settings.steps} steps see "
        f"{settings.steps * settings.batch_size / counts['train']:.0%}; "
        f"{counts['dropped']:,} of more than {settings.max_length} tokens dropped; "
        f"{counts['held_out']:,} held out. "
        f"{skipped}Results go to {settings.run}."
        + ("" if settings.learning_rate else tuning_note(settings.training()))
    )


def _clip_metrics(opt_state: Any) -> Metrics:
    return optax_clip.clip_metrics(opt_state["optimizer"])


def cli() -> None:
    command_line.run("finetune_t5", Settings, prepare, lambda s, made: main(s, *made))
