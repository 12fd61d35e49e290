"""What the layer norms of a model do to the gradients that pass through them.

    jacobian_norms(model, run) -> {"layers/0/attention_norm": ..., ...}

A norm behind the residual sum, as in Post-LN, multiplies the whole gradient by its
Jacobian, layer after layer; one inside the branch, as in Pre-LN, only that branch's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


def jacobian_norms(
    graphdef: nnx.GraphDef,
    params: Any,
    run: Callable[[Any], Any],
    positions: int = 16,
) -> dict[str, Array]:
    """Mean spectral norm of the Jacobian of every layer norm, by its path.

    `run` calls the model; the mean is over so many of the vectors that it normalises,
    evenly from all of them. Jit it.
    """
    model = nnx.merge(graphdef, params)
    norms, seen = _recorded(model)
    run(model)
    return {
        path: _mean_jacobian_norm(norm, seen[path], positions)
        for path, norm in norms.items()
    }


def _mean_jacobian_norm(norm: nnx.LayerNorm, x: Array, positions: int) -> Array:
    x_NxD = x.reshape(-1, x.shape[-1])
    rows = jnp.linspace(0, len(x_NxD) - 1, min(positions, len(x_NxD))).astype(int)
    jacobians = jax.vmap(jax.jacfwd(norm))(x_NxD[rows])
    return jnp.mean(jnp.linalg.norm(jacobians, ord=2, axis=(-2, -1)))


def _recorded(model: Any) -> tuple[dict[str, nnx.LayerNorm], dict[str, Array]]:
    """The layer norms of a model; from now on they keep what they are given."""
    norms: dict[str, nnx.LayerNorm] = {}
    seen: dict[str, Array] = {}
    modules = dict(nnx.iter_modules(model))
    for keys, module in modules.items():
        if isinstance(module, nnx.LayerNorm):
            path = "/".join(map(str, keys))
            norms[path] = module
            setattr(modules[keys[:-1]], str(keys[-1]), _Recorder(path, module, seen))
    return norms, seen


class _Recorder(nnx.Module):
    """A layer norm that keeps its last input."""

    def __init__(self, path: str, norm: nnx.LayerNorm, seen: dict[str, Array]):
        def call(x: Array) -> Array:
            seen[path] = x
            return norm(x)

        self.call = call

    def __call__(self, x: Array) -> Array:
        return self.call(x)
