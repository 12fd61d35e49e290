"""How unequal the blocks of a model are, and what that costs an optimizer.

With block gradients g_b of P_b entries and block Hessians of spectral norm h_b,

    Lambda_G = sum_b ||g_b||^2 / ||g||^2 h_b        is what gradient descent pays,
    Lambda_P = sum_b P_b / P h_b                    is what sign descent pays,

and their difference is the covariance between a block's squared gradient per parameter
and its curvature. The h_b come from `block_eigenvalues`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip._trees import tree_balance, tree_norm
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._partition import Blocks, Partition, partition


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


def block_norms(tree: Any, blocks: Blocks | None = None) -> dict[Any, BlockNorm]:
    """Returns the norms of every block of a gradient, an update or the parameters.

    Args:
      tree: pytree of arrays.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None makes every leaf a block.

    Returns:
      {block: :class:`BlockNorm`}.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> norms = diagnostics.block_norms({"head": jnp.array([3.0, -4.0, 0.0, 0.0])})
      >>> [float(q) for q in norms["head"]]
      [5.0, 2.5, 7.0, 4.0]
    """
    parts = partition(tree, blocks)
    tree = jax.tree.map(jnp.asarray, tree)
    scaled, scale = tree_balance(tree)
    l2 = jnp.sqrt(parts.vdots(scaled, scaled)) / scale
    size = jnp.asarray(parts.sizes, l2.dtype)
    l1 = parts.sums(jax.tree.map(jnp.abs, tree))
    return parts.by_name(BlockNorm(l2, l2 / jnp.sqrt(size), l1, size))


class Heterogeneity(NamedTuple):
    """How unequal some non-negative numbers are.

    Attributes:
      gini: mean absolute difference over twice the mean: 0 where all are equal, 1 - 1/n
        where all but one are zero.
      variation: coefficient of variation, standard deviation over mean.
      entropy: of the shares, over its maximum log n: 1 where all are equal.
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
      values: non-negative numbers, a vector or a mapping from blocks to numbers.

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
        values = jnp.stack([jnp.asarray(value) for value in values.values()])
    x = jnp.asarray(values, float)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"values must be a vector of numbers; got shape {x.shape}.")
    if _checks.is_concrete(x) and not (
        bool(jnp.all((x >= 0) & jnp.isfinite(x))) and bool(jnp.any(x > 0))
    ):
        msg = f"values must be finite and non-negative, and not all zero; got {x}."
        raise ValueError(msg)
    n, mean, share = x.size, jnp.mean(x), x / jnp.sum(x)
    # sum_ij |x_i - x_j| = 2 sum_i (2 i - n - 1) x_(i) over the sorted x.
    order = jnp.arange(1 - n, n, 2, dtype=x.dtype)
    entropy = jnp.sum(jnp.where(share == 0, 0, -share * jnp.log(share)))
    return Heterogeneity(
        gini=jnp.sum(order * jnp.sort(x)) / (n**2 * mean),
        variation=jnp.std(x) / mean,
        entropy=entropy / np.log(n) if n > 1 else jnp.ones_like(mean),
        max_over_median=jnp.max(x) / jnp.median(x),
    )


class Complexity(NamedTuple):
    """What block curvatures mean for gradient and for sign descent.

    Attributes:
      gradient: Lambda_G, curvature weighted by squared gradients; 1 / Lambda_G is the
        step of gradient descent.
      sign: Lambda_P, curvature weighted by numbers of parameters.
      covariance: Lambda_G - Lambda_P, the covariance over parameters of squared
        gradient (relative to its mean) and curvature.
      sign_step: ||g||_1 / (P Lambda_P), the step of sign descent.

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
    gradient: Any, curvatures: Mapping[Any, Any], blocks: Blocks | None = None
) -> Complexity:
    r"""Returns the weighted Hessian complexities of gradient and sign descent.

    .. math::
      \Lambda_G = \sum_b \frac{\|g_b\|^2}{\|g\|^2} h_b, \quad
      \Lambda_P = \sum_b \frac{P_b}{P} h_b

    For a block-diagonal Hessian the sharpness along the gradient is at most
    :math:`\Lambda_G` and along its sign at most :math:`\Lambda_P`.

    Args:
      gradient: pytree of arrays.
      curvatures: {block: h_b}, spectral norms of the block Hessians, such as the
        `spectral_norm` of :func:`block_eigenvalues`.
      blocks: as for :func:`block_norms`; must be those of `curvatures`.

    Returns:
      A :class:`Complexity`.

    Raises:
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


def _complexity(
    name: str, gradient: Any, curvatures: Mapping[Any, Any], blocks: Blocks | None
) -> Complexity:
    parts, gradient = partition(gradient, blocks), jax.tree.map(jnp.asarray, gradient)
    _checks.check_norm(gradient, tree_norm(gradient), name)
    scaled, scale = tree_balance(gradient)
    h, squares = _aligned(curvatures, parts), parts.vdots(scaled, scaled)
    size = jnp.asarray(parts.sizes, squares.dtype)
    of_gradient = jnp.sum(squares / jnp.sum(squares) * h)
    of_sign = jnp.sum(size / jnp.sum(size) * h)
    # The difference of two large numbers loses digits, the covariance does not.
    weight = size / jnp.sum(size)
    relative = (squares / size) / (jnp.sum(squares) / jnp.sum(size))
    covariance = jnp.sum(weight * (relative - 1) * (h - of_sign))
    l1 = jnp.sum(parts.sums(jax.tree.map(jnp.abs, scaled))) / scale
    return Complexity(of_gradient, of_sign, covariance, l1 / (jnp.sum(size) * of_sign))


def sharpness_bound(
    direction: Any, curvatures: Mapping[Any, Any], blocks: Blocks | None = None
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
      ValueError: see :func:`hessian_complexity`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> u = {"a": jnp.array([3.0]), "b": jnp.array([1.0])}
      >>> round(float(diagnostics.sharpness_bound(u, {"a": 10.0, "b": 2.0})), 3)
      9.2
    """
    return _complexity("direction", direction, curvatures, blocks).gradient


def _aligned(curvatures: Mapping[Any, Any], parts: Partition) -> jax.Array:
    if set(curvatures) != set(parts.names):
        lone = sorted(map(str, set(curvatures) ^ set(parts.names)))
        raise ValueError(
            f"curvatures must have the blocks of the tree; see {lone[:3]}."
        )
    return jnp.stack([jnp.asarray(curvatures[name], float) for name in parts.names])
