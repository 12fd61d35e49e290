"""What a clip is made of: kernels, how often, how long, and near which bandwidth.

A trace tells the times, the compiled text which arrays an operation is given. It may
read only a slice of one, so that the bytes, and the bandwidth, are an upper limit.
"""

import collections
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_clip
from benchmarks import harness
from benchmarks.accelerator import inputs
from benchmarks.accelerator.notes import (
    Notes,
    SkippedError,
    compiled,
    need,
    take_turns,
)
from benchmarks.accelerator.presets import Preset
from benchmarks.accelerator.selection import FIXED, GOALS, LEAF, OURS, queued
from benchmarks.contestants import FRACTION, Clip
from benchmarks.harness import Figure, Row

IN_A_PROGRAM = 10  # clips
LARGEST = 12  # kernels that are listed one by one
CONTAINERS = ("while", "conditional", "call", "async-start", "async-done")
NOMINAL = {  # bytes a second, as sold; the first name found in the device's
    "H200": 4.8e12, "H100 PCIe": 2.0e12, "H100": 3.35e12, "A100-SXM4-80GB": 2.04e12,
    "A100": 1.555e12, "L4": 0.3e12, "v5 lite": 0.82e12, "v5e": 0.82e12, "v6": 1.64e12,
    "v5": 2.77e12, "v4": 1.23e12,
}  # fmt: skip


def measure(preset: Preset, tree: str, dtype: str, notes: Notes) -> None:
    """Profiles a fixed clip and ours, and times both and a copy."""
    check_profiler()
    shapes = inputs.tree_shapes(tree, preset)
    gradients = inputs.gradients(shapes, dtype)
    bytes_ = sum(x.nbytes for x in gradients)
    need(2.5 * bytes_)
    kind = jax.devices()[0].device_kind
    nominal = next((b for name, b in NOMINAL.items() if name in kind), None)
    notes.say(bytes=bytes_, nominal_bandwidth=nominal)
    bandwidth = _copy_bandwidth(preset, sum(x.size for x in gradients), dtype, notes)
    notes.say(copy_bandwidth=bandwidth)
    loops = {}
    for name, transformation in {
        FIXED: optax.clip(1.0),
        OURS: optax_clip.clip_top_k_coordinates(FRACTION),
        LEAF: optax_clip.clip_top_k_coordinates(FRACTION, scope="leaf"),
    }.items():
        with notes.trying(name):
            clip = Clip(transformation, shapes, dtype)
            run = queued(clip, gradients)
            take_turns(notes, {name: run}, preset.rounds, preset.turn)
            calls = int(preset.traced / min(notes.measured[name]))
            calls = min(max(calls, 2), 50)
            text = clip.update.as_text() or ""
            found = summary(profile(run, calls), instructions(text), calls)
            for kernel in found["kernels"]:
                if kernel["bandwidth_at_most"] is not None:
                    share = kernel["bandwidth_at_most"] / bandwidth
                    kernel["of_a_copys_at_most"] = share
            notes.say(**{name: found})
            loops[f"many of {name}"] = _loop(notes, name, transformation, gradients)
    take_turns(notes, loops, preset.rounds, preset.turn)
    goal = GOALS.get(tree, 4)
    notes.conclude(
        [
            Figure(
                f"{name} / fixed clip, in a program",
                f"many of {name}",
                f"many of {FIXED}",
                "<=",
                most,
            )
            for name, most in ((OURS, goal), (LEAF, 4))
        ]
    )


def check_profiler() -> None:
    """Refuses what would end the process: a CPU's profile after libtpu was tried."""
    tried = harness.installed("libtpu") and not os.environ.get("JAX_PLATFORMS")
    if tried and jax.default_backend() == "cpu":
        raise SkippedError(
            "libtpu is installed but there is no TPU, and its profiler would end the "
            "process: set JAX_PLATFORMS=cpu."
        )


def _loop(notes: Notes, name: str, tx: Any, gradients: list[jax.Array]) -> Any:
    """Many clips in one program, where none of the time is the host's."""

    def clips(gradients, state):
        def again(i, carry):
            # Else the compiler would clip once, before the loop.
            given, _ = jax.lax.optimization_barrier((gradients, i))
            return tx.update(given, carry[1])

        start = jax.tree.map(jnp.zeros_like, gradients), state
        return jax.lax.fori_loop(0, IN_A_PROGRAM, again, start)

    state = tx.init(gradients)
    program = compiled(notes, f"many of {name}", clips, gradients, state)
    return functools.partial(program, gradients, state)


