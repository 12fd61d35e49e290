"""What several test modules share: exact and derived comparisons, trees, factories."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax


def bits(x):
    """The bit pattern of an array, NaNs made canonical as their payload is noise."""
    x = np.asarray(x)
    with np.errstate(invalid="ignore"):  # a signalling NaN in half precision
        x = np.where(np.isnan(x), np.asarray(np.nan, x.dtype), x).astype(x.dtype)
    if np.iscomplexobj(x):
        return bits(np.stack([x.real, x.imag]))
    return x.view(f"u{x.dtype.itemsize}")


def assert_same_bits(actual, desired):
    """Trees of equal structure, shapes, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for path, a in jax.tree_util.tree_leaves_with_path(actual):
        d = dict(jax.tree_util.tree_leaves_with_path(desired))[path]
        name = jax.tree_util.keystr(path)
        assert np.shape(a) == np.shape(d), name
        assert np.asarray(a).dtype == np.asarray(d).dtype, name
        if jnp.issubdtype(np.asarray(a).dtype, jnp.inexact):
            np.testing.assert_array_equal(bits(a), bits(d), err_msg=name)
        else:
            np.testing.assert_array_equal(a, d, err_msg=name)


def assert_close(actual, desired, dtype=None, ulps=16):
    """Trees equal within `ulps` roundings of `dtype`, relative to the largest entry.

    The default dtype is that of each actual leaf. Relative to the largest entry of the
    tree and not to each entry, because sums such as b1 m + (1 - b1) g may cancel.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(desired)]
    scale = max((np.max(np.abs(leaf), initial=0.0) for leaf in leaves), default=0.0)
    for a, d in zip(jax.tree.leaves(actual), leaves, strict=True):
        eps = float(jnp.finfo(dtype or np.asarray(a).dtype).eps)
        assert np.shape(a) == d.shape
        a = np.asarray(a, np.float64)
        np.testing.assert_allclose(a, d, rtol=0, atol=ulps * eps * scale)


def assert_finite(tree):
    """No NaN and no infinity anywhere."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(np.asarray(leaf)).all(), jax.tree_util.keystr(path)


def avals(tree):
    """Shape, dtype, weak type and sharding of each leaf, in the tree's structure."""
    return jax.tree.map(jax.typeof, tree)


def draw_tree(rng, dtype=jnp.float32, shapes=None, scale=1.0):
    """A dict of normal arrays, with heavy tails as gradients have them."""
    shapes = shapes or {"bias": (5,), "kernel": (4, 6), "scale": ()}
    return {
        k: jnp.asarray(scale * rng.standard_t(2, shape), dtype)
        for k, shape in shapes.items()
    }


def run(tx, grads, params, *, apply=True):
    """Feed gradients one by one through one compiled step: all updates, last state."""

    @jax.jit
    def step(g, state, params):
        updates, state = tx.update(g, state, params)
        new = optax.apply_updates(params, updates) if apply else params
        return updates, state, new

    state, history = tx.init(params), []
    for g in grads:
        updates, state, params = step(g, state, params)
        history.append(updates)
    return history, state


@contextlib.contextmanager
def compilations():
    """The messages of all compilations inside the context."""
    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            if "Finished XLA compilation" in record.getMessage():
                records.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield records
    finally:
        logger.removeHandler(handler)
