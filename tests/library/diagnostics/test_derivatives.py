"""Directional derivatives against dense Hessians, laws, devices and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_clip
from optax_clip import diagnostics
from optax_clip.diagnostics import directional_derivatives, directional_sharpness

from . import problems
from .problems import quadratic, transformer_loss, waves

pytestmark = pytest.mark.usefixtures("strict")

MODES = [
    "forward_over_reverse",
    "forward_over_forward",
    "reverse_over_reverse",
    "finite_difference",
]
EXACT = MODES[:3]


@pytest.fixture
def small(rng, x64):
    """A light problem in float64."""
    return problems.draw_waves(rng, jnp.float64)


def derivatives(params, direction, batch, loss=waves, **options):
    """Compiled, as a user would."""
    measure = functools.partial(directional_derivatives, loss, **options)
    return jax.jit(measure)(params, direction, batch)


### values


@pytest.mark.parametrize("mode", MODES)
def test_all_derivatives_equal_those_of_the_dense_hessian(rng, x64, mode):
    params = problems.transformer_params(rng, jnp.float64)
    u, batch = problems.like(rng, params), problems.text(rng, dtype=jnp.float64)
    loss, g, h = problems.dense(transformer_loss, params, batch)
    v = problems.flat(u) / np.linalg.norm(problems.flat(u))
    d = derivatives(params, u, batch, transformer_loss, mode=mode)
    rtol = 1e-8 if mode == "finite_difference" else 1e-12
    np.testing.assert_allclose(d.loss, loss, rtol=rtol)
    np.testing.assert_allclose(d.slope, g @ v, rtol=rtol)
    np.testing.assert_allclose(d.sharpness, v @ h @ v, rtol=rtol)
    np.testing.assert_allclose(d.direction_norm, np.linalg.norm(problems.flat(u)))


@pytest.mark.parametrize("mode", MODES)
def test_modes_agree_in_float32(rng, mode):
    params, u, batch = problems.draw_waves(rng)
    wanted = derivatives(params, u, batch)
    got = derivatives(params, u, batch, mode=mode)
    eps = float(jnp.finfo(jnp.float32).eps)
    rtol = 20 * eps ** (2 / 3) if mode == "finite_difference" else 100 * eps
    np.testing.assert_allclose(got, wanted, rtol=rtol)


@pytest.mark.parametrize("mode", EXACT)
def test_float64_finds_a_curvature_of_1e_7_of_the_largest(rng, mode):
    with jax.enable_x64(True):
        x, _, batch = problems.draw_waves(rng, jnp.float64)
        _, unravel = ravel_pytree(x)
        _, _, h = problems.dense(waves, x, batch)
        values, vectors = np.linalg.eigh(h)
        # Ends of the spectrum that cancel but for 1e-7 of the larger one.
        low, high = np.abs(values[[0, -1]])
        v = np.sqrt(high) * vectors[:, 0] + np.sqrt(low * (1 + 1e-7)) * vectors[:, -1]
        s = derivatives(x, unravel(jnp.asarray(v)), batch, mode=mode).sharpness
        wanted = 1e-7 * low * high / (v @ v)
        np.testing.assert_allclose(s, wanted, rtol=1e-6)
        assert wanted < 1e-7 * max(low, high)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_quadratics_are_right_to_their_rounding(rng, dtype, mode):
    x = {"a": jnp.asarray(rng.normal(size=(3, 4)), dtype), "b": jnp.ones(5, dtype)}
    a = jax.tree.map(lambda x: jnp.asarray(rng.uniform(1, 2, x.shape), dtype), x)
    u = problems.like(rng, x)
    v = problems.flat(u) / np.linalg.norm(problems.flat(u))
    # Differences are taken of parameters in float32, which mix with half of a.
    with jax.numpy_dtype_promotion("standard"):
        s = directional_sharpness(quadratic, x, u, a, mode=mode)
    assert s.dtype == jnp.float32
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(s, v @ (problems.flat(a) * v), rtol=20 * eps)


@pytest.mark.parametrize("mode", MODES)
def test_sharpness_is_negative_where_the_loss_bends_down(mode):
    s = directional_sharpness(
        lambda x: jnp.sum(jnp.cos(x)), jnp.zeros(4), jnp.ones(4), mode=mode
    )
    np.testing.assert_allclose(s, -1, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, -7.0, 1e25])
def test_scaling_a_direction_changes_nothing(rng, scale):
    params, u, batch = problems.draw_waves(rng)
    wanted = derivatives(params, u, batch)
    scaled = jax.tree.map(lambda x: jnp.float32(scale) * x, u)
    got = derivatives(params, scaled, batch)
    np.testing.assert_allclose(got.sharpness, wanted.sharpness, rtol=1e-5)
    np.testing.assert_allclose(got.slope, np.sign(scale) * wanted.slope, rtol=1e-5)
    norm = np.float32(abs(scale)) * wanted.direction_norm
    np.testing.assert_allclose(got.direction_norm, norm, rtol=1e-5)


def test_newtons_step_and_the_predictions_are_exact_on_a_parabola(rng):
    x, a, u = (jnp.asarray(rng.uniform(1, 2, 6), jnp.float32) for _ in range(3))
    d = directional_derivatives(quadratic, x, -u, a)
    at = diagnostics.loss_along(quadratic, x, -u, a, steps=jnp.stack([d.newton_step]))[
        0
    ]
    np.testing.assert_allclose(d.loss - at, d.predicted_decrease, rtol=1e-5)
    change = quadratic(x - u, a) - quadratic(x, a)
    np.testing.assert_allclose(d.predicted_change, change, rtol=1e-5)


def test_without_convexity_there_is_no_newton_step():
    def with_sharpness(sharpness):
        numbers = [jnp.float32(x) for x in (1.0, -1.0, sharpness, 1.0)]
        return diagnostics.DirectionalDerivatives(*numbers)

    for sharpness in (0.0, -1.0):
        with jax.debug_infs(True):  # an answer is no mistake
            assert with_sharpness(sharpness).newton_step == jnp.inf
            assert with_sharpness(sharpness).predicted_decrease == jnp.inf


@pytest.mark.usefixtures("makes_nan")
def test_a_sharpness_of_nan_has_a_newton_step_of_nan():
    numbers = [jnp.float32(x) for x in (1.0, -1.0, jnp.nan, 1.0)]
    assert jnp.isnan(diagnostics.DirectionalDerivatives(*numbers).newton_step)


@pytest.mark.parametrize("mode", MODES)
def test_a_shift_moves_the_point_along_the_unit_direction(rng, mode):
    x, u = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    v = u / jnp.linalg.norm(u)
    got = directional_derivatives(
        lambda x: jnp.sum(jnp.sin(x)), x, u, mode=mode, shift=0.25
    )
    wanted = directional_derivatives(
        lambda x: jnp.sum(jnp.sin(x)), x + 0.25 * v, u, mode=mode
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_subset_is_a_direction_that_is_zero_elsewhere(small, mode):
    params, u, batch = small
    masked = jax.tree.map(jnp.zeros_like, u) | {"w": u["w"]}
    wanted = derivatives(params, masked, batch, mode=mode)
    got = derivatives(
        params,
        u,
        batch,
        mode=mode,
        where=lambda path: path == "w",
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-7)


def test_a_subset_can_leave_integer_leaves_out():
    params = {"x": jnp.ones(3), "steps": jnp.array(3)}
    s = directional_sharpness(
        lambda p: jnp.sum(p["x"] ** 2),
        params,
        params,
        where=lambda path: path != "steps",
    )
    np.testing.assert_allclose(s, 2, rtol=1e-6)


### the table


def rows(rng, dtype=jnp.float64):
    x, u, batch = problems.draw_waves(rng, dtype)
    gradient = jax.grad(waves)(x, batch)
    return x, {"sgd": jax.tree.map(jnp.negative, gradient), "u": u}, batch


def test_the_table_agrees_with_its_parts(rng, x64):
    x, updates, batch = rows(rng)
    measure = functools.partial(diagnostics.sharpness_table, waves, baseline="sgd")
    table = jax.jit(measure)(x, updates, batch)
    base = problems.flat(updates["sgd"])
    for name, update in updates.items():
        d = directional_derivatives(waves, x, update, batch)
        row, u = table[name], problems.flat(update)
        for field in ("loss", "slope", "sharpness", "direction_norm", "newton_step"):
            np.testing.assert_allclose(
                getattr(row, field), getattr(d, field), rtol=1e-9
            )
        np.testing.assert_allclose(row.predicted_change, d.predicted_change, rtol=1e-9)
        angle = u @ base / np.linalg.norm(u) / np.linalg.norm(base)
        np.testing.assert_allclose(row.cosine, angle, rtol=1e-9)
        moved = jax.tree.map(jnp.add, x, update)
        change = waves(moved, batch) - waves(x, batch)
        np.testing.assert_allclose(row.change, change, rtol=1e-9)
        np.testing.assert_allclose(row.rho, change / d.predicted_change, rtol=1e-9)
    ratio = table["u"].sharpness / abs(table["sgd"].sharpness)
    np.testing.assert_allclose(table["u"].ratio, ratio)


def test_on_a_parabola_the_change_is_the_predicted_one(rng):
    x, a = jnp.asarray(rng.uniform(1, 2, (2, 6)), jnp.float32)
    updates = {"sgd": -0.01 * a * x, "sign": -3.0 * jnp.sign(x)}
    table = diagnostics.sharpness_table(quadratic, x, updates, a, baseline="sgd")
    for row in table.values():
        np.testing.assert_allclose(row.rho, 1, rtol=1e-3)


def test_the_mean_of_tables_is_right_in_every_column(rng, x64):
    x, updates, batch = rows(rng)
    parts = [jax.tree.map(lambda a, i=i: a[i::2], batch) for i in range(2)]
    weights = [float(problems.tokens(part)) for part in parts]

    def table(batch):
        return diagnostics.sharpness_table(waves, x, updates, batch, baseline="sgd")

    mean = diagnostics.mean_over_batches(table, parts, weight=problems.tokens).mean
    whole, halves = table(batch), [table(part) for part in parts]
    for name, row in mean.items():
        for field in (
            "loss",
            "slope",
            "sharpness",
            "change",
            "cosine",
            "direction_norm",
            "newton_step",
            "predicted_decrease",
            "predicted_change",
            "rho",
        ):
            wanted = getattr(whole[name], field)
            np.testing.assert_allclose(getattr(row, field), wanted, rtol=1e-9)
        # The papers average ratios.
        ratio = np.average([half[name].ratio for half in halves], weights=weights)
        np.testing.assert_allclose(row.ratio, ratio, rtol=1e-9)


def test_the_mean_of_a_convex_and_a_concave_batch_has_a_newton_step():
    def loss(x, a):
        return a * x**2

    def table(a):
        updates = {"sgd": jnp.array(-1.0)}
        return diagnostics.sharpness_table(
            loss, jnp.array(1.0), updates, a, baseline="sgd"
        )

    batches = [jnp.array(3.0), jnp.array(-1.0)]
    row = diagnostics.mean_over_batches(table, batches).mean["sgd"]
    assert (row.newton_step, row.predicted_decrease, row.rho) == (1, 1, 1)


def test_pseudo_updates_go_straight_into_the_table(rng):
    x, _, batch = rows(rng, jnp.float32)
    tx = optax_clip.pseudo_updates(
        {
            "sgd": optax.sgd(1.0),
            "clipped": optax.chain(
                optax_clip.clip_top_k_coordinates(0.2), optax.sgd(1.0)
            ),
        }
    )
    _, state = tx.update(jax.grad(waves)(x, batch), tx.init(x), x)
    table = diagnostics.sharpness_table(waves, x, state.updates, batch, baseline="sgd")
    g, clipped = (problems.flat(state.updates[name]) for name in ("sgd", "clipped"))
    angle = g @ clipped / np.linalg.norm(g) / np.linalg.norm(clipped)
    assert angle < 0.999
    np.testing.assert_allclose(table["clipped"].cosine, angle, rtol=1e-5)
    np.testing.assert_allclose(abs(table["sgd"].ratio), 1, rtol=1e-6)


def test_bad_tables_are_named(rng):
    x, updates, batch = rows(rng, jnp.float32)

    def refuses_table(match, updates, baseline="u", error=ValueError):
        with pytest.raises(error, match=match):
            diagnostics.sharpness_table(waves, x, updates, batch, baseline=baseline)

    refuses_table("baseline must be one of 'sgd', 'u'; got 'adam'", updates, "adam")
    refuses_table("got one like params", x, "w")
    refuses_table("updates must be a mapping", [x], error=TypeError)


### many directions, parts of a batch, transformations of jax


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("mode", EXACT)
def test_many_directions_equal_one_after_the_other(small, mode, shift):
    params, u, batch = small
    directions = {"u": u, "sign": jax.tree.map(jnp.sign, u), "x": params}
    got = derivatives(params, directions, batch, mode=mode, shift=shift)
    assert got.keys() == directions.keys()
    for name, direction in directions.items():
        wanted = derivatives(params, direction, batch, mode=mode, shift=shift)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-10)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("microbatches", [1, 2, 8])
def test_a_streamed_batch_equals_the_whole_batch(small, mode, microbatches):
    params, u, batch = small
    wanted = derivatives(params, u, batch, mode=mode)
    got = derivatives(
        params,
        u,
        batch,
        mode=mode,
        microbatches=microbatches,
        weight=problems.tokens,
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_many_streamed_directions_equal_the_whole_batch(small):
    params, u, batch = small
    directions = {"u": u, "x": params}
    got = derivatives(params, directions, batch, microbatches=4, weight=problems.tokens)
    wanted = derivatives(params, directions, batch)
    for name in directions:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-10)


@pytest.mark.usefixtures("makes_nan")
def test_parts_without_tokens_do_not_poison_the_mean(small):
    params, u, batch = small
    # Of two parts the second takes the odd rows, which have no weight.
    odd = jnp.arange(16.0) % 2
    twice = {"rows": jnp.repeat(batch["rows"], 2, axis=0) / (1 - odd)[:, None]}
    twice["mask"] = jnp.repeat(batch["mask"], 2) * (1 - odd)
    got = derivatives(params, u, twice, microbatches=2, weight=problems.tokens)
    wanted = derivatives(params, u, batch)
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_arguments_without_axes_reach_every_part_whole():
    def loss(x, scale, rows):
        return scale * jnp.mean(rows) * jnp.sum(x**2) / 2

    rows = jnp.arange(6.0)
    got = directional_sharpness(
        loss, jnp.ones(2), jnp.ones(2), jnp.float32(3), rows, microbatches=3
    )
    np.testing.assert_allclose(got, 7.5, rtol=1e-6)


def test_jit_vmap_and_scan_give_what_eager_gives(rng):
    x, u, batch = problems.draw_waves(rng)

    def sharpness(u):
        return directional_sharpness(waves, x, u, batch)

    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), u, x)
    wanted = [sharpness(u), sharpness(x)]
    np.testing.assert_allclose(jax.jit(sharpness)(u), wanted[0], rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(sharpness)(stacked), wanted, rtol=1e-5)
    scanned = jax.lax.scan(lambda c, u: (c, sharpness(u)), 0, stacked)[1]
    np.testing.assert_allclose(scanned, wanted, rtol=1e-5)


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("microbatches", [None, 2])
def test_sharded_equals_unsharded(rng, axis, microbatches):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis, axis))
    x, u, batch = problems.draw_waves(rng)

    def place(array, *spec):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    def place_params(tree):
        return {"w": place(tree["w"], None, "model"), "b": place(tree["b"], "model")}

    def measure(x, directions, batch):
        return directional_derivatives(
            waves, x, directions, batch, microbatches=microbatches
        )

    wanted = measure(x, {"u": u, "x": x}, batch)
    with jax.set_mesh(mesh):
        placed = place_params(x)
        directions = {"u": place_params(u), "x": placed}
        got = jax.jit(measure)(
            placed, directions, jax.tree.map(lambda a: place(a, "data"), batch)
        )
    for name in directions:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5)


def test_a_second_call_compiles_nothing(rng):
    x, u, batch = problems.draw_waves(rng)
    traces = []

    @jax.jit
    def measure(x, u, batch):
        traces.append(u)
        return directional_sharpness(waves, x, {"u": u, "x": x}, batch)

    for _ in range(2):
        measure(x, u, batch)
    assert len(traces) == 1


### custom_vjp


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (cube(x), x), lambda x, g: (3 * x**2 * g,))


@pytest.mark.parametrize("mode", MODES)
def test_custom_vjp_works_or_names_the_modes_that_do(mode):
    def loss(x):
        return jnp.sum(jax.jit(cube)(x))

    x, u = jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])
    if mode in ("reverse_over_reverse", "finite_difference"):
        s = directional_sharpness(loss, x, u, mode=mode)
        np.testing.assert_allclose(s, 12, rtol=1e-3)
    else:
        with pytest.raises(TypeError, match=r"cube.*reverse_over_reverse") as raised:
            directional_sharpness(loss, x, u, mode=mode)
        assert "finite_difference" in str(raised.value)


def test_other_type_errors_of_the_loss_pass_through():
    with pytest.raises(TypeError, match="unsupported operand"):
        directional_sharpness(lambda x: x + "a", jnp.ones(2), jnp.ones(2))


### bad input


def sum_of_squares(x):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))


def refuses(match, params, direction, loss=sum_of_squares, error=ValueError, **options):
    args = options.pop("args", ())
    with pytest.raises(error, match=match) as raised:
        directional_sharpness(loss, params, direction, *args, **options)
    assert "\n" not in str(raised.value)


ONE = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"b": jnp.ones(4)}, r"direction\['b'\].*expected \(3,\), got \(4,\)"),
        ({"b": jnp.array([0, np.nan, 0])}, r"direction\['b'\] .*not finite"),
        ({"b": jnp.full(3, -np.inf)}, r"direction\['b'\] .*not finite"),
        ({"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}, "zero in every coordinate"),
        ({"c": jnp.ones(3)}, r"structure of params: unexpected \['c'\]"),
    ],
)
@pytest.mark.usefixtures("makes_nan")
def test_a_wrong_direction_is_named(change, match):
    refuses(match, ONE, ONE | change)
    refuses("direction 'mine'", ONE, {"fine": ONE, "mine": ONE | change})


def test_a_direction_of_another_dtype_is_named():
    whole, half = (ONE | {"b": jnp.ones(3, dtype)} for dtype in ("int32", "bfloat16"))
    refuses(r"direction\['b'\].*float.*, got int32", ONE, whole, error=TypeError)
    refuses(r"direction\['b'\].*bfloat16.*cast_like", ONE, half, error=TypeError)


def test_a_missing_leaf_and_another_container_are_named():
    refuses(r"missing \['b'\]", ONE, {"w": ONE["w"]})
    refuses("expected PyTreeDef", (jnp.ones(2),), [jnp.ones(2)])


@pytest.mark.usefixtures("makes_nan")
def test_traced_zero_directions_give_nan():
    s = jax.jit(lambda u: directional_sharpness(sum_of_squares, ONE, u))
    assert jnp.isnan(s(jax.tree.map(jnp.zeros_like, ONE)))


def test_parameters_that_have_no_hessian_are_refused():
    whole = {"n": jnp.arange(2, dtype=jnp.int32)}
    refuses(r"params\['n'\].*int32.*where", whole, whole, error=TypeError)
    refuses("no leaves", {}, {})
    refuses("selects no leaf", ONE, ONE, where=lambda path: "x" in path)


def test_a_loss_that_is_not_one_finite_scalar_is_refused():
    refuses(r"scalar.*shape \(3,\)", ONE, ONE, loss=lambda x: x["b"])
    refuses("got a tuple", ONE, ONE, loss=lambda x: (1.0, x), error=TypeError)
    refuses("int32", ONE, ONE, loss=lambda _: jnp.int32(1), error=TypeError)
    refuses("must be a function", ONE, ONE, loss=3.0, error=TypeError)


@pytest.mark.usefixtures("makes_nan")
def test_a_loss_of_nan_is_refused():
    refuses("finite; got", ONE, ONE, loss=lambda x: jnp.nan * jnp.sum(x["b"]))


def test_wrong_options_are_refused():
    refuses("mode.*'forward_over_reverse'.*got 'jvp'", ONE, ONE, mode="jvp")
    rows = {"args": (jnp.ones(4),), "loss": lambda x, _: sum_of_squares(x)}
    refuses(
        "microbatches must be an int of .* 1; got 0", ONE, ONE, microbatches=0, **rows
    )
    refuses("got 2.0", ONE, ONE, microbatches=2.0, error=TypeError, **rows)
    refuses("weight must be a func", ONE, ONE, weight=1.0, error=TypeError, **rows)
    refuses("where must be a func", ONE, ONE, where="b", error=TypeError)
    refuses("unexpected keyword argument 'modes'", ONE, ONE, modes="", error=TypeError)
    refuses("an array in .*args", ONE, ONE, microbatches=2)
    refuses(
        r"args\[0\]\['x'\] has 5 rows, which 2 microbatches do not divide", ONE, ONE,
        args=({"x": jnp.ones(5)},), microbatches=2, loss=lambda x, _: sum_of_squares(x),
    )  # fmt: skip


### the largest stable rate


def steps_of_sgd(x, curvatures):
    """What is known of SGD's step on one batch after the other."""
    return [
        directional_derivatives(quadratic, x, -curvature * x, curvature)
        for curvature in curvatures
    ]


