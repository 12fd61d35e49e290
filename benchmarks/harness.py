"""What all benchmarks share: figures, rounds, provenance, tables and records."""

import dataclasses
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from examples.lab import files, provenance

RESULTS = Path(__file__).parent / "results"

Measured = dict[str, list[float]]
Row = dict[str, Any]


class Figure(NamedTuple):
    """A row of the table: the ratio of two measurements, or one alone."""

    name: str
    over: str
    under: str | None
    relation: Literal["<=", ">="]
    target: float

    def row(self, measured: Mapping[str, Sequence[float]]) -> Row:
        """Its median is None where one of the two was not measured."""
        over = measured.get(self.over, [])
        under = measured.get(self.under, []) if self.under else [1.0]
        # The slow ones have one round, the first.
        ratios = [a / b for a, b in zip(over, under, strict=False)] or [math.nan]
        median = statistics.median(ratios)
        met = median <= self.target if self.relation == "<=" else median >= self.target
        return {
            "figure": self.name,
            "median": median,
            "min": min(ratios),
            "max": max(ratios),
            "target": f"{self.relation} {self.target:g}",
            "met": None if math.isnan(median) else met,
        }


class Occasion(NamedTuple):
    """When a program began, and how busy the machine was."""

    date: str
    load: tuple[float, float, float]

    @classmethod
    def now(cls) -> "Occasion":
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(date, os.getloadavg())

    def provenance(self, command: str) -> Row:
        """What every record begins with; the work is done when this is called."""
        return {
            "command": command,
            "commit": provenance.commit(),
            "date": self.date,
            "made_with": provenance.made_with() | peer_versions(),
            "load_average": {"before": self.load, "after": os.getloadavg()},
        }


def command(program: str, settings: Any) -> str:
    """How these settings are typed; the last field, where to save, is left out."""
    words = ["python", "-m", f"benchmarks.{program}"]
    for field in dataclasses.fields(settings)[:-1]:
        name, value = field.name.replace("_", "-"), getattr(settings, field.name)
        if value is False:
            words.append(f"--no-{name}")
        elif value != field.default:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def at_least(settings: Any, **smallest: int) -> None:
    for name, least in smallest.items():
        if (value := getattr(settings, name)) < least:
            raise ValueError(f"--{name}: expected at least {least}; got {value}.")


def rounds(label: str, number: int) -> Iterable[int]:
    """From 0, which warms up, with a bar on the terminal."""
    console = Console(stderr=True)
    return track(
        range(number + 1), label, console=console, disable=not console.is_terminal
    )


def import_torch() -> Any:
    return importlib.import_module("torch") if installed("torch") else None


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def peer_versions() -> dict[str, str]:
    torch = import_torch()
    optional = {} if torch is None else {"torch": torch.__version__}
    ours = {name: importlib.metadata.version(name) for name in ("numpy", "optax_clip")}
    return ours | optional


def console() -> Console:
    """Wide enough for a table, even in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def figures_table(title: str, rows: Iterable[Row], **beside: str) -> Table:
    """`beside` are further columns: what rows call their numbers, and the heads."""
    table = Table("figure", title=title)
    for column in ("median", "min - max", "target", "met", *beside.values()):
        table.add_column(column, justify="right")
    for row in rows:
        median = f"{row['median']:.3g}" if row["met"] is not None else "not measured"
        spread = (
            f"{row['min']:.3g} - {row['max']:.3g}" if row["met"] is not None else ""
        )
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        numbers = [row.get(name, math.nan) for name in beside]
        others = ["" if math.isnan(number) else f"{number:.3g}" for number in numbers]
        table.add_row(row["figure"], median, spread, row["target"], met, *others)
    return table


def print_origin(console: Console, record: Row, peer: str = "torch") -> None:
    """The last lines: what is not measured for want of the peer, and the machine."""
    if peer not in record["made_with"]:
        console.print(
            f"{peer} is not installed: its rows are not measured.", style="dim"
        )
    before, after = (record["load_average"][when][0] for when in ("before", "after"))
    loads = f"load average {before:.1f} before, {after:.1f} after"
    console.print(f"{record['made_with']['device']}; {loads}", style="dim")


def save(path: Path, record: Row, names: Sequence[str] = ()) -> None:
    """Replaces the record of the same device and named fields; the others stay."""
    device = record["made_with"]["device"]
    key = " / ".join([device, *(str(record[name]) for name in names)])
    records = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, dict(sorted({**records, key: record}.items())))
