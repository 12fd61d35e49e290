"""Diagonals of Hessians against dense ones, and correlations against SciPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from optax_clip import diagnostics

from . import problems
from .problems import tokens, waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("microbatches", [None, 4])
def test_chosen_diagonal_entries_are_the_dense_ones(rng, x64, microbatches):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    some = diagnostics.sample_coordinates(jax.random.key(0), x, 12)
    measure = functools.partial(
        diagnostics.hessian_diagonal_at, waves, microbatches=microbatches, weight=tokens
    )
    got = jax.jit(measure)(x, some, batch)
    diagonal = np.diag(problems.dense(waves, x, batch)[2])
    wanted = diagonal[np.asarray(some.index + jnp.array([0, 8])[some.leaf])]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_the_estimated_diagonal_approaches_the_dense_one(rng, x64):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    _, _, h = problems.dense(waves, x, batch)
    deviation = np.sqrt((h**2).sum(1) - np.diag(h) ** 2)
    measure = functools.partial(diagnostics.hessian_diagonal, waves)
    for probes in (16, 256):
        got = jax.jit(functools.partial(measure, probes=probes))(
            x, jax.random.key(1), batch
        )
        errors = np.abs(problems.flat(got) - np.diag(h))
        assert (errors <= 5 * deviation / np.sqrt(probes) + 1e-12).all()


def test_samples_are_spread_over_leaves_by_their_size():
    tree = {"a": jnp.zeros(100), "b": jnp.ones((30, 10)), "c": jnp.zeros((0, 3))}
    some = diagnostics.sample_coordinates(jax.random.key(0), tree, 4000)
    share = float(jnp.mean(diagnostics.take_coordinates(tree, some)))
    assert abs(share - 0.75) < 0.03
    assert int(some.index.max()) == 299


@pytest.mark.parametrize("probes", [None, 8])
def test_a_subset_has_its_own_block_and_may_leave_integers_out(rng, x64, probes):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    key, counted = jax.random.key(2), {**x, "steps": jnp.arange(3)}

    def chosen(path):
        return path == "w"

    def diagonal(loss, params, **options):
        if probes is None:
            some = diagnostics.sample_coordinates(key, params, 9, **options)
            return diagnostics.hessian_diagonal_at(loss, params, some, batch, **options)
        return diagnostics.hessian_diagonal(loss, params, key, batch, **options)

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
    got = measure(waves, counted, key, batch, probes=probes, where=chosen)
    wanted = measure(alone, {"w": x["w"]}, key, batch, probes=probes)
    np.testing.assert_allclose(got.pearson, wanted.pearson, rtol=1e-6)
    np.testing.assert_allclose(got.spearman, wanted.spearman, rtol=1e-6)


def test_correlations_are_those_of_scipy(rng):
    x = rng.lognormal(size=60)
    y = x * rng.lognormal(size=60)
    x[:9] = np.round(x[:9])  # ties and zeros
    x, y = x.astype(np.float32), y.astype(np.float32)
    got = diagnostics.magnitude_correlation(-x, y, jax.random.key(0), resamples=200)
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
        got = correlate(jnp.exp(z), jnp.exp(0.6 * z + 0.8 * noise), jax.random.key(1))
        low, high = got.pearson_interval
        assert low < 0.6 < high
        assert low < got.pearson < high
        widths.append(float(high - low))
    assert 2.5 < widths[0] / widths[1] < 6.5  # the square root of 16


@pytest.mark.parametrize(
    ("probes", "estimator"), [(None, "hutchinson"), (64, "hutchinson"), (64, "xdiag")]
)
def test_gradients_and_curvatures_that_grow_together_correlate(probes, estimator):
    def loss(x, scale):
        return scale * jnp.sum(x["a"] ** 4) + jnp.sum(x["b"] ** 4)

    x = {"a": jnp.linspace(0.1, 2.0, 9), "b": jnp.linspace(0.2, 1.0, 4)}
    found = diagnostics.gradient_hessian_correlation(
        loss,
        x,
        jax.random.key(0),
        1.0,
        probes=probes,
        estimator=estimator,
        coordinates=40,
        resamples=50,
    )
    assert found.pearson > 0.999
    assert found.spearman > 0.999


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"one length; got \(2,\) and \(3,\)"):
        diagnostics.magnitude_correlation(np.ones(2), np.ones(3), jax.random.key(0))
    ones, key = np.ones(2), jax.random.key(0)
    with pytest.raises(ValueError, match="resamples must be an int of at least 1"):
        diagnostics.magnitude_correlation(ones, ones, key, resamples=0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\); got 95"):
        diagnostics.magnitude_correlation(ones, ones, key, confidence=95)
    with pytest.raises(ValueError, match="coordinates must be an int of at least 1"):
        diagnostics.gradient_hessian_correlation(jnp.sum, ones, key, coordinates=0)
    with pytest.raises(ValueError, match="no coordinates"):
        diagnostics.sample_coordinates(jax.random.key(0), {}, 3)
    with pytest.raises(ValueError, match="must be real"):
        diagnostics.hessian_diagonal(jnp.sum, jnp.arange(3), jax.random.key(0))