def test_at_the_largest_stable_rate_the_mean_change_is_zero(rng):
    x, *curvatures = jnp.asarray(rng.uniform(1, 2, (4, 6)), jnp.float32)
    found = steps_of_sgd(x, curvatures)
    rate = diagnostics.largest_stable_rate(found)

    def change(curvature):
        after = quadratic(x - rate * curvature * x, curvature)
        return after - quadratic(x, curvature)

    assert abs(sum(map(change, curvatures))) < 1e-5 * quadratic(x, curvatures[0])
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *found)
    np.testing.assert_allclose(
        jax.jit(diagnostics.largest_stable_rate)(stacked), rate, rtol=1e-6
    )


def test_no_rate_is_stable_uphill_and_every_one_where_the_loss_bends_down():
    one = diagnostics.DirectionalDerivatives(1.0, -2.0, 4.0, 0.5)
    assert diagnostics.largest_stable_rate(one) == 2.0
    assert diagnostics.largest_stable_rate(one._replace(slope=2.0)) == 0
    assert diagnostics.largest_stable_rate(one._replace(sharpness=-4.0)) == np.inf
    hill = one._replace(slope=2.0, sharpness=-4.0)
    assert diagnostics.largest_stable_rate(hill) == 0
    assert np.isnan(diagnostics.largest_stable_rate(one._replace(slope=np.nan)))


def test_a_largest_stable_rate_needs_a_batch():
    with pytest.raises(ValueError, match="expected at least one batch"):
        diagnostics.largest_stable_rate([])


@pytest.mark.parametrize("wrap", [lambda d: {"sgd": d}, lambda d: [{"sgd": d}]])
def test_a_largest_stable_rate_is_of_one_direction(wrap):
    one = diagnostics.DirectionalDerivatives(1.0, -2.0, 4.0, 0.5)
    with pytest.raises(TypeError, match=r"one for each batch, got (dict|list) of"):
        diagnostics.largest_stable_rate(wrap(one))
