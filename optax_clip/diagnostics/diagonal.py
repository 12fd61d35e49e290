"""The diagonal of the Hessian: some entries exactly, or all of them by estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import measuring
from optax_clip.diagnostics._products import PRODUCTS, hessian
from optax_clip.diagnostics._streaming import Weight
from optax_clip.diagnostics._trees import accumulator, tree_draw, tree_vdot


class Coordinates(NamedTuple):
    """Some coordinates of a tree.

    Attributes:
      leaf: numbers of leaves, shape (n,).
      index: flat indices within the leaves, shape (n,).

    Examples:
      Leaf 1 is the second one, its flat index 2 the start of the second row.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"a": jnp.zeros(2), "b": jnp.array([[3.0, 4.0], [5.0, 6.0]])}
      >>> one = diagnostics.Coordinates(leaf=jnp.array([1]), index=jnp.array([2]))
      >>> diagnostics.take_coordinates(tree, one).tolist()
      [5.0]
    """

    leaf: jax.Array
    index: jax.Array


def sample_coordinates(key: jax.Array, tree: Any, count: int) -> Coordinates:
    """Draws coordinates of a tree uniformly, with replacement.

    Args:
      key: a `jax.random.key`.
      tree: pytree of arrays of less than 2^31 entries each.
      count: how many.

    Returns:
      :class:`Coordinates` of shape (count,).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"a": jnp.zeros(3), "b": jnp.ones((2, 3))}
      >>> some = diagnostics.sample_coordinates(jax.random.key(0), tree, 8)
      >>> bool(jnp.all(diagnostics.take_coordinates(tree, some) == some.leaf))
      True
    """
    sizes = np.array([jnp.size(leaf) for leaf in jax.tree.leaves(tree)])
    if not sizes.sum():
        raise ValueError("tree has no coordinates to draw from.")
    which, where = jax.random.split(key)
    shares = jnp.asarray(sizes / sizes.sum(), jnp.float32)
    leaf = jax.random.choice(which, sizes.size, (count,), p=shares)
    index = jax.random.randint(where, (count,), 0, jnp.asarray(sizes, jnp.int32)[leaf])
    return Coordinates(leaf, index)


def take_coordinates(tree: Any, coordinates: Coordinates) -> jax.Array:
    """Returns the entries of a tree at some coordinates, shape (n,).

    Args:
      tree: pytree of arrays.
      coordinates: as drawn by :func:`sample_coordinates` from a tree of these shapes.

    Returns:
      The entries, in the widest dtype of the tree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0, 4.0]])}
      >>> some = diagnostics.Coordinates(jnp.array([0, 1]), jnp.array([0, 1]))
      >>> diagnostics.take_coordinates(tree, some).tolist()
      [1.0, 4.0]
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    taken = jnp.zeros(coordinates.index.shape, jnp.result_type(*leaves))
    for i, leaf in enumerate(leaves):
        if leaf.size:
            at = jnp.unravel_index(
                jnp.minimum(coordinates.index, leaf.size - 1), leaf.shape
            )
            # A few numbers, so every device gets all of them.
            everywhere = jax.typeof(leaf).sharding.update(spec=PartitionSpec())
            entries = leaf.at[at].get(out_sharding=everywhere).astype(taken.dtype)
            taken = jnp.where(coordinates.leaf == i, entries, taken)
    return taken


def hessian_diagonal(
    loss: Callable[..., jax.Array],
    params: Any,
    key: jax.Array,
    *args: Any,
    probes: int = 16,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Estimates the whole diagonal of the Hessian by random products.

    .. math::
      \mathrm{diag}(H) = \mathbb{E}[z \odot H z], \quad z_i = \pm 1

    The variance of entry i is the sum of the squares of the other entries of its row,
    over the number of probes; a diagonal Hessian is found exactly.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      key: a `jax.random.key`.
      *args: what the loss needs besides the parameters: the batch.
      probes: number of Hessian-vector products to average.
      mode: see :func:`split_sharpness`.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      precision: likewise.

    Returns:
      A pytree like `params`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> diagnostics.hessian_diagonal(loss, jnp.ones(2), jax.random.key(0)).tolist()
      [1.0, 4.0]
    """
    _checks.check_choice("mode", mode, PRODUCTS)
    _checks.check_params(params)
    params, f = jax.tree.map(jnp.asarray, params), _checks.as_scalar(loss)
    dtype = accumulator(params)

    with measuring(precision, mode, f, params, *args):
        h = hessian(f, params, args, mode, microbatches, weight)

        def add(total, key):
            z = tree_draw(jax.random.rademacher, key, params)
            products = jax.tree.map(jnp.multiply, z, h.matvec(z))
            return jax.tree.map(lambda t, p: t + p.astype(dtype), total, products), None

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), params)
        total, _ = lax.scan(add, zeros, jax.random.split(key, probes))
    _checks.check_finite_loss(h.loss)
    return jax.tree.map(lambda t, x: (t / probes).astype(x.dtype), total, params)


def hessian_diagonal_at(
    loss: Callable[..., jax.Array],
    params: Any,
    coordinates: Coordinates,
    *args: Any,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    r"""Returns chosen diagonal entries of the Hessian exactly, one product for each.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      coordinates: which, see :func:`sample_coordinates`.
      *args: what the loss needs besides the parameters: the batch.
      mode: see :func:`split_sharpness`.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      precision: likewise.

    Returns:
      :math:`H_{ii}`, shape (n,).

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2) + x[0] * x[1]
      >>> second = diagnostics.Coordinates(jnp.array([0]), jnp.array([1]))
      >>> diagnostics.hessian_diagonal_at(loss, jnp.ones(2), second).tolist()
      [4.0]
    """
    _checks.check_choice("mode", mode, PRODUCTS)
    _checks.check_params(params)
    params, f = jax.tree.map(jnp.asarray, params), _checks.as_scalar(loss)

    with measuring(precision, mode, f, params, *args):
        h = hessian(f, params, args, mode, microbatches, weight)

        def entry(at):
            e = _one_hot(params, at)
            return tree_vdot(e, h.matvec(e))

        diagonal = lax.map(entry, coordinates)
    _checks.check_finite_loss(h.loss)
    return diagonal


def _one_hot(tree: Any, at: Coordinates) -> Any:
    leaves, treedef = jax.tree.flatten(tree)

    # A comparison keeps the sharding of x, writing at an index would not.
    def hot(i, x):
        here = at.leaf == i
        for axis, k in enumerate(jnp.unravel_index(at.index, x.shape)):
            here &= lax.broadcasted_iota(k.dtype, x.shape, axis) == k
        return jnp.where(here, jnp.ones_like(x), 0)

    return jax.tree.unflatten(
        treedef, [hot(i, x) if x.size else x for i, x in enumerate(leaves)]
    )
