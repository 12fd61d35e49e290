"""Whether a loss can be measured at all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_clip._trees import path_name, tree_norm
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import on_subset, restrict


def check_deterministic(
    loss: Callable[..., jax.Array],
    params: Any,
    *args: Any,
    tolerance: float = 0.0,
    where: Callable[[str], bool] | None = None,
) -> None:
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
    _checks.check_params(params, where)
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    paths = paths if where is None else filter(where, paths)
    names = ["the loss", *(f"its gradient at {path or 'params'}" for path in paths)]
    f = on_subset(_checks.as_scalar(loss), params, where)
    evaluate, x = jax.value_and_grad(f), restrict(params, where)
    first, second = evaluate(x, *args), evaluate(x, *args)
    leaves = zip(names, jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    for name, a, b in leaves:
        # Equal infinities and nans are the same answer twice.
        difference = jnp.where((a == b) | ((a != a) & (b != b)), 0, b - a)
        distance = tree_norm(difference)
        relative = distance / jnp.maximum(tree_norm(a), 1e-30)
        if distance != 0 and not relative <= tolerance:
            msg = (
                f"the loss is not deterministic: in two evaluations {name} differs by "
                f"{float(relative):.2} of its size; is dropout on?"
            )
            raise ValueError(msg)
