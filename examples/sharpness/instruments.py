"""What is measured at a moment of a trajectory, compiled once.

tools = Instruments(settings, task)
tools.derivatives(params, updates)   # of one direction, or of a mapping
tools.landscape(params, updates, derived)
tools.split(params, update)          # by kind of block
tools.correlations(params)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.lab import held_out
from examples.lab.steps import Microbatches, Params, gradient_of, without_dropout
from examples.sharpness import correlation, kinds
from examples.sharpness.settings import SPACINGS, Settings
from examples.tasks.task import Task
from optax_clip import diagnostics


class Instruments:
    """Everything that is measured on the fixed batch, whose rows nobody trains on."""

    def __init__(self, settings: Settings, task: Task) -> None:
        sizes = settings.sizes()
        self.sizes, self.seed = sizes, settings.seed
        self.batch = jax.device_put(held_out.batch(task, sizes.test_size))
        count = sizes.test_size // sizes.part
        stream = {"microbatches": count, "weight": task.weight}

        def jitted(measure: Callable, **options: Any) -> Callable:
            loss = functools.partial(measure, task.eval_loss, **options, **stream)
            return jax.jit(loss)

        self._derivatives = jitted(
            diagnostics.directional_derivatives, mode="forward_over_forward"
        )
        self._scan = jitted(diagnostics.line_scan)
        self._split = jitted(diagnostics.split_sharpness, blocks=kinds.kind)
        self._pooled = jitted(
            diagnostics.gradient_hessian_correlation, coordinates=sizes.coordinates
        )
        loss, microbatches = without_dropout(task.eval_loss), None
        if count > 1:
            microbatches = Microbatches(count, task.weight)
        gradient = gradient_of(loss, microbatches)
        self._within = correlation.measurer(
            jax.jit(lambda p, batch: gradient(p, batch, jax.random.key(0))[1]),
            jitted(diagnostics.hessian_diagonal_at),
        )

    def derivatives(self, params: Params, updates: Any) -> Any:
        """Loss, slope and sharpness of a direction, or of each of a mapping."""
        return jax.device_get(self._derivatives(params, updates, self.batch))

    def landscape(self, params: Params, updates: Any, spacings: Any) -> Any:
        """The loss along a direction, or along each of a mapping."""
        scans = self._scan(params, updates, self.batch, spacing=spacings)
        return jax.device_get(scans)

    def split(self, params: Params, update: Params) -> dict[str, Any]:
        """Who carries the sharpness of a direction, by kind of block."""
        return kinds.numbers(jax.device_get(self._split(params, update, self.batch)))

    def correlations(self, params: Params) -> dict[str, Any]:
        """Of |g_i| and |H_ii|: over all tensors, and within them."""
        found = self._pooled(params, self.batch, key=jax.random.key(self.seed))
        pooled = {k: np.asarray(v).tolist() for k, v in found._asdict().items()}
        some = correlation.drawn(params, *self.sizes.within, self.seed)
        return {
            "correlation": pooled,
            "correlation_within": self._within(params, self.batch, some, self.seed),
        }


def spacing(derived: Mapping[str, diagnostics.DirectionalDerivatives]) -> Any:
    """A fraction of each Newton step; a parabola's scan ends at twice of it.

    Where the parabola has no minimum ahead, that of the farthest one.
    """
    best = {name: float(d.newton_step) for name, d in derived.items()}
    usable = [s for s in best.values() if 0 < s < np.inf]
    farthest = max(usable, default=1.0)
    return {
        name: jnp.asarray((s if 0 < s < np.inf else farthest) / SPACINGS)
        for name, s in best.items()
    }


def curve(scan: diagnostics.LineScan) -> dict[str, list[float]]:
    """As far as the scan went."""
    seen = slice(int(scan.points))
    return {"steps": scan.steps[seen].tolist(), "losses": scan.losses[seen].tolist()}
