r"""Is this update any good, and why? Measurements along update directions.

Everything is a pure function ``f(loss, params, direction, *args)`` of a scalar loss,
the parameters, a direction like the parameters (an update, a gradient, a momentum) and
the batch. Jit it, scan it, shard it, or call it as it is: then it compiles once for a
loss and its shapes.

.. code-block:: text

  L(x + s u/||u||) = L  +  s <g,u>/||u||  +  s^2/2  u^T H u/||u||^2  + ...
                     |          |                       |
                    loss      slope           directional sharpness
                     \__________|_______________________/
                        directional_derivatives            loss_along, line_scan

==================================  ==================================================
question                            functions
==================================  ==================================================
How steep, how sharp is it?         `directional_derivatives`, `directional_sharpness`
Which update is better?             `sharpness_table`, `paired_differences`
What is further along it?           `loss_along`, `line_scan`
How far should it go?               `minimize_along`, `critical_sharpness`,
                                    `largest_stable_rate`
Which blocks or coordinates do it?  `split_sharpness`, `masked_sharpness`,
                                    `top_coordinates`, `mask_persistence`
How large are coordinates?          `coordinate_histogram`, `coordinate_quantiles`
What is the Hessian like?           `hessian_diagonal`, `hessian_diagonal_at`,
                                    `sample_coordinates`, `take_coordinates`,
                                    `block_eigenvalues`
Do gradient and Hessian go          `gradient_hessian_correlation`,
together?                           `magnitude_correlation`
How unequal are the blocks?         `block_norms`, `heterogeneity`,
                                    `hessian_complexity`, `sharpness_bound`
How sure is that?                   `mean_over_batches`, `check_deterministic`
==================================  ==================================================

**One direction or several.** A direction is a pytree of the structure of `params`, and
gives one result. Anything else must be a mapping of names to such pytrees, and gives a
dictionary: one compiled loop measures all of them.

**Large batches.** A batch that is too large is cut with ``microbatches=``; batches that
come from an iterator are averaged by `mean_over_batches`, and what is no mean over
batches loads them by `batch_loader`.

**Outside of jit.** The first call compiles; later calls with the same loss *object*,
the same shapes and the same other arguments do not. Define the loss once and pass what
changes as arrays: a function that is made anew compiles anew (and is forgotten with
its program as soon as nobody holds it). What is no array, such as a mode, a config or a
Python number, belongs to the program. A loss that reads a global variable is compiled
with its value of the first call.

>>> import jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> loss = lambda x, a: 0.5 * jnp.sum(a * x**2)   # the Hessian is diag(a)
>>> x, a = jnp.array([2.0, 1.0]), jnp.array([1.0, 4.0])
>>> updates = {"sgd": -a * x, "sign": -jnp.sign(x)}
>>> for name, d in diagnostics.directional_derivatives(loss, x, updates, a).items():
...     print(f"{name:4} sharpness {d.sharpness:.1f}, Newton step {d.newton_step:.2f}")
sgd  sharpness 3.4, Newton step 1.32
sign sharpness 2.5, Newton step 1.70
"""

# fmt: off
# isort: off
from optax_clip.diagnostics._blocks import BlockNorm, Stacked, block_norms
from optax_clip.diagnostics._coordinates import (
    Coordinates, Persistence, mask_persistence, sample_coordinates, take_coordinates,
    top_coordinates,
)
from optax_clip.diagnostics._correlation import (
    Correlation, gradient_hessian_correlation, magnitude_correlation,
)
from optax_clip.diagnostics._decomposition import (
    MaskedSharpness, SharpnessPart, masked_sharpness, split_sharpness,
)
from optax_clip.diagnostics._derivatives import (
    DirectionalDerivatives, SharpnessRow, directional_derivatives,
    directional_sharpness, largest_stable_rate, sharpness_table,
)
from optax_clip.diagnostics._determinism import check_deterministic
from optax_clip.diagnostics._distribution import (
    CoordinateHistogram, coordinate_histogram, coordinate_quantiles,
)
from optax_clip.diagnostics._eigenvalues import BlockEigenvalues, block_eigenvalues
from optax_clip.diagnostics._hessian_diagonal import (
    hessian_diagonal, hessian_diagonal_at,
)
from optax_clip.diagnostics._heterogeneity import (
    Complexity, Heterogeneity, hessian_complexity, heterogeneity, sharpness_bound,
)
from optax_clip.diagnostics._landscape import LineScan, line_scan, loss_along
from optax_clip.diagnostics._problem import ForwardOptions, Options
from optax_clip.diagnostics._step_sizes import (
    CriticalSharpness, LineMinimum, critical_sharpness, minimize_along,
)
from optax_clip.diagnostics._streaming import (
    BatchMean, batch_loader, mean_over_batches, paired_differences,
)

__all__ = [
    "BatchMean", "BlockEigenvalues", "BlockNorm", "Complexity", "CoordinateHistogram",
    "Coordinates", "Correlation", "CriticalSharpness", "DirectionalDerivatives",
    "ForwardOptions", "Heterogeneity", "LineMinimum", "LineScan", "MaskedSharpness",
    "Options", "Persistence", "SharpnessPart", "SharpnessRow", "Stacked",
    "batch_loader", "block_eigenvalues", "block_norms", "check_deterministic",
    "coordinate_histogram", "coordinate_quantiles", "critical_sharpness",
    "directional_derivatives", "directional_sharpness", "gradient_hessian_correlation",
    "hessian_complexity", "hessian_diagonal", "hessian_diagonal_at", "heterogeneity",
    "largest_stable_rate", "line_scan", "loss_along", "magnitude_correlation",
    "mask_persistence", "masked_sharpness", "mean_over_batches", "minimize_along",
    "paired_differences", "sample_coordinates", "sharpness_bound", "sharpness_table",
    "split_sharpness", "take_coordinates", "top_coordinates",
]
