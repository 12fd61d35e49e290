"""A section of `benchmarks.diagnostics`, in a process that it has for itself.

    python -m benchmarks.curvature job.json measured.json

The process inherits the cores that it may use. On a single one times are CPU times,
which other load does not distort; on several they are those of the wall.
"""

import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Measured
from examples.lab import files
from examples.models import huggingface, t5
from optax_clip import diagnostics

ROWS, LENGTH = 8, 64  # of source and of target
TOLERANCE = 1e-2  # of the answers of ours and of torch, relative

Job = Mapping[str, Any]


class Problem(NamedTuple):
    """A model, a batch without padding, and its loss."""

    config: t5.T5Config
    params: t5.Params
    loss: Callable[..., jax.Array]
    batch: dict[str, np.ndarray]

    def random_direction(self, seed: int) -> t5.Params:
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), self.params
        )


def load(job: Job) -> Problem:
    """A checkpoint, or a configuration with random weights."""
    if "checkpoint" in job["model"]:
        config, graphdef, params = huggingface.load(job["model"]["checkpoint"])
    else:
        config = t5.T5Config(**job["model"])
        graphdef, params = t5.init(config, 0)
    rows, length = job.get("tokens", (ROWS, LENGTH))
    tokens = np.random.default_rng(0).integers(
        2, config.vocab_size, (2, rows, length), np.int32
    )
    batch = {"source": tokens[0], "target": tokens[1]}
    return Problem(config, params, t5.make_loss(graphdef, config), batch)


def speed(job: Job) -> Measured:
    """Seconds of everybody's turns, and of compiling."""
    problem = load(job)
    loss, batch, measured = problem.loss, problem.batch, {}
    sharpness = functools.partial(diagnostics.directional_sharpness, loss)
    forward = functools.partial(sharpness, mode="forward_over_forward")
    gradient = compiled(measured, "gradient", jax.grad(loss), problem.params, batch)
    # Of the gradient, whose sharpness is far from zero, ours and torch's can agree.
    u = gradient()
    directions = {"gradient": u, "sign": jax.tree.map(jnp.sign, u)}
    directions |= {f"random {i}": problem.random_direction(i) for i in range(5)}
    runs: dict[str, Callable[[], Any]] = {"gradient": gradient}
    for name, measure, direction in (
        ("one direction", sharpness, u),
        ("forward over forward", forward, u),
        ("seven directions", sharpness, directions),
    ):
        runs[name] = compiled(measured, name, measure, problem.params, direction, batch)
    if job["peers"] and harness.installed("torch", "transformers"):
        from benchmarks import curvature_in_torch

        runs |= curvature_in_torch.contestants(problem, u)
    for number in harness.rounds(job["label"], job["rounds"]):
        answers = {}
        for name, run in runs.items():
            seconds, answers[name] = timed(run)
            if number > 0:
                measured.setdefault(name, []).append(seconds)
        check(answers)
    return measured


def compiled(measured: Measured, name: str, f: Callable, *args: Any) -> Callable:
    """A run of f(*args) that blocks; the seconds of compiling are noted."""
    jax.clear_caches()  # nobody profits from what another one traced
    seconds, program = timed(lambda: jax.jit(f).lower(*args).compile())
    measured[f"compile {name}"] = [seconds]
    return lambda: jax.block_until_ready(program(*args))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds on one core, else seconds of the wall; and the answer."""
    alone = len(os.sched_getaffinity(0)) == 1
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    answer = run()
    return clock() - start, answer


def check(answers: Mapping[str, Any]) -> None:
    """Nobody is fast by answering something else."""
    names = ("one direction", "forward over forward", "torch double backward")
    found = {name: float(answers[name]) for name in names if name in answers}
    found["seven directions"] = float(answers["seven directions"]["gradient"])
    for name, value in found.items():
        if not math.isclose(value, found["one direction"], rel_tol=TOLERANCE):
            raise RuntimeError(f"diagnostics: {name} differs: {found}.")


def memory(job: Job) -> Measured:
    """Peak of the whole process, and what XLA allots beside inputs and outputs."""
    problem = load(job)
    measure = functools.partial(
        diagnostics.directional_sharpness,
        problem.loss,
        microbatches=job["microbatches"],
        weight=t5.token_count,
    )
    args = (problem.params, problem.random_direction(0), problem.batch)
    program = jax.jit(measure).lower(*args).compile()
    jax.block_until_ready(program(*args))
    analysis = program.memory_analysis()
    temporary = [] if analysis is None else [analysis.temp_size_in_bytes]
    return {"peak bytes": [peak_bytes()], "temporary bytes": temporary}


def peak_bytes() -> float:
    """Of this program: what getrusage tells began with the process that started it."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return 1024.0 * int(kilobytes)


def spectrum(job: Job) -> Measured:
    """Seconds of the eigenvalues of all blocks, and of one gradient."""
    problem, measured = load(job), {}

    def measure(params, key, batch):
        return diagnostics.block_eigenvalues(
            problem.loss, params, batch, key=key, tolerance=1e-3
        )

    params, batch = problem.params, problem.batch
    gradient = compiled(measured, "gradient", jax.grad(problem.loss), params, batch)
    ends = compiled(measured, "spectrum", measure, params, jax.random.key(0), batch)
    gradient()
    turns = [timed(gradient)[0] for _ in harness.rounds(job["label"], 2)]
    seconds, found = timed(ends)
    turns += [timed(gradient)[0] for _ in range(3)]
    iterations = [int(block.iterations) for block in found.values()]
    return measured | {
        "gradient": [float(np.median(turns))],
        "spectrum": [seconds],
        "spectrum a block": [seconds / len(found)],
        "iterations a block": [float(np.mean(iterations))],
    }


SECTIONS = {"speed": speed, "memory": memory, "spectrum": spectrum}


def run(job: Job) -> Measured:
    return SECTIONS[job["section"]](job)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    files.write_json(target, run(json.loads(source.read_text())))
