"""Which coordinates carry the slope and the curvature of a direction.

A unit direction is a sum of parts with disjoint coordinates, v = v_1 + ... + v_n, and

    <g, v> = sum_i <g, v_i>        v^T H v = sum_i sum_j v_i^T H v_j

exactly. The parts are blocks of parameters (`split_sharpness`) or a set of coordinates
and the rest (`masked_sharpness`), for example the largest ones (`top_coordinates`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._clip_leaf import exceeds
from optax_clip._clipping import known_fraction
from optax_clip._threshold import threshold
from optax_clip._trees import check_leaves, tree_vdot
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._partition import Blocks, partition
from optax_clip.diagnostics._problem import measuring, restrict, state_problem
from optax_clip.diagnostics._products import PRODUCTS, hessian
from optax_clip.diagnostics._streaming import Weight


class SharpnessPart(NamedTuple):
    """What one block contributes to a unit direction v.

    Attributes:
      norm: its share of ||v||^2.
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
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    *args: Any,
    blocks: Blocks | None = None,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> dict[Any, SharpnessPart]:
    r"""Splits slope and sharpness exactly into blocks and the terms between them.

    .. math::
      \frac{u^\top H u}{\|u\|^2} = \sum_b v_b^\top H v_b
      + \sum_b \sum_{c \neq b} v_b^\top H v_c, \quad v = u / \|u\|

    One Hessian-vector product per block, in one compiled loop.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      direction: a pytree like `params`.
      *args: what the loss needs besides the parameters: the batch.
      blocks: ``blocks(path)`` names the block of a leaf by its path, for example
        ``"encoder/0/kernel"``, or is a :class:`Stacked`; None makes every leaf a block.
      mode: ``"forward_over_reverse"``, ``"reverse_over_reverse"`` or
        ``"finite_difference"``, see :func:`directional_derivatives`.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      {block: :class:`SharpnessPart`}; the norms sum to 1, the slopes to the slope, all
      `within` and `cross` to the directional sharpness.

    Raises:
      ValueError: see :func:`directional_derivatives`.
      TypeError: if `blocks` returns something that cannot be hashed.

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
    _checks.check_choice("mode", mode, PRODUCTS)
    problem = state_problem(loss, params, direction, where)
    parts = partition(params, blocks, where)
    v = problem.unit()

    with measuring(precision, mode, problem.loss, problem.params, *args):
        h = hessian(problem.loss, problem.params, args, mode, microbatches, weight)
        matrix = lax.map(
            lambda i: parts.vdots(v, h.matvec(parts.part(v, i))),
            jnp.arange(len(parts.names)),
        )
    _checks.check_finite_loss(h.loss)
    norms, slopes = parts.vdots(v, v), parts.vdots(h.gradient, v)
    return {
        name: SharpnessPart(
            norms[i],
            slopes[i],
            matrix[i, i],
            {c: matrix[i, j] for j, c in enumerate(parts.names) if j != i},
        )
        for i, name in enumerate(parts.names)
    }


class MaskedSharpness(NamedTuple):
    """A unit direction v = t + r split into masked coordinates t and the rest r.

    Attributes:
      coordinates: share of the coordinates that the mask selects.
      norm: share of ||v||^2 that they carry.
      slope: <g, t> and <g, r>, shape (2,).
      curvature: t^T H t, 2 t^T H r and r^T H r, shape (3,): they sum to the sharpness.

    Examples:
      Without 1% of its coordinates this direction keeps 3/4 of its slope, but only 1/8
      of v^T H v; normalised again, its sharpness falls from 8 to 2.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> m = diagnostics.MaskedSharpness(
      ...     coordinates=0.01, norm=0.5, slope=jnp.array([-1.0, -3.0]),
      ...     curvature=jnp.array([6.0, 1.0, 1.0]))
      >>> float(m.slope_share), float(m.curvature_share), float(m.rest_sharpness)
      (0.25, 0.875, 2.0)
    """

    coordinates: jax.Array
    norm: jax.Array
    slope: jax.Array
    curvature: jax.Array

    @property
    def slope_share(self) -> jax.Array:
        """Share of the slope that the masked coordinates carry."""
        return self.slope[0] / jnp.sum(self.slope)

    @property
    def curvature_share(self) -> jax.Array:
        """Share of the sharpness that vanishes with the masked coordinates."""
        return 1 - self.curvature[2] / jnp.sum(self.curvature)

    @property
    def rest_sharpness(self) -> jax.Array:
        """Directional sharpness of the rest, r^T H r / ||r||^2."""
        return self.curvature[2] / (1 - self.norm)


def masked_sharpness(
    loss: Callable[..., jax.Array],
    params: Any,
    direction: Any,
    mask: Any,
    *args: Any,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> MaskedSharpness:
    r"""Measures how much of slope and sharpness a set of coordinates carries.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      direction: a pytree like `params`.
      mask: a pytree like `params` of booleans, for example the `top_coordinates` of the
        direction or of the gradient.
      *args: what the loss needs besides the parameters: the batch.
      mode: see :func:`split_sharpness`.
      microbatches: see :func:`directional_derivatives`.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      A :class:`MaskedSharpness`.

    Raises:
      ValueError: see :func:`directional_derivatives`; also if the mask does not match.

    Examples:
      Of the direction (3, 4) / 5 the second coordinate has 0.64 of the squared norm and
      2.56 of the sharpness 2.92 under the Hessian diag(1, 4).

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> x, u = jnp.array([1.0, 1.0]), jnp.array([3.0, 4.0])
      >>> top = diagnostics.top_coordinates(u, 0.5)
      >>> m = diagnostics.masked_sharpness(loss, x, u, top)
      >>> [round(float(q), 3) for q in (m.coordinates, m.norm, *m.slope, *m.curvature)]
      [0.5, 0.64, 3.2, 0.6, 2.56, 0.0, 0.36]
      >>> round(float(m.rest_sharpness), 3)
      1.0

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, section 4.
    """
    _checks.check_choice("mode", mode, PRODUCTS)
    _checks.check_mask(params, mask)
    problem = state_problem(loss, params, direction, where)
    v, mask = problem.unit(), restrict(mask, where)

    def part(tree, keep):
        return jax.tree.map(lambda x, m: jnp.where(m == keep, x, 0), tree, mask)

    with measuring(precision, mode, problem.loss, problem.params, *args):
        h = hessian(problem.loss, problem.params, args, mode, microbatches, weight)
        products = lax.map(
            lambda keep: _pair(part, v, h.matvec(part(v, keep))),
            jnp.array([True, False]),
        )
    _checks.check_finite_loss(h.loss)
    (top, cross), (_, rest) = products
    counts = [jnp.mean(m) * m.size for m in jax.tree.leaves(mask)]
    size = sum(m.size for m in jax.tree.leaves(mask))
    return MaskedSharpness(
        coordinates=sum(counts[1:], counts[0]) / size,
        norm=tree_vdot(v, part(v, keep=True)),
        slope=_pair(part, v, h.gradient),
        curvature=jnp.stack([top, 2 * cross, rest]),
    )


def _pair(part: Callable, v: Any, w: Any) -> jax.Array:
    """Returns <t, w> and <r, w>."""
    return jnp.stack([tree_vdot(part(v, keep), w) for keep in (True, False)])


def top_coordinates(tree: Any, fraction: jax.Array | float) -> Any:
    """Returns a mask of the largest magnitudes of a tree: those that clipping changes.

    Args:
      tree: pytree of real floating-point arrays.
      fraction: share f of all coordinates, in [0, 1).

    Returns:
      A pytree of booleans, at most floor(f N) of them true; ties at the threshold are
      false.

    Raises:
      ValueError: for a tree without leaves, or a fraction outside [0, 1).
      TypeError: for a leaf that is not real and floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> tree = {"w": jnp.array([1.0, -5.0, 2.0]), "b": jnp.array([4.0])}
      >>> diagnostics.top_coordinates(tree, 0.5)["w"].tolist()
      [False, True, False]
    """
    fraction = known_fraction(fraction)
    check_leaves(tree, "top_coordinates", real=True)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        raise ValueError("tree has no leaves, so it has no top coordinates.")
    tau = threshold(leaves, [0] * len(leaves), fraction).value[0]
    return jax.tree.map(lambda x: exceeds(jnp.asarray(x), tau), tree)


class Persistence(NamedTuple):
    """How many coordinates two masks select.

    Attributes:
      old: how many the first mask selects.
      new: how many the second one selects.
      both: how many both select.

    Examples:
      Three of four coordinates stay on top while the mask grows to six.

      >>> from optax_clip import diagnostics
      >>> diagnostics.Persistence(old=4, new=6, both=3).share
      0.75
    """

    old: jax.Array
    new: jax.Array
    both: jax.Array

    @property
    def share(self) -> jax.Array:
        """Share of the old coordinates that are still among the new ones."""
        return self.both / self.old


def mask_persistence(old: Any, new: Any, *, blocks: Blocks | None = None) -> Any:
    """Counts the coordinates that stay in a mask from one step to another.

    Args:
      old: pytree of booleans, for example `top_coordinates` of an update.
      new: a pytree like it, of a later update.
      blocks: ``blocks(path)`` names the block of a leaf, see :func:`split_sharpness`;
        None counts the whole tree.

    Returns:
      A :class:`Persistence`; with `blocks`, a dictionary of one for each block. Counts
      are floats, exact up to 2^24 in float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> old, new = jnp.array([True, True, False]), jnp.array([True, False, False])
      >>> float(diagnostics.mask_persistence(old, new).share)
      0.5
    """
    _checks.check_mask(old, new)
    parts = partition(old, blocks if blocks is not None else lambda _: "all")
    both = jax.tree.map(jnp.logical_and, old, new)
    counts = Persistence(*(parts.sums(m, float) for m in (old, new, both)))
    by_name = parts.by_name(counts)
    return by_name if blocks is not None else by_name["all"]
