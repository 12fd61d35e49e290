"""What many optimizers would do on one trajectory, and how sharp the loss is there.

A pseudo-update belongs to the parameters that its gradient was taken at. The
trajectory's own last step is one of the pseudo-updates, so it can be taken back.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clip
from examples.lab.optimizers import OPTIMIZERS
from examples.lab.steps import Params, TrainState
from optax_clip import diagnostics

Numbers = dict[str, float | None]
Derivatives = diagnostics.DirectionalDerivatives | diagnostics.SharpnessRow

_NAMES = ("loss", "slope", "sharpness", "newton_step", "predicted_decrease")


def with_pseudo_updates(
    trajectory: str, rate: float | None, fractions: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """The trajectory's optimizer, and before it what each of `fractions` would do.

    Only the directions of the others matter, so their learning rate is 1, or for
    Adafactor its relative step.
    """
    rates = {"adafactor": None, "clipped_adafactor": None, trajectory: rate}
    pseudo = {
        name: OPTIMIZERS[name](rates.get(name, 1.0), fraction)
        for name, fraction in fractions.items()
    }
    return optax.named_chain(
        ("pseudo", optax_clip.pseudo_updates(pseudo)),
        ("optimizer", OPTIMIZERS[trajectory](rate, fractions[trajectory])),
    )


def pseudo_directions(state: TrainState) -> dict[str, optax.Updates]:
    """The last pseudo-updates by name; empty where the optimizer makes none."""
    opt_state: Any = state.opt_state
    return opt_state["pseudo"].updates if "pseudo" in opt_state else {}


def before_last_step(state: TrainState, trajectory: str) -> Params:
    """The parameters that the last pseudo-updates belong to."""
    last = pseudo_directions(state)[trajectory]
    return jax.tree.map(jnp.subtract, state.params, last)


def momentum_histogram(state: TrainState) -> dict[str, Any]:
    """How the magnitudes of SGD's momentum are distributed."""
    opt_state: Any = state.opt_state
    momentum = optax.tree.get(opt_state["pseudo"].states["sgd"], "ema")
    counted = diagnostics.coordinate_histogram(momentum)
    return {name: value.tolist() for name, value in counted._asdict().items()}


def numbers(d: Derivatives) -> Numbers:
    """Of one direction, for a file; what is not finite is None."""
    values = {name: float(getattr(d, name)) for name in _NAMES}
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def ratio(sharpness: float | None, of_sgd: float | None) -> float | None:
    """The paper's ratio to |SGD's sharpness|; None stands for what was not finite."""
    return None if sharpness is None or not of_sgd else sharpness / abs(of_sgd)


def finite_mean(values: Iterable[float | None]) -> float:
    """Over what was finite; nan if nothing was."""
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else math.nan
