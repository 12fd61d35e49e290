"""The diagonal of the Hessian: some entries exactly, or all of them by estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from optax_clip._trees import (
    accumulator,
    path_name,
    tree_draw,
    tree_norm,
    tree_vdot,
)
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import fill, measuring, on_subset, restrict
from optax_clip.diagnostics._products import PRODUCTS, hessian
from optax_clip.diagnostics._streaming import Weight


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


def sample_coordinates(
    key: jax.Array, tree: Any, count: int, where: Callable[[str], bool] | None = None
) -> Coordinates:
    """Draws coordinates of a tree uniformly, with replacement.

    Args:
      key: a `jax.random.key`.
      tree: pytree of arrays of less than 2^31 entries each.
      count: how many.
      where: selects the leaves to draw from by their path.

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
    leaves = jax.tree.leaves_with_path(tree)
    drawn = [where is None or where(path_name(path)) for path, _ in leaves]
    sizes = np.array([jnp.size(x) * d for (_, x), d in zip(leaves, drawn, strict=True)])
    if not sizes.sum():
        raise ValueError("tree has no coordinates to draw from.")
    which, place = jax.random.split(key)
    shares = jnp.asarray(sizes / sizes.sum(), jnp.float32)
    leaf = jax.random.choice(which, sizes.size, (count,), p=shares)
    index = jax.random.randint(place, (count,), 0, jnp.asarray(sizes, jnp.int32)[leaf])
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
    estimator: str = "hutchinson",
    probes: int = 16,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> Any:
    r"""Estimates the whole diagonal of the Hessian by random products.

    With random signs z, both estimates are right on average:

    .. math::
      \mathrm{diag}(H) = \mathbb{E}[z \odot H z]
      = \mathrm{diag}(P H) + \mathbb{E}[z \odot (I - P) H z], \quad z_i = \pm 1

    ``"hutchinson"`` averages the first. The variance of entry i is the sum of the
    squares of the other entries of its row, over the number of probes; a diagonal
    Hessian is found exactly. ``"xdiag"`` projects onto the span of products with half
    of the probes, each in turn left out of its own P, and spends the other half on P H.
    What is left to chance is the part of H outside of the span: a Hessian of rank below
    ``probes / 2`` is found exactly, one whose eigenvalues decay has less error than by
    Hutchinson, and one whose eigenvalues are all alike has more.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      key: a `jax.random.key`.
      *args: what the loss needs besides the parameters: the batch.
      estimator: ``"hutchinson"``, or ``"xdiag"``, which keeps ``probes / 2`` copies of
        `params` in memory, of float32 or wider.
      probes: number of Hessian-vector products; even and at least 4 for ``"xdiag"``.
      mode: see :func:`split_sharpness`.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: selects the leaves to measure by their path.
      precision: see :func:`directional_derivatives`.

    Returns:
      A pytree like `params`, zero in the leaves that are left out.

    Raises:
      ValueError: if there are too few probes, if the estimator or the mode is unknown,
        if a parameter is not floating-point, or if the loss is not one finite scalar.

    Examples:
      A diagonal Hessian, and one of rank 1: the outer product of (1, 2, -3) with
      itself.

      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> diagnostics.hessian_diagonal(loss, jnp.ones(2), jax.random.key(0)).tolist()
      [1.0, 4.0]
      >>> d = diagnostics.hessian_diagonal(
      ...     lambda x: 0.5 * (x[0] + 2 * x[1] - 3 * x[2]) ** 2, jnp.ones(3),
      ...     jax.random.key(0), estimator="xdiag", probes=4)
      >>> [round(float(q), 3) for q in d]
      [1.0, 4.0, 9.0]

    References:
      Epperly, Tropp and Webber, `XTrace: Making the Most of Every Sample in Stochastic
      Trace Estimation <https://arxiv.org/abs/2301.07825>`_, 2024.
    """
    _checks.check_choice("mode", mode, PRODUCTS)
    _checks.check_choice("estimator", estimator, _ESTIMATORS)
    _check_probes(estimator, probes)
    _checks.check_params(params, where)
    params = jax.tree.map(jnp.asarray, params)
    f = on_subset(_checks.as_scalar(loss), params, where)
    x = restrict(params, where)

    with measuring(precision, mode, f, x, *args):
        h = hessian(f, x, args, mode, microbatches, weight)
        diagonal = _ESTIMATORS[estimator](h.matvec, x, key, probes)
    _checks.check_finite_loss(h.loss)
    diagonal = jax.tree.map(lambda d, x: d.astype(x.dtype), diagonal, x)
    return fill(diagonal, params, where)


def _hutchinson(matvec: Callable, params: Any, key: jax.Array, probes: int) -> Any:
    def add(total, key):
        z = _signs(key, params)
        return jax.tree.map(_add_product, total, z, matvec(z)), None

    total, _ = lax.scan(add, _zeros(params), jax.random.split(key, probes))
    return jax.tree.map(lambda t: t / probes, total)


