"""Every diagnostic on a transformer's Hessian, on devices, in bfloat16, by custom_vjp.

The other modules test each diagnostic in depth; here all of them go through the same.
"""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_clip import diagnostics

from ... import helpers
from . import problems
from .everything import (
    ALL,
    KEY,
    WITH_HESSIAN,
    WITH_LOSS,
    close,
    correlation,
    diagonal,
    masked,
    table,
)
from .problems import dense, flat, transformer_loss, waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("name", ALL)
def test_explicitly_sharded_equals_unsharded(rng, name):
    explicit = (AxisType.Explicit, AxisType.Explicit)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=explicit)
    x, u, batch = problems.draw_waves(rng)

    def place(array, *spec):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    def place_params(tree):
        return {"w": place(tree["w"], None, "model"), "b": place(tree["b"], "model")}

    measure = jax.jit(functools.partial(ALL[name], waves))
    wanted = measure(x, u, batch)
    with jax.set_mesh(mesh):
        rows = jax.tree.map(lambda a: place(a, "data"), batch)
        got = measure(place_params(x), place_params(u), rows)
    close(got, wanted, 1e-4)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_parameters_cost_no_more_than_their_rounding(rng, name):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), problems.draw_waves(rng))
    measure = jax.jit(functools.partial(ALL[name], waves))
    got = measure(*half)
    wanted = measure(*jax.tree.map(lambda a: a.astype(jnp.float32), half))
    close(got, wanted, 0.05)


### flags of jax