def _copy_bandwidth(preset: Preset, size: int, dtype: str, notes: Notes) -> float:
    """Bytes a second of the simplest kernel, which reads and writes an array."""
    flat = jax.block_until_ready(jnp.zeros(size, dtype))
    copy = compiled(notes, "copy", lambda x: x + x, flat)
    take_turns(notes, {"copy": lambda: copy(flat)}, preset.rounds, preset.turn)
    return 2 * flat.nbytes / min(notes.measured["copy"])


class Event(NamedTuple):
    """A kernel on a device, or a copy to or from it."""

    operation: str
    seconds: float


def profile(run: Callable[[], Any], calls: int) -> list[Event]:
    """What the device did in these calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            result = run()
            for _ in range(calls - 1):
                result = run()
            jax.block_until_ready(result)
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        on_device = [
            plane for plane in data.planes if plane.name.startswith("/device:")
        ]
        found = [event for plane in on_device for event in _events(plane)]
        # A CPU is its own host.
        hosts = [plane for plane in data.planes if plane.name.startswith("/host:")]
        return found or [event for plane in hosts for event in _events(plane)]


def _events(plane: Any) -> Iterator[Event]:
    for line in plane.lines:
        by_step = line.name in ("Steps", "XLA Modules", "Framework Ops", "Source code")
        for event in () if by_step else line.events:
            operation = dict(event.stats).get("hlo_op")
            if operation is None and line.name == "XLA Ops":
                operation = event.name.split(" = ")[0]
            if operation is None and event.name.lower().startswith("mem"):
                operation = event.name  # MemcpyD2H: somebody waits
            if operation is not None:
                name = str(operation).lstrip("%")
                yield Event(name, event.duration_ns / 1e9)


def summary(
    events: list[Event], known: dict[str, "Instruction"], calls: int
) -> dict[str, Any]:
    """The kernels of one call, the longest first."""
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        if (
            event.operation not in known
            or known[event.operation].kind not in CONTAINERS
        ):
            seconds[event.operation].append(event.seconds)
    total = sum(map(sum, seconds.values()))
    rows: list[Row] = []
    for name, found in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        moved = known[name].bytes if name in known else None
        mean = sum(found) / len(found)
        rows.append(
            {
                "operation": name,
                "kind": known[name].kind if name in known else None,
                "calls": len(found) / calls,
                "microseconds": sum(found) / calls * 1e6,
                "fraction_of_time": sum(found) / total if total else None,
                "bytes_at_most": moved,
                "bandwidth_at_most": moved / mean if moved and mean else None,
            }
        )
    copies = [row for row in rows if "memcpy" in row["operation"].lower()]
    return {
        "microseconds_on_device": total / calls * 1e6,
        "launches": sum(row["calls"] for row in rows),
        "copies_from_device": sum(
            row["calls"] for row in copies if "d2h" in row["operation"].lower()
        ),
        "kernels": rows[:LARGEST],
        "microseconds_of_others": sum(row["microseconds"] for row in rows[LARGEST:]),
    }


class Instruction(NamedTuple):
    """Of a compiled program: what it is, and the bytes that it is given and returns."""

    kind: str
    bytes: int


def instructions(text: str) -> dict[str, Instruction]:
    """All instructions of compiled text, by name."""
    size, parsed = {}, {}
    for line in text.splitlines():
        name, found, rest = line.strip().removeprefix("ROOT ").partition(" = ")
        if not found or " " in name:
            continue
        for match in re.finditer(r"(?:^|\s)([a-z][\w-]*)\(", rest):
            before = rest[: match.start()]
            if before.count("(") == before.count(")"):  # else inside of a tuple's type
                operands = rest[match.end() :].split(")")[0]
                name = name.lstrip("%")
                size[name] = _bytes(before)
                names = re.findall(r"%([\w.-]+)", operands)
                parsed[name] = match[1], names
                break
    return {
        name: Instruction(kind, size[name] + sum(size.get(x, 0) for x in names))
        for name, (kind, names) in parsed.items()
    }


def _bytes(types: str) -> int:
    total = 0
    for width, dimensions in re.findall(r"\b[a-z]+(\d*)[a-z\d]*\[([\d,]*)\]", types):
        size = max(int(width or 8) // 8, 1)
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total
