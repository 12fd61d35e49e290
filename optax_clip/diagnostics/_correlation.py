"""Do coordinates with large gradients have large curvature?

The papers conjecture that |g_i| and |H_ii| go together. A sample of coordinates can be
checked exactly, one Hessian-vector product each; `hessian_diagonal` estimates all of
them with a few random products.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.stats import rankdata
from jax.sharding import PartitionSpec

from optax_clip._trees import accumulator
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._coordinates import draw_coordinates, take_coordinates
from optax_clip.diagnostics._hessian_diagonal import entries, estimate
from optax_clip.diagnostics._modes import WITH_PRODUCT
from optax_clip.diagnostics._problem import (
    Loss,
    Options,
    Problem,
    hessian,
    state_problem,
)


class Correlation(NamedTuple):
    """How two samples of magnitudes go together.

    Attributes:
      pearson: of the logarithms, over the pairs without a zero.
      pearson_interval: its bootstrap interval, shape (2,).
      spearman: of the ranks, over all pairs.
      spearman_interval: its bootstrap interval, shape (2,).
      nonzero: the fraction of the pairs without a zero.

    Examples:
      Of four pairs, those without a zero obey b = a^2. The other one exchanges two of
      the ranks of b, and Spearman's coefficient becomes 1 - 6 (1 + 1) / (4 (16 - 1)).

      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> a, b = jnp.array([0.0, 1.0, 10.0, 100.0]), jnp.array([5.0, 1.0, 1e2, 1e4])
      >>> c = diagnostics.magnitude_correlation(a, b, key=jax.random.key(0))
      >>> [round(float(q), 3) for q in (c.pearson, c.nonzero, c.spearman)]
      [1.0, 0.75, 0.8]
    """

    pearson: jax.Array
    pearson_interval: jax.Array
    spearman: jax.Array
    spearman_interval: jax.Array
    nonzero: jax.Array


def magnitude_correlation(
    a: jax.typing.ArrayLike, b: jax.typing.ArrayLike, *, key: jax.Array,
    resamples: int = 1000, confidence: float = 0.95,
) -> Correlation:  # fmt: skip
    r"""Correlates the magnitudes of two samples, with bootstrap intervals.

    Args:
      a: for example gradient entries, shape (n,).
      b: for example entries of the Hessian's diagonal at the same coordinates.
      key: a `jax.random.key` for the bootstrap.
      resamples: how often the pairs are drawn again, with replacement.
      confidence: the fraction of the resamples inside of the (percentile) interval.

    Returns:
      A :class:`Correlation`; a coefficient of a sample that does not vary is nan.

    Raises:
      TypeError: if `key` is no random key or `resamples` no int.
      ValueError: if the samples are not vectors of the same length, there is nothing
        to resample, or the confidence is outside (0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> a = jnp.array([1.0, 10.0, -100.0])
      >>> c = diagnostics.magnitude_correlation(a, a**2, key=jax.random.key(0))
      >>> round(float(c.pearson), 3), round(float(c.spearman), 3)
      (1.0, 1.0)
    """
    _check_bootstrap(key, resamples, confidence)
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        msg = f"samples must be vectors of one length; got {a.shape} and {b.shape}."
        raise ValueError(msg)
    return _decoded(_correlate(a, b, key, confidence, resamples=resamples))


def _check_bootstrap(key: Any, resamples: Any, confidence: Any) -> None:
    _checks.check_key(key)
    _checks.check_count("resamples", resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}.")


def gradient_hessian_correlation(
    loss: Loss, params: Any, *args: Any,
    key: jax.Array, coordinates: int = 256, probes: int | None = None,
    resamples: int = 1000, confidence: float = 0.95, **options: Unpack[Options],
) -> Correlation:  # fmt: skip
    r"""Correlates ``|g_i|`` with ``|H_ii|`` over random coordinates.

    Args:
      loss: see :func:`directional_derivatives`.
      params: likewise.
      *args: likewise; the batch.
      key: a `jax.random.key`.
      coordinates: how many coordinates to draw.
      probes: None measures their curvatures exactly, at one Hessian-vector product
        each; a number takes them from a :func:`hessian_diagonal` of so many products,
        whose noise pulls correlations towards zero.
      resamples: see :func:`magnitude_correlation`.
      confidence: likewise.
      **options: see :class:`Options`; not the mode ``"forward_over_forward"``. `where`
        selects the leaves to draw from.

    Returns:
      A :class:`Correlation`.

    Raises:
      TypeError: see :func:`directional_derivatives` and :func:`magnitude_correlation`.
      ValueError: likewise.

    Examples:
      On the sum of x_i^4, the gradient 4 x^3 and the curvature 12 x^2 grow together.

      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> found = diagnostics.gradient_hessian_correlation(
      ...     lambda x: jnp.sum(x**4), jnp.linspace(0.1, 2.0, 9), key=jax.random.key(0))
      >>> round(float(found.pearson), 3), round(float(found.spearman), 3)
      (1.0, 1.0)

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, sections 4, 6.
    """
    _check_bootstrap(key, resamples, confidence)
    _checks.check_count("coordinates", coordinates)
    if probes is not None:
        _checks.check_count("probes", probes)
    problem = state_problem(loss, params, args, options, modes=WITH_PRODUCT)
    static = {"coordinates": coordinates, "probes": probes, "resamples": resamples}
    return _decoded(problem.run(_measure_correlation, key, confidence, **static))


### what is compiled


def _measure_correlation(
    problem: Problem, key, confidence, *, coordinates, probes, resamples
) -> tuple[jax.Array, Correlation]:
    draw, estimation, bootstrap = jax.random.split(key, 3)
    sizes = tuple(x.size for x in problem.params)
    some = draw_coordinates(draw, sizes, coordinates)
    h = hessian(problem)
    if probes is None:
        curvatures = entries(h, problem.params, some)
    else:
        diagonal = estimate(h, problem.params, estimation, probes)
        curvatures = take_coordinates(diagonal, some)
    slopes = take_coordinates(h.gradient, some)
    return h.loss, _correlate(
        slopes, curvatures, bootstrap, confidence, resamples=resamples
    )


@functools.partial(jax.jit, static_argnames="resamples")
def _correlate(a, b, key, confidence, resamples: int) -> Correlation:
    dtype = accumulator((a, b))
    a, b = (_everywhere(jnp.abs(x).astype(dtype)) for x in (a, b))

    def both(rows):
        x, y = a[rows], b[rows]
        kept = ((x > 0) & (y > 0)).astype(dtype)
        log_x, log_y = (jnp.log(jnp.where(kept > 0, z, 1)) for z in (x, y))
        x_rank, y_rank = (rankdata(z).astype(dtype) for z in (x, y))
        spearman = _pearson(x_rank, y_rank, jnp.ones_like(kept))
        return jnp.stack([_pearson(log_x, log_y, kept), spearman])

    keys = jax.random.split(key, resamples)
    draws = lax.map(lambda k: both(jax.random.randint(k, a.shape, 0, a.size)), keys)
    tail = (1 - jnp.asarray(confidence, dtype)) / 2
    draws = jnp.where(draws == UNDEFINED, jnp.nan, draws)
    intervals = jnp.nanquantile(draws, jnp.stack([tail, 1 - tail]), axis=0)
    intervals = jnp.where(jnp.isnan(intervals), UNDEFINED, intervals)
    pearson, spearman = both(jnp.arange(a.size))
    nonzero = jnp.mean((a > 0) & (b > 0), dtype=dtype)
    return Correlation(pearson, intervals[:, 0], spearman, intervals[:, 1], nonzero)


# What a sample without spread has instead of nan while it is in a compiled program.
UNDEFINED = 2.0


def _decoded(found: Correlation) -> Correlation:
    def decode(x):
        return _checks.quotient(x, (x != UNDEFINED).astype(x.dtype), math.nan)

    return Correlation(*map(decode, found))


def _everywhere(x: jax.Array) -> jax.Array:
    # A few numbers, so every device gets all of them.
    everywhere = jax.typeof(x).sharding.update(spec=PartitionSpec())
    return x.at[jnp.arange(x.size)].get(out_sharding=everywhere)


def _pearson(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    total = jnp.sum(weight)
    dx, dy = (z - jnp.sum(weight * z) / jnp.maximum(total, 1) for z in (x, y))
    covariance, of_x, of_y = (jnp.sum(weight * p) for p in (dx * dy, dx * dx, dy * dy))
    spread = jnp.sqrt(of_x * of_y)
    return jnp.where(
        spread > 0, covariance / jnp.where(spread > 0, spread, 1), UNDEFINED
    )
