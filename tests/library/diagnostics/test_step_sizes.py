"""Searches along a direction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics
from optax_clip.diagnostics import critical_sharpness, minimize_along

from . import problems
from .problems import quadratic, waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("first", [None, 1e-4, 1e4])
def test_the_minimum_of_a_parabola_is_found_from_any_start(rng, first):
    x, a = jnp.asarray(rng.uniform(1, 2, (2, 6)), jnp.float32)
    u = -a * x
    d = diagnostics.directional_derivatives(quadratic, x, u, a)
    found = minimize_along(quadratic, x, u, a, first=first)
    np.testing.assert_allclose(found.step, d.newton_step, rtol=2e-2)
    np.testing.assert_allclose(found.decrease, d.predicted_decrease, rtol=1e-3)
    np.testing.assert_allclose(found.loss, d.loss - found.decrease, atol=1e-6)
    assert found.evaluations < 40


def test_without_descent_the_lowest_step_is_none():
    found = minimize_along(lambda x: jnp.sum(x**2), jnp.ones(3), jnp.ones(3))
    assert (found.step, found.decrease) == (0, 0)
    assert found.evaluations < 30


@pytest.mark.parametrize("first", [1.0, 1e-3, 1e3])
def test_critical_sharpness_of_a_gradient_step_is_the_directional_one(rng, first):
    x, a = jnp.asarray(rng.uniform(1, 2, (2, 6)), jnp.float32)
    u = -a * x
    find = functools.partial(critical_sharpness, quadratic, first=first)
    found = jax.jit(functools.partial(find, tolerance=1e-3))(x, u, a)
    wanted = diagnostics.directional_sharpness(quadratic, x, u, a)
    np.testing.assert_allclose(found.sharpness, wanted, rtol=2e-3)
    rate = jax.jit(functools.partial(find, tolerance=1e-3))(x, 0.1 * u, a)
    np.testing.assert_allclose(rate.sharpness, 0.1 * wanted, rtol=2e-3)
    assert critical_sharpness(quadratic, x, u, a).evaluations <= 8


def test_critical_sharpness_of_ascent_and_of_endless_descent():
    x = jnp.ones(3)
    up = critical_sharpness(lambda x: jnp.sum(x), x, x)
    assert (up.multiple, up.sharpness) == (0, jnp.inf)
    down = critical_sharpness(lambda x: jnp.sum(x), x, -x, max_evaluations=9)
    assert (down.multiple, down.sharpness) == (jnp.inf, 0)


def test_searches_take_many_directions_and_microbatches(rng):
    x, u, batch = problems.draw_waves(rng)
    for search in (minimize_along, critical_sharpness):
        found = jax.jit(functools.partial(search, waves, microbatches=2))(
            x, {"u": u, "x": x}, {**batch, "mask": jnp.ones(8)}
        )
        for name, direction in {"u": u, "x": x}.items():
            wanted = search(waves, x, direction, {**batch, "mask": jnp.ones(8)})
            np.testing.assert_allclose(found[name][0], wanted[0], rtol=2e-2)


@pytest.mark.parametrize(
    "search", [diagnostics.minimize_along, diagnostics.critical_sharpness]
)
def test_a_search_without_evaluations_is_refused(search):
    with pytest.raises(ValueError, match="max_evaluations must be an int of at least"):
        search(jnp.sum, jnp.ones(2), jnp.ones(2), max_evaluations=0)
