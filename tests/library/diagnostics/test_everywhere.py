"""Every diagnostic on a transformer's Hessian, on devices, in bfloat16, by custom_vjp.

The other modules test each diagnostic in depth; here all of them go through the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_clip import diagnostics

from . import problems
from .problems import dense, flat, transformer_loss, waves

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def split_layers(path):
    return diagnostics.Stacked(path) if path == "w" else path


def table(loss, x, u, *args):
    return diagnostics.sharpness_table(loss, x, {"u": u, "x": x}, *args, baseline="u")


def masked(loss, x, u, *args):
    top = diagnostics.top_coordinates(u, 0.2)
    return diagnostics.masked_sharpness(loss, x, u, *args, mask=top)


def chosen_diagonal(loss, x, u, *args, **options):
    some = diagnostics.sample_coordinates(x, 5, key=KEY)
    return diagnostics.hessian_diagonal_at(loss, x, *args, coordinates=some, **options)


def correlation(loss, x, u, *args, **options):
    found = diagnostics.gradient_hessian_correlation(
        loss, x, *args, key=KEY, coordinates=20, resamples=10, **options
    )
    return found.pearson, found.spearman


def eigenvalues(loss, x, u, *args, **options):
    found = diagnostics.block_eigenvalues(loss, x, *args, key=KEY, **options)
    return {name: block[:2] for name, block in found.items()}


def diagonal(loss, x, u, *args, **options):
    return diagnostics.hessian_diagonal(loss, x, *args, key=KEY, **options)


def persistence(loss, x, u, *args):
    old, new = (diagnostics.top_coordinates(tree, 0.2) for tree in (u, x))
    return diagnostics.mask_persistence(old, new)


def minimum(loss, x, u, *args):
    return diagnostics.minimize_along(loss, x, u, *args).decrease


def along(loss, x, u, *args):
    return diagnostics.loss_along(loss, x, u, *args, steps=[0.0, 0.5])


def scan(loss, x, u, *args):
    return diagnostics.line_scan(loss, x, u, *args, spacing=0.1).losses[:4]


def critical(loss, x, u, *args):
    downhill = jax.tree.map(jnp.negative, jax.grad(loss)(x, *args))
    found = diagnostics.critical_sharpness(loss, x, downhill, *args, tolerance=1e-3)
    return found.sharpness


def norms(loss, x, u, *args):
    return diagnostics.block_norms(x, blocks=split_layers)


def quantiles(loss, x, u, *args):
    return diagnostics.coordinate_quantiles(u, [0.5, 0.9])


def complexity(loss, x, u, *args):
    return diagnostics.hessian_complexity(u, {"w": 1.0, "b": 2.0})


WITH_HESSIAN = {
    "sharpness": diagnostics.directional_sharpness,
    "split": diagnostics.split_sharpness,
    "split layers": functools.partial(diagnostics.split_sharpness, blocks=split_layers),
    "eigenvalues": eigenvalues,
    "diagonal": diagonal,
    "chosen diagonal": chosen_diagonal,
    "correlation": correlation,
}
WITHOUT_MODE = {
    "masked": masked,
    "table": table,
    "minimum": minimum,
    "along": along,
    "scan": scan,
    "critical": critical,
    "norms": norms,
    "quantiles": quantiles,
    "persistence": persistence,
    "complexity": complexity,
}
ALL = WITH_HESSIAN | WITHOUT_MODE


def close(got, wanted, tolerance):
    """Relative to the largest number of the answer; nan is equal to nan."""
    got, wanted = (
        np.concatenate([np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(tree)])
        for tree in (got, wanted)
    )
    atol = tolerance * np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=atol)


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
    t = np.where(flat(diagnostics.top_coordinates(u, 0.2)), v, 0)
    r = v - t
    np.testing.assert_allclose(m.slope, [g @ t, g @ r], rtol=1e-9)
    np.testing.assert_allclose(
        m.sharpness, [t @ h @ t, 2 * t @ h @ r, r @ h @ r], rtol=1e-9
    )


def test_the_table_of_a_transformer_is_the_dense_one(transformer):
    x, u, batch, (_, g, h) = transformer
    rows = jax.jit(functools.partial(table, transformer_loss))(x, u, batch)
    norms = {"u": np.linalg.norm(flat(u)), "x": np.linalg.norm(flat(x))}
    v = {"u": flat(u) / norms["u"], "x": flat(x) / norms["x"]}
    baseline = abs(v["u"] @ h @ v["u"])
    for name, row in rows.items():
        curvature, slope = v[name] @ h @ v[name], g @ v[name]
        np.testing.assert_allclose(row.sharpness, curvature, rtol=1e-9)
        np.testing.assert_allclose(row.ratio, curvature / baseline, rtol=1e-9)
        np.testing.assert_allclose(row.slope, slope, rtol=1e-9)
        np.testing.assert_allclose(row.cosine, v[name] @ v["u"], rtol=1e-9)
