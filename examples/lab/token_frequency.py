"""The loss of rare tokens and of frequent ones.

Adam's lead over SGD is largest on rare words (Kunstner et al., 2024, arXiv:2402.19449).
Tokens are sorted by how often the training rows have them as a label, the most frequent
first, and cut into groups with about as many labels each.

groups = groups_of(task.train["labels"], 10)   # token id -> group
losses = assessor(task, groups, 10)
losses(params, batches)                         # the mean loss of each group
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from examples.data.batching import IGNORED, Arrays, Batch
from examples.lab.steps import Params
from examples.tasks.task import Task


def groups_of(labels: np.ndarray, number: int) -> np.ndarray:
    """The group of every token id up to the largest label: 0 has the most frequent.

    A token is in the group that the middle of its labels falls into, so that one token
    with more labels than a group should have makes the next groups smaller, or empty.
    Tokens that no label has are in the last group.
    """
    counts = np.bincount(labels[labels != IGNORED].ravel())
    order = np.argsort(-counts, kind="stable")
    sorted_counts = counts[order]
    middle = np.cumsum(sorted_counts) - sorted_counts / 2
    found = np.empty(len(counts), int)
    found[order] = np.minimum(middle * number // counts.sum(), number - 1)
    return found


def assessor(
    task: Task, groups: np.ndarray, number: int
) -> Callable[[Params, Sequence[Arrays]], list[float | None]]:
    """(parameters, batches) -> the mean loss of each group, None where it has no label.

    Ids beyond those that `groups` has are in the last group.
    """
    known = jnp.asarray(groups)

    @jax.jit
    def of_batch(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        labels = jnp.asarray(batch["labels"])
        # An id that is none is clamped, and left out below.
        group = jnp.where(labels < len(groups), known[labels], number - 1)

        def of_group(one: jax.Array) -> tuple[jax.Array, jax.Array]:
            kept = (group == one) & (labels != IGNORED)
            own = {**batch, "labels": jnp.where(kept, labels, IGNORED)}
            return task.eval_loss(params, own), task.weight(own)

        return jax.vmap(of_group)(jnp.arange(number))

    def assess(params: Params, batches: Sequence[Arrays]) -> list[float | None]:
        found = [jax.device_get(of_batch(params, batch)) for batch in batches]
        losses, weights = np.asarray(found, np.float64).transpose(1, 2, 0)
        total = weights.sum(1)
        sums = (losses * weights).sum(1)
        return [float(s / n) if n else None for s, n in zip(sums, total, strict=True)]

    return assess
