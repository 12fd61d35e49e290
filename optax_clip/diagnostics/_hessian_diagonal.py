r"""The diagonal of the Hessian: all entries by estimate, or some exactly.

Hutchinson's estimator multiplies the Hessian with random signs z and takes the mean of
z * (H z), coordinate by coordinate. Off-diagonal entries come with signs that cancel on
average; where there are none, one product is exact:

>>> import jax, jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
>>> diagnostics.hessian_diagonal(
...     loss, jnp.ones(2), key=jax.random.key(0), probes=1).tolist()
[1.0, 4.0]

`matfree.stochtrace` has the same estimator for any linear map, and XDiag. Here the
products come from a loss and a batch in parts, half precision is summed in float32, and
the signs are sharded like the parameters.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip._trees import accumulator, tree_draw, tree_vdot
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._coordinates import Coordinates, one_hot
from optax_clip.diagnostics._modes import WITH_PRODUCT
from optax_clip.diagnostics._problem import (
    Hessian,
    Loss,
    Options,
    Problem,
    hessian,
    state_problem,
)
from optax_clip.diagnostics._subset import has_numbers, thaw


def hessian_diagonal(
    loss: Loss, params: Any, *args: Any,
    key: jax.Array, probes: int = 16, **options: Unpack[Options],
) -> Any:  # fmt: skip
    r"""Estimates the whole diagonal of the Hessian by random products.

    .. math::
      \mathrm{diag}(H) = \mathbb{E}[z \odot H z], \quad z_i = \pm 1

    The variance of entry i is the sum of the squares of the other entries of its row,
    over the number of probes; a diagonal Hessian is found exactly. A Hessian of low
    rank is found with fewer products by XDiag, which the library matfree has.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      *args: likewise; the batch.
      key: a `jax.random.key`.
      probes: number of Hessian-vector products.
      **options: see :class:`Options`; not the mode ``"forward_over_forward"``.

    Returns:
      A pytree like `params`, zero in the leaves that are left out. (Left-out leaves
      that hold no numbers, such as random keys, become zeros of float0.)

    Raises:
      TypeError: see :func:`directional_derivatives`; also if `key` is no random key.
      ValueError: see :func:`directional_derivatives`; also if there are no probes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2) + x[0] * x[1] / 8
      >>> found = diagnostics.hessian_diagonal(
      ...     loss, jnp.ones(2), key=jax.random.key(0), probes=64)
      >>> [round(float(q), 1) for q in found]
      [1.0, 4.0]

    References:
      Bekas, Kokiopoulou and Saad, `An estimator for the diagonal of a matrix
      <https://doi.org/10.1016/j.apnum.2007.01.003>`_, 2007.
    """
    _checks.check_key(key)
    _checks.check_count("probes", probes)
    problem = state_problem(loss, params, args, options, modes=WITH_PRODUCT)
    diagonal = problem.run(_diagonal, key, probes=probes)
    others = [_zeros(leaf) for leaf in thaw(problem.others)]
    return problem.selection.merge(diagonal, others)


def _zeros(leaf: Any) -> Any:
    if has_numbers(leaf):
        return jnp.zeros_like(leaf)
    return np.zeros(np.shape(leaf), jax.dtypes.float0)


def hessian_diagonal_at(
    loss: Loss, params: Any, *args: Any,
    coordinates: Coordinates, **options: Unpack[Options],
) -> jax.Array:  # fmt: skip
    r"""Returns chosen diagonal entries of the Hessian exactly, one product for each.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      *args: likewise; the batch.
      coordinates: which, see :func:`sample_coordinates`.
      **options: see :class:`Options`; not the mode ``"forward_over_forward"``.

    Returns:
      :math:`H_{ii}`, shape (n,); zero in the leaves that are left out.

    Raises:
      TypeError: see :func:`directional_derivatives`.
      ValueError: likewise.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2) + x[0] * x[1]
      >>> second = diagnostics.Coordinates(jnp.array([0]), jnp.array([1]))
      >>> diagnostics.hessian_diagonal_at(
      ...     loss, jnp.ones(2), coordinates=second).tolist()
      [4.0]
    """
    problem = state_problem(loss, params, args, options, modes=WITH_PRODUCT)
    # The number of a leaf among those that are measured; -1 for the others.
    chosen = np.asarray(problem.selection.chosen)
    numbers = jnp.asarray(np.where(chosen, np.cumsum(chosen) - 1, -1), jnp.int32)
    return problem.run(_entries, numbers, Coordinates(*coordinates))


### what is compiled


def _diagonal(
    problem: Problem, key: jax.Array, probes: int
) -> tuple[jax.Array, list[jax.Array]]:
    h = hessian(problem)
    return h.loss, estimate(h, problem.params, key, probes)


def estimate(
    h: Hessian, params: list[jax.Array], key: jax.Array, probes: int
) -> list[jax.Array]:
    """Returns Hutchinson's estimate of the diagonal."""
    dtype = accumulator(params)

    def add(total, key):
        # Draw signs z, take the product H z, add z * (H z).
        z = tree_draw(jax.random.rademacher, key, params)
        terms = zip(total, z, h.matvec(z), strict=True)
        return [t + (a * b).astype(dtype) for t, a, b in terms], None

    zeros = [jnp.zeros_like(x, dtype) for x in params]
    total, _ = lax.scan(add, zeros, jax.random.split(key, probes))
    return [(t / probes).astype(x.dtype) for t, x in zip(total, params, strict=True)]


def _entries(
    problem: Problem, numbers: jax.Array, at: Coordinates
) -> tuple[jax.Array, jax.Array]:
    h = hessian(problem)
    at = Coordinates(numbers[at.leaf], at.index)
    return h.loss, entries(h, problem.params, at)


def entries(h: Hessian, params: list[jax.Array], at: Coordinates) -> jax.Array:
    """Returns e_i^T H e_i for every coordinate i."""

    def entry(i):
        e = one_hot(params, i)
        return tree_vdot(e, h.matvec(e))

    return lax.map(entry, at)
