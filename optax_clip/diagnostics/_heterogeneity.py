"""How unequal the blocks of a model are, and what that costs an optimizer.

With block gradients g_b of P_b entries and block Hessians of spectral norm h_b,

    Lambda_G = sum_b ||g_b||^2 / ||g||^2 h_b        is what gradient descent pays,
    Lambda_P = sum_b P_b / P h_b                    is what sign descent pays,

and their difference is the covariance between a block's squared gradient per parameter
and its curvature. The results of `block_norms` and `block_eigenvalues` are taken as
they are:

>>> import jax, jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> loss = lambda x: jnp.sum(x["steep"] ** 2) + 0.5 * x["flat"] ** 2
>>> x = {"steep": jnp.array([1.0, 2.0]), "flat": jnp.array(1.0)}
>>> g = jax.grad(loss)(x)
>>> inequality = diagnostics.heterogeneity(diagnostics.block_norms(g))
>>> h = diagnostics.block_eigenvalues(loss, x, key=jax.random.key(0))
>>> cost = diagnostics.hessian_complexity(g, h)
>>> print(f"{inequality.gini:.2f} {cost.gradient:.2f} {cost.sign:.2f}")
0.32 1.95 1.67
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip._trees import tree_balance, tree_norm
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._blocks import BlockNorm, Blocks, Partition, partition
from optax_clip.diagnostics._eigenvalues import BlockEigenvalues
from optax_clip.diagnostics._subset import flat_arrays


class Heterogeneity(NamedTuple):
    """How unequal some non-negative numbers are.

    Attributes:
      gini: mean absolute difference over twice the mean: 0 where all are equal, 1 - 1/n
        where all but one are zero.
      variation: coefficient of variation, standard deviation over mean.
      entropy: of the fractions of the sum, over its maximum log n: 1 where all are
        equal.
      max_over_median: the largest over the median.

    Examples:
      1 and 3 deviate by 1 from their mean and median 2; their scale does not matter.

      >>> from optax_clip import diagnostics
      >>> for values in ([1.0, 3.0], [10.0, 30.0]):
      ...     h = diagnostics.heterogeneity(values)
      ...     print(f"{h.gini:.2f} {h.variation:.2f} {h.max_over_median:.2f}")
      0.25 0.50 1.50
      0.25 0.50 1.50
    """

    gini: jax.Array
    variation: jax.Array
    entropy: jax.Array
    max_over_median: jax.Array


def heterogeneity(values: Mapping[Any, Any] | jax.typing.ArrayLike) -> Heterogeneity:
    r"""Returns Gini coefficient, variation, entropy and max/median of block values.

    .. math::
      G = \frac{\sum_{i,j} |x_i - x_j|}{2 n^2 \bar x}

    Which values is the caller's choice and should be stated: norms ``l2`` per block or
    ``rms`` per parameter.

    Args:
      values: non-negative numbers, a vector or a mapping from blocks to numbers. Of the
        result of :func:`block_norms` it takes ``l2``, of that of
        :func:`block_eigenvalues` the spectral norm.

    Returns:
      A :class:`Heterogeneity`; traced zeros give nan.

    Raises:
      ValueError: if the values are no vector, if one is negative or not finite, or if
        all are zero.

    Examples:
      >>> from optax_clip import diagnostics
      >>> h = diagnostics.heterogeneity({"a": 0.0, "b": 0.0, "c": 3.0})
      >>> round(float(h.gini), 3), round(float(h.variation), 3), float(h.entropy)
      (0.667, 1.414, 0.0)
      >>> [round(float(q), 3) for q in diagnostics.heterogeneity([2.0, 2.0])]
      [0.0, 0.0, 1.0, 1.0]

    References:
      Tomihari and Sato, `Understanding Why Adam Outperforms SGD: Gradient Heterogeneity
      in Transformers <https://arxiv.org/abs/2502.00213>`_, 2025.
    """
    if isinstance(values, Mapping):
        values = jnp.asarray([_size(value) for value in values.values()])
    x = jnp.asarray(values, float)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"values must be a vector of numbers; got shape {x.shape}.")
    if _checks.is_concrete(x):
        known = np.asarray(x)
        if not (np.all((known >= 0) & np.isfinite(known)) and np.any(known > 0)):
            msg = f"values must be finite and non-negative, and not all zero; got {x}."
            raise ValueError(msg)
    gini, variation, entropy, peak, median = _heterogeneity(x)
    return Heterogeneity(gini, variation, entropy, _checks.quotient(peak, median))


@jax.jit
def _heterogeneity(x: jax.Array) -> tuple[jax.Array, ...]:
    n, mean, fraction = x.size, jnp.mean(x), x / jnp.sum(x)
    # sum_ij |x_i - x_j| = 2 sum_i (2 i - n - 1) x_(i) over the sorted x.
    order = jnp.arange(1 - n, n, 2, dtype=x.dtype)
    gini = jnp.sum(order * jnp.sort(x)) / (n**2 * mean)
    logs = jnp.log(jnp.where(fraction == 0, 1, fraction))
    entropy = jnp.sum(-fraction * logs) / np.log(n) if n > 1 else jnp.ones_like(mean)
    return gini, jnp.std(x) / mean, entropy, jnp.max(x), jnp.median(x)


def _size(value: Any) -> Any:
    if isinstance(value, BlockNorm):
        return value.l2
    return value.spectral_norm if isinstance(value, BlockEigenvalues) else value


class Complexity(NamedTuple):
    """What block curvatures mean for gradient and for sign descent.

    Attributes:
      gradient: Lambda_G, curvature weighted by squared gradients; 1 / Lambda_G is the
        step of gradient descent.
      sign: Lambda_P, curvature weighted by numbers of parameters.
      covariance: Lambda_G - Lambda_P, the covariance over parameters of squared
        gradient (relative to its mean) and curvature.
      sign_step: ||g||_1 / (P Lambda_P), the step of sign descent; inf for no curvature.

    Examples:
      The whole gradient lies in the steep one of two blocks of equal size: gradient
      descent pays its curvature 4, sign descent the mean of 4 and 0.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> g = {"steep": jnp.array([2.0]), "flat": jnp.array([0.0])}
      >>> c = diagnostics.hessian_complexity(g, {"steep": 4.0, "flat": 0.0})
      >>> float(c.gradient), float(c.sign), float(c.covariance)
      (4.0, 2.0, 2.0)
      >>> float(1 / c.gradient), float(c.sign_step)
      (0.25, 0.5)
    """

    gradient: jax.Array
    sign: jax.Array
    covariance: jax.Array
    sign_step: jax.Array


def hessian_complexity(
    gradient: Any, curvatures: Mapping[Any, Any], *, blocks: Blocks | None = None
) -> Complexity:
    r"""Returns the weighted Hessian complexities of gradient and sign descent.

    .. math::
      \Lambda_G = \sum_b \frac{\|g_b\|^2}{\|g\|^2} h_b, \quad
      \Lambda_P = \sum_b \frac{P_b}{P} h_b

    For a block-diagonal Hessian the sharpness along the gradient is at most
    :math:`\Lambda_G` and along its sign at most :math:`\Lambda_P`.

    Args:
      gradient: pytree of arrays.
      curvatures: {block: h_b}, spectral norms of the block Hessians, or the result of
        :func:`block_eigenvalues`.
      blocks: as for :func:`block_norms`; must be those of `curvatures`.

    Returns:
      A :class:`Complexity`.

    Raises:
      TypeError: if `curvatures` is no mapping, or see :func:`block_norms`.
      ValueError: if the blocks of the gradient are not those of `curvatures`, or if it
        is zero or not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> g = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([1.0, 0.0])}
      >>> c = diagnostics.hessian_complexity(g, {"a": 10.0, "b": 2.0})
      >>> [round(float(q), 3) for q in c]
      [9.2, 6.0, 3.2, 0.167]

    References:
      Tomihari and Sato, `Understanding Why Adam Outperforms SGD: Gradient Heterogeneity
      in Transformers <https://arxiv.org/abs/2502.00213>`_, 2025.
    """
    return _complexity("gradient", gradient, curvatures, blocks)


def sharpness_bound(
    direction: Any, curvatures: Mapping[Any, Any], *, blocks: Blocks | None = None
) -> jax.Array:
    r"""Returns the largest directional sharpness that block curvatures allow.

    .. math::
      \frac{u^\top H u}{\|u\|^2} \le \sum_b \frac{\|u_b\|^2}{\|u\|^2} h_b
      \quad \text{for a block-diagonal } H

    Args:
      direction: pytree of arrays.
      curvatures: {block: h_b}, see :func:`hessian_complexity`.
      blocks: as for :func:`block_norms`; must be those of `curvatures`.

    Returns:
      A scalar.

    Raises:
      TypeError: see :func:`hessian_complexity`.
      ValueError: likewise.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> u = {"a": jnp.array([3.0]), "b": jnp.array([1.0])}
      >>> round(float(diagnostics.sharpness_bound(u, {"a": 10.0, "b": 2.0})), 3)
      9.2
    """
    return _complexity("direction", direction, curvatures, blocks).gradient


def _complexity(
    name: str, tree: Any, curvatures: Mapping[Any, Any], blocks: Blocks | None
) -> Complexity:
    selection, leaves = flat_arrays(tree, name)
    parts = partition(selection.paths, leaves, blocks)
    if not isinstance(curvatures, Mapping):
        kind = type(curvatures).__name__
        raise TypeError(f"curvatures must be a mapping from blocks; got a {kind}.")
    if set(curvatures) != set(parts.names):
        lone = sorted(map(str, set(curvatures) ^ set(parts.names)))
        raise ValueError(
            f"curvatures must have the blocks of the tree; see {lone[:3]}."
        )
    _checks.check_norm(_norm(leaves), name, selection.keys, leaves)
    h = jnp.asarray([_size(curvatures[block]) for block in parts.names], float)
    *weighted, l1 = _weighted(leaves, h, parts=parts)
    step = _checks.quotient(l1, sum(parts.sizes) * weighted[1])
    return Complexity(*weighted, sign_step=step)


_norm = jax.jit(tree_norm)


@functools.partial(jax.jit, static_argnames="parts")
def _weighted(
    leaves: list[jax.Array], h: jax.Array, parts: Partition
) -> tuple[jax.Array, ...]:
    """Returns Lambda_G, Lambda_P, their covariance and the l1 norm."""
    scaled, scale = tree_balance([jnp.abs(x) for x in leaves])
    squares = parts.vdots(scaled, scaled)
    weight = jnp.asarray(np.divide(parts.sizes, sum(parts.sizes)), squares.dtype)
    h, of_gradient = h.astype(squares.dtype), squares / jnp.sum(squares)
    of_sign = jnp.sum(weight * h)
    # The difference of two large numbers loses digits, the covariance does not.
    covariance = jnp.sum((of_gradient - weight) * (h - of_sign))
    l1 = jnp.sum(parts.sums(scaled)) / scale
    return jnp.sum(of_gradient * h), of_sign, covariance, l1
