"""Diagonals of Hessians against dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics

from . import problems
from .problems import tokens, waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("microbatches", [None, 4])
def test_chosen_diagonal_entries_are_the_dense_ones(rng, x64, microbatches):
    x, _, batch = problems.draw_waves(rng, jnp.float64)
    some = diagnostics.sample_coordinates(x, 12, key=jax.random.key(0))
    measure = functools.partial(
        diagnostics.hessian_diagonal_at, waves, microbatches=microbatches, weight=tokens
    )
    got = jax.jit(measure)(x, batch, coordinates=some)
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
            x, batch, key=jax.random.key(1)
        )
        errors = np.abs(problems.flat(got) - np.diag(h))
        assert (errors <= 5 * deviation / np.sqrt(probes) + 1e-12).all()


def test_bad_input_is_named():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="must be real"):
        diagnostics.hessian_diagonal(jnp.sum, jnp.arange(3), key=key)
    with pytest.raises(ValueError, match="probes must be an int of at least 1"):
        diagnostics.hessian_diagonal(jnp.sum, jnp.ones(3), key=key, probes=0)
    with pytest.raises(TypeError, match="probes must be an int of at least 1"):
        diagnostics.hessian_diagonal(jnp.sum, jnp.ones(3), key=key, probes=2.5)
    with pytest.raises(TypeError, match="must be a random key"):
        diagnostics.hessian_diagonal(jnp.sum, jnp.ones(3), key=0)
