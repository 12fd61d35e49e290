"""Files of JSON and text that are written whole or not at all, and read back."""

import json
import lzma
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Writes all or nothing, whenever the process is killed."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a file of a run, indented for people."""
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Writes one JSON object a line."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[Line]:
    """Reads one JSON object a line; there are none where there is no file.

    A committed log may be compressed: for `runs.jsonl`, `runs.jsonl.xz` will do.
    """
    packed = path.with_name(path.name + ".xz")
    if not path.is_file() and packed.is_file():
        text = lzma.decompress(packed.read_bytes()).decode()
    else:
        text = path.read_text() if path.is_file() else ""
    # A line that a kill cut in two has no end.
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def exist(path: Path) -> bool:
    """Whether `read_lines` finds the file, compressed or not."""
    return path.is_file() or path.with_name(path.name + ".xz").is_file()


def jsonable(value: Any) -> Any:
    """Python numbers; JSON has no NaN and no infinity, they become null."""
    if isinstance(value, Mapping):  # not jax.tree.map, which sorts the names
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    finite = not isinstance(number, float) or math.isfinite(number)
    return number if finite else None
