"""Everything about a set of updates in one table, ready to be averaged over batches."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_clip._trees import tree_norm, tree_unit, tree_vdot
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import mean_gradient, restrict
from optax_clip.diagnostics._streaming import Weight
from optax_clip.diagnostics.landscape import line_scan
from optax_clip.diagnostics.sharpness import (
    DirectionalDerivatives,
    directional_derivatives,
)


class SharpnessRow(NamedTuple):
    """What is known of one update u, with v = u / ||u||.

    Attributes:
      sharpness: v^T H v.
      ratio: sharpness over the absolute sharpness of the baseline.
      slope: <g, v>.
      cosine: of the angle between u and -g; 1 for gradient descent.
      norm: ||u||.
      best_step: distance along v to the minimum of the parabola; inf without one.
      predicted_decrease: what the parabola loses there; inf without a minimum.
      realised_decrease: L(0) minus the lowest loss of a line scan.
      rho: realised over predicted decrease; near 1 where the parabola can be trusted.
      effective_sharpness: u^T H u / u^T P u with the optimizer's preconditioner P; nan
        where none is given.

    Examples:
      At x = 1 the parabola of x^4 has its minimum after 4/12, a decrease of 4^2 / 24.
      The scan goes twice as far and finds 80/81: `rho` says not to trust the parabola.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> row = diagnostics.sharpness_table(
      ...     lambda x: x**4, jnp.array(1.0), {"sgd": jnp.array(-4.0)}, baseline="sgd"
      ... )["sgd"]
      >>> print(f"{row.best_step:.2f} {row.predicted_decrease:.2f} {row.rho:.2f}")
      0.33 0.67 1.48
    """

    sharpness: jax.Array
    ratio: jax.Array
    slope: jax.Array
    cosine: jax.Array
    norm: jax.Array
    best_step: jax.Array
    predicted_decrease: jax.Array
    realised_decrease: jax.Array
    rho: jax.Array
    effective_sharpness: jax.Array


def sharpness_table(
    loss: Callable[..., jax.Array],
    params: Any,
    updates: Mapping[str, Any],
    *args: Any,
    baseline: str,
    preconditioners: Mapping[str, Any] | None = None,
    points: int = 21,
    mode: str = "forward_over_reverse",
    microbatches: int | None = None,
    weight: Weight | None = None,
    where: Callable[[str], bool] | None = None,
    precision: str | None = "highest",
) -> dict[str, SharpnessRow]:
    r"""Compares updates that were proposed at the same point.

    Averaged over batches with :func:`mean_over_batches`, `ratio` is the papers' mean of
    ratios :math:`S_{alg} / |S_{baseline}|`.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      updates: {name: update}, for example what `pseudo_updates` keeps in its state.
      *args: what the loss needs besides the parameters: the batch.
      baseline: the name of the update that ratios refer to.
      preconditioners: {name: P} for some updates, with P a pytree like `params` that
        holds the diagonal: for Adam ``sqrt(nu_hat) + eps``.
      points: size of the grid of the line scan, which covers twice the best step.
      mode: see :func:`directional_derivatives`.
      microbatches: likewise.
      weight: likewise.
      where: likewise.
      precision: likewise.

    Returns:
      {name: :class:`SharpnessRow`}.

    Raises:
      ValueError: see :func:`directional_derivatives`; also if `baseline` or a
        preconditioner does not name an update, or if a preconditioner does not match.

    Examples:
      On (x1^2 + 4 x2^2) / 2 at (2, 1), gradient descent goes along (2, 4).

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 4 * x[1] ** 2)
      >>> updates = {"sgd": -jnp.array([2.0, 4.0]), "sign": -jnp.array([1.0, 1.0])}
      >>> table = diagnostics.sharpness_table(
      ...     loss, jnp.array([2.0, 1.0]), updates, baseline="sgd")
      >>> for name, row in table.items():
      ...     print(f"{name:4} {row.sharpness:.2f} {row.ratio:.2f} {row.cosine:.2f}")
      sgd  3.40 1.00 1.00
      sign 2.50 0.74 0.95
      >>> round(float(table["sign"].rho), 2)
      1.0

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, tables 3 to 6.
    """
    preconditioners = preconditioners or {}
    _checks.check_choice("baseline", baseline, updates)
    for name, diagonal in preconditioners.items():
        _checks.check_choice("each preconditioner's name", name, updates)
        _checks.check_direction(params, diagonal, where, f"preconditioner {name!r}")
    options = {
        "microbatches": microbatches,
        "weight": weight,
        "where": where,
        "precision": precision,
    }
    measured = directional_derivatives(
        loss, params, updates, *args, mode=mode, **options
    )
    # A parabola without a minimum ahead has no scale: the update's length is used.
    spacing = {
        name: jnp.where(
            jnp.isfinite(d.best_step) & (d.best_step != 0),
            jnp.abs(d.best_step),
            d.direction_norm,
        )
        / (points // 2)
        for name, d in measured.items()
    }
    scans = line_scan(loss, params, updates, spacing, *args, points=points, **options)
    steepness = tree_norm(mean_gradient(loss, params, args, **options))
    reference = jnp.abs(measured[baseline].curvature)
    return {
        name: SharpnessRow(
            sharpness=d.curvature,
            ratio=d.curvature / reference,
            slope=d.slope,
            cosine=-d.slope / steepness,
            norm=d.direction_norm,
            best_step=d.best_step,
            predicted_decrease=d.predicted_decrease,
            realised_decrease=scans[name].decrease,
            rho=scans[name].decrease / d.predicted_decrease,
            effective_sharpness=d.curvature
            / _preconditioned(updates[name], preconditioners.get(name), where, d),
        )
        for name, d in measured.items()
    }


def _preconditioned(
    update: Any, diagonal: Any, where: _checks.Where | None, d: DirectionalDerivatives
) -> jax.Array:
    """Returns u^T P u / ||u||^2, nan without P."""
    if diagonal is None:
        return jnp.full_like(d.curvature, jnp.nan)
    u = tree_unit(restrict(update, where), d.direction_norm)
    scaled = jax.tree.map(jnp.multiply, restrict(diagonal, where), u)
    return tree_vdot(u, scaled)
