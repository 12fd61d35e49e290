"""What is measured in a fine-tuning run besides its training loss.

    validation loss, translations     of any parameters, on held-out pairs
    sharpness, landscape, histogram   of the trajectory that carries the pseudo-updates

A pseudo-update belongs to the parameters that its gradient was taken at. The
trajectory's own last step is one of the pseudo-updates, so it can be taken back.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu

import optax_clip
from examples.models import t5
from examples.optimizers import OPTIMIZERS, PAPER
from examples.task import TranslationTask
from examples.training import Metrics, TrainState
from optax_clip import diagnostics

TRAJECTORY = "sgd"


def with_pseudo_updates(
    optimizer: optax.GradientTransformation, rate: float | None, fraction: float
) -> optax.GradientTransformationExtraArgs:
    """The trajectory's optimizer, and before it what the paper's seven would do.

    Only the directions of the others matter, so their learning rate is 1, or for
    Adafactor its relative step.
    """
    rates = {"adafactor": None, "clipped_adafactor": None, TRAJECTORY: rate}
    pseudo = {name: OPTIMIZERS[name](rates.get(name, 1.0), fraction) for name in PAPER}
    return optax.named_chain(
        ("pseudo", optax_clip.pseudo_updates(pseudo)), ("optimizer", optimizer)
    )


def pseudo_directions(state: TrainState) -> dict[str, optax.Updates]:
    """The last pseudo-updates by name; empty where the optimizer makes none."""
    opt_state: Any = state.opt_state
    return opt_state["pseudo"].updates if "pseudo" in opt_state else {}


class Instruments:
    """Compiled once, used for every optimizer of a run."""

    def __init__(self, task: TranslationTask, measured_batches: int) -> None:
        self.task = task
        self.batch = task.fixed_batch(task.batch_size * measured_batches)
        stream = {"microbatches": measured_batches, "weight": task.weight}
        self._loss = jax.jit(task.eval_loss)
        self._derivatives = _jitted(
            diagnostics.directional_derivatives, task.eval_loss, **stream
        )
        self._loss_along = _jitted(diagnostics.loss_along, task.eval_loss, **stream)

    def evaluate(self, step: int, state: TrainState) -> Metrics:
        """The validation loss and, where there are pseudo-updates, their sharpness."""
        metrics: dict[str, Any] = {"valid_loss": self.validation_loss(state.params)}
        if step and pseudo_directions(state):
            metrics["sharpness"] = self.sharpness(state)
        return metrics

    def validation_loss(self, params: t5.Params) -> float:
        """Mean per token over the held-out pairs."""
        mean = diagnostics.mean_over_batches(
            lambda batch: self._loss(params, batch),
            self.task.held_out_batches(),
            weight=self.task.weight,
        )
        return float(mean)

    def sharpness(self, state: TrainState) -> dict[str, Mapping[str, float | None]]:
        """Slope, curvature and what they predict, along each pseudo-update."""
        derived = self._derivatives(
            _before_last_step(state), pseudo_directions(state), self.batch
        )
        return {name: _numbers(d) for name, d in derived.items()}

    def landscape(
        self, state: TrainState, sharpness: Mapping[str, Mapping[str, float | None]]
    ) -> dict[str, Any]:
        """The loss at distances around the best steps that the sharpness predicts."""
        params = _before_last_step(state)
        updates = pseudo_directions(state)
        steps = jnp.asarray([0.0, *_distances(sharpness)])
        losses = self._loss_along(params, updates, steps, self.batch)
        return {
            "steps": steps.tolist(),
            "losses": {name: losses[name].tolist() for name in PAPER},
        }

    def histogram(self, state: TrainState) -> dict[str, Any]:
        """How the magnitudes of the trajectory's momentum are distributed."""
        opt_state: Any = state.opt_state
        momentum = optax.tree.get(opt_state["optimizer"], "ema")
        counted = diagnostics.coordinate_histogram(momentum)
        return {name: value.tolist() for name, value in counted._asdict().items()}

    def translate(self, params: t5.Params) -> dict[str, Any]:
        """Greedy translations of a quarter of the held-out pairs, and their chrF."""
        rows = slice(None, None, 4)
        pairs = self.task.held_out[rows]
        ids = _decode(
            self.task.graphdef,
            params,
            self.task.held_out_arrays["source"][rows],
            self.task.held_out_arrays["target"].shape[1],
        )
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


def _before_last_step(state: TrainState) -> t5.Params:
    last = pseudo_directions(state)[TRAJECTORY]
    return jax.tree.map(jnp.subtract, state.params, last)


def _numbers(d: diagnostics.DirectionalDerivatives) -> dict[str, float | None]:
    names = ("loss", "slope", "curvature", "best_step", "predicted_decrease")
    values = {name: float(getattr(d, name)) for name in names}
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _distances(sharpness: Mapping[str, Mapping[str, float | None]]) -> np.ndarray:
    """From a tenth of the shortest best step to ten times the longest."""
    best = [step for d in sharpness.values() if (step := d["best_step"])]
    return np.geomspace(min(best, default=0.1) / 10, max(best, default=10) * 10, 31)
