"""Files of one text on each line."""

from pathlib import Path


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 file of `what`, such as "one document per line"."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a file of {what}, found no such file."
        )
    try:
        # str.splitlines would break lines at U+2028 and friends, too.
        return path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, got other bytes ({error})."
        ) from None
