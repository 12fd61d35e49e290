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
import numpy as np

import optax_clip
from examples.heterogeneity import eigenvalues, norms
from examples.lab.steps import Params
from examples.models.resnet import ResNetConfig
from examples.tasks.classification import ClassificationTask
from optax_clip import diagnostics

Numbers = dict[str, Any]
SCOPES = ("global", "leaf")
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
        # XLA for CPU takes a convolution inside a loop hundreds of times as long.
        convolves = jax.default_backend() == "cpu" and isinstance(
            task.config, ResNetConfig
        )
        self._ends = (
            eigenvalues.on_host(loss) if convolves else eigenvalues.on_device(loss)
        )
        self._sharpness = jax.jit(
            functools.partial(diagnostics.directional_sharpness, loss)
        )
        self._clip = {scope: jax.jit(_clipper(scope)) for scope in SCOPES}
        self._norms = jax.jit(functools.partial(_jacobian_norms, task))
        self._describe = jax.jit(_describe)
        self._complexity = jax.jit(diagnostics.hessian_complexity)

    def measure(self, params: Params) -> Numbers:
        """Everything, in plain numbers."""
        loss, gradient = self._gradient(params, self.batch)
        ends = self._ends(params, self.batch)
        curvatures: Numbers = {
            name: max(abs(end) for end in both)  # the spectral norm, on every model
            for name, both in ends.items()
        }
        described = self._describe(gradient, curvatures)
        blocks: dict[str, Numbers] = {
            name: {
                "size": norm.size,
                "l2": norm.l2,
                "rms": norm.rms,
                "top": ends[name][0],
                "bottom": ends[name][1],
            }
            for name, norm in described["blocks"].items()
        }
        return {
            "loss": loss,
            "blocks": blocks,
            "heterogeneity": described["heterogeneity"],
            "complexity": self._complexity(gradient, curvatures)._asdict(),
            "correlation": _correlation(blocks, curvatures),
            "directions": self._directions(params, gradient, curvatures),
            "norms": self._norms(params, self.batch),
            "head_norm": jnp.linalg.norm(params["head"]["kernel"]),
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
        found = {}
        for name, direction in directions.items():
            described = self._describe(direction, curvatures)
            found[name] = {
                "sharpness": self._sharpness(params, direction, self.batch),
                "bound": described["bound"],
                "heterogeneity": described["heterogeneity"],
            }
        return found


def _describe(direction: Params, curvatures: Mapping[str, Any]) -> Numbers:
    """Norms of the blocks, how unequal they are, and the bound of the sharpness.

    Heterogeneity is that of the norms, norms per parameter, and squared norms.
    """
    blocks = diagnostics.block_norms(direction)
    readings = {
        "l2": {name: norm.l2 for name, norm in blocks.items()},
        "rms": {name: norm.rms for name, norm in blocks.items()},
        "squared": {name: norm.l2**2 for name, norm in blocks.items()},
    }
    return {
        "blocks": blocks,
        "bound": diagnostics.sharpness_bound(direction, curvatures),
        "heterogeneity": {
            name: diagnostics.heterogeneity(values)._asdict()
            for name, values in readings.items()
        },
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


_correlate = jax.jit(diagnostics.magnitude_correlation)


def _correlation(
    blocks: Mapping[str, Numbers], curvatures: Mapping[str, Any]
) -> Numbers:
    """Of the blocks' gradient norms and curvatures, those that vanish left out."""
    gradients = np.array([blocks[name]["l2"] for name in curvatures])
    h = np.array(list(curvatures.values()))
    kept = (gradients > _VANISHING * gradients.max()) & (h > _VANISHING * h.max())
    found = _correlate(gradients[kept], h[kept], key=jax.random.key(0))
    numbers = {name: np.asarray(x).tolist() for name, x in found._asdict().items()}
    return {"blocks": int(kept.sum()), **numbers}
