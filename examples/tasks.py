"""The tasks of the experiments by name, each with a model of the project to start from.

task = load(TaskOptions("masked_lm", max_length=64, batch_size=128))
"""

import dataclasses
from pathlib import Path
from typing import Literal

from examples.language_task import LanguageTask, load_causal_lm, load_masked_lm
from examples.task import TranslationTask, load_translation

TaskName = Literal["translation", "masked_lm", "causal_lm"]
AnyTask = TranslationTask | LanguageTask

CHECKPOINTS = {
    "translation": "examples/checkpoints/t5-enfr-small",
    "masked_lm": "examples/checkpoints/bert-reviews-small",
    "causal_lm": "examples/checkpoints/causal-reviews-small",
}
TITLES = {
    "translation": "translation",
    "masked_lm": "masked language model",
    "causal_lm": "causal language model",
}


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What decides a task, for programs that hold nothing out."""

    task: TaskName
    max_length: int
    batch_size: int
    start: str | None = None
    dataset: Literal["en_fr", "opus_books"] = "en_fr"
    pairs: Path | None = None
    documents: Path | None = None
    measured_batches: int = 1
    held_out: int = 1
    seed: int = 0

    @property
    def init(self) -> str:
        """The checkpoint: without another one, the project's own for this task."""
        return self.start or CHECKPOINTS[self.task]


def load(options: TaskOptions) -> AnyTask:
    """Loads and tokenises everything.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    translating = options.task == "translation"
    if options.documents and translating:
        raise ValueError("--documents is for language models; translation has --pairs.")
    if not translating and (options.pairs or options.dataset != "en_fr"):
        raise ValueError(
            "--pairs and --dataset are for translation; language models have "
            "--documents."
        )
    if options.pairs and options.dataset != "en_fr":
        raise ValueError("--pairs and --dataset exclude each other: choose one.")
    loaders = {
        "translation": load_translation,
        "masked_lm": load_masked_lm,
        "causal_lm": load_causal_lm,
    }
    return loaders[options.task](options)
