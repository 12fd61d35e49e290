"""Whether a transformation divides the gradient coordinate by coordinate.

It cannot be proved, but two kinds that do not are recognised: those that keep a
momentum by their state, and those that multiply matrices by what they compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

_MOMENTUM = (
    optax.EmaState,
    optax.ScaleByAdamState,
    optax.ScaleByAmsgradState,
    optax.ScaleByBeliefState,
    optax.ScaleByLionState,
    optax.TraceState,
)
_OF_MATRICES = frozenset(
    {"cholesky", "eig", "eigh", "lu", "qr", "svd", "triangular_solve", "householder"}
)


def check_coordinatewise(inner: optax.GradientTransformation, state: Any) -> None:
    """Refuses what is known to mix coordinates, or the gradients of several steps.

    Args:
      inner: the transformation inside of `clip_numerator`.
      state: its state at init.

    Raises:
      ValueError: if it is one of those kinds.
    """
    expected = (
        "clip_numerator: expected an inner that divides the current gradient "
        "coordinate by coordinate, such as optax.scale_by_rms; this one "
    )
    instead = "Put clip_top_k_coordinates before it"
    if product := next(_products(inner), None):
        raise ValueError(
            f"{expected}multiplies matrices ({product}), as Muon and Shampoo do. "
            f"{instead}."
        )
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, _MOMENTUM))
    kept = [type(x).__name__ for x in nodes if isinstance(x, _MOMENTUM)]
    if kept:
        raise ValueError(
            f"{expected}keeps a momentum ({kept[0]}). {instead}, or use "
            "scale_by_clipped_adam for Adam."
        )


def _products(inner: optax.GradientTransformation) -> Iterator[str]:
    """Yields what an update of one small matrix computes with whole matrices."""
    matrix = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        with jax.numpy_dtype_promotion("standard"):  # which types is not the question
            state = jax.eval_shape(inner.init, matrix)
            traced = jax.make_jaxpr(inner.update)(matrix, state, matrix)
    except Exception:  # it is made for other trees: nothing is known
        return
    yield from _of_matrices(traced.jaxpr)


def _of_matrices(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        is_product = name == "dot_general" and equation.outvars[0].aval.shape
        if is_product or name in _OF_MATRICES:
            yield name
        for value in jax.tree.leaves(list(equation.params.values())):
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                yield from _of_matrices(inside)
