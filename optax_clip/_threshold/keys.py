"""Floats as integers of the same order.

A non-negative float orders like its bit pattern read as an integer: its *key*. Keys
compare exactly where a backend's floats would not: subnormal numbers count, and NaN is
merely larger than infinity.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def common_dtype(arrays: Sequence[jax.Array]) -> jnp.dtype:
    """Returns the smallest float type that holds all numbers of the arrays exactly."""
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) == 1:
        return dtypes.pop()
    wide = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def magnitude_key(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the bit patterns of ``|array|`` in ``dtype``: integers of its order."""
    bits = lax.bitcast_convert_type(widen(array, dtype), _signed(dtype))
    return (bits & _all_but_the_sign(dtype)).astype(key_dtype(dtype))


def clip_magnitude(array: jax.Array, limit: jax.Array) -> jax.Array:
    """Returns the array with no magnitude above a limit of its type, NaN as it is.

    By bits: arithmetic could flush a subnormal number. A comparison, a sign and a
    choice would be more instructions.
    """
    dtype = array.dtype
    bits = lax.bitcast_convert_type(array, _signed(dtype))
    most = lax.bitcast_convert_type(limit, _signed(dtype))
    key = bits & _all_but_the_sign(dtype)
    infinity = jnp.asarray(infinity_key(dtype), key.dtype)
    clipped = lax.select(key <= infinity, jnp.minimum(key, most), key)
    return lax.bitcast_convert_type(bits ^ key ^ clipped, dtype)


def infinity_key(dtype: jnp.dtype) -> int:
    """Returns the key of infinity: NaN's keys, and only they, are larger."""
    info = jnp.finfo(dtype)
    return ((1 << info.nexp) - 1) << info.nmant


def key_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of keys."""
    return jnp.dtype(jnp.int64 if jnp.finfo(dtype).bits == 64 else jnp.int32)


def unsigned(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of bit patterns."""
    return jnp.dtype(f"uint{jnp.finfo(dtype).bits}")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def convert(magnitude: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Converts a magnitude to any float type, keeping subnormal numbers."""
    wider = jnp.finfo(dtype).bits > jnp.finfo(magnitude.dtype).bits
    return (widen if wider else narrow)(magnitude, dtype)


@convert.defjvp
def _convert_tangent(dtype, primals, tangents):
    return convert(primals[0], dtype), tangents[0].astype(dtype)


def widen(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Converts to a wider float type, exactly.

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
    magnitude = magnitude_key(array, array.dtype)
    unit = math.ldexp(1.0, source.minexp - source.nmant)
    subnormal = magnitude.astype(dtype) * jnp.asarray(unit, dtype)
    return jnp.where(magnitude < (1 << source.nmant), subnormal, array.astype(dtype))


def narrow(magnitude: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rounds a magnitude to a narrower float type, keeping subnormal numbers."""
    source, info = jnp.finfo(magnitude.dtype), jnp.finfo(dtype)
    if magnitude.dtype == dtype:
        return magnitude
    if source.nexp == info.nexp:  # float32 to bfloat16: round half to even, cut
        # Not by a conversion: AVX-512 has one, and it flushes subnormal numbers.
        bits = lax.bitcast_convert_type(magnitude, unsigned(magnitude.dtype))
        shift = source.bits - info.bits
        half = ((bits >> shift) & 1) + ((1 << (shift - 1)) - 1)
        bits = ((bits + half) >> shift).astype(unsigned(dtype))
        return lax.bitcast_convert_type(bits, dtype)
    unit = math.ldexp(1.0, info.minexp - info.nmant)
    units = jnp.round(magnitude / jnp.asarray(unit, magnitude.dtype))
    is_subnormal = units <= (1 << info.nmant)  # or the first normal number
    units = jnp.where(is_subnormal, units, 0).astype(unsigned(dtype))
    subnormal = lax.bitcast_convert_type(units, dtype)
    return jnp.where(is_subnormal, subnormal, magnitude.astype(dtype))


def _signed(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of bit patterns whose order a comparison knows."""
    return jnp.dtype(f"int{jnp.finfo(dtype).bits}")


def _all_but_the_sign(dtype: jnp.dtype) -> jax.Array:
    """Returns the pattern that a magnitude may have set."""
    return jnp.asarray((1 << (jnp.finfo(dtype).bits - 1)) - 1, _signed(dtype))
