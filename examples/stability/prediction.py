"""The largest learning rate that the sharpness of a direction allows, and the real one.

Batch sharpness settles where the former is the learning rate (2412.20553).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from examples.data.batching import Arrays
from examples.lab.steps import Loss, Params
from optax_clip import diagnostics

Direction = Callable[[Params], Params]  # of a gradient


def predictor(
    loss: Loss, direction: Direction
) -> Callable[[Params, Sequence[Arrays]], float]:
    """(parameters, batches) -> the largest stable rate; inf where nothing bounds it."""

    @jax.jit
    def measured(params: Params, batch: Arrays) -> diagnostics.DirectionalDerivatives:
        gradient = jax.grad(loss)(params, batch)
        update = jax.tree.map(jnp.negative, direction(gradient))
        return diagnostics.directional_derivatives(loss, params, update, batch)

    def predict(params: Params, batches: Sequence[Arrays]) -> float:
        found = [measured(params, batch) for batch in batches]
        return float(diagnostics.largest_stable_rate(found))

    return predict


def largest_stable(
    stable: Callable[[float], bool], guess: float, *, resolution: float, most: int = 40
) -> float:
    """The largest rate for which `stable` holds, up to a factor of `resolution`.

    It doubles or halves the guess until it has a stable rate below an unstable one,
    and then bisects their logarithms.
    """
    low, high = 0.0, float("inf")
    rate = guess
    for _ in range(most):
        if stable(rate):
            low = rate
        else:
            high = rate
        if low and high <= low * resolution:
            return low
        if not low:
            rate = high / 4
        elif high == float("inf"):
            rate = low * 4
        else:
            rate = float(np.sqrt(low * high))
    raise ValueError(f"no largest stable learning rate between {low:g} and {high:g}.")


def ends_below_its_start(losses: Sequence[float], before: Sequence[float]) -> bool:
    """What counts as stable: finite, and at the end not above the start.

    `before` are the losses on the last batches of the parameters that it starts with,
    so that a training that blows up and comes down half of the way is not stable.
    """
    end = losses[-len(before) :]
    return bool(np.isfinite(losses).all() and np.mean(end) <= np.mean(before))
