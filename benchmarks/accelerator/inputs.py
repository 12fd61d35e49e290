"""Gradients and weights, drawn on the device: a host would take minutes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.presets import Preset
from benchmarks.shapes import Shapes, t5_shapes
from examples.models import t5


def tree_shapes(tree: str, preset: Preset) -> Shapes:
    """The shapes of the tree of this name."""
    coordinates = preset.coordinates[tree]
    if tree == "one leaf":
        return [(coordinates,)]
    config = t5.T5Config(**preset.t5)
    return t5_shapes(config, coordinates, stacked=tree == "scanned")


def gradients(shapes: Shapes, dtype: str, seed: int = 0) -> list[jax.Array]:
    """Normal times log-normal, every leaf with a scale of its own, over two decades."""
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(shapes))
    return [_heavy(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _heavy(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    first, second, third = jax.random.split(key, 3)
    scale = 10 ** jax.random.uniform(third, minval=-1, maxval=1)
    values = jnp.exp(jax.random.normal(first, shape)) * scale
    return (values * jax.random.normal(second, shape)).astype(dtype)


def weights(like: Any, seed: int = 0) -> Any:
    """Small normal matrices, and scales of one, in float32."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(leaves))
    drawn = [_weight(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


@functools.partial(jax.jit, static_argnums=1)
def _weight(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    vector = len(shape) == 1 or (len(shape) == 2 and shape[0] < 64)  # of each layer
    return jnp.ones(shape) if vector else 0.02 * jax.random.normal(key, shape)
