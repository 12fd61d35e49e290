"""Whether a loss can be measured at all."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from optax_clip.diagnostics._problem import Loss, state_problem
from optax_clip.diagnostics._subset import Where


def check_deterministic(
    loss: Loss, params: Any, *args: Any,
    tolerance: float = 0.0, where: Where | None = None,
) -> None:  # fmt: skip
    """Raises an error if two evaluations of a loss or of its gradient differ.

    Dropout that is left on, random masks that are drawn inside of the loss and kernels
    whose sums have no fixed order make curvatures meaningless: a small difference of
    losses is divided by a small step. Call it before a measurement is believed. The
    loss is called as it is, not compiled, so that state it keeps in Python shows; pass
    a compiled loss to check the compiled one.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      *args: what the loss needs besides the parameters: the batch.
      tolerance: largest relative difference to accept.
      where: selects the leaves of the gradient to compare by their path.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: if loss or gradient differ by more.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> diagnostics.check_deterministic(lambda x: jnp.sum(x**2), jnp.ones(3))
      >>> noise = iter([1.0, 2.0])
      >>> diagnostics.check_deterministic(lambda x: next(noise) * x, jnp.array(3.0))
      Traceback (most recent call last):
        ...
      ValueError: the loss is not deterministic: ... differs by 1.0 ... dropout ...
    """
    problem = state_problem(loss, params, args, {"where": where})
    paths = problem.selection.take(problem.selection.paths)
    names = ["the loss", *(f"its gradient at {path or 'params'}" for path in paths)]
    evaluate = jax.value_and_grad(lambda x: problem.value(x, *args))
    first, second = (jax.tree.leaves(evaluate(problem.params)) for _ in range(2))
    for name, a, b in zip(names, first, second, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Equal infinities and nans are the same answer twice.
        differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
        distance = np.linalg.norm(b[differs] - a[differs])
        relative = distance / max(float(np.linalg.norm(a)), 1e-30)
        if distance != 0 and not relative <= tolerance:
            advice = (
                "Is dropout on, or does the loss update batch statistics? Measure in "
                "evaluation mode, for example of nnx.view(model, deterministic=True, "
                "use_running_average=True)."
            )
            msg = f"in two evaluations {name} differs by {relative:.2} of its size."
            raise ValueError(f"the loss is not deterministic: {msg} {advice}")
