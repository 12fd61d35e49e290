"""What a run of the sharpness experiment will take, from shapes alone."""

from typing import NamedTuple

import jax
import optax

from examples.lab.directions import with_pseudo_updates
from examples.lab.optimizers import OPTIMIZERS, state_bytes
from examples.sharpness import kinds
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
    params = sum(x.nbytes for x in jax.tree.leaves(task.params))
    tokens, directions = optax.tree.size(task.fixed_batch(1)), len(settings.fractions())
    points, figures = 2 * SPACINGS + 1, sum(moment.in_figure for moment in at.values())
    walks = directions if sizes.one_at_a_time else 1
    tensors, each = sizes.within
    rows = (
        6 * walks * max(at) * sizes.batch_size
        + 12 * len(at) * directions * sizes.test_size
        + 2 * directions * points * figures * sizes.test_size
        + 12 * len(kinds.KINDS) * len(kinds.SPLIT) * figures * sizes.test_size
        + 12 * (sizes.coordinates + tensors * each) * sizes.test_size
    )
    return Prediction(
        params + _states(settings, task, params),
        float(rows * tokens * optax.tree.size(task.params)),
    )


def _states(settings: Settings, task: Task, params: int) -> int:
    """Of all optimizers and their updates, or of the largest one on its walk.

    A walk starts from a copy of the parameters and holds a gradient beside the update.
    """
    rate, fractions = settings.rate(), settings.fractions()
    if not settings.sizes().one_at_a_time:
        optimizer = with_pseudo_updates(settings.trajectory, rate, fractions)
        return state_bytes(optimizer, task.params)
    states = {
        name: state_bytes(OPTIMIZERS[name](1.0, fraction), task.params)
        for name, fraction in fractions.items()
    }
    return 3 * params + states[settings.trajectory] + max(states.values())


def describe(settings: Settings, task: Task) -> str:
    """What is about to happen, for people."""
    sizes, needs = settings.sizes(), predict(settings, task)
    return (
        f"{settings.checkpoint()}: {optax.tree.size(task.params):,} parameters; "
        f"{settings.trajectory} with rate {settings.rate():g} on epochs of "
        f"{sizes.batches_per_epoch} batches of {sizes.batch_size}; sharpness of "
        f"{len(settings.fractions())} directions at {sizes.measured_batches} batches "
        f"of epochs {', '.join(map(str, sizes.measured_epochs))}, on {sizes.test_size} "
        f"fixed examples. That takes {needs.state_bytes / 1e9:.1f} GB besides "
        f"activations, and about {needs.flops / 1e12:.2g} TFLOP. Results go to "
        f"{settings.folder()}."
    )
