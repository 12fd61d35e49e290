r"""Is this update any good, and why? Measurements along update directions.

Everything is a pure function ``f(loss, params, direction, *args)`` of a scalar loss,
the parameters, a direction like the parameters (an update, a gradient, a momentum) and
the batch. Jit it, scan it, shard it; nothing is flattened, nothing is captured.

.. code-block:: text

  L(x + s u/||u||) = L  +  s <g,u>/||u||  +  s^2/2  u^T H u/||u||^2  + ...
                     |          |                       |
                    loss      slope           directional sharpness
                     \__________|_______________________/
                        directional_derivatives            loss_along, line_scan

A direction may be a mapping from names to directions; then one compiled loop measures
all of them and returns a mapping. A batch that is too large is cut with
``microbatches=``; batches that come from an iterator are averaged by
`mean_over_batches`, because everything above is linear in the loss.

>>> import jax.numpy as jnp
>>> from optax_clip import diagnostics
>>> loss = lambda x, a: 0.5 * jnp.sum(a * x**2)   # the Hessian is diag(a)
>>> x, a = jnp.array([2.0, 1.0]), jnp.array([1.0, 4.0])
>>> updates = {"sgd": -a * x, "sign": -jnp.sign(x)}
>>> for name, d in diagnostics.directional_derivatives(loss, x, updates, a).items():
...     print(f"{name:4} sharpness {d.curvature:.1f}, best step {d.best_step:.2f}")
sgd  sharpness 3.4, best step 1.32
sign sharpness 2.5, best step 1.70
"""

from optax_clip.diagnostics._partition import Stacked as Stacked
from optax_clip.diagnostics._streaming import mean_over_batches as mean_over_batches
from optax_clip.diagnostics.blocks import BlockNorm as BlockNorm
from optax_clip.diagnostics.blocks import Complexity as Complexity
from optax_clip.diagnostics.blocks import Heterogeneity as Heterogeneity
from optax_clip.diagnostics.blocks import block_norms as block_norms
from optax_clip.diagnostics.blocks import (
    hessian_complexity as hessian_complexity,
)
from optax_clip.diagnostics.blocks import heterogeneity as heterogeneity
from optax_clip.diagnostics.blocks import sharpness_bound as sharpness_bound
from optax_clip.diagnostics.coordinates import (
    CoordinateHistogram as CoordinateHistogram,
)
from optax_clip.diagnostics.coordinates import (
    coordinate_histogram as coordinate_histogram,
)
from optax_clip.diagnostics.coordinates import (
    coordinate_quantiles as coordinate_quantiles,
)
from optax_clip.diagnostics.correlation import Correlation as Correlation
from optax_clip.diagnostics.correlation import (
    gradient_hessian_correlation as gradient_hessian_correlation,
)
from optax_clip.diagnostics.correlation import (
    magnitude_correlation as magnitude_correlation,
)
from optax_clip.diagnostics.determinism import (
    check_deterministic as check_deterministic,
)
from optax_clip.diagnostics.diagonal import Coordinates as Coordinates
from optax_clip.diagnostics.diagonal import hessian_diagonal as hessian_diagonal
from optax_clip.diagnostics.diagonal import hessian_diagonal_at as hessian_diagonal_at
from optax_clip.diagnostics.diagonal import sample_coordinates as sample_coordinates
from optax_clip.diagnostics.diagonal import take_coordinates as take_coordinates
from optax_clip.diagnostics.landscape import LineScan as LineScan
from optax_clip.diagnostics.landscape import line_scan as line_scan
from optax_clip.diagnostics.landscape import loss_along as loss_along
from optax_clip.diagnostics.landscape import loss_on_plane as loss_on_plane
from optax_clip.diagnostics.sharpness import (
    DirectionalDerivatives as DirectionalDerivatives,
)
from optax_clip.diagnostics.sharpness import (
    directional_derivatives as directional_derivatives,
)
from optax_clip.diagnostics.sharpness import (
    directional_sharpness as directional_sharpness,
)
from optax_clip.diagnostics.spectrum import BlockEigenvalues as BlockEigenvalues
from optax_clip.diagnostics.spectrum import block_eigenvalues as block_eigenvalues
from optax_clip.diagnostics.splits import MaskedSharpness as MaskedSharpness
from optax_clip.diagnostics.splits import Persistence as Persistence
from optax_clip.diagnostics.splits import SharpnessPart as SharpnessPart
from optax_clip.diagnostics.splits import mask_persistence as mask_persistence
from optax_clip.diagnostics.splits import masked_sharpness as masked_sharpness
from optax_clip.diagnostics.splits import split_sharpness as split_sharpness
from optax_clip.diagnostics.splits import top_coordinates as top_coordinates
from optax_clip.diagnostics.steps import BestStep as BestStep
from optax_clip.diagnostics.steps import CriticalSharpness as CriticalSharpness
from optax_clip.diagnostics.steps import best_step as best_step
from optax_clip.diagnostics.steps import critical_sharpness as critical_sharpness
from optax_clip.diagnostics.table import SharpnessRow as SharpnessRow
from optax_clip.diagnostics.table import sharpness_table as sharpness_table
