"""Heterogeneity of blocks, and their eigenvalues against dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from matfree import decomp, eig

from optax_clip import diagnostics
from optax_clip.diagnostics import block_eigenvalues

from . import problems
from .problems import quadratic, tokens, transformer_loss, waves

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


def test_block_norms_are_those_of_the_blocks(rng):
    tree = {
        "a": {"x": rng.normal(size=(3, 4)), "y": rng.normal(size=2)},
        "b": np.ones(4),
    }
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    norms = jax.jit(
        functools.partial(diagnostics.block_norms, blocks=lambda path: path[0])
    )(tree)
    a = problems.flat(tree["a"])
    wanted = (np.linalg.norm(a), np.sqrt(np.mean(a**2)), np.abs(a).sum(), 14)
    np.testing.assert_allclose(norms["a"], wanted, rtol=1e-5)
    assert norms["b"] == (2, 1, 4, 4)


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


def dense_blocks(x, batch):
    _, _, h = problems.dense(transformer_loss, x, batch)
    start, blocks = 0, {}
    for path, leaf in jax.tree.leaves_with_path(x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        blocks[name] = h[start : start + leaf.size, start : start + leaf.size]
        start += leaf.size
    return blocks


def test_eigenvalues_of_all_tensors_of_a_transformer_are_the_dense_ones(rng, x64):
    x, batch = problems.transformer_params(rng, jnp.float64), problems.text(rng)
    measure = functools.partial(block_eigenvalues, transformer_loss, tolerance=1e-4)
    found = jax.jit(measure)(x, jax.random.key(0), batch)
    blocks = dense_blocks(x, batch)
    assert set(found) == set(blocks)
    for name, block in blocks.items():
        values = np.linalg.eigvalsh(block)
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[name].top, values[-1], atol=1e-3 * scale)
        np.testing.assert_allclose(found[name].bottom, values[0], atol=1e-3 * scale)
        np.testing.assert_allclose(found[name].spectral_norm, scale, rtol=1e-3)
        assert found[name].iterations <= min(40, 2 + len(block))


def test_one_block_has_the_eigenvalues_of_the_whole_hessian(rng, x64):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    measure = functools.partial(block_eigenvalues, waves, blocks=lambda _: "all")
    found = jax.jit(measure)(x, jax.random.key(1), batch)["all"]
    whole = problems.dense(waves, x, batch)[2]
    for which, value in {"LA": found.top, "SA": found.bottom}.items():
        wanted = scipy.sparse.linalg.eigsh(whole, 1, which=which, v0=np.ones(40))[0][0]
        np.testing.assert_allclose(value, wanted, rtol=1e-3)


def test_the_ends_of_a_transformer_are_those_that_matfree_and_scipy_find(rng, x64):
    x = problems.transformer_params(rng, jnp.float64)
    batch = problems.text(rng, dtype=jnp.float64)
    measure = functools.partial(
        block_eigenvalues, transformer_loss, blocks=lambda _: "all", tolerance=1e-6
    )
    found = jax.jit(measure)(x, jax.random.key(0), batch)["all"]
    whole = problems.dense(transformer_loss, x, batch)[2]

    def matvec(v):
        gradient = jax.grad(transformer_loss)
        return jax.jvp(lambda x: gradient(x, batch), (x,), (v,))[1]

    lanczos = eig.eigh_partial(decomp.tridiag_sym(40))
    start = problems.like(rng, x)
    ritz = jax.jit(lambda v: lanczos(matvec, v)[0])(start)
    np.testing.assert_allclose(found.top, ritz.max(), rtol=1e-5)
    np.testing.assert_allclose(found.bottom, ritz.min(), rtol=1e-5)
    for which, value in {"LA": found.top, "SA": found.bottom}.items():
        wanted = scipy.sparse.linalg.eigsh(
            whole, 1, which=which, v0=problems.flat(start)
        )[0][0]
        np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize("mode", ["reverse_over_reverse", "finite_difference"])
def test_modes_subsets_and_streams_find_the_same_eigenvalues(rng, x64, mode):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    key = jax.random.key(0)
    wanted = block_eigenvalues(waves, x, key, batch)["b"]
    got = block_eigenvalues(
        waves,
        x,
        key,
        batch,
        mode=mode,
        microbatches=4,
        weight=tokens,
        where=lambda path: path == "b",
    )
    assert list(got) == ["b"]
    np.testing.assert_allclose(got["b"].top, wanted.top, rtol=1e-3)


def test_eigenvalues_of_stacked_layers_are_those_of_the_layers():
    curvature = jnp.array([[1.0, 3.0], [-5.0, 2.0]])
    found = block_eigenvalues(
        quadratic, jnp.ones((2, 2)), jax.random.key(0), curvature, blocks=stack
    )
    np.testing.assert_allclose(found["layer/0"][:2], [3, 1], rtol=1e-4)
    np.testing.assert_allclose(found["layer/1"][:2], [2, -5], rtol=1e-4)
    assert found["layer/1"].spectral_norm > 4.99


def stack(path):
    del path
    return diagnostics.Stacked("layer")


def test_a_block_without_curvature_has_eigenvalue_zero():
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    found = block_eigenvalues(lambda x: jnp.sum(x["a"] ** 2), x, jax.random.key(0))
    assert found["b"] == (0, 0, 1)


def test_bad_input_is_named():
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"blocks of the tree.*\['b'\]"):
        diagnostics.hessian_complexity(x, {"a": 1.0})
    with pytest.raises(ValueError, match="max_iterations must be an int of at least"):
        block_eigenvalues(jnp.sum, jnp.ones(2), jax.random.key(0), max_iterations=0)
    with pytest.raises(ValueError, match="vector of numbers"):
        diagnostics.heterogeneity([])
    for values in ([-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="finite and non-negative, and not all z"):
            diagnostics.heterogeneity(values)
    assert jnp.isnan(jax.jit(diagnostics.heterogeneity)(jnp.zeros(2)).entropy)
    zero, h = jax.tree.map(jnp.zeros_like, x), {"a": 1.0, "b": 2.0}
    with pytest.raises(ValueError, match="gradient is zero in every coordinate"):
        diagnostics.hessian_complexity(zero, h)
    with pytest.raises(ValueError, match=r"direction\['a'\] .*not finite"):
        diagnostics.sharpness_bound({**x, "a": x["a"] / 0}, h)
    with pytest.raises(ValueError, match="mode must be"):
        block_eigenvalues(quadratic, x, jax.random.key(0), x, mode="power")
    with pytest.raises(ValueError, match="must be real"):
        block_eigenvalues(quadratic, jnp.arange(2), jax.random.key(0), x)
