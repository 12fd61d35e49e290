"""Documents for language models: where they come from, and which are held out.

    load("python") -> Documents(train, valid, files)

Of the sets that have names one document in sixteen is held out, by a hash of its name.
"""

import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from examples.data import reviews, translation

NAMES = ("reviews", "python", "help_english", "help_french")
# Not what the library does: tests, other people's packages, and generated texts.
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "turtledemo",
    "__pycache__",
}


class Documents(NamedTuple):
    train: list[str]
    valid: list[str]
    files: list[Path]  # that they are from


def load(name: str, path: Path | None = None, seed: int = 0) -> Documents:
    """A set by its name, or a user's file of one document per line, split by the seed.

    Raises:
        ValueError, OSError, ImportError: it is not there, or not what is expected.
    """
    if path or name == "reviews":
        split = reviews.load(path, seed)
        return Documents(split.train, split.valid, [path or reviews.package_file()])
    if name == "python":
        return python_library(Path(sysconfig.get_paths()["stdlib"]))
    return help_pages(name.removeprefix("help_"))


def python_library(folder: Path) -> Documents:
    """The modules of a Python's standard library, whose licence is the PSF's.

    Each version of Python has its own.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not _LEFT_OUT & set(path.relative_to(folder).parts)
    ]
    texts = {path: path.read_text("utf-8", errors="ignore") for path in paths}
    train, valid = [], []
    for path, text in texts.items():
        name = path.relative_to(folder).as_posix()
        (valid if translation.is_one_in_sixteen(name) else train).append(text)
    if not (train and valid):
        raise ValueError(
            f"{folder}: expected the modules of Python's standard library, found "
            f"{len(paths)} files."
        )
    return Documents(train, valid, paths)


def help_pages(language: str) -> Documents:
    """LibreOffice's help in "english" or "french", a page each; the pairs have both."""
    train, valid = (_pages(part, language) for part in translation.libreoffice_split())
    return Documents(train, valid, list(translation.LIBREOFFICE))


def _pages(pairs: list[translation.Pair], language: str) -> list[str]:
    pages = defaultdict(list)
    for pair in pairs:
        pages[pair.origin].append(getattr(pair, language))
    return ["\n".join(lines) for lines in pages.values()]
