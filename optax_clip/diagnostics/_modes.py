"""Hessian-vector products, in as many ways as there are reasons for one.

A :class:`Mode` has two functions of (loss of x alone, x, v, step). One returns L(x),
<g, v> and v^T H v, which is all that a directional derivative needs; the other returns
L(x), g and H v.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import accumulator, tree_move, tree_norm, tree_vdot


class Mode(NamedTuple):
    """One way to take second derivatives along a vector."""

    derivatives: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    product: Callable[..., tuple[jax.Array, Any, Any]] | None


def _forward_over_reverse(f, x, v, step=None):
    """Differentiates the gradient along v."""
    del step
    (loss, gradient), (_, product) = jax.jvp(jax.value_and_grad(f), (x,), (v,))
    return loss, gradient, product


def _forward_over_reverse_along(f, x, v, step=None):
    del step
    # The slope comes with the loss. As <g, v> it would cost the gradient, which XLA
    # else leaves out: a tenth of the time.
    (loss, _), (slope, product) = jax.jvp(jax.value_and_grad(f), (x,), (v,))
    return loss, slope, tree_vdot(v, product)


def _forward_over_forward_along(f, x, v, step=None):
    """Differentiates the slope along v: there is no gradient at all."""
    del step

    def slope(x):
        return jax.jvp(f, (x,), (v,))

    (loss, first), (_, second) = jax.jvp(slope, (x,), (v,))
    return loss, first, second


def _reverse_over_reverse(f, x, v, step=None):
    """Takes the gradient of <g, v>, for what only knows reverse mode."""
    del step

    def slope(x):
        loss, gradient = jax.value_and_grad(f)(x)
        return tree_vdot(gradient, v), (loss, gradient)

    (_, (loss, gradient)), product = jax.value_and_grad(slope, has_aux=True)(x)
    return loss, gradient, product


def _finite_difference(f, x, v, step=None):
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
    product = jax.tree.map(lambda g: (g[0] - g[1]) / (2 * h.astype(g.dtype)), gradients)
    # Hermite interpolation: exact for cubic losses, so that x itself is not evaluated.
    curvature = tree_vdot(product, v)
    loss = (losses[0] + losses[1]) / 2 - (h**2 * curvature / 2).astype(losses.dtype)
    return loss, gradient, product


def _along(product: Callable) -> Callable:
    """Contracts a product with v."""

    def derivatives(f, x, v, step=None):
        loss, gradient, hv = product(f, x, v, step)
        return loss, tree_vdot(gradient, v), tree_vdot(v, hv)

    return derivatives


MODES = {
    "forward_over_reverse": Mode(_forward_over_reverse_along, _forward_over_reverse),
    "forward_over_forward": Mode(_forward_over_forward_along, None),
    "reverse_over_reverse": Mode(_along(_reverse_over_reverse), _reverse_over_reverse),
    "finite_difference": Mode(_along(_finite_difference), _finite_difference),
}
WITH_PRODUCT = {name: mode for name, mode in MODES.items() if mode.product is not None}


def custom_vjps(jaxpr: Any) -> Iterator[str]:
    """Yields the names of functions with a custom_vjp in a jaxpr, at any depth."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("custom_vjp"):
            inner = eqn.params.get("call_jaxpr") or eqn.params.get("fun_jaxpr")
            info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
            yield getattr(info, "func_src_info", None) or "a function"
        for value in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from custom_vjps(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
