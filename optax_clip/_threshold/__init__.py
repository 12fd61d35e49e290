"""The order statistic behind top-k clipping: exact, and found by counting.

The threshold of a group of arrays is its ``(m + 1)``-th largest magnitude. Sorting
would find it, but needs the arrays flat, together and several times over; counting
needs none of that.

.. code-block:: text

  keys             magnitudes become integers of the same order
  counts           the rank m + 1, and how many keys reach a probe
  bracket          what is known of the answer, and how a count narrows it
  rows             arrays as matrices of 512 columns
  sample           where the search begins
  passes           a read of everything: counts, and the few keys that are left
  shards           sums over the devices that hold the shards of an array
  order_statistic  which of all that happens where the arrays are

>>> import jax.numpy as jnp
>>> from optax_clip._threshold import threshold
>>> gradient = [jnp.array([1.0, -8.0]), jnp.array([3.0, 2.0])]
>>> found = threshold(gradient, [0, 0], 0.25)   # the second largest of all four
>>> float(found.value[0]), float(found.clipped_fraction[0])
(3.0, 0.25)
"""

from optax_clip._threshold.order_statistic import Threshold as Threshold
from optax_clip._threshold.order_statistic import largest as largest
from optax_clip._threshold.order_statistic import threshold as threshold
