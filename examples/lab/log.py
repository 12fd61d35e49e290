"""The append-only log of a run: one JSON object a line, flushed as it is written.

Log(path)                   lines that are there already stay, except one cut in two
log.append(line)            adds a line
log.once(wanted, work)      does a piece of work once, however often a run is resumed
metrics(folder, start)      the log of a training, whose lines have a step
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.lab.files import Line, jsonable, read_lines, write_lines


class Log:
    """A file of lines, and the same lines in memory.

    Args:
        path: the file; lines that `keep` refuses are dropped from it at once.
        show: it is called with every line that is added.
    """

    def __init__(
        self,
        path: Path,
        show: Callable[[Line], Any] = lambda _: None,
        keep: Callable[[Line], bool] = lambda _: True,
    ) -> None:
        self.path, self.show = path, show
        self.lines = [line for line in read_lines(path) if keep(line)]
        # A line that a kill cut in two goes, or the next one would be glued to it.
        write_lines(path, self.lines)

    def append(self, line: Mapping[str, Any]) -> Line:
        """Adds a line, in numbers that JSON has."""
        self.lines.append(jsonable(line))
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        self.show(self.lines[-1])
        return self.lines[-1]

    def once(self, wanted: Mapping[str, Any], work: Callable[[], Line]) -> Line:
        """The line that has what is wanted; if there is none, what `work` returns."""
        line = self.find(wanted)
        return self.append({**wanted, **work()}) if line is None else line

    def find(self, wanted: Mapping[str, Any]) -> Line | None:
        """The line that has what is wanted."""
        items = jsonable(wanted).items()
        return next((line for line in self.lines if items <= line.items()), None)


@contextlib.contextmanager
def metrics(folder: Path, start: int) -> Iterator[Callable[..., Line]]:
    """`log(step, **values)` appends; lines of steps to be run again are dropped."""
    log = Log(folder / "metrics.jsonl", keep=lambda line: line["step"] < start)
    before = log.lines[-1]["seconds"] if log.lines else 0.0
    begin = time.monotonic() - before

    def add(step: int, **values: Any) -> Line:
        seconds = round(time.monotonic() - begin, 3)
        return log.append({"step": step, **values, "seconds": seconds})

    yield add


def read_metrics(folder: Path) -> list[Line]:
    """The lines of a training's log, without one that a kill cut in two."""
    return read_lines(folder / "metrics.jsonl")
