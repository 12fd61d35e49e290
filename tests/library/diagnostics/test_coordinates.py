"""Coordinates drawn at random, and the largest ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics

from . import problems

pytestmark = pytest.mark.usefixtures("strict")


def test_samples_are_spread_over_leaves_by_their_size():
    tree = {"a": jnp.zeros(100), "b": jnp.ones((30, 10)), "c": jnp.zeros((0, 3))}
    some = diagnostics.sample_coordinates(tree, 4000, key=jax.random.key(0))
    share = float(jnp.mean(diagnostics.take_coordinates(tree, some)))
    assert abs(share - 0.75) < 0.03
    assert int(some.index.max()) == 299


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_top_coordinates_are_the_largest(rng, fraction, dtype):
    tree = {"a": jnp.asarray(rng.normal(size=(5, 7)), dtype), "b": jnp.ones(3, dtype)}
    mask = jax.jit(diagnostics.top_coordinates)(tree, fraction)
    magnitudes, chosen = np.abs(problems.flat(tree)), problems.flat(mask) > 0
    assert chosen.sum() <= int(fraction * 38)
    limit = np.sort(magnitudes)[::-1][int(fraction * 38)]
    np.testing.assert_array_equal(chosen, magnitudes > limit)


def test_persistence_counts_old_new_and_both_by_block():
    old = {"a": jnp.array([True, True, False]), "b": jnp.array([False])}
    new = {"a": jnp.array([False, True, True]), "b": jnp.array([True])}
    assert diagnostics.mask_persistence(old, new) == (2, 3, 1)
    by_leaf = diagnostics.mask_persistence(old, new, blocks=lambda path: path)
    assert by_leaf["a"] == (2, 2, 1)
    assert by_leaf["a"].fraction == 0.5
    assert by_leaf["b"] == (0, 1, 0)


def test_bad_input_is_named():
    x, key = jnp.ones(3), jax.random.key(0)
    with pytest.raises(ValueError, match="no coordinates"):
        diagnostics.sample_coordinates({}, 3, key=key)
    with pytest.raises(ValueError, match="count must be an int of at least 1; got 0"):
        diagnostics.sample_coordinates(x, 0, key=key)
    with pytest.raises(TypeError, match="must be a random key"):
        diagnostics.sample_coordinates(x, 3, key=7)
    with pytest.raises(ValueError, match="no leaves"):
        diagnostics.top_coordinates({}, 0.5)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\); got 1"):
        diagnostics.top_coordinates(x, 1.0)
    with pytest.raises(TypeError, match="fraction must be one number; got 'half'"):
        diagnostics.top_coordinates(x, "half")
    with pytest.raises(TypeError, match="the one at n is int32"):
        diagnostics.top_coordinates({"n": jnp.arange(2, dtype=jnp.int32)}, 0.5)
    with pytest.raises(TypeError, match="mask must be boolean"):
        diagnostics.mask_persistence(x, x)
