"""Counts and ranks of more than 2^31 coordinates, in 32-bit integers."""

import fractions
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip._keys import unsigned


class Count(NamedTuple):
    """A non-negative integer below 2^47 as ``high * 2^16 + low``, without x64."""

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, number: jax.Array) -> "Count":
        """Split integers below 2^32."""
        number = number.astype(jnp.uint32)
        return cls(
            (number >> 16).astype(jnp.int32), (number & 0xFFFF).astype(jnp.int32)
        )

    def carried(self) -> "Count":
        """Move what has outgrown the low word into the high one."""
        return Count(self.high + (self.low >> 16), self.low & 0xFFFF)

    @classmethod
    def exactly(cls, number: int) -> "Count":
        """A Python integer."""
        return cls(jnp.int32(number >> 16), jnp.int32(number & 0xFFFF))

    def plus(self, other: "Count") -> "Count":
        """``self + other``."""
        return Count(self.high + other.high, self.low + other.low).carried()

    def minus(self, other: "Count") -> "Count":
        """``self - other``, which must not be negative."""
        return Count(self.high - other.high, self.low - other.low).carried()

    def exceeds(self, other: "Count") -> jax.Array:
        """Whether ``self > other``."""
        above = self.high > other.high
        return above | ((self.high == other.high) & (self.low > other.low))

    def as_float(self) -> jax.Array:
        """The number rounded to float32."""
        return self.high.astype(jnp.float32) * 2.0**16 + self.low.astype(jnp.float32)

    def total(self, groups: Sequence[int], number: int) -> "Count":
        """The sums of the rows of each of so many groups."""

        def add(word):
            zeros = jnp.zeros((number, *word.shape[1:]), jnp.int32)
            return zeros.at[jnp.asarray(groups)].add(word)

        return self.map(add).carried()

    def map(self, function) -> "Count":
        """Apply ``function`` to both words."""
        return Count(function(self.high), function(self.low))


# So that multiples of 1/1024 are exact at any size, and decimals up to 10,000.
_LARGEST_ERROR = fractions.Fraction(3, 2**12)


def rank(fraction: jax.Array | float, size: int) -> Count:
    """``min(floor(fraction * size), size - 1)``.

    The product is exact. But a fraction has a rounding error of its own: where the
    product is within that below an integer, the integer is meant (0.29 of 100 is 29).
    """
    last = max(size - 1, 0)
    if not isinstance(fraction, jax.core.Tracer):
        double = np.asarray(fraction).dtype == np.float64
        product = fractions.Fraction(float(fraction)) * size
        error = product / 2**53 if double else min(product / 2**24, _LARGEST_ERROR)
        return Count.exactly(min(max(math.floor(product + error), 0), last))
    fraction = jnp.clip(fraction, 0.0, 1.0)
    if fraction.dtype != jnp.float64:
        fraction = fraction.astype(jnp.float32)
    product, limit = _product(fraction, size), Count.exactly(last)
    too_large = product.exceeds(limit)
    return jax.tree.map(functools.partial(jnp.where, too_large), limit, product)


def stack(counts: Sequence[Count]) -> Count:
    """A vector of scalar counts."""
    return Count(*map(jnp.stack, zip(*counts, strict=True)))


def _product(fraction: jax.Array, size: int) -> Count:
    """``floor(fraction * size)``, by exact products of 12-bit pieces."""
    dtype = fraction.dtype
    bits = lax.bitcast_convert_type(fraction, unsigned(dtype))
    half = jnp.finfo(dtype).nmant // 2 + 1
    leading = lax.bitcast_convert_type(bits >> half << half, dtype)
    high = low = jnp.zeros((), jnp.int32)
    rest = jnp.zeros((), dtype)
    for shift in range(0, max(size.bit_length(), 1), 12):
        piece = jnp.asarray(float(((size >> shift) & 0xFFF) << shift), dtype)
        for part in (leading, fraction - leading):
            product = part * piece  # exact: at most 24 bits in float32
            upper = jnp.floor(product * 2.0**-16)
            lower = product - upper * 2.0**16
            high += upper.astype(jnp.int32)
            low += jnp.floor(lower).astype(jnp.int32)
            rest += lower - jnp.floor(lower)
    error = fraction * float(size) * (jnp.finfo(dtype).eps / 2)
    rest = jnp.floor(rest + jnp.minimum(error, float(_LARGEST_ERROR)))
    return Count(high, low + rest.astype(jnp.int32)).carried()
