"""The tasks of the experiments by name, each with a model of the project to start from.

    task = load(Choice("masked_lm"), max_length=64, batch_size=128, seed=0)

`Choice` is the part of their settings that chooses one.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from examples.models import pretrained_llama, scratch_llama
from examples.models.pretrained_llama import is_llama
from examples.tasks.language import load_causal_lm, load_masked_lm
from examples.tasks.llama import load_llama
from examples.tasks.task import Task
from examples.tasks.translation import load_translation

TaskName = Literal["translation", "masked_lm", "causal_lm"]
Dataset = Literal[
    "en_fr",
    "libreoffice",
    "libreoffice_untranslated",
    "opus_books",
    "python",
    "help_english",
    "help_french",
]
_PAIRS = ("en_fr", "libreoffice", "libreoffice_untranslated", "opus_books")

CHECKPOINTS = {
    "translation": "examples/checkpoints/t5-enfr-mixture",
    "masked_lm": "examples/checkpoints/bert-reviews-small",
}
TITLES = {
    "translation": "translation",
    "masked_lm": "masked language model",
    "causal_lm": "causal language model",
}


def data_of(task: str, dataset: str) -> str:
    """What the dataset that settings record is called, for a title."""
    return "reviews" if task != "translation" and dataset in _PAIRS else dataset


def name_of(init: str) -> str:
    """The model that is loaded from there, for a title."""
    return "from scratch" if init == scratch_llama.NAME else Path(init).name


@dataclasses.dataclass(frozen=True)
class Choice:
    """A task, its model and its data."""

    task: TaskName = "translation"
    init: str | None = None
    """A folder with a model in the Hugging Face layout, a name on the hub, "minilm",
    "smollm2" or another Llama's .gguf, or "scratch" for a small Llama with random
    weights; without it, the project's own for the task."""
    dataset: Dataset | None = None
    """Committed pairs of games or of LibreOffice's help (all, or what no pretraining
    translated, which is the default), or the paper's from the Hugging Face hub. For a
    Llama: Python's standard library or that help in one language, instead of
    reviews; for SmolLM2 the help in French is the default."""
    pairs: Path | None = None
    """A file of English<TAB>French lines, instead of the dataset."""
    documents: Path | None = None
    """For the language models: a file with a text on each line, instead of reviews."""

    def data(self) -> Dataset:
        """The dataset by name; "en_fr" for the reviews that language models have."""
        if self.dataset:
            return self.dataset
        if self.init == pretrained_llama.NAME and not self.documents:
            return "help_french"
        own = self.task == "translation" and not self.pairs
        return "libreoffice_untranslated" if own else "en_fr"

    def checkpoint(self) -> str:
        """What the model is loaded from."""
        if self.init is None and self.task not in CHECKPOINTS:
            raise ValueError(
                "--task causal_lm has no committed model: give one with --init, such "
                "as smollm2, which is fetched, scratch for random weights, or what "
                "`python -m examples.pretrain encoder --settings.causal` makes."
            )
        return self.init or CHECKPOINTS[self.task]

    def chosen(self) -> dict[str, str]:
        """What the settings of a run record in place of what was not given."""
        return {"init": self.checkpoint(), "dataset": self.data()}


def load(
    choice: Choice, *, max_length: int, batch_size: int, seed: int, held_out: int = 1
) -> Task:
    """Loads and tokenises everything; so many held-out rows, where there are so many.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    translating = choice.task == "translation"
    llama = choice.task == "causal_lm" and _is_llama(choice.checkpoint())
    if choice.init in (scratch_llama.NAME, pretrained_llama.NAME) and not llama:
        raise ValueError(f"--init {choice.init} is for --task causal_lm.")
    if choice.documents and translating:
        raise ValueError("--documents is for language models; translation has --pairs.")
    if not translating and (choice.pairs or choice.dataset in _PAIRS):
        raise ValueError(
            "--pairs and --dataset with pairs are for translation; language models "
            "have --documents."
        )
    if choice.dataset and choice.dataset not in _PAIRS and not llama:
        raise ValueError(f"--dataset {choice.dataset} is for a Llama, such as smollm2.")
    if choice.dataset and (choice.pairs or choice.documents):
        other = "--pairs" if choice.pairs else "--documents"
        raise ValueError(f"{other} and --dataset exclude each other: choose one.")
    settings = _Settings(
        choice.checkpoint(),
        max_length,
        batch_size,
        seed,
        choice.data(),
        choice.pairs,
        choice.documents,
        held_out=held_out,
    )
    if llama:
        dataset = data_of(choice.task, choice.data())
        return load_llama(dataclasses.replace(settings, dataset=dataset))
    loaders = {
        "translation": load_translation,
        "masked_lm": load_masked_lm,
        "causal_lm": load_causal_lm,
    }
    return loaders[choice.task](settings)


def _is_llama(init: str) -> bool:
    return init == scratch_llama.NAME or is_llama(init)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the loaders ask for."""

    init: str
    max_length: int
    batch_size: int
    seed: int
    dataset: str
    pairs: Path | None
    documents: Path | None
    measured_batches: int = 1
    held_out: int = 1
