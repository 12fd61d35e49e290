"""Trees as lists of leaves: which of them are measured, and what holds the others.

A measurement works on the list of the leaves that `where` selects. Whatever else a tree
holds (integers, keys, names, functions) is passed on to the loss as it is.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip._trees import path_name, pure

Where = Callable[[str], bool]


def dtype_of(leaf: Any) -> Any:
    """Returns the dtype of a leaf, or the type of one that is no array."""
    try:
        return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    except TypeError:
        return type(leaf).__name__


def is_real(leaf: Any) -> bool:
    """Returns whether a leaf is real and floating-point."""
    dtype = dtype_of(leaf)
    return not isinstance(dtype, str) and jnp.issubdtype(dtype, jnp.floating)


def has_numbers(leaf: Any) -> bool:
    """Returns whether a leaf holds numbers or booleans, and no keys or float0."""
    dtype = dtype_of(leaf)
    return str(dtype) == "bool" or (
        not isinstance(dtype, str) and jnp.issubdtype(dtype, jnp.number)
    )


class Selection(NamedTuple):
    """The leaves of a tree by their paths, and which of them are measured."""

    treedef: Any
    keys: tuple[str, ...]  # as in Python, for messages: ['encoder'][0]
    paths: tuple[str, ...]  # as `where` and `blocks` take them: encoder/0
    chosen: tuple[bool, ...]

    def take(self, leaves: Sequence[Any]) -> list[Any]:
        """Returns what belongs to the chosen leaves."""
        return [x for x, new in zip(leaves, self.chosen, strict=True) if new]

    def leave(self, leaves: Sequence[Any]) -> list[Any]:
        """Returns what belongs to the others."""
        return [x for x, new in zip(leaves, self.chosen, strict=True) if not new]

    def merge(self, chosen: Sequence[Any], others: Sequence[Any]) -> Any:
        """Returns the tree of chosen and other leaves."""
        sources = (iter(others), iter(chosen))
        leaves = [next(sources[new]) for new in self.chosen]
        return jax.tree.unflatten(self.treedef, leaves)


def select(tree: Any, where: Where | None = None) -> tuple[Selection, list[Any]]:
    """Returns the selection of a tree, and all of its leaves."""
    if where is not None and not callable(where):
        raise TypeError(f"where must be a function; got {where!r}.")
    leaves, treedef = jax.tree.flatten(tree)
    places = [path for path, _ in jax.tree.leaves_with_path(pure(tree))]
    paths = tuple(path_name(path) for path in places)
    keys = tuple(jax.tree_util.keystr(path) for path in places)
    chosen = tuple(where is None or bool(where(path)) for path in paths)
    return Selection(treedef, keys, paths, chosen), leaves


def flat_arrays(tree: Any, caller: str) -> tuple[Selection, list[jax.Array]]:
    """Returns the leaves of a tree of numbers; float0 stands for zeros.

    Raises:
      TypeError: for a leaf that holds no numbers, such as a PRNG key.
    """
    selection, leaves = select(tree)
    arrays = []
    for key, leaf in zip(selection.keys, leaves, strict=True):
        if dtype_of(leaf) == jax.dtypes.float0:
            leaf = np.zeros(np.shape(leaf), np.float32)
        if not has_numbers(leaf):
            msg = f"{caller}: tree{key} must hold numbers; it is {dtype_of(leaf)}."
            raise TypeError(msg)
        arrays.append(jnp.asarray(leaf))
    return selection, arrays


### what is no array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """A leaf that is no array: it belongs to the program and not to its input."""

    value: Any

    def __eq__(self, other: Any) -> bool:
        # True == 1 == 1.0, but a loss may tell them apart.
        return (
            isinstance(other, Fixed)
            and type(self.value) is type(other.value)
            and self.value == other.value
        )

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    @property
    def known(self) -> bool:
        """Whether an equal value means the same program.

        An object that is equal only to itself may change inside; a function does not.
        """
        return callable(self.value) or type(self.value).__hash__ is not object.__hash__


def freeze(tree: Any) -> Any:
    """Wraps what is no array, so that it passes through `jax.jit` as it is."""
    arrays = (jax.Array, np.ndarray, np.number)
    return jax.tree.map(lambda x: x if isinstance(x, arrays) else Fixed(x), tree)


def thaw(tree: Any) -> Any:
    """Undoes `freeze`."""
    return jax.tree.map(
        lambda x: x.value if _is_fixed(x) else x, tree, is_leaf=_is_fixed
    )


def all_known(tree: Any) -> bool:
    """Returns whether a frozen tree may be the key of a compiled program."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_fixed)
    try:
        return all(x.known and hash(x) is not None for x in leaves if _is_fixed(x))
    except TypeError:  # it cannot be hashed
        return False


def _is_fixed(x: Any) -> bool:
    return isinstance(x, Fixed)
