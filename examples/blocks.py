"""What the blocks of a classifier look like to an optimizer.

    found = Instruments(task, rows=32, clipped=(0.05,)).measure(params)

A block is a tensor of the model, as in the second paper; all is measured on one batch,
without dropout.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import optax_clip
from examples import norms
from examples.classification import ClassificationTask
from examples.training import Params
from optax_clip import diagnostics

Numbers = dict[str, Any]
SCOPES = ("global", "leaf")
_TOLERANCE = 1e-2  # relative, of an eigenvalue
_VANISHING = 1e-6  # of the largest norm: an attention's key bias changes nothing


class Instruments:
    """Compiled once, used at every moment of a run."""

    def __init__(
        self, task: ClassificationTask, rows: int, clipped: Sequence[float]
    ) -> None:
        self.batch = jax.device_put(task.fixed_batch(rows))
        self.clipped = clipped
        loss = task.eval_loss
        self._gradient = jax.jit(jax.value_and_grad(loss))
        self._eigenvalues = jax.jit(
            functools.partial(diagnostics.block_eigenvalues, loss, tolerance=_TOLERANCE)
        )
        self._sharpness = jax.jit(
            functools.partial(diagnostics.directional_sharpness, loss)
        )
        self._clip = {scope: jax.jit(_clipper(scope)) for scope in SCOPES}
        self._norms = jax.jit(functools.partial(_jacobian_norms, task))

    def measure(self, params: Params) -> Numbers:
        """Everything, in plain numbers."""
        loss, gradient = self._gradient(params, self.batch)
        found = self._eigenvalues(params, jax.random.key(0), self.batch)
        curvatures = {name: ends.spectral_norm for name, ends in found.items()}
        sizes = diagnostics.block_norms(gradient)
        complexity = diagnostics.hessian_complexity(gradient, curvatures)
        return {
            "loss": float(loss),
            "blocks": {
                name: {
                    "size": int(norm.size),
                    "l2": float(norm.l2),
                    "rms": float(norm.rms),
                    "top": float(found[name].top),
                    "bottom": float(found[name].bottom),
                }
                for name, norm in sizes.items()
            },
            "heterogeneity": _heterogeneity(sizes),
            "complexity": _floats(complexity),
            "correlation": _correlation(sizes, curvatures),
            "directions": self._directions(params, gradient, curvatures),
            "norms": {k: float(x) for k, x in self._norms(params, self.batch).items()},
            "head_norm": float(jnp.linalg.norm(params["head"]["kernel"])),
        }

    def _directions(
        self, params: Params, gradient: Params, curvatures: Mapping[str, Any]
    ) -> dict[str, Numbers]:
        """Gradient, its sign, and the gradient clipped: their sharpness and bound."""
        directions = {
            "gradient": gradient,
            "sign": jax.tree.map(jnp.sign, gradient),
            **{
                f"clipped {fraction:g} {scope}": clip(gradient, fraction)
                for scope, clip in self._clip.items()
                for fraction in self.clipped
            },
        }
        sharpness = self._sharpness(params, directions, self.batch)
        return {
            name: {
                "sharpness": float(sharpness[name]),
                "bound": float(diagnostics.sharpness_bound(direction, curvatures)),
                "heterogeneity": _heterogeneity(diagnostics.block_norms(direction)),
            }
            for name, direction in directions.items()
        }


def _clipper(scope: Any) -> Any:
    """(gradient, fraction) -> the gradient with its top coordinates clipped."""

    def clip(gradient: Params, fraction: jax.Array) -> Params:
        clipping = optax_clip.clip_top_k_coordinates(fraction, scope=scope)
        return clipping.update(gradient, clipping.init(gradient))[0]

    return clip


def _jacobian_norms(
    task: ClassificationTask, params: Params, batch: Mapping[str, Any]
) -> dict[str, jax.Array]:
    inputs = next(value for name, value in batch.items() if name != "labels")
    return norms.jacobian_norms(task.graphdef, params, lambda model: model(inputs))


def _heterogeneity(sizes: Mapping[str, diagnostics.BlockNorm]) -> Numbers:
    """Of the blocks' norms, norms per parameter, and squared norms."""
    readings = {
        "l2": {name: norm.l2 for name, norm in sizes.items()},
        "rms": {name: norm.rms for name, norm in sizes.items()},
        "squared": {name: norm.l2**2 for name, norm in sizes.items()},
    }
    return {
        name: _floats(diagnostics.heterogeneity(values))
        for name, values in readings.items()
    }


def _correlation(
    sizes: Mapping[str, diagnostics.BlockNorm], curvatures: Mapping[str, Any]
) -> Numbers:
    """Of the blocks' gradient norms and curvatures, those that vanish left out."""
    gradients = jnp.stack([sizes[name].l2 for name in curvatures])
    h = jnp.stack(list(curvatures.values()))
    kept = (gradients > _VANISHING * gradients.max()) & (h > _VANISHING * h.max())
    found = diagnostics.magnitude_correlation(
        gradients[kept], h[kept], jax.random.key(0)
    )
    return {
        "blocks": int(kept.sum()),
        **{name: value.tolist() for name, value in found._asdict().items()},
    }


def _floats(values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in values._asdict().items()}
