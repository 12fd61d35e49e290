"""Norms of blocks against NumPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics

from . import problems

pytestmark = pytest.mark.usefixtures("strict")


def test_block_norms_are_those_of_the_blocks(rng):
    tree = {
        "a": {"x": rng.normal(size=(3, 4)), "y": rng.normal(size=2)},
        "b": np.ones(4),
    }
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    norms = jax.jit(
        functools.partial(diagnostics.block_norms, blocks=lambda path: path[0])
    )(tree)
    a = problems.flat(tree["a"])
    wanted = (np.linalg.norm(a), np.sqrt(np.mean(a**2)), np.abs(a).sum(), 14)
    np.testing.assert_allclose(norms["a"], wanted, rtol=1e-5)
    assert norms["b"] == (2, 1, 4, 4)


def test_names_may_be_anything_and_keep_the_order_of_the_leaves():
    tree = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)}
    names = {"a": ("z", 1), "b": 7, "c": None}
    norms = diagnostics.block_norms(tree, blocks=names.get)
    assert list(norms) == [("z", 1), 7, None]
    assert [float(norm.size) for norm in norms.values()] == [2, 3, 1]


def test_leaves_without_a_gradient_count_as_zeros():
    p = {"base": jnp.ones(3, jnp.int8), "w": jnp.ones(3)}

    def loss(p):
        return jnp.sum(p["base"].astype(jnp.float32) * p["w"] ** 2)

    g = jax.grad(loss, allow_int=True)(p)
    assert g["base"].dtype == jax.dtypes.float0
    assert diagnostics.block_norms(g)["base"] == (0, 0, 0, 3)
    histogram = diagnostics.coordinate_histogram(g, [0.5, 1.0, 4.0])
    assert (histogram.below, histogram.counts.sum()) == (3, 3)
    assert diagnostics.hessian_complexity(g, {"base": 9.0, "w": 2.0}).gradient == 2
    for refuses in (diagnostics.top_coordinates, diagnostics.coordinate_quantiles):
        with pytest.raises(TypeError, match="the one at base is float0"):
            refuses(g, [0.5] if refuses is diagnostics.coordinate_quantiles else 0.5)


def test_bad_input_is_named():
    def refuses(match, tree, error=ValueError, **options):
        with pytest.raises(error, match=match):
            diagnostics.block_norms(tree, **options)

    refuses("no axis", {"a": jnp.ones(())}, blocks=diagnostics.Stacked)
    refuses("no leaves", {})
    refuses("blocks must be a function", jnp.ones(2), blocks="a", error=TypeError)
    refuses(r"tree\['k'\] must hold numbers", {"k": jax.random.key(0)}, error=TypeError)
