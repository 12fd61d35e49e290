"""Do large gradient coordinates have large curvature, of all tensors and within one?

Pooled over a model, the scales of its tensors alone could produce a correlation. Within
tensors, every magnitude is divided by the geometric mean of those drawn from the same
tensor.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.lab.steps import Params
from optax_clip import diagnostics


def drawn(params: Params, tensors: int, each: int, seed: int) -> Any:
    """Coordinates of some tensors, as many of each, that are large enough."""
    random = np.random.default_rng(seed)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    large = [i for i, size in enumerate(sizes) if size >= 4 * each]
    chosen = random.choice(large, min(tensors, len(large)), replace=False)
    index = [random.choice(sizes[i], each, replace=False) for i in sorted(chosen)]
    return diagnostics.Coordinates(
        leaf=jnp.asarray(np.repeat(sorted(chosen), each), jnp.int32),
        index=jnp.asarray(np.concatenate(index), jnp.int32),
    )


def within_tensors(
    slopes_N: np.ndarray, curvatures_N: np.ndarray, leaf_N: np.ndarray, seed: int
) -> dict[str, Any] | None:
    """The correlation of both magnitudes over their tensor's geometric means.

    Coordinates without slope or curvature, such as an absent word's, are left out.
    """
    sizes_2xN = np.abs([slopes_N, curvatures_N])
    known_N = np.isfinite(sizes_2xN).all(0) & (sizes_2xN > 0).all(0)
    logs_2xN, leaf_N = np.log(sizes_2xN[:, known_N].astype(float)), leaf_N[known_N]
    for leaf in np.unique(leaf_N):
        own = leaf_N == leaf
        logs_2xN[:, own] -= logs_2xN[:, own].mean(1, keepdims=True)
    tensors = len(np.unique(leaf_N))
    if leaf_N.size < tensors + 3:
        return None
    found = diagnostics.magnitude_correlation(
        *(jnp.asarray(np.exp(x), jnp.float32) for x in logs_2xN),
        key=jax.random.key(seed),
    )
    values = {k: np.asarray(v).tolist() for k, v in found._asdict().items()}
    return {"coordinates": int(leaf_N.size), "tensors": tensors, **values}


def measurer(
    gradient: Callable[..., Params], diagonal_at: Callable[..., jax.Array]
) -> Callable[..., dict[str, Any] | None]:
    """(parameters, batch, coordinates, seed) -> the correlation within tensors."""

    def measure(params: Params, batch: Any, some: Any, seed: int) -> Any:
        slopes_N = diagnostics.take_coordinates(gradient(params, batch), some)
        curvatures_N = diagonal_at(params, batch, coordinates=some)
        slopes_N, curvatures_N, leaf_N = map(
            np.asarray, (slopes_N, curvatures_N, some.leaf)
        )
        return within_tensors(slopes_N, curvatures_N, leaf_N, seed)

    return measure
