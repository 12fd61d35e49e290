"""The largest learning rate that the sharpness of a direction allows.

A step -r u changes a quadratic by -r <g, u> + r^2 u^T H u / 2, which is a decrease as
long as r < 2 <g, u> / u^T H u. In the mean over batches, each with its own gradient,
direction and curvature, that is 2 / batch sharpness for SGD, where u = g (2412.20553:
training settles where this is its learning rate).
"""

from collections.abc import Callable, Sequence

import jax
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
    def measured(params: Params, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        update = direction(jax.grad(loss)(params, batch))
        found = diagnostics.directional_derivatives(loss, params, update, batch)
        norm = found.direction_norm
        return found.slope * norm, found.sharpness * norm**2

    def predict(params: Params, batches: Sequence[Arrays]) -> float:
        both = [jax.device_get(measured(params, batch)) for batch in batches]
        slope, curvature = np.mean(np.asarray(both, np.float64), axis=0)
        return float(2 * slope / curvature) if curvature > 0 else float("inf")

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
