"""The tasks of the experiments by name, each with a model of the project to start from.

    task = load(Choice("masked_lm"), max_length=64, batch_size=128, seed=0)

`Choice` is the part of their settings that chooses one.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from examples.tasks.language import load_causal_lm, load_masked_lm
from examples.tasks.task import Task
from examples.tasks.translation import load_translation

TaskName = Literal["translation", "masked_lm", "causal_lm"]

CHECKPOINTS = {
    "translation": "examples/checkpoints/t5-enfr-small",
    "masked_lm": "examples/checkpoints/bert-reviews-small",
}
TITLES = {
    "translation": "translation",
    "masked_lm": "masked language model",
    "causal_lm": "causal language model",
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A task, its model and its data."""

    task: TaskName = "translation"
    init: str | None = None
    """A folder with a model in the Hugging Face layout, a name on the hub, or
    "minilm"; without it, the project's own for the task."""
    dataset: Literal["en_fr", "opus_books"] = "en_fr"
    """The committed pairs, or the paper's data from the Hugging Face hub."""
    pairs: Path | None = None
    """A file of English<TAB>French lines, instead of the dataset."""
    documents: Path | None = None
    """For the language models: a file with a text on each line, instead of reviews."""

    def checkpoint(self) -> str:
        """What the model is loaded from."""
        if self.init is None and self.task not in CHECKPOINTS:
            raise ValueError(
                "--task causal_lm has no committed model: give one with --init, such "
                "as what `python -m examples.pretrain encoder --settings.causal` makes."
            )
        return self.init or CHECKPOINTS[self.task]


def load(choice: Choice, *, max_length: int, batch_size: int, seed: int) -> Task:
    """Loads and tokenises everything; next to nothing is held out.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    translating = choice.task == "translation"
    if choice.documents and translating:
        raise ValueError("--documents is for language models; translation has --pairs.")
    if not translating and (choice.pairs or choice.dataset != "en_fr"):
        raise ValueError(
            "--pairs and --dataset are for translation; language models have "
            "--documents."
        )
    if choice.pairs and choice.dataset != "en_fr":
        raise ValueError("--pairs and --dataset exclude each other: choose one.")
    settings = _Settings(
        choice.checkpoint(),
        max_length,
        batch_size,
        seed,
        choice.dataset,
        choice.pairs,
        choice.documents,
    )
    loaders = {
        "translation": load_translation,
        "masked_lm": load_masked_lm,
        "causal_lm": load_causal_lm,
    }
    return loaders[choice.task](settings)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the loaders ask for."""

    init: str
    max_length: int
    batch_size: int
    seed: int
    dataset: Literal["en_fr", "opus_books"]
    pairs: Path | None
    documents: Path | None
    measured_batches: int = 1
    held_out: int = 1
