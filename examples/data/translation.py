"""English-French pairs: where they come from, how they are split, and their tokens.

    committed_split() / libreoffice_split() / file_split(path, seed)
        / opus_books_split(seed) -> Split(train, valid) of Pair
    libreoffice_parts() -> Parts(translated, untranslated, valid) of Pair
        -> tokenise(pairs, vocabulary, max_length) -> Tokenised(arrays, dropped)

`batching.batch_at` takes batches from the arrays.
"""

import hashlib
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.data import hub
from examples.data.batching import Arrays, padded
from examples.data.vocabulary import PAD, Vocabulary

PREFIX = "translate English to French: "
_KINDS = "tsv", "sources.txt"
HELD_OUT = ("wesnoth-tsg", "wesnoth-sota")
# The pairs, and where each is from.
EN_FR, LIBREOFFICE = (
    tuple(Path(__file__).parent / name / f"{name}.{kind}.xz" for kind in _KINDS)
    for name in ("en_fr", "libreoffice")
)
_OPUS_TRAIN, _OPUS_VALID = 10_240, 1_024


class Pair(NamedTuple):
    """One sentence in both languages, and the story or file that it is from."""

    english: str
    french: str
    origin: str


class Split(NamedTuple):
    train: list[Pair]
    valid: list[Pair]


class Parts(NamedTuple):
    """LibreOffice's help by what is done with it; every page is in one part only."""

    translated: list[Pair]  # for a pretraining that is to learn translation
    untranslated: list[Pair]  # for a fine-tuning on pairs that it was not taught
    valid: list[Pair]


class Tokenised(NamedTuple):
    """Arrays "source" and "target", padded with 0, and how many pairs were too long."""

    arrays: Arrays
    dropped: int


def committed_split() -> Split:
    """The pairs of two games; whole stories are held out for validation."""
    return _committed(EN_FR, HELD_OUT.__contains__)


def libreoffice_split() -> Split:
    """The pairs of LibreOffice's help; one page in sixteen is held out as a whole."""
    return _committed(LIBREOFFICE, is_one_in_sixteen)


def libreoffice_parts() -> Parts:
    """The same pairs; a third of the training pages is kept for fine-tuning."""
    train, valid = libreoffice_split()
    parts = Parts([], [], valid)
    for pair in train:
        kept = hashlib.sha256(pair.origin.encode()).digest()[1] % 3 == 0
        (parts.untranslated if kept else parts.translated).append(pair)
    return parts


def is_one_in_sixteen(origin: str) -> bool:
    """By the name alone, so that another edition of the pages is split alike."""
    return hashlib.sha256(origin.encode()).digest()[0] % 16 == 0


def file_split(path: Path, seed: int, valid_fraction: float = 0.05) -> Split:
    """The pairs of a user's file, a seeded random part of them held out."""
    return _random_split(read_tsv(path), seed, valid_fraction)


def opus_books_split(seed: int) -> Split:
    """The papers' data: opus_books en-fr, shuffled, the first 10,240 pairs.

    The papers report training losses only; the next 1,024 pairs are for validation.
    """
    books = hub.load(
        "opus_books",
        "Helsinki-NLP/opus_books",
        "en-fr",
        split="train",
        instead="the committed pairs and --pairs FILE.tsv",
    )
    rows = books.shuffle(seed=seed).select(range(_OPUS_TRAIN + _OPUS_VALID))
    pairs = [Pair(row["en"], row["fr"], "opus_books") for row in rows["translation"]]
    return Split(train=pairs[:_OPUS_TRAIN], valid=pairs[_OPUS_TRAIN:])


def blank_lines(path: Path) -> int:
    """How many lines of a user's file `read_tsv` skips."""
    return sum(_is_blank(line) for line in _lines(path))


def read_tsv(path: Path) -> list[Pair]:
    """Reads English<TAB>French lines; blank ones are skipped, a bad one is an error."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a file of English<TAB>French lines, found no such file."
        )
    lines = enumerate(_lines(path), start=1)
    parsed = {number: _parse(line) for number, line in lines if not _is_blank(line)}
    bad = [(n, row) for n, row in parsed.items() if isinstance(row, str)]
    if bad:
        number, found = bad[0]
        others = f"; bad lines in all: {len(bad)}" if len(bad) > 1 else ""
        raise ValueError(
            f"{path}, line {number}: expected English<TAB>French in UTF-8, "
            f"got {found}{others}."
        )
    if len(parsed) < 2:
        raise ValueError(f"{path}: expected at least 2 pairs (train and validation).")
    columns = [row for row in parsed.values() if isinstance(row, tuple)]
    return [Pair(english, french, path.name) for english, french in columns]


def tokenise(
    pairs: Sequence[Pair], vocabulary: Vocabulary, max_length: int = 64
) -> Tokenised:
    """Tokenises once; pairs with a side of more than max_length tokens are dropped."""
    source = vocabulary.encode([PREFIX + pair.english for pair in pairs])
    target = vocabulary.encode([pair.french for pair in pairs])
    kept = [
        (s, t)
        for s, t in zip(source, target, strict=True)
        if max(len(s), len(t)) <= max_length
    ]
    if not kept:
        raise ValueError(
            f"expected pairs of at most {max_length} tokens, got none among "
            f"{len(pairs)}: raise the maximal length."
        )
    arrays = {
        name: padded([pair[side] for pair in kept], max_length, PAD)
        for side, name in enumerate(("source", "target"))
    }
    return Tokenised(arrays, dropped=len(pairs) - len(kept))


def _committed(paths: tuple[Path, ...], held_out: Callable[[str], bool]) -> Split:
    lines, origins = map(_read_xz, paths)
    split = Split([], [])
    for line, origin in zip(lines, origins, strict=True):
        english, french = line.split("\t")
        part = split.valid if held_out(origin) else split.train
        part.append(Pair(english, french, origin))
    return split


def _lines(path: Path) -> list[bytes]:
    """Of bytes: str.splitlines would break lines at U+2028 and friends, too."""
    return path.read_bytes().removesuffix(b"\n").split(b"\n")


def _is_blank(line: bytes) -> bool:
    return not line.strip(b" \r")


def _read_xz(path: Path) -> list[str]:
    return lzma.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")


def _parse(line: bytes) -> tuple[str, str] | str:
    """Both columns, or what is there instead of them."""
    try:
        columns = line.decode("utf-8-sig").strip("\r").split("\t")
    except UnicodeDecodeError:
        return "bytes that are not UTF-8"
    if len(columns) != 2:
        return f"{len(columns)} column{'s' if len(columns) > 1 else ''}"
    english, french = (column.strip() for column in columns)
    if not (english and french):
        return "an empty column"
    return english, french


def _random_split(pairs: list[Pair], seed: int, valid_fraction: float) -> Split:
    order = np.random.default_rng(seed).permutation(len(pairs))
    held_out = max(1, round(valid_fraction * len(pairs)))
    shuffled = [pairs[row] for row in order]
    return Split(train=shuffled[held_out:], valid=shuffled[:held_out])
