"""Correlations against SciPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from optax_clip import diagnostics

from . import problems
from .problems import waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("probes", [None, 8])
def test_a_subset_has_its_own_block_and_may_leave_integers_out(rng, x64, probes):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    key, counted = jax.random.key(2), {**x, "steps": jnp.arange(3)}

    def chosen(path):
        return path == "w"

    def diagonal(loss, params, **options):
        if probes is None:
            some = diagnostics.sample_coordinates(params, 9, key=key, **options)
            return diagnostics.hessian_diagonal_at(
                loss, params, batch, coordinates=some, **options
            )
        return diagnostics.hessian_diagonal(loss, params, batch, key=key, **options)

    def alone(w, batch):
        return waves({**x, "w": w["w"]}, batch)

    got = diagonal(waves, counted, where=chosen)
    wanted = diagonal(alone, {"w": x["w"]})
    if probes is not None:
        np.testing.assert_array_equal(got["b"], np.zeros(8))
        np.testing.assert_array_equal(got["steps"], np.zeros(3))
        got, wanted = got["w"], wanted["w"]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    measure = functools.partial(
        diagnostics.gradient_hessian_correlation, coordinates=9, resamples=9
    )
    got = measure(waves, counted, batch, key=key, probes=probes, where=chosen)
    wanted = measure(alone, {"w": x["w"]}, batch, key=key, probes=probes)
    np.testing.assert_allclose(got.pearson, wanted.pearson, rtol=1e-6)
    np.testing.assert_allclose(got.spearman, wanted.spearman, rtol=1e-6)


def test_correlations_are_those_of_scipy(rng):
    x = rng.lognormal(size=60)
    y = x * rng.lognormal(size=60)
    x[:9] = np.round(x[:9])  # ties and zeros
    x, y = x.astype(np.float32), y.astype(np.float32)
    got = diagnostics.magnitude_correlation(-x, y, key=jax.random.key(0), resamples=200)
    kept = x > 0
    pearson = scipy.stats.pearsonr(np.log(x[kept]), np.log(y[kept]))[0]
    np.testing.assert_allclose(got.pearson, pearson, rtol=1e-4)
    np.testing.assert_allclose(got.spearman, scipy.stats.spearmanr(x, y)[0], rtol=1e-4)
    np.testing.assert_allclose(got.nonzero, kept.mean(), rtol=1e-6)


def test_bootstrap_intervals_hold_the_truth_and_narrow_with_the_sample():
    correlate = jax.jit(diagnostics.magnitude_correlation)
    widths = []
    for n in (50, 800):
        z, noise = jax.random.normal(jax.random.key(n), (2, n))
        got = correlate(
            jnp.exp(z), jnp.exp(0.6 * z + 0.8 * noise), key=jax.random.key(1)
        )
        low, high = got.pearson_interval
        assert low < 0.6 < high
        assert low < got.pearson < high
        widths.append(float(high - low))
    assert 2.5 < widths[0] / widths[1] < 6.5  # the square root of 16


@pytest.mark.parametrize("probes", [None, 64])
def test_gradients_and_curvatures_that_grow_together_correlate(probes):
    def loss(x, scale):
        return scale * jnp.sum(x["a"] ** 4) + jnp.sum(x["b"] ** 4)

    x = {"a": jnp.linspace(0.1, 2.0, 9), "b": jnp.linspace(0.2, 1.0, 4)}
    found = diagnostics.gradient_hessian_correlation(
        loss,
        x,
        1.0,
        key=jax.random.key(0),
        probes=probes,
        coordinates=40,
        resamples=50,
    )
    assert found.pearson > 0.999
    assert found.spearman > 0.999


def test_bad_input_is_named():
    ones, key = np.ones(2), jax.random.key(0)

    def refuses(match, *args, error=ValueError, **options):
        with pytest.raises(error, match=match):
            diagnostics.magnitude_correlation(*args, **{"key": key} | options)

    refuses(r"one length; got \(2,\) and \(3,\)", ones, np.ones(3))
    refuses("resamples must be an int of at least 1", ones, ones, resamples=0)
    refuses(r"confidence must be in \(0, 1\); got 95", ones, ones, confidence=95)
    refuses("must be a random key", ones, ones, key=0, error=TypeError)
    with pytest.raises(ValueError, match="coordinates must be an int of at least 1"):
        diagnostics.gradient_hessian_correlation(jnp.sum, ones, key=key, coordinates=0)
