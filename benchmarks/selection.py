"""What exact top-k clipping costs: `python -m benchmarks.selection` (4 minutes).

Clips and threshold searches take turns (A B C A B C ...) on the same heavy-tailed
gradients in the shapes of T5-small. Every round draws new ones, of another scale, so
that nobody profits from the round before. A figure is a ratio within a round: its
median over the rounds, and its spread. Compilation is timed apart, all else is blocked
on. The results are merged into benchmarks/results/selection.json.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import optax_clip
from benchmarks import contestants
from benchmarks.contestants import CYCLE, FRACTION, SLOW, Clip, Data, Shapes
from examples import run_folder
from examples.models import t5

T5_SMALL = t5.T5Config()

Measured = dict[str, list[float]]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    layout: Literal["t5-small", "one-leaf", "ten-thousand-leaves"] = "t5-small"
    coordinates: int = 60_506_624  # about; every leaf is scaled
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 9
    peers: bool = True  # numpy, and torch if it is installed
    slow: bool = True  # those that sort everything: one round each
    step: bool = True  # a training step of T5-small on 8 x 64 tokens
    out: Path = Path(__file__).parent / "results" / "selection.json"

    def __post_init__(self):
        for name, least in {"coordinates": 10_000, "rounds": 1}.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name}: expected at least {least}; got {value}.")

    def command(self) -> str:
        words = ["python", "-m", "benchmarks.selection"]
        for field in dataclasses.fields(self)[:-1]:
            value = getattr(self, field.name)
            if value is False:
                words.append(f"--no-{field.name}")
            elif value != field.default:
                words += [f"--{field.name}", str(value)]
        return shlex.join(words)


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


OURS = "global clip"
FIGURES = (
    Figure("global clip / fixed clip", OURS, "fixed clip", "<=", 3),
    Figure("leaf clip / fixed clip", "leaf clip", "fixed clip", "<=", 3.5),
    Figure("np.partition / global clip", "np.partition", OURS, ">=", 2),
    Figure("torch.kthvalue / global clip", "torch.kthvalue", OURS, ">=", 4),
    Figure("torch.topk / global clip", "torch.topk", OURS, ">=", 15),
    Figure("jnp.sort clip / global clip", "jnp.sort clip", OURS, ">=", 120),
    Figure("lax.top_k clip / global clip", "lax.top_k clip", OURS, ">=", 110),
    Figure("torch.sort / global clip", "torch.sort", OURS, ">=", 80),
    Figure("compile global clip, s", "compile global clip", None, "<=", 2),
    Figure("compile leaf clip, s", "compile leaf clip", None, "<=", 3),
    Figure("temporary / gradients, global", f"bytes {OURS}", "bytes", "<=", 0.02),
    Figure("temporary / gradients, leaf", "bytes leaf clip", "bytes", "<=", 0.02),
    Figure("refresh_every=10 / fixed clip", "refreshing clip", "fixed clip", "<=", 1.3),
    Figure("training step, clipped / not", "clipped step", "plain step", "<=", 1.06),
)


def main(settings: Settings, model: t5.T5Config = T5_SMALL) -> Row:
    """Measures, prints the tables and saves what it returns."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load_before = os.getloadavg()
    shapes = leaf_shapes(settings, model)
    measured = contest(settings, shapes)
    if settings.step:
        measured |= training_steps(settings, model)
    record = {
        "command": settings.command(),
        "date": date,
        "made_with": run_folder.provenance() | peer_versions(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "layout": settings.layout,
        "leaves": len(shapes),
        "coordinates": sum(map(math.prod, shapes)),
        "dtype": settings.dtype,
        "fraction": FRACTION,
        "rows": [figure.row(measured) for figure in FIGURES],
        "measured": measured,  # seconds, and what is called bytes
    }
    show(record)
    save(settings.out, record)
    return record


def leaf_shapes(settings: Settings, model: t5.T5Config) -> Shapes:
    if settings.layout == "one-leaf":
        return [(settings.coordinates,)]
    if settings.layout == "ten-thousand-leaves":
        return [(settings.coordinates // 10_000,)] * 10_000
    params = jax.eval_shape(lambda: t5.init(model, 0)[1])
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    scale = settings.coordinates / sum(map(math.prod, shapes))
    return [(max(1, round(rows * scale)), *rest) for rows, *rest in shapes]


def contest(settings: Settings, shapes: Shapes) -> Measured:
    """Seconds of everybody's turns, and what their compilation tells."""
    peers, slow, dtype = settings.peers, settings.slow, settings.dtype
    size = sum(map(math.prod, shapes)) * jnp.dtype(dtype).itemsize
    measured: Measured = {"bytes": [size]}
    runs: dict[str, Any] = {}
    for name, transformation in contestants.clips(slow=slow).items():
        runs[name] = clip = Clip(transformation, shapes, dtype)
        measured[f"compile {name}"] = [clip.compile_seconds]
        measured[f"bytes {name}"] = clip.temporary_bytes()
    runs |= contestants.peers(slow=slow) if peers else {}
    for number in rounds("selection", settings):
        data = contestants.draw(number, shapes, dtype, peers=peers)
        thresholds = {}
        for name in sorted(runs, key=SLOW.__contains__):  # they come last
            if name in SLOW and number != 1:
                continue
            turns = CYCLE if name == "refreshing clip" else 1
            seconds, answer = timed(runs[name], data, turns)
            if number > 0:
                measured.setdefault(name, []).append(seconds)
            if number <= 1 and name not in contestants.INEXACT:
                thresholds[name] = contestants.found(answer)
            del answer  # the next one needs the memory
        if len(set(thresholds.values())) > 1:
            raise RuntimeError(f"selection: thresholds that differ: {thresholds}.")
        del data  # before the next draw, for the same reason
    return measured


def timed(run: Callable[[Data], Any], data: Data, turns: int) -> tuple[float, Any]:
    """Mean seconds of a turn, and the last answer; whoever runs blocks."""
    start = time.perf_counter()
    for _ in range(turns - 1):
        run(data)
    answer = run(data)
    return (time.perf_counter() - start) / turns, answer


def training_steps(settings: Settings, model: t5.T5Config) -> Measured:
    """Seconds of whole steps, clipped and not, on random weights and tokens."""
    graphdef, params = t5.init(model, 0)
    params = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), params)
    gradient = jax.grad(t5.make_loss(graphdef, model))
    average = optax.ema(0.9, debias=False)
    optimizers = {
        "plain step": optax.chain(average, optax.scale_by_learning_rate(1e-3)),
        "clipped step": optax_clip.clipped_sgd(1e-3, FRACTION),
    }

    def compiled(optimizer):
        def step(params, state, batch):
            updates, state = optimizer.update(gradient(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step, donate_argnums=(0, 1))

    steps = {name: compiled(optimizer) for name, optimizer in optimizers.items()}
    states = {
        name: (jax.tree.map(jnp.copy, params), optimizer.init(params))
        for name, optimizer in optimizers.items()
    }
    measured: Measured = {name: [] for name in steps}
    for number in rounds("training step", settings):
        rng = np.random.default_rng(number)
        tokens = rng.integers(2, model.vocab_size, (2, 8, 64), np.int32)
        batch = {"source": tokens[0], "target": tokens[1]}
        for name, step in steps.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(step(*states[name], batch))
            if number > 0:
                measured[name].append(time.perf_counter() - start)
    return measured


def rounds(label: str, settings: Settings) -> Iterable[int]:
    """From 0, which warms up, with a bar on the terminal."""
    console = Console(stderr=True)
    numbers, bar = range(settings.rounds + 1), console.is_terminal
    return track(numbers, label, console=console, disable=not bar)


def peer_versions() -> dict[str, str]:
    torch = contestants.import_torch()
    optional = {} if torch is None else {"torch": torch.__version__}
    ours = {name: importlib.metadata.version(name) for name in ("numpy", "optax_clip")}
    return ours | optional


def show(record: Row) -> None:
    size, measured = record["coordinates"], record["measured"]
    what = f"{record['layout']}: {size:,} coordinates, {record['leaves']:,} leaves"
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    table = Table("figure", title=f"{what}, {record['dtype']}")
    for column in ("median", "min - max", "target", "met"):
        table.add_column(column, justify="right")
    for row in record["rows"]:
        median = f"{row['median']:.3g}" if row["met"] is not None else "not measured"
        spread = (
            f"{row['min']:.3g} - {row['max']:.3g}" if row["met"] is not None else ""
        )
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        table.add_row(row["figure"], median, spread, row["target"], met)
    console.print(table)
    times = Table("contestant", title="one update, or one threshold")
    for column in ("ms", "ns / coordinate"):
        times.add_column(column, justify="right")
    for name, values in measured.items():
        if not name.startswith(("bytes", "compile")) and not name.endswith("step"):
            seconds = statistics.median(values)
            times.add_row(name, f"{seconds * 1e3:.4g}", f"{seconds / size * 1e9:.3g}")
    console.print(times)
    if "torch" not in record["made_with"]:
        console.print("torch is not installed: its rows are not measured.", style="dim")
    before, after = (record["load_average"][when][0] for when in ("before", "after"))
    loads = f"load average {before:.1f} before, {after:.1f} after"
    console.print(f"{record['made_with']['device']}; {loads}", style="dim")


def save(path: Path, record: Row) -> None:
    """Replaces the record of the same configuration; the others stay."""
    names = ("layout", "coordinates", "dtype")
    device = record["made_with"]["device"]
    key = " / ".join([device, *(str(record[name]) for name in names)])
    records = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(path, dict(sorted({**records, key: record}.items())))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
