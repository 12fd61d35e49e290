"""What a clip costs wherever the arrays are: `python -m benchmarks.placement`.

Two processes take turns, one that sees a single device and one that sees eight (of the
same cores: what is compared is the code, not hardware). Every layout clips the same
gradients; a figure is a ratio within a round. Results go to results/placement.json.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_clip
from benchmarks import harness
from benchmarks.harness import Figure, Measured, Row

FRACTION = 0.05
TREES = {
    "seven arrays": [(2048, 1024), (1024, 1024), *[(512, 512)] * 5],
    "a hundred leaves": [(2048, 1024), *[(320, 256)] * 96, *[(256,)] * 4],
    "many leaves": [(64, 64)] * 384,
}
# The partition specs that leaves take in turn.
LAYOUTS = {
    "replicated": [P()],
    "FSDP": [P("data")],
    "tensor parallel": [P(None, "model")],
    "mixed": [P("data", "model"), P(None, "data"), P()],
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    tree: Literal["seven arrays", "a hundred leaves", "many leaves"] = "seven arrays"
    rounds: int = 9
    devices: int = 8
    out: Path = harness.RESULTS / "placement.json"

    def __post_init__(self):
        harness.at_least(self, rounds=1, devices=2)


def figures() -> list[Figure]:
    alone = "one device of one"
    found = [Figure("one device of several / of one", "one device", alone, "<=", 1.2)]
    for layout in LAYOUTS:
        auto, explicit = f"auto {layout}", f"explicit {layout}"
        found += [
            Figure(f"automatic / explicit, {layout}", auto, explicit, "<=", 1.5),
            Figure(f"compile {auto} / one", f"compile {auto}", "compile", "<=", 1.5),
        ]
    return [*found, Figure("compile auto FSDP, s", "compile auto FSDP", None, "<=", 8)]


def main(settings: Settings) -> Row:
    """Measures, prints the table and saves what it returns."""
    occasion = harness.Occasion.now()
    measured: Measured = {}
    with (
        Child(settings.tree, 1) as one,
        Child(settings.tree, settings.devices) as several,
    ):
        for number in harness.rounds("placement", settings.rounds):
            for child, prefix in ((one, " of one"), (several, "")):
                for name, seconds in child(number).items():
                    compiling = name.startswith("compile")
                    key = "compile" if compiling and prefix else name
                    key = key if compiling else key + prefix
                    if compiling == (number == 0):
                        measured.setdefault(key, []).append(seconds)
    record: Row = {
        **occasion.provenance(harness.command("placement", settings)),
        "tree": settings.tree,
        "devices": settings.devices,
        "rows": [figure.row(measured) for figure in figures()],
        "measured": measured,
    }
    console = harness.console()
    console.print(harness.figures_table(settings.tree, record["rows"]))
    for name, values in measured.items():
        console.print(f"{name}: {statistics.median(values) * 1e3:.4g} ms")
    harness.save(settings.out, record, ("tree",))
    return record


class Child:
    """A process that sees so many devices, and measures a round when it is asked."""

    def __init__(self, tree: str, devices: int):
        self.words = [
            sys.executable,
            "-m",
            __spec__.name,
            "--child",
            tree,
            str(devices),
        ]

    def __enter__(self) -> Callable[[int], dict[str, float]]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(self.words, text=True, bufsize=1, **pipes)
        return self.ask

    def ask(self, number: int) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"placement: {self.words} ended without an answer.")
        return json.loads(answer)

    def __exit__(self, *_: Any) -> None:
        self.process.communicate()


def child(tree: str, devices: int) -> None:
    """Compiles every layout, and then answers every line with the seconds of each."""
    jax.config.update("jax_num_cpu_devices", devices)
    clips = dict(layouts(devices))
    for line in sys.stdin:
        rng = np.random.default_rng(int(line))
        gradient = [
            rng.standard_t(2, shape).astype(np.float32) for shape in TREES[tree]
        ]
        seconds: dict[str, float] = {}
        for name, (place, clip) in clips.items():
            placed = jax.block_until_ready(
                [*map(place, range(len(gradient)), gradient)]
            )
            state = optax_clip.clip_top_k_coordinates(FRACTION).init(placed)
            if int(line) == 0:
                start = time.perf_counter()
                clips[name] = place, clip.lower(placed, state).compile()
                seconds[f"compile {name}"] = time.perf_counter() - start
                continue
            start = time.perf_counter()
            jax.block_until_ready(clip(placed, state))
            seconds[name] = time.perf_counter() - start
        print(json.dumps(seconds), flush=True)


def layouts(devices: int) -> Iterator[tuple[str, tuple[Callable[..., Any], Any]]]:
    """Where an array goes by its number, and the clip to compile."""
    update = optax_clip.clip_top_k_coordinates(FRACTION).update
    yield "one device", (lambda _, x: jnp.asarray(x), jax.jit(update))
    if devices == 1:
        return
    kinds = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
    for kind, axis_type in kinds.items():
        shape, names = (devices // 2, 2), ("data", "model")
        mesh = jax.make_mesh(shape, names, axis_types=(axis_type,) * 2)
        for layout, specs in LAYOUTS.items():
            place = functools.partial(_place, mesh, specs)
            yield f"{kind} {layout}", (place, jax.jit(update))


def _place(mesh: Any, specs: list[P], i: int, x: np.ndarray) -> jax.Array:
    spec = P(*specs[i % len(specs)][: x.ndim])
    return jax.device_put(x, NamedSharding(mesh, spec))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main(tyro.cli(Settings, description=__doc__))
