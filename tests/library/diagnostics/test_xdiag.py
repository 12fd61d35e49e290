"""XDiag's diagonals against dense Hessians, matfree's and Hutchinson's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import stochtrace

from optax_clip._trees import tree_draw
from optax_clip.diagnostics import hessian_diagonal

from . import problems
from .problems import tokens, transformer_loss, waves

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
xdiag = functools.partial(hessian_diagonal, estimator="xdiag")


def with_matrix(x, matrix):
    """Half of x^T A x for two leaves: the Hessian is A."""
    y = jnp.concatenate([x["a"], x["b"].ravel()])
    return y @ matrix @ y / 2


def draw_matrix(rng, eigenvalues, dtype=jnp.float32):
    """Parameters and a matrix with these eigenvalues in a random basis."""
    n = len(eigenvalues)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    x = {"a": jnp.ones(3, dtype), "b": jnp.ones((n - 3, 1), dtype)}
    return x, jnp.asarray(vectors * eigenvalues @ vectors.T, dtype)


def draws(loss, count, *args, **options):
    """Many independent estimates, one a row."""

    def one(key):
        leaves = jax.tree.leaves(
            hessian_diagonal(loss, args[0], key, *args[1:], **options)
        )
        return jnp.concatenate([leaf.ravel() for leaf in leaves])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, count)), np.float64)


def is_unbiased(estimates, wanted):
    """Whether the mean of the rows is off by less than 5 of its standard errors."""
    standard_error = estimates.std(0) / np.sqrt(len(estimates))
    error = np.abs(estimates.mean(0) - wanted)
    return (error <= 5 * standard_error + 1e-12).all()


def signs(key, x):
    """The three vectors of signs behind an estimate of six probes."""
    draw = functools.partial(tree_draw, jax.random.rademacher, tree=x)
    return [draw(k) for k in jax.random.split(key, 3)]


def diagonal_of_the_definition(h, omega):
    """The mean over i, with the product i left out of the projector P_i."""
    estimates = []
    for i in range(omega.shape[1]):
        q = np.linalg.qr(h @ np.delete(omega, i, axis=1))[0]
        residual = h @ omega[:, i] - q @ (q.T @ h @ omega[:, i])
        estimates.append(np.sum(q * (h @ q), axis=1) + omega[:, i] * residual)
    return np.mean(estimates, axis=0)


def test_the_estimate_of_a_transformer_is_that_of_the_definition(rng, x64):
    x = problems.transformer_params(rng, jnp.float64)
    batch = problems.text(rng, dtype=jnp.float64)
    _, _, h = problems.dense(transformer_loss, x, batch)
    omega = np.stack([problems.flat(z) for z in signs(KEY, x)], axis=1)
    wanted = diagonal_of_the_definition(h, omega)
    got = jax.jit(functools.partial(xdiag, transformer_loss, probes=6))(x, KEY, batch)
    np.testing.assert_allclose(problems.flat(got), wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("microbatches", [None, 4])
def test_the_estimate_is_that_of_matfree_with_the_same_signs(rng, x64, microbatches):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    measure = functools.partial(
        xdiag, waves, probes=6, microbatches=microbatches, weight=tokens
    )
    got = jax.jit(measure)(x, KEY, batch)

    def matvec(v):
        gradient = jax.grad(waves)
        return jax.jvp(lambda x: gradient(x, batch), (x,), (v,))[1]

    def stacked(key):
        return jax.tree.map(lambda *z: jnp.stack(z), *signs(key, x))

    peer = stochtrace.estimator_leave_one_out(
        stochtrace.leave_one_out_xdiag(), sampler=stacked
    )
    with jax.numpy_rank_promotion("allow"):
        wanted = jax.jit(functools.partial(peer, matvec))(KEY)
    np.testing.assert_allclose(problems.flat(got), problems.flat(wanted), rtol=1e-8)


@pytest.mark.parametrize(
    ("probes", "eigenvalues"),
    [(4, [1.0, 2.0, 3.0, -4.0]), (6, [1.0, 2.0, 0.0, 0.0]), (4, [0.0, 0.0, 1.0, 0.0])],
)
def test_dependent_products_leave_no_bias(rng, x64, probes, eigenvalues):
    # Four coordinates have 16 vectors of signs: many draws repeat one of them.
    x, matrix = draw_matrix(rng, np.array(eigenvalues), jnp.float64)
    estimates = draws(with_matrix, 4000, x, matrix, estimator="xdiag", probes=probes)
    assert np.isfinite(estimates).all()
    assert is_unbiased(estimates, np.diag(matrix))


@pytest.mark.parametrize(("rank", "scale"), [(0, 1.0), (1, 1e-25), (3, 1.0), (3, 1e15)])
def test_a_rank_below_half_of_the_probes_is_found_exactly(rng, rank, scale):
    x, matrix = draw_matrix(
        rng, np.array([5.0, -2, 1] + [0] * 27) * (np.arange(30) < rank)
    )
    estimates = draws(with_matrix, 20, x, scale * matrix, estimator="xdiag", probes=8)
    wanted = np.diag(matrix)
    atol = 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(estimates / scale, np.tile(wanted, (20, 1)), atol=atol)


def test_more_probes_than_coordinates_find_the_diagonal(rng):
    x, matrix = draw_matrix(rng, np.array([5.0, -2, 1, 0.5, 0.1]))
    estimates = draws(with_matrix, 20, x, matrix, estimator="xdiag", probes=40)
    np.testing.assert_allclose(estimates, np.tile(np.diag(matrix), (20, 1)), atol=1e-5)


def test_a_low_rank_and_a_small_rest_have_a_tenth_of_the_error_of_hutchinson(rng):
    x, matrix = draw_matrix(rng, np.array([5.0, -2, 1] + [0.02] * 57))

    def error(estimator):
        estimates = draws(with_matrix, 50, x, matrix, estimator=estimator, probes=16)
        return np.std(estimates - np.diag(matrix)[None])

    assert error("xdiag") < error("hutchinson") / 10


def test_diagonal_hessians_are_estimated_without_bias(rng, x64):
    a = jnp.asarray(rng.normal(size=10))
    estimates = draws(problems.quadratic, 2000, jnp.ones(10), a, estimator="xdiag")
    assert is_unbiased(estimates, a)
    assert estimates.std() > 1e-3  # exact is Hutchinson's estimate alone
    np.testing.assert_allclose(draws(problems.quadratic, 3, jnp.ones(10), a)[0], a)


def test_flat_losses_and_empty_leaves_have_finite_diagonals():
    x = {"a": jnp.ones(3), "empty": jnp.ones((0, 2)), "scalar": jnp.ones(())}
    got = xdiag(lambda x: jnp.sum(x["a"]) + 2 * x["scalar"] ** 2, x, KEY)
    np.testing.assert_array_equal(got["a"], np.zeros(3))
    assert got["empty"].shape == (0, 2)
    np.testing.assert_allclose(got["scalar"], 4, rtol=1e-6)


def test_a_traced_loss_that_is_not_a_number_has_a_diagonal_of_nan():
    estimate = jax.jit(functools.partial(xdiag, lambda x: jnp.nan * jnp.sum(x**2)))
    assert jnp.isnan(estimate(-jnp.ones(3), KEY)).all()


def test_too_few_probes_and_unknown_estimators_are_refused(rng):
    x, _, batch = problems.draw_waves(rng)

    def refuses(match, **options):
        with pytest.raises(ValueError, match=match):
            hessian_diagonal(waves, x, KEY, batch, **options)

    refuses("an even int of at least 4 for 'xdiag'; got 2", probes=2, estimator="xdiag")
    refuses("an even int of at least 4.*got 7", probes=7, estimator="xdiag")
    refuses("an int of at least 1 for 'hutchinson'; got 0", probes=0)
    refuses("got 2.5", probes=2.5)
    refuses("estimator must be one of 'hutchinson', 'xdiag'", estimator="hutch++")
