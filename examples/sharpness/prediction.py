"""What a run of the sharpness experiment will take, from shapes alone."""

from typing import NamedTuple

import jax
import optax

from examples.lab.directions import with_pseudo_updates
from examples.lab.optimizers import state_bytes
from examples.sharpness.settings import SPACINGS, Settings, moments
from examples.tasks.task import Task


class Prediction(NamedTuple):
    """What a run will take."""

    state_bytes: int  # parameters, and the states and updates of all optimizers
    flops: float  # of the matrix products


def predict(settings: Settings, task: Task) -> Prediction:
    """From shapes alone: memory exactly, products by the usual rule.

    A token takes 6 operations for each parameter in a gradient (forward 2, backward 4),
    twice as many in the sharpness of a direction, and 2 in a point of a landscape. The
    activations of a part, and attention's products, come on top.
    """
    sizes, at = settings.sizes(), moments(settings)
    optimizer = with_pseudo_updates(
        settings.trajectory, settings.rate(), settings.fractions()
    )
    params = sum(x.nbytes for x in jax.tree.leaves(task.params))
    tokens, directions = optax.tree.size(task.fixed_batch(1)), len(settings.fractions())
    points = 2 * SPACINGS + 1
    scanned = directions * points * sum(moment.in_figure for moment in at.values())
    rows = (
        6 * max(at) * sizes.batch_size
        + 6 * sizes.adapting_steps * sizes.adapting_batch
        + 12 * len(at) * directions * sizes.test_size
        + 2 * scanned * sizes.test_size
        + 12 * sizes.coordinates * sizes.test_size
    )
    return Prediction(
        params + state_bytes(optimizer, task.params),
        float(rows * tokens * optax.tree.size(task.params)),
    )


def describe(settings: Settings, task: Task) -> str:
    """What is about to happen, for people."""
    sizes, needs = settings.sizes(), predict(settings, task)
    return (
        f"{settings.checkpoint()}: {optax.tree.size(task.params):,} parameters; after "
        f"{sizes.adapting_steps} steps of Adam, {settings.trajectory} with rate "
        f"{settings.rate():g} on epochs of {sizes.batches_per_epoch} "
        f"batches of {sizes.batch_size}; sharpness of {len(settings.fractions())} "
        f"directions at {sizes.measured_batches} batches of epochs "
        f"{', '.join(map(str, sizes.measured_epochs))}, on {sizes.test_size} fixed "
        f"examples. That takes {needs.state_bytes / 1e9:.1f} GB besides activations, "
        f"and about {needs.flops / 1e12:.2g} TFLOP. Results go to {settings.folder()}."
    )
