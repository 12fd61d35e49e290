"""What exact top-k clipping costs: `python -m benchmarks.selection` (4 minutes).

Clips and threshold searches take turns (A B C A B C ...) on the same heavy-tailed
gradients in the shapes of T5-small. Every round draws new ones, of another scale, so
that nobody profits from the round before. A figure is a ratio within a round: its
median over the rounds, and its spread. Compilation is timed apart, all else is blocked
on. The results are merged into benchmarks/results/selection.json.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table

import optax_clip
from benchmarks import contestants, harness
from benchmarks.contestants import FRACTION, SLOW, Clip, Data
from benchmarks.harness import Figure, Measured, Row
from benchmarks.shapes import Shapes, t5_shapes
from examples.models import t5

T5_SMALL = t5.T5Config()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    layout: Literal[
        "t5-small", "scanned", "one-leaf", "thousand-leaves", "ten-thousand-leaves"
    ] = "t5-small"
    coordinates: int = 60_506_624  # about; every leaf is scaled
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 9
    peers: bool = True  # numpy, and torch if it is installed
    slow: bool = True  # those that sort everything: one round each
    step: bool = True  # a training step of T5-small on 8 x 64 tokens
    out: Path = harness.RESULTS / "selection.json"

    def __post_init__(self):
        harness.at_least(self, coordinates=10_000, rounds=1)


LEAVES = {"one-leaf": 1, "thousand-leaves": 1000, "ten-thousand-leaves": 10_000}
OURS = "global clip"
# Seconds to compile a global clip and one of each leaf, at most.
COMPILE = {"scanned": (1, 1), "thousand-leaves": (4, 4)}


def figures(layout: str = "t5-small") -> tuple[Figure, ...]:
    whole, leaf = COMPILE.get(layout, (1.5, 2))
    return (
        Figure("global clip / fixed clip", OURS, "fixed clip", "<=", 3),
        Figure("leaf clip / fixed clip", "leaf clip", "fixed clip", "<=", 3.5),
        Figure("np.partition / global clip", "np.partition", OURS, ">=", 2),
        Figure("torch.kthvalue / global clip", "torch.kthvalue", OURS, ">=", 4),
        Figure("torch.topk / global clip", "torch.topk", OURS, ">=", 15),
        Figure("jnp.sort clip / global clip", "jnp.sort clip", OURS, ">=", 120),
        Figure("lax.top_k clip / global clip", "lax.top_k clip", OURS, ">=", 110),
        Figure("torch.sort / global clip", "torch.sort", OURS, ">=", 80),
        Figure("compile global clip, s", "compile global clip", None, "<=", whole),
        Figure("compile leaf clip, s", "compile leaf clip", None, "<=", leaf),
        Figure("temporary / gradients, global", f"bytes {OURS}", "bytes", "<=", 0.02),
        Figure("temporary / gradients, leaf", "bytes leaf clip", "bytes", "<=", 0.02),
        Figure(
            "training step, clipped / not", "clipped step", "plain step", "<=", 1.06
        ),
    )


def main(settings: Settings, model: t5.T5Config = T5_SMALL) -> Row:
    """Measures, prints the tables and saves what it returns."""
    occasion = harness.Occasion.now()
    shapes = leaf_shapes(settings, model)
    measured = contest(settings, shapes)
    if settings.step:
        measured |= training_steps(settings, model)
    record = {
        **occasion.provenance(harness.command("selection", settings)),
        "layout": settings.layout,
        "leaves": len(shapes),
        "coordinates": sum(map(math.prod, shapes)),
        "dtype": settings.dtype,
        "fraction": FRACTION,
        "rows": [figure.row(measured) for figure in figures(settings.layout)],
        "measured": measured,  # seconds, and what is called bytes
    }
    show(record)
    save(settings.out, record)
    return record


def leaf_shapes(settings: Settings, model: t5.T5Config) -> Shapes:
    if leaves := LEAVES.get(settings.layout):
        return [(settings.coordinates // leaves,)] * leaves
    stacked = settings.layout == "scanned"
    return t5_shapes(model, settings.coordinates, stacked=stacked)


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
    for number in harness.rounds("selection", settings.rounds):
        data = contestants.draw(number, shapes, dtype, peers=peers)
        thresholds = {}
        for name in sorted(runs, key=SLOW.__contains__):  # they come last
            if name in SLOW and number != 1:
                continue
            seconds, answer = timed(runs[name], data)
            if number > 0:
                measured.setdefault(name, []).append(seconds)
            if number <= 1 and name not in contestants.INEXACT:
                thresholds[name] = contestants.found(answer)
            del answer  # the next one needs the memory
        if len(set(thresholds.values())) > 1:
            raise RuntimeError(f"selection: thresholds that differ: {thresholds}.")
        del data  # before the next draw, for the same reason
    return measured


def timed(run: Callable[[Data], Any], data: Data) -> tuple[float, Any]:
    """Seconds of a turn, and the answer; whoever runs blocks."""
    start = time.perf_counter()
    answer = run(data)
    return time.perf_counter() - start, answer


def training_steps(settings: Settings, model: t5.T5Config) -> Measured:
    """Seconds of whole steps, clipped and not, on random weights and tokens."""
    graphdef, params = t5.init(model, 0)
    params = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), params)
    gradient = jax.grad(t5.make_loss(graphdef, model))
    average = optax.ema(0.9, debias=False)
    optimizers = {
        "plain step": optax.chain(average, optax.scale_by_learning_rate(1e-3)),
        "clipped step": optax_clip.clipped_sgd(1e-3, fraction=FRACTION),
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
    for number in harness.rounds("training step", settings.rounds):
        rng = np.random.default_rng(number)
        tokens = rng.integers(2, model.vocab_size, (2, 8, 64), np.int32)
        batch = {"source": tokens[0], "target": tokens[1]}
        for name, step in steps.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(step(*states[name], batch))
            if number > 0:
                measured[name].append(time.perf_counter() - start)
    return measured


def show(record: Row) -> None:
    size, measured = record["coordinates"], record["measured"]
    what = f"{record['layout']}: {size:,} coordinates, {record['leaves']:,} leaves"
    console = harness.console()
    console.print(harness.figures_table(f"{what}, {record['dtype']}", record["rows"]))
    times = Table("contestant", title="one update, or one threshold")
    for column in ("ms", "ns / coordinate"):
        times.add_column(column, justify="right")
    for name, values in measured.items():
        if not name.startswith(("bytes", "compile")) and not name.endswith("step"):
            seconds = statistics.median(values)
            times.add_row(name, f"{seconds * 1e3:.4g}", f"{seconds / size * 1e9:.3g}")
    console.print(times)
    harness.print_origin(console, record)


def save(path: Path, record: Row) -> None:
    """Replaces the record of the same configuration; the others stay."""
    harness.save(path, record, ("layout", "coordinates", "dtype"))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
