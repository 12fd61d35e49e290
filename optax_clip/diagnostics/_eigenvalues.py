"""The ends of the spectrum of every block of the Hessian, by Lanczos.

Lanczos multiplies the Hessian with a vector, makes the product orthogonal to the two
vectors before it, and so builds a tridiagonal matrix whose extreme eigenvalues approach
those of the Hessian from inside. On diag(6, -2, 0, 0, ...) two products are enough:

>>> import jax, jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> loss = lambda x: 3 * x[0] ** 2 - x[1] ** 2
>>> found = diagnostics.block_eigenvalues(
...     loss, jnp.ones(9), key=jax.random.key(0), blocks=lambda path: "all")["all"]
>>> round(float(found.top), 3), round(float(found.bottom), 3), bool(found.converged)
(6.0, -2.0, True)

Three vectors are all that is kept, where `matfree.decomp.tridiag_sym` keeps all of them
to reorthogonalise. Without, vectors lose orthogonality once an end has converged: that
repeats eigenvalues, but never moves the ends beyond the rounding of a product. The
products are taken in float32 or wider for that reason, whatever the parameters are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import accumulator, tree_draw, tree_norm, tree_unit, tree_vdot
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._blocks import Blocks, Partition, partition
from optax_clip.diagnostics._modes import WITH_PRODUCT
from optax_clip.diagnostics._problem import (
    Loss,
    Options,
    Problem,
    hessian,
    state_problem,
)


class BlockEigenvalues(NamedTuple):
    """The ends of the spectrum of one block of the Hessian.

    Attributes:
      top: the largest eigenvalue.
      bottom: the smallest eigenvalue.
      residual: bounds the distances of top and bottom from an eigenvalue, shape (2,).
      converged: whether the ends were found before `max_iterations`. If not, the true
        ends may lie further out.
      iterations: Hessian-vector products that this took.

    Examples:
      At a saddle the strongest curvature may be the negative one.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> ends = diagnostics.BlockEigenvalues(
      ...     top=6.0, bottom=-8.0, residual=jnp.zeros(2), converged=True, iterations=5)
      >>> float(ends.spectral_norm)
      8.0
    """

    top: jax.Array
    bottom: jax.Array
    residual: jax.Array
    converged: jax.Array
    iterations: jax.Array

    @property
    def spectral_norm(self) -> jax.Array:
        """The largest magnitude of an eigenvalue."""
        return jnp.maximum(jnp.abs(self.top), jnp.abs(self.bottom))


def block_eigenvalues(
    loss: Loss, params: Any, *args: Any,
    key: jax.Array, blocks: Blocks | None = None,
    tolerance: jax.typing.ArrayLike = 1e-3, max_iterations: int = 40,
    **options: Unpack[Options],
) -> dict[Any, BlockEigenvalues]:  # fmt: skip
    r"""Returns the largest and smallest eigenvalue of every block of the Hessian.

    The block Hessians :math:`H_{bb}` are measured one after the other by one compiled
    loop. Without `microbatches` it computes the gradient only once for all of them.
    Parameters of half precision are passed to the loss in float32; a loss that cannot
    take them so gets them rounded back, and only the vectors are in float32.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      *args: likewise; the batch.
      key: a `jax.random.key` for the start vectors.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None makes every leaf a block.
        ``lambda path: "all"`` gives the whole Hessian.
      tolerance: an end counts as found once an iteration moves it by less than a tenth
        of this, relative to the spectral norm.
      max_iterations: the largest number of iterations for a block.
      **options: see :class:`Options`; not the mode ``"forward_over_forward"``. Leaves
        that `where` leaves out have no block.

    Returns:
      {block: :class:`BlockEigenvalues`}.

    Raises:
      TypeError: see :func:`directional_derivatives`; also if `key` is no random key.
      ValueError: see :func:`directional_derivatives`; also if there are no iterations.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: jnp.sum(x["a"] ** 2) - x["b"][0] ** 2 + 3 * x["b"][1] ** 2
      >>> x = {"a": jnp.ones(3), "b": jnp.ones(2)}
      >>> found = diagnostics.block_eigenvalues(loss, x, key=jax.random.key(0))
      >>> round(float(found["a"].top), 3)
      2.0
      >>> round(float(found["b"].top), 3), round(float(found["b"].bottom), 3)
      (6.0, -2.0)

    References:
      Tomihari and Sato, `Understanding Why Adam Outperforms SGD: Gradient Heterogeneity
      in Transformers <https://arxiv.org/abs/2502.00213>`_, 2025.
    """
    _checks.check_key(key)
    _checks.check_positive("tolerance", tolerance)
    _checks.check_count("max_iterations", max_iterations)
    problem = state_problem(loss, params, args, options, modes=WITH_PRODUCT).widened()
    paths = problem.selection.take(problem.selection.paths)
    parts = partition(paths, problem.params, blocks)
    static = {"parts": parts, "max_iterations": max_iterations}
    return parts.by_name(parts.each(problem.run(_ends, key, tolerance, **static)))


def _ends(
    problem: Problem, key, tolerance, parts: Partition, max_iterations: int
) -> tuple[jax.Array, BlockEigenvalues]:
    """Returns the loss, and the ends of all blocks."""
    start, h = tree_draw(jax.random.normal, key, problem.params), hessian(problem)

    def ends(i):
        def matvec(v):
            return parts.part(h.matvec(v), i)

        return _lanczos(matvec, parts.part(start, i), tolerance, max_iterations)

    return h.loss, lax.map(ends, jnp.arange(len(parts.names)))


def _lanczos(
    matvec: Callable, start: list[jax.Array], tolerance: Any, max_iterations: int
) -> BlockEigenvalues:
    dtype = accumulator(start)
    row = jnp.arange(max_iterations)

    def tridiagonal(i, diagonal, off_diagonal, fill):
        # The rows still unused hold what lies between the ends.
        used = jnp.where(row <= i, diagonal, fill)
        beside = jnp.diag(jnp.where(row < i, off_diagonal, 0)[:-1], 1)
        return jnp.diag(used) + beside + beside.T

    def unfinished(state):
        return jnp.logical_not(state[-1]) & (state[0] < max_iterations)

    def advance(state):
        i, old, v, beta, diagonal, off_diagonal, ends, _ = state
        # Step 1: the product, without its parts along the last two vectors.
        w = matvec(v)
        alpha = tree_vdot(v, w)
        w = jax.tree.map(lambda w, v, o: w - alpha * v - beta * o, w, v, old)
        beta = tree_norm(w)
        diagonal, off_diagonal = diagonal.at[i].set(alpha), off_diagonal.at[i].set(beta)
        # Step 2: the ends of the tridiagonal matrix, and whether they still move.
        ritz = jnp.linalg.eigvalsh(tridiagonal(i, diagonal, off_diagonal, diagonal[0]))
        new = jnp.stack([ritz[-1], ritz[0]])
        scale = jnp.max(jnp.abs(new))
        invariant = beta <= 10 * jnp.finfo(dtype).eps * scale
        still = jnp.all(jnp.abs(new - ends) <= tolerance / 10 * scale)
        done = invariant | (still & (i > 1))
        # Step 3: the next unit vector; zero in an invariant subspace.
        v, old = tree_unit(w, jnp.where(beta > 0, beta, 1)), v
        return i + 1, old, v, beta, diagonal, off_diagonal, new, done

    zeros, ends = jnp.zeros([max_iterations], dtype), jnp.zeros([2], dtype)
    v, old = tree_unit(start, tree_norm(start)), jax.tree.map(jnp.zeros_like, start)
    beta, first, done = jnp.zeros([], dtype), jnp.array(0), jnp.array(False)
    state = (first, old, v, beta, zeros, zeros, ends, done)
    n, _, _, beta, diagonal, off_diagonal, ends, done = lax.while_loop(
        unfinished, advance, state
    )
    # An end theta with the eigenvector s of the matrix is off by at most beta |s_n|.
    final = tridiagonal(n - 1, diagonal, off_diagonal, jnp.mean(ends))
    last = jnp.abs(jnp.linalg.eigh(final)[1][n - 1])
    last = jnp.where(ends[0] > ends[1], jnp.stack([last[-1], last[0]]), 1)
    return BlockEigenvalues(ends[0], ends[1], beta * last, done, n)
