"""Whole training steps: gradient and update in one program, in bfloat16."""

import jax
import optax

import optax_clip
from benchmarks.accelerator import problems
from benchmarks.accelerator.notes import (
    Notes,
    compiled,
    need,
    take_turns,
)
from benchmarks.accelerator.presets import Preset
from benchmarks.contestants import FRACTION
from benchmarks.harness import Figure

FIGURES = (
    Figure("step, clipped / not", "clipped SGD", "SGD", "<=", 1.02),
    Figure("step, Adam / SGD", "Adam", "SGD", "<=", 2),
    Figure(
        "bytes of a step, clipped / not",
        "all bytes clipped SGD",
        "all bytes SGD",
        "<=",
        1.02,
    ),
)


def measure(preset: Preset, model: str, notes: Notes) -> None:
    """With as many rows in a batch as there is room for."""
    problem = problems.make(model, preset)
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(problem.like))
    need(4.0 * 9 * coordinates)  # parameters and states of three, and a gradient
    notes.say(length=preset.length, coordinates=coordinates)
    notes.largest_batch(
        preset.batches, lambda rows: _steps(problem, rows, preset, notes)
    )


def _steps(problem: problems.Problem, rows: int, preset: Preset, notes: Notes) -> None:
    batch = jax.device_put(problem.batch(rows))
    average = optax.ema(0.9, debias=False)
    optimizers = {
        "SGD": optax.chain(average, optax.scale_by_learning_rate(1e-3)),
        "clipped SGD": optax_clip.clipped_sgd(1e-3, fraction=FRACTION),
        "Adam": optax.adam(1e-4),
    }
    runs = {}
    for name, optimizer in optimizers.items():

        def step(params, state, batch, optimizer=optimizer):
            grads = jax.grad(problem.in_bfloat16)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        with notes.trying(name, need_room=True):
            params = problem.params()
            state = jax.jit(optimizer.init)(params)
            program = compiled(
                notes, name, step, params, state, batch, donate_argnums=(0, 1)
            )
            runs[name] = _Stepper(program, params, state, batch)
            jax.block_until_ready(runs[name]())
    take_turns(notes, runs, preset.rounds, preset.turn)
    notes.conclude(FIGURES)


class _Stepper:
    """A step, and what it trains, which goes from call to call."""

    def __init__(self, program, params, state, batch):
        self.program, self.params, self.state = program, params, state
        self.batch = batch

    def __call__(self):
        self.params, self.state = self.program(self.params, self.state, self.batch)
        return self.params
