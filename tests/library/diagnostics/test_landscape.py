"""Losses along lines, and the grids that fit themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics
from optax_clip.diagnostics import line_scan, loss_along

from . import problems
from .problems import quadratic, tokens, transformer_loss, waves

pytestmark = pytest.mark.usefixtures("strict")


def bowl(x):
    return 0.5 * x**2


def scan_bowl(spacing, **options):
    """From x = 3 the loss is back at its start after 6 units."""
    return line_scan(bowl, jnp.array(3.0), jnp.array(-2.0), spacing=spacing, **options)


def test_losses_along_a_line_are_the_losses_at_its_points(rng):
    x, a, u = (jnp.asarray(rng.uniform(1, 2, (2, 3)), jnp.float32) for _ in range(3))
    steps = jnp.array([0.0, 0.5, -1.0])
    v = u / jnp.linalg.norm(u)
    wanted = [quadratic(x + s * v, a) for s in steps]
    np.testing.assert_allclose(
        loss_along(quadratic, x, u, a, steps=steps), wanted, rtol=1e-6
    )
    assert loss_along(quadratic, x, u, a, steps=steps)[0] == quadratic(x, a)


def test_second_differences_approach_the_sharpness(rng, x64):
    params = problems.transformer_params(rng, jnp.float64)
    batch = problems.text(rng, dtype=jnp.float64)
    u = problems.like(rng, params)
    measure = functools.partial(diagnostics.directional_derivatives, transformer_loss)
    d = jax.jit(measure)(params, u, batch)
    along = jax.jit(functools.partial(loss_along, transformer_loss))
    errors = []
    for h in (1e-2, 1e-3):
        down, here, up = along(params, u, batch, steps=jnp.array([-h, 0.0, h]))
        np.testing.assert_allclose(here, d.loss, rtol=1e-12)
        errors.append(abs((up - 2 * here + down) / h**2 - d.sharpness))
    assert errors[1] < errors[0] / 50  # second order: a hundred, less rounding
    assert errors[1] < 1e-4 * abs(d.sharpness)


def test_streams_and_many_directions_equal_whole_batches_and_single_ones(rng, x64):
    x, u, batch = problems.draw_waves(rng, jnp.float64)
    steps = jnp.array([0.0, 0.3])
    streamed = functools.partial(loss_along, waves, microbatches=4, weight=tokens)
    got = jax.jit(streamed)(x, {"u": u, "x": x}, batch, steps=steps)
    for name, direction in {"u": u, "x": x}.items():
        wanted = loss_along(waves, x, direction, batch, steps=steps)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-10)


def test_a_scan_stops_with_the_first_loss_above_the_start():
    scan = scan_bowl(1.0)
    np.testing.assert_array_equal(scan.steps[:8], np.arange(8))
    wanted = (3 - np.arange(8.0)) ** 2 / 2  # the seventh step is the first above
    np.testing.assert_array_equal(scan.losses[:8], wanted)
    assert scan.points == 8
    assert (scan.steps[8:] == 7).all()
    assert (scan.losses[8:] == wanted[7]).all()
    assert (scan.lowest_step, scan.decrease, scan.refinements) == (3, 4.5, 0)


@pytest.mark.parametrize(
    ("spacing", "refinements", "used"),
    [(2.5, 0, 2.5), (3.5, 1, 0.7), (10.0, 1, 2.0), (50.0, 2, 2.0)],
)
def test_three_points_or_fewer_make_the_grid_five_times_finer(
    spacing, refinements, used
):
    scan = scan_bowl(spacing)
    assert scan.refinements == refinements
    np.testing.assert_allclose(scan.steps[1], used, rtol=1e-6)


def test_a_geometric_grid_spans_decades():
    scan = scan_bowl(1e-3, grid="geometric")
    np.testing.assert_allclose(scan.steps[:4], [0, 1e-3, 2e-3, 4e-3], rtol=1e-6)
    assert (scan.losses[:14] <= scan.losses[0]).all()  # up to 4.096
    assert scan.losses[14] > scan.losses[0]  # 8.192
    assert scan.points == 15


def test_an_ascent_direction_ends_after_the_last_refinement():
    scan = line_scan(
        bowl, jnp.array(3.0), jnp.array(1.0), spacing=1.0, max_refinements=2
    )
    assert scan.refinements == 2
    assert (scan.lowest_step, scan.decrease) == (0, 0)


@pytest.mark.usefixtures("makes_nan")
def test_nan_counts_as_above_the_start():
    scan = line_scan(
        lambda x: -jnp.sqrt(x), jnp.array(0.0), jnp.array(-1.0), spacing=1.0
    )
    assert scan.lowest_step == 0
    scan = line_scan(lambda x: jnp.log(x), jnp.array(9.5), jnp.array(-1.0), spacing=1.0)
    assert scan.lowest_step == 9
    assert scan.points == 11
    assert np.isnan(scan.losses[10])


def test_scans_of_many_directions_compile_and_stream():
    def loss(x, rows):
        return jnp.mean(rows) * jnp.sum(x**2)

    x = jnp.array([3.0, 1.0])
    directions = {"a": jnp.array([-1.0, 0.0]), "b": jnp.array([0.0, -1.0])}
    scan = jax.jit(functools.partial(line_scan, loss, microbatches=2, points=9))
    scans = scan(x, directions, jnp.array([1.0, 3.0]), spacing=0.5)
    assert (scans["a"].lowest_step, scans["a"].decrease) == (3, 18)
    assert (scans["b"].lowest_step, scans["b"].decrease) == (1, 2)


def test_bad_input_is_named():
    x = jnp.ones(2)

    def refuses(match, f, *args, **options):
        with pytest.raises(ValueError, match=match):
            f(lambda x: jnp.sum(x), *args, **options)

    refuses("steps must have one axis", loss_along, x, x, steps=1.0)
    refuses("direction.*shape", along_ones, x, jnp.ones(3))
    refuses("zero in every", along_ones, x, 0 * x)
    refuses("spacing must be positive.*got 0", line_scan, x, x, spacing=0.0)
    refuses("spacing must have the names", line_scan, x, x, spacing={"u": 1.0})
    refuses("grid must be one of 'arithmetic'", scan_ones, x, x, grid="log")
    refuses("points must be an int of at least 4", scan_ones, x, x, points=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'mode'"):
        scan_ones(bowl, x, x, mode="forward_over_reverse")


along_ones = functools.partial(loss_along, steps=jnp.ones(1))
scan_ones = functools.partial(line_scan, spacing=1.0)


@pytest.mark.usefixtures("makes_nan")
def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite; got"):
        line_scan(lambda x: jnp.sum(x) / 0, jnp.ones(2), jnp.ones(2), spacing=1.0)
