"""Do coordinates with large gradients have large curvature?

The papers conjecture that |g_i| and |H_ii| go together. A sample of coordinates can be
checked exactly, one Hessian-vector product each; `hessian_diagonal` estimates all of
them with a few random products.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import accumulator
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._problem import fill, mean_gradient
from optax_clip.diagnostics.diagonal import (
    hessian_diagonal,
    hessian_diagonal_at,
    sample_coordinates,
    take_coordinates,
)


class Correlation(NamedTuple):
    """How two samples of magnitudes go together.

    Attributes:
      pearson: of the logarithms, over the pairs without a zero.
      pearson_interval: its bootstrap interval, shape (2,).
      spearman: of the ranks, over all pairs.
      spearman_interval: its bootstrap interval, shape (2,).
      nonzero: share of the pairs without a zero.

    Examples:
      Of four pairs, those without a zero obey b = a^2. The other one exchanges two of
      the ranks of b, and Spearman's coefficient becomes 1 - 6 (1 + 1) / (4 (16 - 1)).

      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> a, b = jnp.array([0.0, 1.0, 10.0, 100.0]), jnp.array([5.0, 1.0, 1e2, 1e4])
      >>> c = diagnostics.magnitude_correlation(a, b, jax.random.key(0))
      >>> [round(float(q), 3) for q in (c.pearson, c.nonzero, c.spearman)]
      [1.0, 0.75, 0.8]
    """

    pearson: jax.Array
    pearson_interval: jax.Array
    spearman: jax.Array
    spearman_interval: jax.Array
    nonzero: jax.Array


def magnitude_correlation(
    a: jax.typing.ArrayLike,
    b: jax.typing.ArrayLike,
    key: jax.Array,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Correlation:
    r"""Correlates the magnitudes of two samples, with bootstrap intervals.

    Args:
      a: for example gradient entries, shape (n,).
      b: for example entries of the Hessian's diagonal at the same coordinates.
      key: a `jax.random.key` for the bootstrap.
      resamples: how often the pairs are drawn again, with replacement.
      confidence: share of the resamples inside of the (percentile) interval.

    Returns:
      A :class:`Correlation`.

    Raises:
      ValueError: if the samples are not vectors of the same length, there is nothing
        to resample, or the confidence is no share.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> a = jnp.array([1.0, 10.0, -100.0])
      >>> c = diagnostics.magnitude_correlation(a, a**2, jax.random.key(0))
      >>> round(float(c.pearson), 3), round(float(c.spearman), 3)
      (1.0, 1.0)
    """
    a, b = (jnp.abs(jnp.asarray(x)) for x in (a, b))
    dtype = accumulator((a, b))
    a, b = a.astype(dtype), b.astype(dtype)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        msg = f"samples must be vectors of one length; got {a.shape} and {b.shape}."
        raise ValueError(msg)
    _checks.check_count("resamples", resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}.")

    def both(rows):
        x, y = a[rows], b[rows]
        kept = ((x > 0) & (y > 0)).astype(x.dtype)
        log_x, log_y = (jnp.log(jnp.where(kept > 0, z, 1)) for z in (x, y))
        everything = jnp.ones_like(kept)
        return jnp.stack(
            [_pearson(log_x, log_y, kept), _pearson(_ranks(x), _ranks(y), everything)]
        )

    keys = jax.random.split(key, resamples)
    draws = lax.map(lambda k: both(jax.random.randint(k, a.shape, 0, a.size)), keys)
    tail = (1 - confidence) / 2
    intervals = jnp.nanquantile(draws, jnp.array([tail, 1 - tail]), axis=0)
    pearson, spearman = both(jnp.arange(a.size))
    nonzero = jnp.mean((a > 0) & (b > 0))
    return Correlation(pearson, intervals[:, 0], spearman, intervals[:, 1], nonzero)


def _pearson(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    total = jnp.sum(weight)
    dx, dy = (z - jnp.sum(weight * z) / total for z in (x, y))
    covariance, of_x, of_y = (jnp.sum(weight * p) for p in (dx * dy, dx * dx, dy * dy))
    return covariance / jnp.sqrt(of_x * of_y)


def _ranks(x: jax.Array) -> jax.Array:
    """Returns ranks from 1 to n, ties sharing their mean."""
    ordered = jnp.sort(x)
    before, until = (jnp.searchsorted(ordered, x, side=s) for s in ("left", "right"))
    return (before + until + 1).astype(x.dtype) / 2


def gradient_hessian_correlation(
    loss: Callable[..., jax.Array],
    params: Any,
    key: jax.Array,
    *args: Any,
    coordinates: int = 256,
    probes: int | None = None,
    estimator: str = "hutchinson",
    resamples: int = 1000,
    confidence: float = 0.95,
    mode: str = "forward_over_reverse",
    where: Callable[[str], bool] | None = None,
    **options: Any,
) -> Correlation:
    r"""Correlates |g_i| with |H_ii| over random coordinates.

    Args:
      loss: a scalar function ``loss(params, *args)``.
      params: pytree of floating-point arrays.
      key: a `jax.random.key`.
      *args: what the loss needs besides the parameters: the batch.
      coordinates: how many coordinates to draw.
      probes: None measures their curvatures exactly, at one Hessian-vector product
        each; a number takes them from a :func:`hessian_diagonal` of so many products,
        whose noise pulls correlations towards zero.
      estimator: of :func:`hessian_diagonal`; unused without `probes`.
      resamples: see :func:`magnitude_correlation`.
      confidence: likewise.
      mode: see :func:`split_sharpness`.
      where: selects the leaves to draw from by their path.
      **options: `microbatches`, `weight` and `precision`, see
        :func:`directional_derivatives`.

    Returns:
      A :class:`Correlation`.

    Examples:
      On the sum of x_i^4, the gradient 4 x^3 and the curvature 12 x^2 grow together.

      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> found = diagnostics.gradient_hessian_correlation(
      ...     lambda x: jnp.sum(x**4), jnp.linspace(0.1, 2.0, 9), jax.random.key(0))
      >>> round(float(found.pearson), 3), round(float(found.spearman), 3)
      (1.0, 1.0)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, sections 4, 6.
    """
    _checks.check_count("coordinates", coordinates)
    draw, estimate, bootstrap = jax.random.split(key, 3)
    some = sample_coordinates(draw, params, coordinates, where)
    measured: dict[str, Any] = {"mode": mode, "where": where, **options}
    if probes is None:
        curvatures = hessian_diagonal_at(loss, params, some, *args, **measured)
    else:
        measured |= {"probes": probes, "estimator": estimator}
        diagonal = hessian_diagonal(loss, params, estimate, *args, **measured)
        curvatures = take_coordinates(diagonal, some)
    gradient = mean_gradient(loss, params, args, where=where, **options)
    slopes = take_coordinates(fill(gradient, params, where), some)
    return magnitude_correlation(
        slopes, curvatures, bootstrap, resamples=resamples, confidence=confidence
    )
