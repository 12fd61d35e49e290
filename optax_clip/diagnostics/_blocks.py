"""Blocks: a partition of the coordinates of a tree by the paths of its leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip._trees import accumulator, tree_balance
from optax_clip.diagnostics._checks import is_concrete
from optax_clip.diagnostics._subset import flat_arrays

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
      >>> norms = diagnostics.block_norms(params, blocks=blocks)
      >>> {name: float(norm.l2) for name, norm in norms.items()}
      {'head': 2.0, 'layers/0': 5.0, 'layers/1': 10.0}
    """

    name: str


class Partition(NamedTuple):
    """The blocks of a list of leaves, by number; it can be hashed.

    Attributes:
      names: of the blocks.
      sizes: their numbers of entries.
      ids: for every leaf the number of its block, or one number for each of its layers.
    """

    names: tuple
    sizes: tuple[int, ...]
    ids: tuple[int | tuple[int, ...], ...]

    def part(self, leaves: Sequence[Any], i: jax.Array | int) -> list[jax.Array]:
        """Returns the leaves with all other blocks set to zero."""

        def keep(x, ids):
            here = jnp.asarray(ids).reshape(-1, *(1 for _ in x.shape[1:])) == i
            return jnp.where(here if x.ndim else here[0], x, 0)

        return [keep(x, ids) for x, ids in zip(leaves, self.ids, strict=True)]

    def sums(self, leaves: Sequence[jax.Array], dtype: Any = None) -> jax.Array:
        """Returns the sum over each block, shape (blocks,)."""
        dtype = accumulator(leaves) if dtype is None else dtype
        totals = jnp.zeros([len(self.names)], dtype)
        for x, ids in zip(leaves, self.ids, strict=True):
            layers = tuple(range(isinstance(ids, tuple), x.ndim))
            totals = totals.at[jnp.asarray(ids)].add(
                jnp.sum(x, axis=layers, dtype=dtype)
            )
        return totals

    def vdots(self, a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
        """Returns the inner product of each block, shape (blocks,)."""
        dtype = accumulator(a)
        return self.sums(
            [x.astype(dtype) * y.astype(dtype) for x, y in zip(a, b, strict=True)]
        )

    def each(self, values: Any) -> list[Any]:
        """Returns [values[i]] for a tree of arrays over blocks.

        What is known is split on the host, because compilers take time for every
        result of a program.
        """
        known = is_concrete(values)
        if known and all(x.is_fully_replicated for x in jax.tree.leaves(values)):
            values = jax.device_get(values)
        count = range(len(self.names))
        each = [jax.tree.map(lambda x, i=i: x[i], values) for i in count]
        return jax.device_put(each) if known else each

    def by_name(self, results: Sequence[Any]) -> dict[Any, Any]:
        """Returns {name: result}, in the order of the leaves.

        Outside of `jax.jit`, which would sort the names.
        """
        return dict(zip(self.names, results, strict=True))


def partition(
    paths: Sequence[str], leaves: Sequence[Any], blocks: Blocks | None
) -> Partition:
    """Groups leaves by their paths, each one its own block by default."""
    if blocks is not None and not callable(blocks):
        raise TypeError(f"blocks must be a function of a leaf's path; got {blocks!r}.")
    sizes: dict[Hashable, int] = {}
    numbers: dict[Hashable, int] = {}

    def number(name, size):
        sizes[name] = sizes.get(name, 0) + size
        return numbers.setdefault(name, len(numbers))

    def assign(path, leaf):
        name = path if blocks is None else blocks(path)
        if not isinstance(name, Hashable):
            kind = type(name).__name__
            msg = f"blocks must return something hashable; got {kind} for {path!r}."
            raise TypeError(msg)
        if not isinstance(name, Stacked):
            return number(name, int(np.size(leaf)))
        if not np.ndim(leaf):
            raise ValueError(f"{path} has no axis that could be a stack of layers.")
        layers, *rest = np.shape(leaf)
        size = int(np.prod(rest, dtype=np.int64))
        return tuple(number(f"{name.name}/{i}", size) for i in range(layers))

    ids = tuple(assign(path, leaf) for path, leaf in zip(paths, leaves, strict=True))
    if not ids:
        raise ValueError("tree has no leaves, so it has no blocks.")
    return Partition(tuple(sizes), tuple(sizes.values()), ids)


def whole(path: str) -> str:
    """Puts every leaf into one block."""
    del path
    return "all"


class BlockNorm(NamedTuple):
    """The size of one block.

    Attributes:
      l2: Euclidean norm.
      rms: Euclidean norm divided by the square root of the number of entries.
      l1: sum of magnitudes.
      size: number of entries.

    Examples:
      With entries of the same size, `l2` grows with the block and `rms` does not.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"bias": jnp.full(1, 3.0), "kernel": jnp.full((4, 4), 3.0)}
      >>> for name, norm in diagnostics.block_norms(tree).items():
      ...     print(f"{name:6} l2 {norm.l2:4.1f}, rms {norm.rms:.1f}")
      bias   l2  3.0, rms 3.0
      kernel l2 12.0, rms 3.0
    """

    l2: jax.Array
    rms: jax.Array
    l1: jax.Array
    size: jax.Array


def block_norms(tree: Any, *, blocks: Blocks | None = None) -> dict[Any, BlockNorm]:
    """Returns the norms of every block of a gradient, an update or the parameters.

    Args:
      tree: pytree of arrays; float0 leaves, which stand for no gradient, count as zero.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None makes every leaf a block.

    Returns:
      {block: :class:`BlockNorm`}.

    Raises:
      TypeError: if a leaf holds no numbers, or a block's name cannot be hashed.
      ValueError: for a tree without leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> norms = diagnostics.block_norms({"head": jnp.array([3.0, -4.0, 0.0, 0.0])})
      >>> [float(q) for q in norms["head"]]
      [5.0, 2.5, 7.0, 4.0]
    """
    selection, leaves = flat_arrays(tree, "block_norms")
    parts = partition(selection.paths, leaves, blocks)
    return parts.by_name(_block_norms(leaves, parts=parts))


@functools.partial(jax.jit, static_argnames="parts")
def _block_norms(leaves: list[jax.Array], parts: Partition) -> list[BlockNorm]:
    scaled, scale = tree_balance([jnp.abs(x) for x in leaves])
    l2 = jnp.sqrt(parts.vdots(scaled, scaled)) / scale
    size = jnp.asarray(parts.sizes, l2.dtype)
    l1 = parts.sums(scaled) / scale
    return parts.each(BlockNorm(l2, l2 / jnp.sqrt(size), l1, size))
