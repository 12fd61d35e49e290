"""Searches along a direction, the table of updates and the check of the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_clip
from optax_clip import diagnostics
from optax_clip.diagnostics import best_step, critical_sharpness

from . import problems
from .problems import quadratic, waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("first", [None, 1e-4, 1e4])
def test_the_best_step_of_a_parabola_is_found_from_any_start(rng, first):
    x, a = jnp.asarray(rng.uniform(1, 2, (2, 6)), jnp.float32)
    u = -a * x
    d = diagnostics.directional_derivatives(quadratic, x, u, a)
    found = best_step(quadratic, x, u, a, first=first)
    np.testing.assert_allclose(found.step, d.best_step, rtol=2e-2)
    np.testing.assert_allclose(found.decrease, d.predicted_decrease, rtol=1e-3)
    np.testing.assert_allclose(found.loss, d.loss - found.decrease, atol=1e-6)
    assert found.evaluations < 40


def test_without_descent_the_best_step_is_none():
    found = best_step(lambda x: jnp.sum(x**2), jnp.ones(3), jnp.ones(3))
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
    for search in (best_step, critical_sharpness):
        found = jax.jit(functools.partial(search, waves, microbatches=2))(
            x, {"u": u, "x": x}, {**batch, "mask": jnp.ones(8)}
        )
        for name, direction in {"u": u, "x": x}.items():
            wanted = search(waves, x, direction, {**batch, "mask": jnp.ones(8)})
            np.testing.assert_allclose(found[name][0], wanted[0], rtol=2e-2)


def test_losses_on_a_plane_are_those_of_its_points(rng):
    x, u, batch = problems.draw_waves(rng)
    w = jax.tree.map(jnp.sign, u)
    s, t = jnp.array([0.0, 0.5]), jnp.array([-1.0, 0.0, 2.0])
    plane = functools.partial(diagnostics.loss_on_plane, waves, microbatches=2)
    ones = {**batch, "mask": jnp.ones(8)}
    got = jax.jit(plane)(x, u, w, s, t, ones)
    norms = [np.linalg.norm(problems.flat(d)) for d in (u, w)]
    for i, j in np.ndindex(2, 3):
        moved = jax.tree.map(
            lambda x, u, w, i=i, j=j: x + s[i] * u / norms[0] + t[j] * w / norms[1],
            x, u, w,
        )  # fmt: skip
        np.testing.assert_allclose(got[i, j], waves(moved, ones), rtol=1e-5)


### the table


def test_the_table_agrees_with_its_parts(rng, x64):
    x, u, batch = problems.draw_waves(rng, jnp.float64)
    gradient = jax.grad(waves)(x, batch)
    updates = {"sgd": jax.tree.map(jnp.negative, gradient), "u": u}
    preconditioner = jax.tree.map(lambda x: jnp.full_like(x, 4.0), x)
    measure = functools.partial(diagnostics.sharpness_table, waves, baseline="sgd")
    table = jax.jit(measure)(x, updates, batch, preconditioners={"u": preconditioner})
    for name, update in updates.items():
        d = diagnostics.directional_derivatives(waves, x, update, batch)
        row, norm = table[name], np.linalg.norm(problems.flat(gradient))
        np.testing.assert_allclose(row.sharpness, d.curvature, rtol=1e-9)
        np.testing.assert_allclose(row.cosine, -d.slope / norm, rtol=1e-9)
        np.testing.assert_allclose(row.best_step, d.best_step, rtol=1e-9)
        assert row.realised_decrease >= 0
    np.testing.assert_allclose(table["sgd"].cosine, 1)
    baseline = abs(table["sgd"].sharpness)
    np.testing.assert_allclose(table["u"].ratio, table["u"].sharpness / baseline)
    np.testing.assert_allclose(
        table["u"].effective_sharpness, table["u"].sharpness / 4, rtol=1e-9
    )
    assert jnp.isnan(table["sgd"].effective_sharpness)


def test_on_a_parabola_the_realised_decrease_is_the_predicted_one(rng):
    x, a = jnp.asarray(rng.uniform(1, 2, (2, 6)), jnp.float32)
    updates = {"sgd": -1e-6 * a * x, "sign": -3.0 * jnp.sign(x)}
    table = diagnostics.sharpness_table(quadratic, x, updates, a, baseline="sgd")
    for row in table.values():
        np.testing.assert_allclose(row.rho, 1, rtol=1e-3)


def test_a_mean_of_tables_has_the_mean_of_ratios():
    # The Hessian is diag(a); the batches have a = (1, 1) and (1, 9).
    x = jnp.ones(2)
    updates = {"one": jnp.array([1.0, 0.0]), "two": jnp.array([0.0, 1.0])}
    mean = diagnostics.mean_over_batches(
        lambda a: diagnostics.sharpness_table(quadratic, x, updates, a, baseline="one"),
        [jnp.array([1.0, 1.0]), jnp.array([1.0, 9.0])],
    )
    np.testing.assert_allclose(mean["two"].ratio, 5, rtol=1e-6)


def test_pseudo_updates_go_straight_into_the_table(rng):
    x, _, batch = problems.draw_waves(rng)
    tx = optax_clip.pseudo_updates(
        {
            "sgd": optax_clip.clipped_sgd(1.0, 0.0),
            "clipped": optax_clip.clipped_sgd(1.0),
        }
    )
    _, state = tx.update(jax.grad(waves)(x, batch), tx.init(x), x)
    table = diagnostics.sharpness_table(waves, x, state.updates, batch, baseline="sgd")
    np.testing.assert_allclose(abs(table["sgd"].ratio), 1, rtol=1e-6)
    assert table["clipped"].cosine < 1


@pytest.mark.parametrize(
    "search", [diagnostics.best_step, diagnostics.critical_sharpness]
)
def test_a_search_without_evaluations_is_refused(search):
    with pytest.raises(ValueError, match="max_evaluations must be an int of at least"):
        search(jnp.sum, jnp.ones(2), jnp.ones(2), max_evaluations=0)


def test_bad_tables_are_named(rng):
    x, u, batch = problems.draw_waves(rng)

    def refuses(match, **options):
        with pytest.raises(ValueError, match=match):
            diagnostics.sharpness_table(waves, x, {"u": u}, batch, **options)

    refuses("baseline must be one of 'u'; got 'sgd'", baseline="sgd")
    refuses("one of 'u'; got 'v'", baseline="u", preconditioners={"v": u})
    refuses("preconditioner 'u' must have", baseline="u", preconditioners={"u": u["b"]})


### determinism


def test_a_deterministic_loss_passes_even_where_it_is_not_a_number(rng):
    x, _, batch = problems.draw_waves(rng)
    diagnostics.check_deterministic(waves, x, batch)
    diagnostics.check_deterministic(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(3))


def test_dropout_left_on_is_found_in_loss_or_gradient(rng):
    def noisy(x):
        return jnp.sum(x["w"] * rng.binomial(1, 0.5, 64)) + jnp.sum(x["b"])

    def noisy_gradient(x):
        noise = rng.normal()
        return jnp.sum(noise * (x["w"] - jax.lax.stop_gradient(x["w"]))) + 1.0

    x = {"w": jnp.ones(64), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"two evaluations the loss differs.*dropout"):
        diagnostics.check_deterministic(noisy, x)
    with pytest.raises(ValueError, match="its gradient at w differs"):
        diagnostics.check_deterministic(noisy_gradient, x)
    diagnostics.check_deterministic(noisy_gradient, x, tolerance=1e6)
    steps = {**x, "steps": jnp.arange(2)}
    diagnostics.check_deterministic(noisy_gradient, steps, where=lambda p: p == "b")
    with pytest.raises(ValueError, match="its gradient at w differs"):
        diagnostics.check_deterministic(noisy_gradient, steps, where=lambda p: p == "w")
