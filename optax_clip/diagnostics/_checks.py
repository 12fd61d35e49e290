"""What is refused, in one clear sentence, before any work.

Structures, shapes and dtypes are checked always. Values are checked only when they are
concrete: inside `jax.jit` nothing can be read, and what would have been refused shows
as nan in the result. A wrong kind of thing is a TypeError, a wrong value a ValueError.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip.diagnostics._subset import Selection, dtype_of, is_real, pure, select


def is_concrete(tree: Any) -> bool:
    """Returns whether the values of the tree can be read now."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def quotient(a: Any, b: Any, otherwise: float = math.inf) -> Any:
    """Returns a / b, and something else wherever b is zero.

    By NumPy where the values are known: there, an answer that is no finite number does
    not stop a program that runs under ``jax_debug_nans`` or ``jax_debug_infs``.
    """
    xp = np if is_concrete((a, b)) else jnp
    a, b = xp.asarray(a), xp.asarray(b)
    return xp.where(b == 0, otherwise, a / xp.where(b == 0, xp.ones_like(b), b))


def check_params(selection: Selection, leaves: list[Any]) -> None:
    """Refuses trees without parameters and leaves that have no second derivative."""
    if not any(selection.chosen):
        cause = "`where` selects no leaf" if leaves else "params has no leaves"
        raise ValueError(f"{cause}, so there is nothing to differentiate.")
    pairs = zip(selection.take(selection.keys), selection.take(leaves), strict=True)
    for key, leaf in pairs:
        if not is_real(leaf):
            msg = f"params{key} must be real and floating-point; got {_name(leaf)} "
            raise TypeError(f"{msg}(`where` can leave it out).")


def tangent_leaves(
    params: Any, selection: Selection, leaves: list[Any], tree: Any, name: str
) -> list[jax.Array]:
    """Returns the chosen leaves of a direction, refused unless a tangent of params."""
    found = _matching_leaves(params, selection, tree, name)
    places = zip(selection.take(selection.keys), selection.take(leaves), strict=True)
    for (key, x), u in zip(places, found, strict=True):
        start = f"{name}{key} must have the"
        if jnp.shape(x) != jnp.shape(u):
            msg = f"shape of params: expected {jnp.shape(x)}, got {jnp.shape(u)}."
            raise ValueError(f"{start} {msg}")
        if dtype_of(x) != dtype_of(u):
            msg = f"dtype of params: expected {dtype_of(x)}, got {_name(u)} "
            hint = "(`optax.tree.cast_like(direction, params)` converts it)."
            raise TypeError(f"{start} {msg}{hint}")
    return [jnp.asarray(u) for u in found]


def mask_leaves(
    params: Any, selection: Selection, leaves: list[Any], mask: Any
) -> list[jax.Array]:
    """Returns the chosen leaves of a mask, refused unless booleans like params."""
    found = _matching_leaves(params, selection, mask, "mask")
    places = zip(selection.take(selection.keys), selection.take(leaves), strict=True)
    for (key, x), m in zip(places, found, strict=True):
        boolean = _name(m) == "bool"
        if not boolean or jnp.shape(m) != jnp.shape(x):
            msg = f"mask{key} must be boolean with shape {jnp.shape(x)}; got "
            error = ValueError if boolean else TypeError
            raise error(f"{msg}{_name(m)} with shape {jnp.shape(m)}.")
    return [jnp.asarray(m) for m in found]


def _matching_leaves(
    params: Any, selection: Selection, tree: Any, name: str
) -> list[Any]:
    params, tree = pure(params), pure(tree)
    if jax.tree.structure(params) != jax.tree.structure(tree):
        msg = f"{name} must have the tree structure of params: "
        raise ValueError(msg + _difference(params, tree))
    return selection.take(jax.tree.leaves(tree))


def _difference(params: Any, tree: Any) -> str:
    """Names the leaves that only one of two trees has."""
    wanted, given = select(params)[0].keys, select(tree)[0].keys
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted]
    if not missing and not extra:
        expected, got = jax.tree.structure(params), jax.tree.structure(tree)
        return f"expected {expected}, got {got}."
    parts = [("missing", missing), ("unexpected", extra)]
    return "; ".join(f"{word} {', '.join(ks[:3])}" for word, ks in parts if ks) + "."


def check_norm(norm: jax.Array, name: str, keys: Any, leaves: Any) -> None:
    """Refuses a zero or non-finite direction, where its value is known."""
    if not is_concrete(norm) or (math.isfinite(norm) and norm > 0):
        return
    if norm == 0:
        raise ValueError(f"{name} is zero in every coordinate, so it has no direction.")
    for key, leaf in zip(keys, leaves, strict=True):
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise ValueError(f"{name}{key} has entries that are not finite.")
    raise ValueError(f"the norm of {name} overflows {norm.dtype}.")


def check_finite_loss(loss: jax.Array | None) -> None:
    """Refuses a loss of nan or infinity, where its value is known."""
    if (
        loss is not None
        and is_concrete(loss)
        and not np.all(np.isfinite(np.asarray(loss)))
    ):
        raise ValueError(f"the loss must be finite; got {loss}.")


def as_loss(value: Any) -> jax.Array:
    """Returns what a loss returned, refused unless it is a real scalar."""
    if not jax.tree_util.all_leaves([value]):
        kind = type(value).__name__
        raise TypeError(f"the loss must return one real scalar; got a {kind}.")
    value = jnp.asarray(value)
    real = jnp.issubdtype(value.dtype, jnp.floating)
    if value.shape or not real:
        msg = f"one real scalar; got shape {value.shape} and dtype {value.dtype}."
        raise (ValueError if real else TypeError)(f"the loss must return {msg}")
    return value if value.dtype.itemsize > 4 else value.astype(jnp.float32)


def check_positive(name: str, value: Any) -> None:
    """Refuses what is no number, or known not to be positive and finite."""
    if _is_known_number(name, value) and not 0 < float(np.asarray(value)) < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}.")


def check_fraction(name: str, value: Any) -> None:
    """Refuses what is no number, or known to be outside [0, 1)."""
    if _is_known_number(name, value) and not 0 <= float(np.asarray(value)) < 1:
        raise ValueError(f"{name} must be in [0, 1); got {value}.")


def _is_known_number(name: str, value: Any) -> bool:
    number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    if not number or jnp.ndim(value) != 0:
        raise TypeError(f"{name} must be one number; got {value!r}.")
    return is_concrete(value)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no number of repetitions."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        msg = f"{name} must be an int of at least {least}; got {value!r}."
        raise (ValueError if whole else TypeError)(msg)


def check_choice(name: str, value: Any, choices: Mapping[Any, Any]) -> None:
    """Refuses what is not one of the choices, and names them."""
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")


def check_key(key: Any) -> None:
    """Refuses what is no random key, such as a seed."""
    dtype = dtype_of(key)
    if isinstance(dtype, str) or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32
    ):
        raise TypeError(f"key must be a random key, as of jax.random.key; got {key!r}.")


def check_function(name: str, value: Any) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {value!r}.")


def _name(leaf: Any) -> str:
    # float0, which stands for no gradient, prints as a structured type.
    dtype = dtype_of(leaf)
    return "float0" if dtype == jax.dtypes.float0 else str(dtype)
