"""Everything that one accelerator can tell: `python -m benchmarks.accelerator`.

It takes at most 8 minutes (--minutes), needs no network, and runs on a GPU, a TPU or a
CPU (--preset tiny). A process of its own measures one row after the other; where it
crashes, hangs or is killed, the row is recorded with what it had, and the next process
goes on with the rest. What is known is written after every answer, so that a SIGTERM
loses nothing. --resume goes on with the rows that a file lacks.
"""

import argparse
import dataclasses
import queue
import shlex
import signal
import time
from pathlib import Path
from types import FrameType

from benchmarks.accelerator import presets, rows
from benchmarks.accelerator.process import Process
from benchmarks.accelerator.record import Record
from benchmarks.harness import Row


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and for how long."""

    preset: str = "full"
    minutes: float = 8.0
    row_minutes: float = 2.5
    only: str = ""
    resume: bool = False
    commit: str | None = None
    out: Path | None = None

    def command(self) -> str:
        """How these settings are typed, but for where to save."""
        words = ["python", "-m", "benchmarks.accelerator"]
        for field in dataclasses.fields(self)[:-1]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"--{field.name.replace('_', '-')}")
                words += [] if value is True else [str(value)]
        return shlex.join(words)


HELP = {
    "preset": "the sizes: full or tiny",
    "minutes": "for everything; what is left then is skipped",
    "row_minutes": "for one row; then it is given up",
    "only": "a part of the names of the rows to measure, a regular expression",
    "resume": "leave out the rows that the file has already",
    "commit": "of this code, where there is no repository to ask",
    "out": "the file: results/accelerator.json, or runs/accelerator.json for a CPU",
}


def main(settings: Settings) -> Row:
    """Measures, writes and returns the record."""
    end = time.monotonic() + 60 * settings.minutes
    names = list(rows.every(presets.PRESETS[settings.preset]))
    record = Record(
        names, settings.preset, settings.command(), settings.commit, settings.out
    )
    record.choose(settings.only, resume=settings.resume)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        while (waiting := record.waiting()) and time.monotonic() < end:
            with Process(settings.preset, waiting) as process:
                follow(process, record, end, 60 * settings.row_minutes)
        record.close("There was no time left.")
    except (KeyboardInterrupt, SystemExit):
        record.close("The program was told to end.")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    record.show()
    return record.content


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)


def follow(process: Process, record: Record, end: float, most: float) -> None:
    """Notes what a process says until it ends or hangs, or the time is up."""
    row, limit = None, time.monotonic() + most
    while True:
        try:
            message = process.message(min(end, limit) - time.monotonic())
        except queue.Empty:
            late = time.monotonic() >= end
            why = "The time was up." if late else f"It took more than {most:.0f} s."
            record.break_off(row, why)
            return
        if message is None:
            code = process.process.wait()
            record.break_off(row, f"Its process ended with {code}, or had no memory.")
            return
        if "begins" in message:
            row, limit = message["begins"], time.monotonic() + most
        record.note(message)
        if "ends" in message:
            row = None
            if not record.waiting():
                return


def cli() -> None:
    parser = argparse.ArgumentParser("benchmarks.accelerator", description=__doc__)
    for field in dataclasses.fields(Settings):
        name, help_ = f"--{field.name.replace('_', '-')}", HELP[field.name]
        if field.type is bool:
            parser.add_argument(name, action="store_true", help=help_)
        else:
            kind = float if field.type is float else str
            parser.add_argument(name, type=kind, default=field.default, help=help_)
    given = parser.parse_args()
    if given.preset not in presets.PRESETS:
        parser.error(f"--preset: expected one of {', '.join(presets.PRESETS)}.")
    given.out = None if given.out is None else Path(given.out)
    try:
        main(Settings(**vars(given)))
    except ValueError as refused:
        parser.error(str(refused))
