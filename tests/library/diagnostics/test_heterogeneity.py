"""How unequal blocks are, and what that costs, against the definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics

from . import problems
from .problems import quadratic

pytestmark = pytest.mark.usefixtures("strict")


def gini_of_the_definition(x):
    return np.abs(x[:, None] - x[None]).sum() / (2 * x.size**2 * x.mean())


def test_heterogeneity_is_that_of_the_definitions(rng):
    x = rng.exponential(size=9)
    got, p = diagnostics.heterogeneity(x), x / x.sum()
    np.testing.assert_allclose(got.gini, gini_of_the_definition(x), rtol=1e-5)
    np.testing.assert_allclose(got.variation, x.std() / x.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        got.entropy, -(p * np.log(p)).sum() / np.log(9), rtol=1e-5
    )
    np.testing.assert_allclose(got.max_over_median, x.max() / np.median(x), rtol=1e-5)
    scaled = diagnostics.heterogeneity(100 * x)
    np.testing.assert_allclose(scaled, got, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_beyond_float32_leave_norms_and_complexities_alone(rng, scale):
    g = {
        name: jnp.asarray(rng.normal(size=n), jnp.float32) for name, n in SIZES.items()
    }
    scaled, h = jax.tree.map(lambda x: scale * x, g), {"a": 1.0, "b": 2.0, "c": 3.0}
    norms = diagnostics.block_norms(g)
    for name, norm in diagnostics.block_norms(scaled).items():
        wanted = scale * np.array(norms[name][:3], np.float64)
        np.testing.assert_allclose(norm[:3], wanted, rtol=1e-5)
    got = diagnostics.hessian_complexity(scaled, h)
    wanted = diagnostics.hessian_complexity(g, h)
    np.testing.assert_allclose(got[:3], wanted[:3], rtol=1e-5)
    np.testing.assert_allclose(got.sign_step, scale * wanted.sign_step, rtol=1e-5)


def test_complexities_differ_by_the_covariance(rng):
    g = {
        name: jnp.asarray(rng.normal(size=n), jnp.float32) for name, n in SIZES.items()
    }
    h = {name: abs(rng.normal()) for name in SIZES}
    c = diagnostics.hessian_complexity(g, h)
    np.testing.assert_allclose(c.gradient - c.sign, c.covariance, rtol=1e-4)
    l1 = np.abs(problems.flat(g)).sum()
    np.testing.assert_allclose(
        c.sign_step, l1 / (sum(SIZES.values()) * c.sign), rtol=1e-5
    )


SIZES = {"a": 4, "b": 9, "c": 1}


def test_block_curvatures_bound_every_sharpness_and_the_bound_is_reached(rng):
    x = {
        name: jnp.asarray(rng.normal(size=n), jnp.float32) for name, n in SIZES.items()
    }
    a = {name: jnp.full(n, 1.0 + n) for name, n in SIZES.items()}
    h = {name: 1.0 + n for name, n in SIZES.items()}
    sharpness = diagnostics.directional_sharpness(quadratic, x, x, a)
    # All eigenvalues of a block are equal here, so the bound is an equation.
    np.testing.assert_allclose(diagnostics.sharpness_bound(x, h), sharpness, rtol=1e-5)
    a["b"] = a["b"].at[0].set(0.0)
    assert diagnostics.directional_sharpness(quadratic, x, x, a) < sharpness


def test_results_of_block_functions_are_taken_as_they_are():
    g = {"a": jnp.ones((3, 4)), "b": jnp.arange(1.0, 4.0)}
    norms = diagnostics.block_norms(g)
    by_hand = diagnostics.heterogeneity({name: n.l2 for name, n in norms.items()})
    assert diagnostics.heterogeneity(norms) == by_hand

    def loss(x):
        return sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(x))

    h = diagnostics.block_eigenvalues(loss, g, key=jax.random.key(0))
    numbers = {name: ends.spectral_norm for name, ends in h.items()}
    for measure in (diagnostics.hessian_complexity, diagnostics.sharpness_bound):
        np.testing.assert_array_equal(measure(g, h), measure(g, numbers))
    assert diagnostics.heterogeneity(h) == diagnostics.heterogeneity(numbers)


def test_bad_input_is_named():
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"blocks of the tree.*\['b'\]"):
        diagnostics.hessian_complexity(x, {"a": 1.0})
    with pytest.raises(TypeError, match="curvatures must be a mapping from blocks"):
        diagnostics.hessian_complexity(x, [1.0, 2.0])
    with pytest.raises(ValueError, match="vector of numbers"):
        diagnostics.heterogeneity([])
    for values in ([-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="finite and non-negative, and not all z"):
            diagnostics.heterogeneity(values)
    zero, h = jax.tree.map(jnp.zeros_like, x), {"a": 1.0, "b": 2.0}
    with pytest.raises(ValueError, match="gradient is zero in every coordinate"):
        diagnostics.hessian_complexity(zero, h)


@pytest.mark.usefixtures("makes_nan")
def test_what_is_not_finite_is_named():
    x, h = {"a": jnp.ones(3), "b": jnp.ones(2)}, {"a": 1.0, "b": 2.0}
    for values in ([np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="finite and non-negative, and not all z"):
            diagnostics.heterogeneity(values)
    assert jnp.isnan(jax.jit(diagnostics.heterogeneity)(jnp.zeros(2)).entropy)
    with pytest.raises(ValueError, match=r"direction\['a'\] .*not finite"):
        diagnostics.sharpness_bound({**x, "a": x["a"] / 0}, h)