@pytest.fixture
def flags():
    """NaN and infinity stop a program, and numbers of two types do not mix."""
    with (
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_flags_that_forbid_nan_and_mixed_types_stop_nothing(rng, flags, name, jit):
    problem = problems.draw_waves(rng)
    measure = functools.partial(ALL[name], waves)
    close((jax.jit(measure) if jit else measure)(*problem), measure(*problem), 1e-4)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_half_precision_and_mixed_trees_need_no_implicit_promotion(rng, flags, name):
    x, u, batch = problems.draw_waves(rng)

    def mixed(tree):
        return {"w": tree["w"].astype(jnp.bfloat16), "b": tree["b"]}

    def loss(x, batch):
        return waves({"w": x["w"].astype(jnp.float32), "b": x["b"]}, batch)

    rounded = jax.tree.map(lambda a: a.astype(jnp.float32), (mixed(x), mixed(u)))
    got = WITH_LOSS[name](loss, mixed(x), mixed(u), batch)
    wanted = WITH_LOSS[name](waves, *rounded, batch)
    if name not in ("minimum", "critical"):  # steps in bfloat16
        close(got, wanted, 0.05)


def test_searches_that_find_nothing_make_no_infinity(flags):
    x, slope = jnp.ones(3), jnp.full(3, 2.0)
    up = diagnostics.critical_sharpness(lambda x: slope @ x, x, x)
    down = diagnostics.critical_sharpness(lambda x: slope @ x, x, -x)
    assert (up.multiple, up.sharpness) == (0, np.inf)
    assert (down.multiple, down.sharpness) == (np.inf, 0)
    none = diagnostics.minimize_along(lambda x: slope @ x, x, x)
    assert (none.step, none.decrease) == (0, 0)
    scan = diagnostics.line_scan(lambda x: slope @ x, x, x, spacing=1.0)
    assert (scan.lowest_step, scan.decrease) == (0, 0)
    row = diagnostics.sharpness_table(lambda x: -(x @ x), x, {"u": x}, baseline="u")[
        "u"
    ]
    assert row.newton_step == np.inf
    lonely = diagnostics.heterogeneity({"a": 0.0, "b": 0.0, "c": 1.0})
    assert lonely.max_over_median == np.inf


def test_answers_that_are_undefined_are_nan_whatever_the_flags(flags):
    x = jnp.array([1.0, 2.0, 3.0])
    # On this bowl all curvatures are equal.
    found = diagnostics.gradient_hessian_correlation(lambda x: x @ x / 2, x, key=KEY)
    assert np.isnan(found.pearson)
    assert np.isnan(found.spearman_interval).all()
    assert found.nonzero == 1
    none = diagnostics.mask_persistence(jnp.zeros(2, bool), jnp.ones(2, bool))
    assert np.isnan(none.fraction)
    everything = diagnostics.masked_sharpness(
        lambda x: x @ x / 2, x[:1], x[:1], mask=jnp.ones(1, bool)
    )
    assert everything.sharpness_fraction == 1
    assert np.isnan(everything.rest_sharpness)


def test_few_pairs_are_resampled_without_nan(flags):
    a = jnp.array([1.0, 2.0, 3.0])
    found = diagnostics.magnitude_correlation(a, a**2, key=KEY)
    low, high = found.pearson_interval
    assert 0.9 < low <= high < 1.0001


### trees and arguments as training code has them

KEPT = ("w", "b")


def only(path):
    return path in KEPT


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", WITH_LOSS)
def test_leaves_that_are_left_out_may_be_anything(rng, name, jit):
    x, u, batch = problems.draw_waves(rng)
    extra = {
        "rng": jax.random.key(1),
        "count": jnp.array(3, jnp.int32),
        "ids": np.arange(3),
    }
    no_gradient = {
        "rng": np.zeros((), jax.dtypes.float0),
        "count": np.zeros((), jax.dtypes.float0),
        "ids": np.zeros(3, jax.dtypes.float0),
    }
    if not jit:
        extra |= {"act": jnp.tanh, "name": "layer"}
        no_gradient |= {"act": jnp.tanh, "name": "layer"}

    def loss(x, batch):
        assert x["count"].dtype == jnp.int32
        assert jnp.issubdtype(x["rng"].dtype, jax.dtypes.prng_key)
        return waves({kept: x[kept] for kept in KEPT}, batch)

    def measure(x, batch):
        return WITH_LOSS[name](loss, x, u | no_gradient, batch, where=only)

    got = (jax.jit(measure) if jit else measure)(x | extra, batch)
    wanted = WITH_LOSS[name](waves, x, u, batch)
    close(got, wanted, 1e-4)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_a_key_that_is_not_left_out_is_named(rng, name):
    x, _, batch = problems.draw_waves(rng)
    tree = x | {"rng": jax.random.key(1)}
    with pytest.raises(TypeError, match=r"params\['rng'\] must be real.*key<fry>"):
        WITH_LOSS[name](waves, tree, tree, batch)


@dataclasses.dataclass(frozen=True)
class Config:
    power: int
    shift: float


@pytest.mark.parametrize("microbatches", [None, 2])
@pytest.mark.parametrize("name", WITH_LOSS)
def test_arguments_that_are_no_arrays_are_passed_on_whole(rng, name, microbatches):
    x, u, batch = problems.draw_waves(rng)
    batch["mask"] = jnp.ones(8)

    def loss(x, batch, mode, config, activation, training):
        assert mode == "eval"
        assert training is False
        assert isinstance(config.power, int)
        return activation(waves(x, batch)) ** config.power

    args = (batch, "eval", Config(1, 0.0), jnp.asarray, False)
    options = {} if microbatches is None else {"microbatches": microbatches}
    got = WITH_LOSS[name](loss, x, u, *args, **options)
    close(got, WITH_LOSS[name](waves, x, u, batch), 1e-2 if name == "minimum" else 1e-3)


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"magnitudes"}))
def test_variables_of_nnx_may_be_wrapped_in_any_way(rng, name):
    nnx = pytest.importorskip("flax.nnx")
    x, u, batch = problems.draw_waves(rng)
    params = nnx.State({name: nnx.Param(leaf) for name, leaf in x.items()})

    def loss(params, batch):
        assert isinstance(params["w"], nnx.Param)
        return waves({name: params[name][...] for name in KEPT}, batch)

    wanted = ALL[name](waves, x, u, batch)
    for wrap in (nnx.Param, nnx.optimizer.OptVariable, jnp.asarray):
        update = nnx.State({name: wrap(leaf) for name, leaf in u.items()})
        close(ALL[name](loss, params, update, batch), wanted, 1e-4)


### outside of jit


@pytest.mark.parametrize("name", ALL)
def test_the_second_call_compiles_nothing_and_the_loss_is_forgotten(rng, name):
    x, u, batch = problems.draw_waves(rng)

    def loss(x, batch):
        return waves(x, batch)

    ALL[name](loss, x, u, batch)
    again = problems.draw_waves(np.random.default_rng(1))
    with helpers.compilations() as compiled:
        ALL[name](loss, *again)
    assert compiled == []
    alive = weakref.ref(loss)
    del loss
    gc.collect()
    assert alive() is None


### custom_vjp in a network


@jax.custom_vjp
def swish(y):
    return y * jax.nn.sigmoid(y)


def swish_backward(y, cotangent):
    s = jax.nn.sigmoid(y)
    return (cotangent * (s + y * s * (1 - s)),)


swish.defvjp(lambda y: (swish(y), y), swish_backward)


