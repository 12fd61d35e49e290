"""What is measured in a fine-tuning run besides its training loss.

    held-out loss, translations     of any parameters
    sharpness, landscape            of the trajectory that carries the pseudo-updates

`examples.lab.directions` has what a pseudo-update is.
"""

import functools
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu

from examples.lab import held_out
from examples.lab.directions import before_last_step, numbers, pseudo_directions
from examples.lab.optimizers import PAPER
from examples.lab.steps import Metrics, TrainState
from examples.models import t5
from examples.tasks.translation import TranslationTask
from optax_clip import diagnostics

TRAJECTORY = "sgd"
_POINTS = 16  # of a landscape


class Instruments:
    """Compiled once, used for every optimizer of a run."""

    def __init__(
        self, task: TranslationTask, measured_batches: int, measured_at: Container[int]
    ) -> None:
        self.task, self.measured_at = task, measured_at
        self.batch = task.fixed_batch(task.batch_size * measured_batches)
        stream = {"microbatches": measured_batches, "weight": task.weight}
        self._assess, self._held_out = held_out.assessor(task), task.held_out_batches()
        self._table = _jitted(
            diagnostics.sharpness_table, task.eval_loss, baseline="sgd", **stream
        )
        self._loss_along = _jitted(diagnostics.loss_along, task.eval_loss, **stream)

    def evaluate(self, step: int, state: TrainState) -> Metrics:
        """The held-out loss and, where there are pseudo-updates, their sharpness."""
        metrics: dict[str, Any] = {"valid_loss": self.held_out_loss(state.params)}
        if step in self.measured_at and pseudo_directions(state):
            metrics["sharpness"] = self.sharpness(state)
        return metrics

    def held_out_loss(self, params: t5.Params) -> float:
        """The mean per token of the held-out pairs."""
        return self._assess(params, self._held_out)

    def sharpness(self, state: TrainState) -> dict[str, Mapping[str, float | None]]:
        """Slope, sharpness and what they predict, along each pseudo-update."""
        table = self._table(
            before_last_step(state, TRAJECTORY), pseudo_directions(state), self.batch
        )
        return {name: numbers(row) for name, row in table.items()}

    def landscape(
        self, state: TrainState, sharpness: Mapping[str, Mapping[str, float | None]]
    ) -> dict[str, Any]:
        """The loss at distances around the Newton steps that the sharpness predicts."""
        params = before_last_step(state, TRAJECTORY)
        updates = pseudo_directions(state)
        steps = jnp.asarray([0.0, *_distances(sharpness)])
        losses = self._loss_along(params, updates, self.batch, steps=steps)
        return {
            "steps": steps.tolist(),
            "losses": {name: losses[name].tolist() for name in PAPER},
        }

    def translate(self, params: t5.Params) -> dict[str, Any]:
        """Greedy translations of the held-out pairs, and their chrF."""
        pairs, arrays = self.task.held_out, self.task.held_out_arrays
        length = arrays["target"].shape[1]
        ids = _decode(self.task.graphdef, params, arrays["source"], length)
        translations = self.task.words.decode(np.asarray(ids).tolist())
        references = [pair.french for pair in pairs]
        return {
            "chrf": sacrebleu.corpus_chrf(translations, [references]).score,
            "examples": [
                {"english": p.english, "reference": p.french, "translation": text}
                for p, text in zip(pairs, translations, strict=True)
            ],
        }


_decode = jax.jit(t5.greedy_decode, static_argnums=(0, 3))


def _jitted(measure: Callable, loss: Callable, **options: Any) -> Callable:
    """jit of measure(loss, ...), with everything else as arguments."""
    return jax.jit(functools.partial(measure, loss, **options))


def _distances(sharpness: Mapping[str, Mapping[str, float | None]]) -> np.ndarray:
    """From a tenth of the shortest Newton step to ten times the longest."""
    best = [step for d in sharpness.values() if (step := d["newton_step"])]
    return np.geomspace(
        min(best, default=0.1) / 10, max(best, default=10) * 10, _POINTS
    )
