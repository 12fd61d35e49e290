"""What is refused, in one clear sentence, before any work.

Structures, shapes and dtypes are checked always. Values are checked only when they
are concrete: inside `jax.jit` nothing can be read, and what would have been refused
shows as nan in the result.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip._trees import path_name, tree_norm

Where = Callable[[str], bool]


def is_concrete(tree: Any) -> bool:
    """Returns whether the values of the tree can be read now."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def is_given(value: jax.typing.ArrayLike) -> bool:
    """Returns False only for a number that is known to be zero."""
    return not is_concrete(value) or bool(np.asarray(value) != 0)


def check_params(params: Any, where: Where | None = None) -> None:
    """Refuses trees without parameters and leaves that have no second derivative."""
    chosen = _chosen(params, where)
    if not chosen:
        cause = "params has no leaves" if where is None else "`where` selects no leaf"
        raise ValueError(f"{cause}, so there is nothing to differentiate.")
    for path, leaf in chosen:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            msg = (
                f"params{_key(path)} must be real and floating-point; got "
                f"{jnp.result_type(leaf)} (`where` can leave it out)."
            )
            raise ValueError(msg)


def check_direction(
    params: Any, direction: Any, where: Where | None = None, name: str = "direction"
) -> None:
    """Refuses a direction that is not a tangent of params."""
    expected, got = jax.tree.structure(params), jax.tree.structure(direction)
    if expected != got:
        raise ValueError(
            f"{name} must have the tree structure of params: "
            + _differ(params, direction)
        )
    pairs = zip(_chosen(params, where), _chosen(direction, where), strict=True)
    for (path, x), (_, u) in pairs:
        if jnp.shape(x) != jnp.shape(u):
            msg = (
                f"{name}{_key(path)} must have the shape of params: "
                f"expected {jnp.shape(x)}, got {jnp.shape(u)}."
            )
            raise ValueError(msg)
        if jnp.result_type(x) != jnp.result_type(u):
            msg = (
                f"{name}{_key(path)} must have the dtype of params: "
                f"expected {jnp.result_type(x)}, got {jnp.result_type(u)} "
                "(`optax.tree.cast_like(direction, params)` converts it)."
            )
            raise ValueError(msg)


def check_mask(params: Any, mask: Any) -> None:
    """Refuses a mask that is not made of booleans like params."""
    if jax.tree.structure(params) != jax.tree.structure(mask):
        raise ValueError(
            f"mask must have the tree structure of params: {_differ(params, mask)}"
        )
    pairs = zip(jax.tree.leaves_with_path(mask), jax.tree.leaves(params), strict=True)
    for (path, m), x in pairs:
        if not jnp.issubdtype(jnp.result_type(m), bool) or jnp.shape(m) != jnp.shape(x):
            msg = (
                f"mask{_key(path)} must be boolean with shape {jnp.shape(x)}; got "
                f"{jnp.result_type(m)} with shape {jnp.shape(m)}."
            )
            raise ValueError(msg)


def check_norm(direction: Any, norm: jax.Array, name: str = "direction") -> None:
    """Refuses a zero or non-finite direction, where its value is known."""
    if not is_concrete(norm) or (math.isfinite(norm) and norm > 0):
        return
    if norm == 0:
        raise ValueError(f"{name} is zero in every coordinate, so it has no direction.")
    for path, leaf in jax.tree.leaves_with_path(direction):
        if not jnp.isfinite(tree_norm(leaf)):
            raise ValueError(f"{name}{_key(path)} has entries that are not finite.")
    raise ValueError(f"the norm of {name} overflows {norm.dtype}.")


def check_finite_loss(loss: jax.Array) -> None:
    """Refuses a loss of nan or infinity, where its value is known."""
    if is_concrete(loss) and not bool(jnp.all(jnp.isfinite(loss))):
        raise ValueError(f"the loss must be finite; got {loss}.")


def as_scalar(loss: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Wraps a loss so that it is refused, while traced, unless it is a real scalar."""

    def scalar_loss(params, *args):
        value = loss(params, *args)
        if not jax.tree_util.all_leaves([value]):
            kind = type(value).__name__
            raise ValueError(f"the loss must return one real scalar; got a {kind}.")
        value = jnp.asarray(value)
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            msg = (
                "the loss must return one real scalar; got shape "
                f"{value.shape} and dtype {value.dtype}."
            )
            raise ValueError(msg)
        return value.astype(jnp.promote_types(value.dtype, jnp.float32))

    return scalar_loss


def check_positive(name: str, value: jax.typing.ArrayLike) -> None:
    """Refuses a number that is known not to be positive and finite."""
    if is_concrete(value) and not 0 < float(np.asarray(value)) < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}.")


def check_count(name: str, value: int) -> None:
    """Refuses what is no number of repetitions."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1; got {value!r}.")


def check_choice(name: str, value: str, choices: Mapping[str, Any]) -> None:
    """Refuses a word that is not among the choices."""
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {words}; got {value!r}.")


def _chosen(tree: Any, where: Where | None) -> list:
    leaves = jax.tree.leaves_with_path(tree)
    return [p for p in leaves if where is None or where(path_name(p[0]))]


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _differ(params: Any, direction: Any) -> str:
    """Names the leaves that only one of two trees has."""
    paths = [
        [_key(path) for path, _ in jax.tree.leaves_with_path(tree)]
        for tree in (params, direction)
    ]
    missing = [path for path in paths[0] if path not in paths[1]]
    extra = [path for path in paths[1] if path not in paths[0]]
    if not missing and not extra:
        expected, got = jax.tree.structure(params), jax.tree.structure(direction)
        return f"expected {expected}, got {got}."
    parts = [("missing", missing), ("unexpected", extra)]
    return "; ".join(f"{word} {', '.join(ks[:3])}" for word, ks in parts if ks) + "."