def network(x, batch, activation=swish):
    hidden = activation(batch["rows"] @ x["w"] + x["b"][None])
    return jnp.mean(jnp.sum(activation(hidden), axis=1) ** 2)


@pytest.mark.parametrize("mode", ["reverse_over_reverse", "finite_difference"])
@pytest.mark.parametrize("name", WITH_HESSIAN)
def test_networks_with_a_custom_vjp_are_measured_without_jvp(rng, x64, name, mode):
    x, u, batch = problems.draw_waves(rng, jnp.float64)
    measure, plain = WITH_HESSIAN[name], functools.partial(network, activation=silu)
    got = jax.jit(functools.partial(measure, network, mode=mode))(x, u, batch)
    close(got, jax.jit(functools.partial(measure, plain))(x, u, batch), 1e-3)


def silu(y):
    return jax.nn.silu(y)


@pytest.mark.parametrize("name", WITH_HESSIAN)
def test_the_function_with_the_custom_vjp_is_named(rng, name):
    with pytest.raises(TypeError, match=r"swish.*'reverse_over_reverse'"):
        WITH_HESSIAN[name](network, *problems.draw_waves(rng))


### a transformer in float64, against its dense Hessian


@pytest.fixture
def transformer(rng, x64):
    x = problems.transformer_params(rng, jnp.float64)
    u, batch = problems.like(rng, x), problems.text(rng, dtype=jnp.float64)
    return x, u, batch, dense(transformer_loss, x, batch)


def test_diagonals_of_a_transformer_are_the_dense_ones(transformer):
    x, u, batch, (_, _, h) = transformer
    some = diagnostics.sample_coordinates(x, 8, key=KEY)
    starts = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(x)])
    rows = starts[np.asarray(some.leaf)] + np.asarray(some.index)
    measure = jax.jit(
        functools.partial(diagnostics.hessian_diagonal_at, transformer_loss)
    )
    np.testing.assert_allclose(
        measure(x, batch, coordinates=some), np.diag(h)[rows], atol=1e-12
    )
    estimate = jax.jit(functools.partial(diagonal, transformer_loss, probes=64))
    deviation = np.sqrt((h**2).sum(1) - np.diag(h) ** 2)
    errors = np.abs(flat(estimate(x, u, batch)) - np.diag(h))
    assert (errors <= 5 * deviation / 8 + 1e-12).all()


def test_correlations_of_a_transformer_are_the_dense_ones(transformer):
    x, u, batch, (_, g, h) = transformer
    draw, _, bootstrap = jax.random.split(KEY, 3)
    some = diagnostics.sample_coordinates(x, 20, key=draw)
    starts = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(x)])
    rows = starts[np.asarray(some.leaf)] + np.asarray(some.index)
    got = jax.jit(functools.partial(correlation, transformer_loss))(x, u, batch)
    wanted = diagnostics.magnitude_correlation(
        g[rows], np.diag(h)[rows], key=bootstrap, resamples=10
    )
    np.testing.assert_allclose(got, (wanted.pearson, wanted.spearman), rtol=1e-6)


def test_masked_sharpness_of_a_transformer_is_the_dense_one(transformer):
    x, u, batch, (_, g, h) = transformer
    m = jax.jit(functools.partial(masked, transformer_loss))(x, u, batch)
    v = flat(u) / np.linalg.norm(flat(u))
    t = np.where(np.abs(flat(u)) > 1, v, 0)
    r = v - t
    np.testing.assert_allclose(m.slope, [g @ t, g @ r], rtol=1e-9)
    parts = [t @ h @ t, 2 * t @ h @ r, r @ h @ r]
    np.testing.assert_allclose(m.sharpness, parts, rtol=1e-9)


def test_the_table_of_a_transformer_is_the_dense_one(transformer):
    x, u, batch, (_, g, h) = transformer
    rows = jax.jit(functools.partial(table, transformer_loss))(x, u, batch)
    norm = np.linalg.norm(flat(u))
    v = flat(u) / norm
    for name, row in rows.items():
        np.testing.assert_allclose(row.sharpness, v @ h @ v, rtol=1e-9)
        np.testing.assert_allclose(abs(row.ratio), 1, rtol=1e-9)
        np.testing.assert_allclose(row.slope, g @ v, rtol=1e-9)
        np.testing.assert_allclose(row.cosine, 1, rtol=1e-9)
        length = 2 * norm if name == "2u" else norm
        np.testing.assert_allclose(row.direction_norm, length, rtol=1e-9)
