"""Blocks: a partition of the coordinates of a tree by the paths of its leaves."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip._trees import accumulator, path_name

Blocks = Callable[[str], Any]


class Stacked(NamedTuple):
    """Names the block of a leaf whose leading axis is a stack of layers.

    Layer i of the leaf belongs to the block ``f"{name}/{i}"``.

    Attributes:
      name: what the layers have in common.

    Examples:
      A model that scans over its layers keeps them in one array.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> params = {"head": jnp.ones(4), "layers": jnp.array([[3.0, 4.0], [6.0, 8.0]])}
      >>> def blocks(path):
      ...     return diagnostics.Stacked(path) if path == "layers" else path
      >>> norms = diagnostics.block_norms(params, blocks)
      >>> {name: float(norm.l2) for name, norm in norms.items()}
      {'head': 2.0, 'layers/0': 5.0, 'layers/1': 10.0}
    """

    name: str


class Partition(NamedTuple):
    """Block numbers that broadcast to the leaves, and the blocks' names and sizes."""

    ids: Any
    names: list
    sizes: list[int]

    def part(self, tree: Any, i: jax.Array | int) -> Any:
        """Returns the tree with all other blocks set to zero."""
        return jax.tree.map(lambda x, ids: jnp.where(ids == i, x, 0), tree, self.ids)

    def sums(self, tree: Any, dtype: Any = None) -> jax.Array:
        """Returns the sum over each block, shape (blocks,)."""
        dtype = accumulator(tree) if dtype is None else dtype
        totals = jnp.zeros([len(self.names)], dtype)
        for x, ids in zip(
            jax.tree.leaves(tree), jax.tree.leaves(self.ids), strict=True
        ):
            layers = tuple(range(ids.ndim and 1, x.ndim))
            totals = totals.at[ids.ravel() if ids.ndim else ids].add(
                jnp.sum(x, axis=layers, dtype=dtype)
            )
        return totals

    def vdots(self, a: Any, b: Any) -> jax.Array:
        """Returns the inner product of each block, shape (blocks,)."""
        dtype = accumulator(a)
        products = jax.tree.map(lambda x, y: x.astype(dtype) * y.astype(dtype), a, b)
        return self.sums(products)

    def by_name(self, values: Any) -> dict:
        """Returns {name: values[i]} for a tree of arrays over blocks."""
        return {
            name: jax.tree.map(lambda x, i=i: x[i], values)
            for i, name in enumerate(self.names)
        }


def partition(
    tree: Any, blocks: Blocks | None, where: Callable[[str], bool] | None = None
) -> Partition:
    """Groups the leaves of a tree, each one its own block by default.

    With `where`, the partition is that of the list of the selected leaves.
    """
    numbers: dict[Hashable, int] = {}
    sizes: list[int] = []

    def number(name, size):
        if name not in numbers:
            sizes.append(0)
        i = numbers.setdefault(name, len(numbers))
        sizes[i] += size
        return i

    def assign(path, leaf):
        name = path_name(path) if blocks is None else blocks(path_name(path))
        if not isinstance(name, Hashable):
            msg = (
                f"blocks must return something hashable; got {type(name).__name__} "
                f"for {path_name(path)!r}."
            )
            raise TypeError(msg)
        if not isinstance(name, Stacked):
            return np.asarray(number(name, jnp.size(leaf)))
        layers, *rest = jnp.shape(leaf) or _no_layers(path)
        layer_size = int(np.prod(rest, dtype=np.int64))
        ids = [number(f"{name.name}/{i}", layer_size) for i in range(layers)]
        return np.asarray(ids).reshape(-1, *(1 for _ in rest))

    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if where is not None:
        leaves = [leaf for leaf in leaves if where(path_name(leaf[0]))]
        treedef = jax.tree.structure([0] * len(leaves))
    ids = [assign(path, leaf) for path, leaf in leaves]
    if not ids:
        raise ValueError("tree has no leaves, so it has no blocks.")
    return Partition(jax.tree.unflatten(treedef, ids), list(numbers), sizes)


def _no_layers(path: Any) -> tuple:
    raise ValueError(f"{path_name(path)} has no axis that could be a stack of layers.")
