"""Hessian-vector products, in as many ways as there are reasons for one.

A mode is a function of (loss of x alone, x, v, step) that returns L(x), g and H v.
`operator` turns one into v -> H v over a whole batch, for those who need many products
at one point.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import accumulator, tree_move, tree_norm, tree_vdot
from optax_clip.diagnostics._streaming import Weight, stream

WITHOUT_JVP = "'reverse_over_reverse', 'finite_difference'"


def forward_over_reverse(f, x, v, step=None):
    """Differentiates the gradient along v."""
    del step
    (loss, gradient), (_, product) = jax.jvp(jax.value_and_grad(f), (x,), (v,))
    return loss, gradient, product


def reverse_over_reverse(f, x, v, step=None):
    """Takes the gradient of <g, v>, for what only knows reverse mode."""
    del step

    def slope(x):
        loss, gradient = jax.value_and_grad(f)(x)
        return tree_vdot(gradient, v), (loss, gradient)

    (_, (loss, gradient)), product = jax.value_and_grad(slope, has_aux=True)(x)
    return loss, gradient, product


def finite_difference(f, x, v, step=None):
    """Subtracts two gradients, for what can be differentiated only once."""
    # Below float32, x + h v would round back to x.
    x = jax.tree.map(lambda a: a.astype(accumulator(a)), x)
    if step is None:
        e = max(float(jnp.finfo(a.dtype).eps) for a in jax.tree.leaves(x)) ** (1 / 3)
        step = jnp.maximum(e, e**2 * tree_norm(x))
    h = jnp.asarray(step, accumulator(x))
    losses, gradients = lax.map(
        lambda s: jax.value_and_grad(f)(tree_move(x, v, s)), jnp.stack([h, -h])
    )
    gradient = jax.tree.map(lambda g: (g[0] + g[1]) / 2, gradients)
    product = jax.tree.map(lambda g: (g[0] - g[1]) / (2 * h).astype(g.dtype), gradients)
    # Hermite interpolation: exact for cubic losses, so that x itself is not evaluated.
    loss = (losses[0] + losses[1]) / 2 - h**2 * tree_vdot(product, v) / 2
    return loss, gradient, product


PRODUCTS = {
    "forward_over_reverse": forward_over_reverse,
    "reverse_over_reverse": reverse_over_reverse,
    "finite_difference": finite_difference,
}


class Hessian(NamedTuple):
    """The Hessian at one point as a linear map, with the gradient there."""

    loss: jax.Array
    gradient: Any
    matvec: Callable[[Any], Any]


def hessian(
    loss: Callable[..., jax.Array],
    params: Any,
    args: tuple,
    mode: str,
    microbatches: int | None,
    weight: Weight | None,
) -> Hessian:
    """Returns the Hessian of the mean loss over the batch."""
    if microbatches is None and mode == "forward_over_reverse":
        (value, gradient), tangent = jax.linearize(
            jax.value_and_grad(lambda x: loss(x, *args)), params
        )
        return Hessian(value, gradient, lambda v: tangent(v)[1])
    mean = functools.partial(
        stream, args=args, microbatches=microbatches, weight=weight
    )

    def matvec(v):
        def product(*part):
            return PRODUCTS[mode](lambda x: loss(x, *part), params, v)[2]

        return mean(product)

    value, gradient = mean(functools.partial(jax.value_and_grad(loss), params))
    return Hessian(value, gradient, matvec)
