"""Histograms of magnitudes against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_clip.diagnostics import Stacked, coordinate_histogram, coordinate_quantiles

pytestmark = pytest.mark.usefixtures("strict")

EDGES = np.asarray(np.logspace(-3, 1, 9), np.float32)


def draw(rng, dtype=jnp.float32):
    tree = {"a": rng.standard_cauchy((5, 6)), "b": [rng.normal(size=40), np.zeros(())]}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def magnitudes(tree):
    leaves = [np.abs(np.asarray(x, np.float64)).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def check(histogram, values):
    edges = EDGES.astype(np.float64)
    np.testing.assert_array_equal(histogram.counts, np.histogram(values, edges)[0])
    assert int(histogram.below) == np.sum(values < edges[0])
    assert int(histogram.above) == np.sum(values > edges[-1])
    assert int(histogram.nans) == np.sum(np.isnan(values))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_counts_are_those_of_numpy(rng, dtype):
    tree = draw(rng, dtype)
    check(coordinate_histogram(tree, EDGES), magnitudes(tree))
    check(jax.jit(coordinate_histogram)(tree, EDGES), magnitudes(tree))


@pytest.mark.usefixtures("makes_nan")
def test_edges_belong_to_their_bins_and_what_has_no_bin_is_reported():
    special = np.array([0, np.inf, -np.inf, np.nan, 1e30], np.float32)
    values = np.concatenate([EDGES, np.nextafter(EDGES, 0), -EDGES, special])
    check(coordinate_histogram(jnp.asarray(values), EDGES), np.abs(values))


def test_blocks_add_up_to_the_whole(rng):
    tree = draw(rng)
    by_leaf = coordinate_histogram(tree, EDGES, blocks=lambda path: path)
    assert sorted(by_leaf) == ["a", "b/0", "b/1"]
    check(by_leaf["b/0"], magnitudes(tree["b"][0]))
    by_name = coordinate_histogram(tree, EDGES, blocks=lambda path: path[0])
    check(by_name["b"], magnitudes(tree["b"]))


def test_the_default_edges_are_those_of_the_paper():
    histogram = coordinate_histogram(jnp.array([1e-14, 3.0]))
    assert histogram.edges.shape == (30,)
    np.testing.assert_allclose(histogram.edges[jnp.array([0, -1])], [1e-15, 10])
    assert (histogram.counts.sum(), histogram.counts.dtype) == (2, jnp.uint32)


def test_sizes_beyond_an_integer_become_floats():
    big = jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)
    result = jax.eval_shape(coordinate_histogram, {"a": big, "b": big, "c": big})
    assert result.counts.dtype == jnp.zeros(()).dtype
    huge = jax.ShapeDtypeStruct((2**17, 2**16), jnp.bfloat16)
    assert (
        jax.eval_shape(coordinate_histogram, huge).counts.dtype == jnp.zeros(()).dtype
    )


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit])
def test_sharded_counts_are_the_same(rng, axis):
    x = jnp.asarray(rng.standard_cauchy((8, 12)), jnp.float32)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(axis, axis))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("x", "y")))
        check(jax.jit(coordinate_histogram)(placed, EDGES), magnitudes(x))


def test_bad_input_is_named():
    x = jnp.ones(2)

    def refuses(match, *args, error=ValueError, **options):
        with pytest.raises(error, match=match):
            coordinate_histogram(*args, **options)

    refuses("increase", x, [1.0, 1.0])
    refuses("positive", x, [-1.0, 1.0])
    refuses(r"vector.*got shape \(1,\)", x, [1.0])
    refuses("no leaves", {}, EDGES)
    refuses("hashable; got list for 'w'", {"w": x}, blocks=list, error=TypeError)


def test_stacked_layers_are_counted_apart(rng):
    x = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    layers = coordinate_histogram({"x": x}, EDGES, blocks=Stacked)
    for i in range(3):
        check(layers[f"x/{i}"], magnitudes(x[i]))


def test_quantiles_are_order_statistics(rng):
    tree = draw(rng)
    values = np.sort(magnitudes(tree))
    q = np.array([0.01, 0.25, 0.5, 0.9, 1.0])
    above = np.floor((1 - q) * values.size + 1e-9).astype(int)
    got = coordinate_quantiles(tree, q)
    np.testing.assert_array_equal(got, values[::-1][above].astype(np.float32))
    by_leaf = coordinate_quantiles(tree, [1.0], blocks=lambda path: path)
    np.testing.assert_array_equal(by_leaf["a"], [np.abs(tree["a"]).max()])


def test_zeros_count_in_quantiles_as_all_others_do():
    tree = {"table": jnp.zeros((9, 10)).at[2].set(3.0), "b": jnp.arange(4.0)}
    got = coordinate_quantiles(tree, [0.2, 0.5, 0.9, 0.99], blocks=lambda path: path)
    assert got["table"].tolist() == [0, 0, 3, 3]
    assert got["b"].tolist() == [0, 1, 3, 3]
    assert coordinate_quantiles(tree, [0.5, 0.95]).tolist() == [0, 3]


def test_quantiles_of_stacked_layers_are_those_of_the_layers(rng):
    x = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    layers = coordinate_quantiles({"x": x, "y": x[0]}, [0.5, 1.0], blocks=stack_x)
    assert list(layers) == ["x/0", "x/1", "x/2", "y"]
    for i in range(3):
        wanted = np.sort(magnitudes(x[i]))[[9, 19]]
        np.testing.assert_array_equal(layers[f"x/{i}"], wanted)
    np.testing.assert_array_equal(layers["y"], layers["x/0"])


def stack_x(path):
    return Stacked(path) if path == "x" else path


def test_quantiles_outside_of_their_range_are_refused():
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        coordinate_quantiles(jnp.ones(2), [0.0])


def test_quantiles_of_integers_are_refused():
    with pytest.raises(
        TypeError, match="real floating-point leaves; the one at n is int32"
    ):
        coordinate_quantiles({"n": jnp.arange(3, dtype=jnp.int32)}, [0.5])
