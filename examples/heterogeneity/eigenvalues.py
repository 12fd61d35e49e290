"""The extreme eigenvalues of the Hessian's diagonal blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from examples.data.batching import Batch
from examples.lab.steps import Loss, Params
from optax_clip import diagnostics

_TOLERANCE = 1e-2  # relative, of an eigenvalue
_DENSE = 4  # coordinates: too few for Lanczos

# Of each block, the largest eigenvalue of its Hessian and the smallest.
Ends = dict[str, tuple[float, float]]


def on_device(loss: Loss) -> Callable[[Params, Batch], Ends]:
    measure = functools.partial(
        diagnostics.block_eigenvalues, loss, tolerance=_TOLERANCE
    )
    jitted = jax.jit(measure)

    def ends(params: Params, batch: Batch) -> Ends:
        found = jitted(params, batch, key=jax.random.key(0))
        return {name: (float(x.top), float(x.bottom)) for name, x in found.items()}

    return ends


def on_host(loss: Loss) -> Callable[[Params, Batch], Ends]:
    """The same by SciPy's Lanczos: no loop is compiled."""

    def product(params: Params, vector: Params, batch: Batch) -> Params:
        gradient = functools.partial(jax.grad(loss), batch=batch)
        return jax.jvp(gradient, (params,), (vector,))[1]

    jitted = jax.jit(product)

    def ends(params: Params, batch: Batch) -> Ends:
        leaves, structure = jax.tree.flatten(params)
        names = list(diagnostics.block_norms(params))
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        found: Ends = {}
        for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):

            def matvec(v: np.ndarray, i: int = i, leaf: jax.Array = leaf) -> np.ndarray:
                part = jnp.asarray(v, leaf.dtype).reshape(leaf.shape)
                vector = structure.unflatten([*zeros[:i], part, *zeros[i + 1 :]])
                products = jax.tree.leaves(jitted(params, vector, batch))
                return np.asarray(products[i]).ravel()

            # Its stubs know the arguments of the abstract class only.
            make: Any = LinearOperator
            operator = make((leaf.size,) * 2, matvec, dtype=np.float32)
            if leaf.size <= _DENSE:
                both = np.linalg.eigvalsh(operator @ np.eye(leaf.size))
            else:
                random = np.random.default_rng(i)
                both = eigsh(
                    operator,
                    k=2,
                    which="BE",
                    v0=random.normal(size=leaf.size).astype(np.float32),
                    ncv=min(12, leaf.size),
                    tol=_TOLERANCE,
                    return_eigenvectors=False,
                )
            found[name] = float(max(both)), float(min(both))
        return found

    return ends
