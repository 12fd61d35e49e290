"""Eigenvalues of blocks against dense ones, matfree's and SciPy's."""

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


def dense_blocks(x, batch):
    _, _, h = problems.dense(transformer_loss, x, batch)
    start, blocks = 0, {}
    for path, leaf in jax.tree.leaves_with_path(x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        blocks[name] = h[start : start + leaf.size, start : start + leaf.size]
        start += leaf.size
    return blocks


def test_eigenvalues_of_all_tensors_of_a_transformer_are_the_dense_ones(rng, x64):
    x = problems.transformer_params(rng, jnp.float64)
    batch = problems.text(rng, dtype=jnp.float64)
    measure = functools.partial(block_eigenvalues, transformer_loss, tolerance=1e-4)
    found = jax.jit(measure)(x, batch, key=jax.random.key(0))
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
    found = jax.jit(measure)(x, batch, key=jax.random.key(1))["all"]
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
    found = jax.jit(measure)(x, batch, key=jax.random.key(0))["all"]
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
    wanted = block_eigenvalues(waves, x, batch, key=key)["b"]
    got = block_eigenvalues(
        waves,
        x,
        batch,
        key=key,
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
        quadratic, jnp.ones((2, 2)), curvature, key=jax.random.key(0), blocks=stack
    )
    np.testing.assert_allclose(found["layer/0"][:2], [3, 1], rtol=1e-4)
    np.testing.assert_allclose(found["layer/1"][:2], [2, -5], rtol=1e-4)
    assert found["layer/1"].spectral_norm > 4.99


def stack(path):
    del path
    return diagnostics.Stacked("layer")


def test_a_block_without_curvature_has_eigenvalue_zero():
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    found = block_eigenvalues(lambda x: jnp.sum(x["a"] ** 2), x, key=jax.random.key(0))
    assert found["b"][:2] == (0, 0)
    assert found["b"].converged
    assert found["b"].iterations == 1


def test_bad_input_is_named():
    x, key = {"a": jnp.ones(3), "b": jnp.ones(2)}, jax.random.key(0)

    def refuses(match, params, error=ValueError, **options):
        with pytest.raises(error, match=match):
            block_eigenvalues(quadratic, params, x, **{"key": key} | options)

    refuses("max_iterations must be an int of at least", x, max_iterations=0)
    refuses("tolerance must be positive", x, tolerance=0.0)
    refuses("mode must be", x, mode="power")
    refuses("mode must be", x, mode="forward_over_forward")
    refuses("must be real", jnp.arange(2), error=TypeError)
    refuses("must be a random key", x, key=1, error=TypeError)


### half precision

SPECTRUM = np.concatenate([[2.3, 0.4, 0.3, -0.5], np.linspace(0.0, 0.1, 28)])


def matrix(rng):
    vectors = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    return jnp.asarray(vectors * SPECTRUM @ vectors.T, jnp.float32)


def any_precision(x, a):
    y = x["b"].astype(jnp.float32)
    return y @ a @ y / 2


def only_half_precision(x, a):
    assert x["b"].dtype == jnp.bfloat16
    return any_precision(x, a)


@pytest.mark.parametrize("loss", [any_precision, only_half_precision])
@pytest.mark.parametrize("iterations", [12, 25, 40, 80])
def test_half_precision_has_the_ends_of_float32_whatever_the_iterations(
    rng, loss, iterations
):
    x, a = {"b": jnp.ones(32, jnp.bfloat16)}, matrix(rng)
    for seed in range(3):
        found = block_eigenvalues(
            loss,
            x,
            a,
            key=jax.random.key(seed),
            max_iterations=iterations,
            tolerance=1e-6,
        )["b"]
        # Products in half precision are off by 2^-9 of the norm.
        atol = 0.02 if loss is only_half_precision else 2e-3
        np.testing.assert_allclose(found.top, 2.3, atol=atol)
        np.testing.assert_allclose(found.bottom, -0.5, atol=atol)


def test_ends_that_have_not_converged_are_marked_and_the_residual_bounds_them(rng):
    x, a = {"b": jnp.ones(32)}, matrix(rng)
    find = functools.partial(block_eigenvalues, any_precision, x, a)
    for iterations in (1, 2, 4, 40):
        ends = find(key=jax.random.key(0), max_iterations=iterations)["b"]
        assert bool(ends.converged) == (iterations == 40)
        for end, residual in zip(ends[:2], ends.residual, strict=True):
            assert np.min(np.abs(SPECTRUM - end)) <= residual + 1e-5
    assert (ends.residual < 1e-2).all()
