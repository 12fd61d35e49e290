"""Arithmetic on whole pytrees, accumulated in float32 or wider.

Leaves are never raveled, concatenated or sorted, so every function here keeps the
sharding of its input and costs one all-reduce of a scalar.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def path_name(path: Any) -> str:
    """Returns a tree path as text, for example ``encoder/0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def pure(tree: Any) -> Any:
    """Returns the tree with the variables of Flax NNX replaced by their values.

    NNX wraps the same array in one type as a parameter and in another as the state of
    an optimizer. Nothing is imported: whoever has such a tree has loaded `flax.nnx`.
    """
    nnx = sys.modules.get("flax.nnx")
    return tree if nnx is None else nnx.as_pure(tree)


def check_leaves(tree: Any, caller: str, *, real: bool = False) -> None:
    """Refuses leaves that have no magnitude to speak of, and names the first.

    Args:
      tree: pytree of arrays, or of what becomes one.
      caller: the public function that refuses, for the message.
      real: whether complex leaves are refused, too.

    Raises:
      TypeError: for a leaf of integers, booleans, PRNG keys or float0.
    """
    kind, wanted = (
        (jnp.floating, "real floating-point")
        if real
        else (jnp.inexact, "floating-point or complex")
    )
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, kind):
            # float0, which stands for no gradient, prints as a structured type.
            name = "float0" if dtype == jax.dtypes.float0 else dtype
            raise TypeError(
                f"{caller}: expected {wanted} leaves; the one at "
                f"{path_name(path) or 'the root'} is {name}. Leave it out (with "
                "optax.masked, or `where`), or convert it."
            )


def accumulator(tree: Any) -> jnp.dtype:
    """Returns the dtype in which sums over the tree are taken: at least float32."""
    return promoted(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(tree)))


def promoted(*dtypes: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the type that holds all of these, also where jax promotes none.

    Floats of less than 16 bits, which it never promotes, count as float32.
    """

    def known(dtype):
        small = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16
        return jnp.dtype(jnp.float32 if small else dtype)

    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, map(known, dtypes))


def tree_vdot(a: Any, b: Any) -> jax.Array:
    """Returns the inner product of two trees."""
    dtype = accumulator(a)
    parts = jax.tree.map(lambda x, y: jnp.sum(x.astype(dtype) * y.astype(dtype)), a, b)
    return sum(jax.tree.leaves(parts), jnp.zeros([], dtype))


def tree_norm(tree: Any) -> jax.Array:
    """Returns the Euclidean norm of a tree, without over- or underflow."""
    scaled, scale = tree_balance(tree)
    return jnp.sqrt(tree_vdot(scaled, scaled)) / scale


def tree_balance(tree: Any) -> tuple[Any, jax.Array]:
    """Returns the tree times a scale, the largest entry near 1, and the scale."""
    dtype = accumulator(tree)
    peaks = [
        jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(tree)
    ]
    # Near 1 the squares of an update of norm 1e-25 stay above zero.
    scale = balance(functools.reduce(jnp.maximum, peaks, jnp.zeros([], dtype)))
    return jax.tree.map(lambda x: x.astype(dtype) * scale, tree), scale


def balance(peak: jax.Array) -> jax.Array:
    """Returns the power of two that brings a peak near 1; 1 for a peak of zero.

    Multiplying by it is exact, and on a CPU takes a tenth of the time of a division.
    """
    _, exponent = jnp.frexp(peak)
    limit = jnp.finfo(peak.dtype).maxexp - 2  # beyond, it or its inverse is subnormal
    return jnp.ldexp(jnp.ones_like(peak), jnp.clip(-exponent, -limit, limit))


def tree_unit(tree: Any, norm: jax.Array) -> Any:
    """Divides a tree by its norm, in its own dtypes; a zero tree becomes nan."""
    return jax.tree.map(lambda x: (x.astype(norm.dtype) / norm).astype(x.dtype), tree)


def tree_move(params: Any, direction: Any, step: jax.typing.ArrayLike) -> Any:
    """Returns params + step * direction, rounded once to the dtypes of params."""

    def move(x, u):
        dtype = accumulator((x, u))
        moved = x.astype(dtype) + jnp.asarray(step, dtype) * u.astype(dtype)
        return moved.astype(x.dtype)

    return jax.tree.map(move, params, direction)


def tree_draw(draw: Callable[..., jax.Array], key: jax.Array, tree: Any) -> Any:
    """Returns draw(key, shape, dtype) for every leaf, sharded like the leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    # The zeros have the sharding, and cost nothing once compiled.
    drawn = [
        jnp.zeros_like(x) + draw(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)
