"""Git LFS pointers: what a clone without Git LFS has in place of a large file."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"


def refuse(path: Path) -> None:
    """Raises an error where a pointer is in place of the file.

    Raises:
        ValueError: what to run is in the sentence.
    """
    with path.open("rb") as file:
        if file.read(len(_START)) == _START:
            raise ValueError(
                f"{path}: a Git LFS pointer, not the file itself: run `git lfs "
                f"install`, then `git lfs pull` in {path.parent}."
            )
