"""Top-k coordinate clipping for Optax, and diagnostics of update directions.

.. code-block:: text

  gradients -- threshold -- clip -- chain --> updates
  loss + direction -- jvp of grad --> sharpness, slope    (optax_clip.diagnostics)
  one trajectory -- pseudo-updates of many optimizers --> a table, a landscape

Everything is a pure function of pytrees or an Optax transformation: jit, scan and
shard it as you would Optax itself.
"""

from optax_clip import diagnostics as diagnostics
from optax_clip._clipping import ClipNumeratorState as ClipNumeratorState
from optax_clip._clipping import ClipTopKState as ClipTopKState
from optax_clip._clipping import clip_metrics as clip_metrics
from optax_clip._clipping import clip_numerator as clip_numerator
from optax_clip._clipping import clip_top_k_coordinates as clip_top_k_coordinates
from optax_clip._optimizers import clipped_adafactor as clipped_adafactor
from optax_clip._optimizers import clipped_adam as clipped_adam
from optax_clip._optimizers import clipped_lion as clipped_lion
from optax_clip._optimizers import clipped_normalized_sgd as clipped_normalized_sgd
from optax_clip._optimizers import clipped_sgd as clipped_sgd
from optax_clip._pseudo_updates import PseudoUpdatesState as PseudoUpdatesState
from optax_clip._pseudo_updates import pseudo_updates as pseudo_updates
from optax_clip._pseudo_updates import pseudo_updates_at as pseudo_updates_at
from optax_clip._pseudo_updates import pseudo_updates_of as pseudo_updates_of
from optax_clip._scaling import ScaleByClippedAdamState as ScaleByClippedAdamState
from optax_clip._scaling import normalize_by_block_rms as normalize_by_block_rms
from optax_clip._scaling import scale_by_clipped_adam as scale_by_clipped_adam

__version__ = "0.2.0"

__all__ = [
    "ClipNumeratorState",
    "ClipTopKState",
    "PseudoUpdatesState",
    "ScaleByClippedAdamState",
    "clip_metrics",
    "clip_numerator",
    "clip_top_k_coordinates",
    "clipped_adafactor",
    "clipped_adam",
    "clipped_lion",
    "clipped_normalized_sgd",
    "clipped_sgd",
    "diagnostics",
    "normalize_by_block_rms",
    "pseudo_updates",
    "pseudo_updates_at",
    "pseudo_updates_of",
    "scale_by_clipped_adam",
]
