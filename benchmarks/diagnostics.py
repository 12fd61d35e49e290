"""What the diagnostics cost: `python -m benchmarks.diagnostics` (25 minutes).

On the example's T5 and on t5-small's sizes with random weights, the sharpness takes
turns with the gradient and with torch's double backward (A B C A B C ...). Each section
is a process of its own: pinned to one core, where CPU time counts, and again on two
cores, by the wall. A figure is a ratio within a round: its median over the rounds, and
its spread. The results are merged into benchmarks/results/diagnostics.json.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks import harness
from benchmarks.harness import RESULTS, Figure, Measured, Row

ROOT = Path(__file__).parents[1]
EXAMPLE = "example's T5"
SMALL = "T5-small"
MODELS: Mapping[str, dict[str, Any]] = {
    EXAMPLE: {"checkpoint": str(ROOT / "examples/checkpoints/t5-enfr-mixture")},
    SMALL: {},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    rounds: int = 5
    t5_small: bool = True  # not only the example's T5
    peers: bool = True  # torch, if it and transformers are installed
    memory: bool = True  # the peaks, in processes of their own
    spectrum: bool = True  # eigenvalues of all blocks: half of the time
    out: Path = RESULTS / "diagnostics.json"

    def __post_init__(self):
        harness.at_least(self, rounds=1)


ONE, FORWARD, SEVEN = "one direction", "forward over forward", "seven directions"
SPEED = (
    Figure("forward over reverse / gradient", ONE, "gradient", "<=", 2.4),
    Figure("forward over forward / gradient", FORWARD, "gradient", "<=", 1.8),
    Figure("torch double backward / ours", "torch double backward", FORWARD, ">=", 1.5),
    Figure("torch gradient / ours", "torch gradient", "gradient", ">=", 0.95),
    Figure("seven directions / one", SEVEN, ONE, "<=", 6.5),
    Figure("compile seven / one", f"compile {SEVEN}", f"compile {ONE}", "<=", 1.5),
)
MEMORY = {  # tokens, microbatches, gigabytes to stay below
    EXAMPLE: ((1024, 48), 64, 1.5),
    SMALL: ((8, 64), 4, 2.0),
}
SPECTRUM = Figure(
    "gradients a block, all ends", "spectrum a block", "gradient", "<=", 60
)


def main(settings: Settings, models: Mapping[str, Mapping[str, Any]] = MODELS) -> Row:
    """Measures, prints the table and saves what it returns."""
    occasion = harness.Occasion.now()
    names = [name for name in models if name == EXAMPLE or settings.t5_small]
    cores = sorted(os.sched_getaffinity(0))
    measured: dict[str, dict[str, Measured]] = {}
    for name in names:
        measured[name] = {}
        for section, job in jobs(settings, name).items():
            job = {"model": models[name], "label": f"{name}, {section}", **job}
            used = cores[:2] if section == "wall" else cores[-1:]
            measured[name][section] = in_process(job, used)
    record = {
        **occasion.provenance(harness.command("diagnostics", settings)),
        "rows": [row for name in names for row in rows(name, measured[name])],
        "measured": measured,  # seconds, and what is called bytes
    }
    show(record)
    harness.save(settings.out, record)
    return record


def jobs(settings: Settings, name: str) -> dict[str, Row]:
    """What to measure of a model, by section."""
    speed = {"section": "speed", "rounds": settings.rounds, "peers": settings.peers}
    jobs: dict[str, Row] = {"CPU time": speed, "wall": speed}
    if settings.memory:
        tokens, microbatches, _ = MEMORY[name]
        sizes = {"tokens": tokens, "microbatches": microbatches}
        jobs["memory"] = {"section": "memory", **sizes}
    if settings.spectrum and name == EXAMPLE:
        jobs["spectrum"] = {"section": "spectrum"}
    return jobs


def in_process(job: Row, cores: list[int]) -> Measured:
    """Runs a section in a process of its own that has these cores."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "job.json", Path(name) / "measured.json"
        source.write_text(json.dumps(job))
        command = [sys.executable, "-m", "benchmarks.curvature", source, target]
        # On a busy machine torch's threads, waiting actively, take ten times as long.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        with pinned(cores):
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads(target.read_text())


@contextlib.contextmanager
def pinned(cores: list[int]) -> Iterator[None]:
    """What is started inside inherits the cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rows(name: str, measured: Mapping[str, Measured]) -> list[Row]:
    """The rows of a model; those of speed with the wall time of two cores beside it."""
    found = []
    for figure in SPEED:
        wall = figure.row(measured["wall"])
        beside = {f"wall_{k}": wall[k] for k in ("median", "min", "max")}
        found.append(figure.row(measured["CPU time"]) | beside)
    tokens, microbatches, most = MEMORY[name]
    what = f"{tokens[0]} x {tokens[1]} tokens in {microbatches} parts"
    peak, temporary = (
        {"peak": [x / 1e9 for x in measured.get("memory", {}).get(kind, [])]}
        for kind in ("peak bytes", "temporary bytes")
    )
    found.append(Figure(f"GB at the peak, {what}", "peak", None, "<=", most).row(peak))
    found.append(
        Figure("GB of XLA's own in it", "peak", None, "<=", most).row(temporary)
    )
    if name == EXAMPLE:
        found.append(SPECTRUM.row(measured.get("spectrum", {})))
    return [{"model": name, **row} for row in found]


def show(record: Row) -> None:
    console = harness.console()
    for name in record["measured"]:
        rows = [row for row in record["rows"] if row["model"] == name]
        title = f"{name}, 8 x (64 + 64) tokens, CPU time of one core"
        console.print(harness.figures_table(title, rows, wall_median="wall, two cores"))
    harness.print_origin(console, record)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
