"""Floats as integers of the same order.

A non-negative float orders like its bit pattern read as an integer: its *key*. Keys
compare exactly where a backend's floats would not: subnormal numbers count, and NaN is
merely larger than infinity.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def common_dtype(arrays: Sequence[jax.Array]) -> jnp.dtype:
    """The smallest float type that holds all numbers of the arrays exactly."""
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) == 1:
        return dtypes.pop()
    wide = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def magnitude_key(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The bit patterns of ``|array|`` in ``dtype``: integers that order like it."""
    bits = lax.bitcast_convert_type(widen(array, dtype), unsigned(dtype))
    bits = bits & ~jnp.asarray(_sign_bit(dtype), bits.dtype)
    return bits.astype(key_dtype(dtype))


def infinity_key(dtype: jnp.dtype) -> int:
    """The key of infinity: NaN's keys, and only they, are larger."""
    info = jnp.finfo(dtype)
    return ((1 << info.nexp) - 1) << info.nmant


def key_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type of keys."""
    return jnp.dtype(jnp.int64 if jnp.finfo(dtype).bits == 64 else jnp.int32)


def unsigned(dtype: jnp.dtype) -> jnp.dtype:
    """The type of bit patterns."""
    return jnp.dtype(f"uint{jnp.finfo(dtype).bits}")


def widen(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Convert to a wider float type, exactly.

    A backend may flush subnormal numbers to zero when it converts; their mantissas,
    read as integers and scaled, are safe.
    """
    source = jnp.finfo(array.dtype)
    if array.dtype == dtype:
        return array
    if source.nexp == jnp.finfo(dtype).nexp:  # bfloat16 to float32: append zeros
        bits = lax.bitcast_convert_type(array, unsigned(array.dtype))
        shift = jnp.finfo(dtype).bits - source.bits
        return lax.bitcast_convert_type(bits.astype(unsigned(dtype)) << shift, dtype)
    bits = lax.bitcast_convert_type(array, unsigned(array.dtype))
    magnitude = (bits & ~jnp.asarray(_sign_bit(array.dtype), bits.dtype)).astype(
        jnp.int32
    )
    unit = math.ldexp(1.0, source.minexp - source.nmant)
    subnormal = magnitude.astype(dtype) * jnp.asarray(unit, dtype)
    return jnp.where(magnitude < (1 << source.nmant), subnormal, array.astype(dtype))


def narrow(magnitude: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Round to a narrower float type, keeping subnormal numbers."""
    info = jnp.finfo(dtype)
    if info.nexp == jnp.finfo(magnitude.dtype).nexp:
        return magnitude.astype(dtype)
    unit = math.ldexp(1.0, info.minexp - info.nmant)
    units = jnp.round(magnitude / jnp.asarray(unit, magnitude.dtype))
    is_subnormal = units <= (1 << info.nmant)  # or the first normal number
    units = jnp.where(is_subnormal, units, 0).astype(unsigned(dtype))
    subnormal = lax.bitcast_convert_type(units, dtype)
    return jnp.where(is_subnormal, subnormal, magnitude.astype(dtype))


def _sign_bit(dtype: jnp.dtype) -> int:
    return 1 << (jnp.finfo(dtype).bits - 1)
