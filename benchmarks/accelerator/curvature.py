"""The modes of the sharpness beside a gradient: time and memory."""

import functools

import jax

from benchmarks.accelerator import problems
from benchmarks.accelerator.notes import (
    Notes,
    compiled,
    need,
    take_turns,
)
from benchmarks.accelerator.presets import Preset
from benchmarks.harness import Figure
from optax_clip import diagnostics

MODES = (
    "forward_over_reverse",
    "forward_over_forward",
    "reverse_over_reverse",
    "finite_difference",
)
GOALS = {"forward_over_reverse": 2.2}
FIGURES = [
    figure
    for mode in MODES
    for figure in (
        Figure(f"{mode} / gradient", mode, "gradient", "<=", GOALS.get(mode, 3)),
        Figure(
            f"temporary bytes, {mode} / gradient",
            f"temporary bytes {mode}",
            "temporary bytes gradient",
            "<=",
            3,
        ),
    )
]


def measure(preset: Preset, model: str, notes: Notes) -> None:
    """In float32, at the highest precision of products, which is the default."""
    problem = problems.make(model, preset)
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(problem.like))
    need(4.0 * 6 * coordinates)
    notes.say(length=preset.length, coordinates=coordinates)
    batches = [max(rows // 2, 1) for rows in preset.batches]
    notes.largest_batch(batches, lambda rows: _modes(problem, rows, preset, notes))


def _modes(problem: problems.Problem, rows: int, preset: Preset, notes: Notes) -> None:
    params, batch = problem.params(), jax.device_put(problem.batch(rows))
    with jax.default_matmul_precision("highest"):
        gradient = compiled(notes, "gradient", jax.grad(problem.loss), params, batch)
    u = jax.block_until_ready(gradient(params, batch))
    runs = {"gradient": functools.partial(gradient, params, batch)}
    for mode in MODES:
        with notes.trying(mode):
            sharpness = functools.partial(
                diagnostics.directional_sharpness, problem.loss, mode=mode
            )
            program = compiled(notes, mode, sharpness, params, u, batch)
            notes.say(**{f"sharpness, {mode}": float(program(params, u, batch))})
            runs[mode] = functools.partial(program, params, u, batch)
    take_turns(notes, runs, preset.rounds, preset.turn)
    notes.conclude(FIGURES)