def _xdiag(matvec: Callable, params: Any, key: jax.Array, probes: int) -> Any:
    keys = jax.random.split(key, probes // 2)

    def product(key):
        return matvec(_signs(key, params))

    basis, r = _orthonormalize(product, params, keys)
    projector, residuals = _leave_one_out(r)

    # Drawing the signs again is cheaper than keeping them.
    def add(total, each):
        key, q, p, residual = each
        rounded = jax.tree.map(lambda q, x: q.astype(x.dtype), q, params)
        total = jax.tree.map(_add_product, total, matvec(rounded), _combine(basis, p))
        signs, rest = _signs(key, params), _combine(basis, residual / len(keys))
        return jax.tree.map(_add_product, total, signs, rest), None

    each = (keys, basis, projector.T, residuals.T)
    return lax.scan(add, _zeros(params), each)[0]


_ESTIMATORS = {"hutchinson": _hutchinson, "xdiag": _xdiag}


def _check_probes(estimator: str, probes: int) -> None:
    least, step = (4, 2) if estimator == "xdiag" else (1, 1)
    if not isinstance(probes, int) or probes < least or probes % step:
        even = "an even" if step == 2 else "an"
        msg = f"probes must be {even} int of at least {least} for {estimator!r}; "
        raise ValueError(f"{msg}got {probes!r}.")


def _signs(key: jax.Array, params: Any) -> Any:
    return tree_draw(jax.random.rademacher, key, params)


def _zeros(params: Any) -> Any:
    dtype = accumulator(params)
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype), params)


def _add_product(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return total + (a * b).astype(total.dtype)


def _orthonormalize(
    product: Callable, params: Any, keys: jax.Array
) -> tuple[Any, jax.Array]:
    """Returns Q, its columns stacked on a new first axis, and R of [product(k)] = Q R.

    A product that depends on earlier ones to within rounding leaves a column of zeros.
    """
    dtype, zeros = accumulator(params), _zeros(params)

    def extend(state, i):
        basis, r = state
        y = jax.tree.map(lambda y: y.astype(dtype), product(keys[i]))
        size, column = tree_norm(y), jnp.zeros(len(keys), dtype)
        # Once is not enough for a column that nearly vanishes; twice is.
        for _ in range(2):
            overlap = _overlap(basis, y)
            y = jax.tree.map(jnp.subtract, y, _combine(basis, overlap))
            column += overlap
        norm = tree_norm(y)
        # The condition is written so that a nan product stays nan.
        new = jnp.logical_not(norm <= 16 * jnp.finfo(dtype).eps * size)
        q = jax.tree.map(lambda y: jnp.where(new, y / norm, 0), y)
        basis = jax.tree.map(
            lambda b, q: lax.dynamic_update_index_in_dim(b, q, i, 0), basis, q
        )
        r = r.at[:, i].set(column.at[i].set(jnp.where(new, norm, 0)))
        return (basis, r), None

    basis = jax.tree.map(lambda z: jnp.stack([z] * len(keys)), zeros)
    r = jnp.zeros([len(keys), len(keys)], dtype)
    return lax.scan(extend, (basis, r), jnp.arange(len(keys)))[0]


def _leave_one_out(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Returns the mean projector and every residual, both in the basis Q of Y = Q R.

    With Y_i the sketch without its column y_i, and l small,

        P_i = Y_i (Y_i^T Y_i + l)^-1 Y_i^T = Q (S (S + l)^-1 - s_i s_i^T) Q^T,
        (I - P_i) y_i = Q s_i / sqrt(w_i),
        s_i = (S + l)^-1 r_i / sqrt(w_i),  w_i = (1 - r_i^T (S + l)^-1 r_i) / l

    for S = R R^T. The singular values of R give w_i without a cancellation. P_i knows
    nothing of column i for any l, so the estimate is unbiased; l > 0 keeps it finite
    where the columns are dependent, and there s_i is nearly zero.
    """
    peak = jnp.max(jnp.abs(r))
    scale = jnp.where(peak > 0, peak, 1)
    u, sigma, vt = jnp.linalg.svd(r / scale)
    damped = sigma**2 + jnp.finfo(r.dtype).eps ** 2
    with jax.default_matmul_precision("highest"):
        solved = u @ ((sigma / damped)[:, None] * vt)
        w = jnp.sum(vt**2 / damped[:, None], axis=0, keepdims=True)
        s = solved / jnp.sqrt(w)
        projector = (u * (sigma**2 / damped)[None]) @ u.T - s @ s.T / len(r)
    return projector, scale * solved / w


def _overlap(basis: Any, y: Any) -> jax.Array:
    """Returns Q^T y."""
    parts = jax.tree.map(
        lambda b, y: jnp.sum(b * y[None], axis=tuple(range(1, b.ndim))), basis, y
    )
    return sum(jax.tree.leaves(parts), jnp.zeros([], accumulator(y)))


def _combine(basis: Any, weights: jax.Array) -> Any:
    """Returns Q w."""
    return jax.tree.map(
        lambda b: jnp.sum(b * weights.reshape(-1, *(1,) * (b.ndim - 1)), axis=0), basis
    )


def hessian_diagonal_at(
    loss: Callable[..., jax.Array],
    params: Any,
    coordinates: Coordinates,
    *args: Any,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
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
      where: selects the leaves to measure by their path.
      precision: see :func:`directional_derivatives`.

    Returns:
      :math:`H_{ii}`, shape (n,); zero in the leaves that are left out.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2) + x[0] * x[1]
      >>> second = diagnostics.Coordinates(jnp.array([0]), jnp.array([1]))
      >>> diagnostics.hessian_diagonal_at(loss, jnp.ones(2), second).tolist()
      [4.0]
    """
    _checks.check_choice("mode", mode, PRODUCTS)
    _checks.check_params(params, where)
    params = jax.tree.map(jnp.asarray, params)
    f = on_subset(_checks.as_scalar(loss), params, where)
    x = restrict(params, where)

    with measuring(precision, mode, f, x, *args):
        h = hessian(f, x, args, mode, microbatches, weight)

        def entry(at):
            e = restrict(_one_hot(params, at), where)
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
