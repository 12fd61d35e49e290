"""The rank of a threshold, and how many keys of whole arrays reach a probe.

Counts are int64, also where JAX is set to 32 bits: a model may have more than 2^31
coordinates. `wide` is the context in which they can be computed.
"""

import fractions
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip._threshold.keys import key_dtype, magnitude_key, unsigned
from optax_clip._threshold.shards import Shards

wide = functools.partial(jax.enable_x64, True)
"""In this context NumPy's 64-bit types are left alone, so dtypes must be explicit."""

# So that multiples of 1/1024 are exact at any size, and decimals up to 10,000.
_LARGEST_ERROR = fractions.Fraction(3, 2**12)


def rank(fraction: jax.Array | float, size: int | jax.Array) -> int | jax.Array:
    """Returns ``min(floor(fraction * size), size - 1)``, and 0 for a size of 0.

    The product is exact. But a fraction has a rounding error of its own: where the
    product is within that below an integer, the integer is meant (0.29 of 100 is 29).

    Args:
      fraction: a Python number in ``[0, 1)``, or a float array, clamped to the range.
      size: a Python integer, or an array of them.
    """
    traced = isinstance(fraction, jax.Array)
    double = (fraction if traced else np.asarray(fraction)).dtype == np.float64
    if isinstance(size, int) and not traced:
        product = fractions.Fraction(float(fraction)) * size
        error = product / 2**53 if double else min(product / 2**24, _LARGEST_ERROR)
        return min(max(math.floor(product + error), 0), max(size - 1, 0))
    given = jnp.asarray(fraction, jnp.float64 if traced and double else jnp.float32)
    with wide():
        number = jnp.asarray(size, jnp.int64)
        if double and not traced:
            product = _product_of_known(float(fraction), number)
        else:
            product = _product(jnp.clip(given, 0, 1), number)
        return jnp.minimum(product, jnp.maximum(number - 1, 0))


def _product_of_known(fraction: float, size: jax.Array) -> jax.Array:
    """Returns the same for a fraction that is known, in integers: TPUs have no doubles.

    The fraction is ``n / 2^e``; with ``n = high 2^27 + low`` all is below 2^63, for
    sizes below 2^36. The last bit of ``n`` is half of the fraction's own rounding.
    """
    mantissa, exponent = math.frexp(fraction)
    high, low = divmod(int(mantissa * 2**54) + 1, 2**27)
    return (high * size + (low * size >> 27)) >> min(27 - exponent, 63)


def _product(fraction: jax.Array, size: jax.Array) -> jax.Array:
    """Returns ``floor(fraction * size)``, by exact products of 12-bit pieces."""
    dtype = fraction.dtype
    bits = lax.bitcast_convert_type(fraction, unsigned(dtype))
    half = jnp.finfo(dtype).nmant // 2 + 1
    leading = lax.bitcast_convert_type(bits >> half << half, dtype)
    whole, rest = jnp.zeros(size.shape, jnp.int64), jnp.zeros(size.shape, dtype)
    for shift in range(0, 48, 12):
        piece = ((size >> shift) & 0xFFF).astype(dtype)
        for part in (leading, fraction - leading):
            product = part * piece  # exact: at most 24 bits in float32
            scaled = product * 2.0**shift
            # The units, and what is below them, of a number with 24 bits.
            units = jnp.floor(scaled)
            whole += units.astype(jnp.int64)
            rest += scaled - units
    error = fraction * size.astype(dtype) * (float(jnp.finfo(dtype).eps) / 2)
    error = jnp.minimum(error, float(_LARGEST_ERROR))
    return whole + jnp.floor(rest + error).astype(jnp.int64)


def count_arrays(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    probes: jax.Array,
    dtype: jnp.dtype,
    shards: Shards,
) -> jax.Array:
    """Returns how many magnitudes of each group reach each of its probes.

    One reduction an array and probe, which a partitioner splits wherever the arrays
    are: it places the sums over devices, so that no array needs to be moved.

    Args:
      arrays: floating-point arrays.
      groups: the group of each.
      probes: keys of shape ``(groups, n)``.
      dtype: the floating-point type that the keys are made in.
      shards: the manual axes that the arrays are split over.

    Returns:
      int64, of the shape of the probes.
    """
    # Or XLA would compute the keys before the loop, and store them.
    probes = probes.astype(key_dtype(dtype))
    held, probes = lax.optimization_barrier((list(arrays), probes))
    # What is likely to be split alike comes together: such arrays XLA for GPU and TPU
    # may add up before it adds up devices, so that less crosses.
    kinds = [(-array.ndim, -array.size) for array in arrays]
    sums: list[list[jax.Array]] = []
    members: list[int] = []
    latest: dict[int, tuple[int, int]] = {}  # the sum of a group, and what fits in yet
    for i in sorted(range(len(arrays)), key=kinds.__getitem__):
        group = groups[i]
        keys = magnitude_key(held[i], dtype)
        # A partitioner would gather the partial results of one reduction with several
        # operands, and may move a whole array for one along an axis of probes.
        counts = [jnp.sum(keys >= probe, dtype=jnp.uint32) for probe in probes[group]]
        counts = [shards.once(shards.split[i], count, 0) for count in counts]
        place, room = latest.get(group, (0, -1))
        if arrays[i].size <= room:
            sums[place] = [a + b for a, b in zip(sums[place], counts, strict=True)]
        else:
            place, room = len(sums), 2**32 - 1
            sums.append(counts)
            members.append(group)
        latest[group] = place, room - arrays[i].size
    rows = jnp.stack([*map(jnp.stack, sums)])
    return shards.sum(total(rows, members, len(probes)))


def total(counts: jax.Array, groups: Sequence[int], number: int) -> jax.Array:
    """Returns the sums of the rows of each of so many groups, in int64."""
    counts = counts.astype(jnp.int64)
    if [*groups] == [*range(number)]:
        return counts
    if number == 1:
        return jnp.sum(counts, axis=0, keepdims=True)
    zeros = jnp.zeros((number, *counts.shape[1:]), jnp.int64)
    return zeros.at[jnp.asarray(groups, jnp.int32)].add(counts)
