"""The ends of the spectrum of every block of the Hessian, by Lanczos.

Three vectors are all that plain Lanczos keeps. It loses orthogonality once an end has
converged, which repeats eigenvalues but never moves the ends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import (
    accumulator,
    tree_draw,
    tree_norm,
    tree_unit,
    tree_vdot,
)
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._partition import Blocks, partition
from optax_clip.diagnostics._problem import measuring, on_subset, restrict
from optax_clip.diagnostics._products import PRODUCTS, hessian
from optax_clip.diagnostics._streaming import Weight


class BlockEigenvalues(NamedTuple):
    """The ends of the spectrum of one block of the Hessian.

    Attributes:
      top: the largest eigenvalue.
      bottom: the smallest eigenvalue.
      iterations: Hessian-vector products that this took.

    Examples:
      At a saddle the strongest curvature may be the negative one.

      >>> from optax_clip import diagnostics
      >>> ends = diagnostics.BlockEigenvalues(top=6.0, bottom=-8.0, iterations=5)
      >>> float(ends.spectral_norm)
      8.0
    """

    top: jax.Array
    bottom: jax.Array
    iterations: jax.Array

    @property
    def spectral_norm(self) -> jax.Array:
        """The largest magnitude of an eigenvalue."""
        return jnp.maximum(jnp.abs(self.top), jnp.abs(self.bottom))


def block_eigenvalues(
    loss: Callable[..., jax.Array],
    params: Any,
    key: jax.Array,
    *args: Any,
    blocks: Blocks | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 40,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> dict[Any, BlockEigenvalues]:
    r"""Returns the largest and smallest eigenvalue of every block of the Hessian.

    The block Hessians :math:`H_{bb}` are measured one after the other by one compiled
    loop. Without `microbatches` it computes the gradient only once for all of them.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      key: a `jax.random.key` for the start vectors.
      *args: what the loss needs besides the parameters: the batch.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None makes every leaf a block.
        ``lambda path: "all"`` gives the whole Hessian.
      tolerance: an end counts as found once an iteration moves it by less than a tenth
        of this, relative to the spectral norm.
      max_iterations: the largest number of iterations for a block.
      mode: ``"forward_over_reverse"``, ``"reverse_over_reverse"`` or
        ``"finite_difference"``, see :func:`directional_derivatives`.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: selects the leaves to measure by their path; the others have no block.
      precision: see :func:`directional_derivatives`.

    Returns:
      {block: :class:`BlockEigenvalues`}.

    Raises:
      ValueError: if a parameter is not floating-point, if the loss is not one finite
        scalar, if the mode is unknown, or if there are no iterations.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: jnp.sum(x["a"] ** 2) - x["b"][0] ** 2 + 3 * x["b"][1] ** 2
      >>> x = {"a": jnp.ones(3), "b": jnp.ones(2)}
      >>> found = diagnostics.block_eigenvalues(loss, x, jax.random.key(0))
      >>> round(float(found["a"].top), 3)
      2.0
      >>> round(float(found["b"].top), 3), round(float(found["b"].bottom), 3)
      (6.0, -2.0)

    References:
      Tomihari and Sato, `Understanding Why Adam Outperforms SGD: Gradient Heterogeneity
      in Transformers <https://arxiv.org/abs/2502.00213>`_, 2025.
    """
    _checks.check_choice("mode", mode, PRODUCTS)
    _checks.check_count("max_iterations", max_iterations)
    _checks.check_params(params, where)
    parts = partition(params, blocks, where)
    f = on_subset(_checks.as_scalar(loss), params, where)
    x = restrict(jax.tree.map(jnp.asarray, params), where)
    start = tree_draw(jax.random.normal, key, x)

    with measuring(precision, mode, f, x, *args):
        h = hessian(f, x, args, mode, microbatches, weight)

        def extremes(i):
            return _lanczos(
                lambda v: parts.part(h.matvec(v), i),
                parts.part(start, i),
                tolerance,
                max_iterations,
            )

        found = lax.map(extremes, jnp.arange(len(parts.names)))
    _checks.check_finite_loss(h.loss)
    return parts.by_name(found)


def _lanczos(
    matvec: Callable, start: Any, tolerance: float, max_iterations: int
) -> BlockEigenvalues:
    dtype = accumulator(start)
    row = jnp.arange(max_iterations)

    def unfinished(state):
        return jnp.logical_not(state[-1]) & (state[0] < max_iterations)

    def advance(state):
        i, old, v, beta, diagonal, off_diagonal, ends, _ = state
        w = matvec(v)
        alpha = tree_vdot(v, w)
        w = _combine(w, -alpha, v, -beta, old)
        beta = tree_norm(w)
        diagonal, off_diagonal = diagonal.at[i].set(alpha), off_diagonal.at[i].set(beta)
        # The rows still unused repeat the first, whose value lies between the ends.
        used = jnp.where(row <= i, diagonal, diagonal[0])
        beside = jnp.diag(jnp.where(row < i, off_diagonal, 0)[:-1], 1)
        ritz = jnp.linalg.eigvalsh(jnp.diag(used) + beside + beside.T)
        new = jnp.stack([ritz[-1], ritz[0]])
        scale = jnp.max(jnp.abs(new))
        invariant = beta <= 10 * jnp.finfo(dtype).eps * scale
        still = jnp.all(jnp.abs(new - ends) <= tolerance / 10 * scale)
        done = invariant | (still & (i > 1))
        return i + 1, v, tree_unit(w, beta), beta, diagonal, off_diagonal, new, done

    zeros, ends = jnp.zeros([max_iterations], dtype), jnp.zeros([2], dtype)
    v, old = tree_unit(start, tree_norm(start)), jax.tree.map(jnp.zeros_like, start)
    beta, first, done = jnp.zeros([], dtype), jnp.array(0), jnp.array(False)
    state = (first, old, v, beta, zeros, zeros, ends, done)
    state = lax.while_loop(unfinished, advance, state)
    return BlockEigenvalues(state[6][0], state[6][1], state[0])


def _combine(w: Any, a: jax.Array, v: Any, b: jax.Array, old: Any) -> Any:
    def combine(w, v, o):
        return (w + a.astype(w.dtype) * v + b.astype(w.dtype) * o).astype(v.dtype)

    return jax.tree.map(combine, w, v, old)
