"""Which coordinates carry the slope and the sharpness of a direction.

A unit direction is a sum of parts with disjoint coordinates, v = v_1 + ... + v_n, and

    <g, v> = sum_i <g, v_i>        v^T H v = sum_i sum_j v_i^T H v_j

exactly. The parts are blocks of parameters (`split_sharpness`) or a set of coordinates
and the rest (`masked_sharpness`), for example the largest ones (`top_coordinates`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import tree_vdot
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


class SharpnessPart(NamedTuple):
    """What one block contributes to a unit direction v.

    Attributes:
      norm: the fraction of ||v||^2 that it has.
      slope: its part <g, v_b> of the slope.
      within: v_b^T H v_b.
      cross: v_b^T H v_c for every other block c.

    Examples:
      The Hessian of ab is zero within either block: along (1, 1) its sharpness 1 lies
      in the two terms between them.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> x = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
      >>> part = diagnostics.split_sharpness(lambda x: x["a"] * x["b"], x, x)["a"]
      >>> [round(float(q), 2) for q in (part.norm, part.within, part.cross["b"])]
      [0.5, 0.0, 0.5]
    """

    norm: jax.Array
    slope: jax.Array
    within: jax.Array
    cross: dict[Any, jax.Array]


def split_sharpness(
    loss: Loss, params: Any, direction: Any, *args: Any,
    blocks: Blocks | None = None, **options: Unpack[Options],
) -> dict[Any, SharpnessPart]:  # fmt: skip
    r"""Splits slope and sharpness exactly into blocks and the terms between them.

    .. math::
      \frac{u^\top H u}{\|u\|^2} = \sum_b v_b^\top H v_b
      + \sum_b \sum_{c \neq b} v_b^\top H v_c, \quad v = u / \|u\|

    It takes one Hessian-vector product per block, in one compiled loop.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: a pytree like `params`.
      *args: see :func:`directional_derivatives`; the batch.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None makes every leaf a block.
      **options: see :class:`Options`; not the mode ``"forward_over_forward"``.

    Returns:
      {block: :class:`SharpnessPart`}; the norms sum to 1, the slopes to the slope, all
      `within` and `cross` to the directional sharpness.

    Raises:
      TypeError: see :func:`directional_derivatives`; also if a block's name cannot be
        hashed.
      ValueError: see :func:`directional_derivatives`; also for several directions.

    Examples:
      The Hessian of (a + b)^2 has the entry 2 four times.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> x = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
      >>> parts = diagnostics.split_sharpness(
      ...     lambda x: (x["a"] + x["b"]) ** 2, x,
      ...     {"a": jnp.array(3.0), "b": jnp.array(-4.0)})
      >>> a, b = parts["a"], parts["b"]
      >>> [round(float(q), 2) for q in (a.norm, a.slope, a.within, a.cross["b"])]
      [0.36, 3.6, 0.72, -0.96]
      >>> [round(float(q), 2) for q in (b.norm, b.slope, b.within, b.cross["a"])]
      [0.64, -4.8, 1.28, -0.96]
    """
    problem = state_problem(
        loss, params, args, options, direction, WITH_PRODUCT, several=False
    )
    paths = problem.selection.take(problem.selection.paths)
    parts = partition(paths, problem.params, blocks)
    norms, slopes, matrix = problem.run(_split, parts=parts)
    result = {}
    for name, norm, slope, row in zip(
        parts.names, *map(parts.each, (norms, slopes, matrix)), strict=True
    ):
        cross = parts.by_name(parts.each(row))
        result[name] = SharpnessPart(norm, slope, cross.pop(name), cross)
    return result


def _split(problem: Problem, parts: Partition) -> tuple:
    """Returns the loss, and by block ||v_b||^2, <g, v_b> and v_b^T H v_c in rows."""
    v, h = problem.unit(), hessian(problem)
    matrix = lax.map(
        lambda i: parts.vdots(v, h.matvec(parts.part(v, i))),
        jnp.arange(len(parts.names)),
    )
    return h.loss, (parts.vdots(v, v), parts.vdots(h.gradient, v), matrix)


class MaskedSharpness(NamedTuple):
    """A unit direction v = t + r split into masked coordinates t and the rest r.

    Attributes:
      coordinates: the fraction of the coordinates that the mask selects.
      norm: the fraction of ||v||^2 that they carry.
      slope: <g, t> and <g, r>, shape (2,).
      sharpness: t^T H t, 2 t^T H r and r^T H r, shape (3,): they sum to the directional
        sharpness.

    Examples:
      Without 1% of its coordinates this direction keeps 3/4 of its slope, but only 1/8
      of v^T H v; normalised again, its sharpness falls from 8 to 2.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> m = diagnostics.MaskedSharpness(
      ...     coordinates=0.01, norm=0.5, slope=jnp.array([-1.0, -3.0]),
      ...     sharpness=jnp.array([6.0, 1.0, 1.0]))
      >>> float(m.slope_fraction), float(m.sharpness_fraction), float(m.rest_sharpness)
      (0.25, 0.875, 2.0)
    """

    coordinates: jax.Array
    norm: jax.Array
    slope: jax.Array
    sharpness: jax.Array

    @property
    def slope_fraction(self) -> Any:
        """Fraction of the slope that the masked coordinates carry."""
        return _checks.quotient(self.slope[0], jnp.sum(self.slope), math.nan)

    @property
    def sharpness_fraction(self) -> Any:
        """Fraction of the sharpness that vanishes with the masked coordinates."""
        whole = jnp.sum(self.sharpness)
        return _checks.quotient(whole - self.sharpness[2], whole, math.nan)

    @property
    def rest_sharpness(self) -> Any:
        """Directional sharpness of the rest, r^T H r / ||r||^2; nan without a rest."""
        return _checks.quotient(self.sharpness[2], 1 - self.norm, math.nan)


def masked_sharpness(
    loss: Loss, params: Any, direction: Any, *args: Any,
    mask: Any, **options: Unpack[Options],
) -> MaskedSharpness:  # fmt: skip
    r"""Measures how much of slope and sharpness a set of coordinates carries.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      direction: a pytree like `params`.
      *args: see :func:`directional_derivatives`; the batch.
      mask: a pytree like `params` of booleans, for example the `top_coordinates` of the
        direction or of the gradient.
      **options: see :class:`Options`; not the mode ``"forward_over_forward"``.

    Returns:
      A :class:`MaskedSharpness`.

    Raises:
      TypeError: see :func:`directional_derivatives`; also if the mask is not boolean.
      ValueError: see :func:`directional_derivatives`; also if the mask does not match,
        or for several directions.

    Examples:
      Of the direction (3, 4) / 5 the second coordinate has 0.64 of the squared norm and
      2.56 of the sharpness 2.92 under the Hessian diag(1, 4).

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> x, u = jnp.array([1.0, 1.0]), jnp.array([3.0, 4.0])
      >>> top = diagnostics.top_coordinates(u, 0.5)
      >>> m = diagnostics.masked_sharpness(loss, x, u, mask=top)
      >>> [round(float(q), 3) for q in (m.coordinates, m.norm, *m.slope, *m.sharpness)]
      [0.5, 0.64, 3.2, 0.6, 2.56, 0.0, 0.36]
      >>> round(float(m.rest_sharpness), 3)
      1.0

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, section 4.
    """
    problem = state_problem(
        loss, params, args, options, direction, WITH_PRODUCT, several=False
    )
    leaves = jax.tree.leaves(params)
    masked = _checks.mask_leaves(params, problem.selection, leaves, mask)
    return problem.run(_masked, masked)


def _masked(
    problem: Problem, mask: list[jax.Array]
) -> tuple[jax.Array, MaskedSharpness]:
    v, h = problem.unit(), hessian(problem)

    def part(leaves, keep):
        return [jnp.where(m == keep, x, 0) for x, m in zip(leaves, mask, strict=True)]

    def pair(w):
        """Returns <t, w> and <r, w>."""
        return jnp.stack([tree_vdot(part(v, keep), w) for keep in (True, False)])

    (top, cross), (_, rest) = lax.map(
        lambda keep: pair(h.matvec(part(v, keep))), jnp.array([True, False])
    )
    counts = [jnp.mean(m, dtype=float) * m.size for m in mask]
    return h.loss, MaskedSharpness(
        coordinates=sum(counts[1:], counts[0]) / sum(m.size for m in mask),
        norm=tree_vdot(v, part(v, keep=True)),
        slope=pair(h.gradient),
        sharpness=jnp.stack([top, 2 * cross, rest]),
    )
