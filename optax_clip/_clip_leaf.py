"""One leaf, clipped to its threshold."""

import jax
import jax.numpy as jnp

from optax_clip._threshold.keys import (
    clip_magnitude,
    common_dtype,
    convert,
    infinity_key,
    magnitude_key,
)
from optax_clip._trees import promoted


def magnitude(leaf: jax.Array) -> jax.Array:
    """Returns what is compared with a threshold: a real leaf, or a modulus.

    The sign of a real leaf does not matter. Types of less than 16 bits, of which some
    have no infinity, are widened.
    """
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        return jnp.abs(leaf)
    return leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 16 else leaf


def exceeds(size: jax.Array, tau: jax.Array) -> jax.Array:
    """Returns whether ``|size| > tau``, and not NaN, as the threshold was counted."""
    dtype = common_dtype([size, tau])
    key = magnitude_key(size, dtype)
    return (key > magnitude_key(tau, dtype)) & (key <= infinity_key(dtype))


@jax.jit  # leaves of one shape are traced once
def clip_to(leaf: jax.Array, tau: jax.Array) -> jax.Array:
    """Replaces what exceeds ``tau`` by ``tau`` itself, with its own sign or phase."""
    size = magnitude(leaf)
    if jnp.iscomplexobj(leaf):
        limit = _phase(leaf) * tau.astype(size.dtype).astype(leaf.dtype)
        return jnp.where(exceeds(size, tau), limit, leaf)
    return _clip_real(size, tau).astype(leaf.dtype)


@jax.custom_jvp
def _clip_real(leaf: jax.Array, tau: jax.Array) -> jax.Array:
    # What exceeds tau exceeds what tau is rounded to, or is that: no number of the
    # leaf's type is between the two.
    return clip_magnitude(leaf, convert(tau, leaf.dtype))


@_clip_real.defjvp
def _clip_real_tangent(primals: tuple, tangents: tuple) -> tuple:
    (leaf, tau), (move, tau_move) = primals, tangents
    follows = jnp.sign(leaf) * tau_move.astype(leaf.dtype)
    tangent = jnp.where(exceeds(leaf, tau), follows, move)
    return _clip_real(leaf, tau), tangent


@jax.jit
def scale_down(leaf: jax.Array, tau: jax.Array, reference: jax.Array) -> jax.Array:
    """Returns ``leaf tau / |reference|`` where the reference exceeds ``tau``."""
    size = magnitude(reference)
    above = exceeds(size, tau)
    wide = promoted(tau.dtype, size.dtype, jnp.float32)
    # Not 0 elsewhere, or the derivative would be NaN there; and not the quotient of
    # the magnitudes first, which underflows.
    divisor = jnp.where(above, jnp.abs(size).astype(wide), 1)
    common = promoted(leaf.dtype, wide)
    scaled = leaf.astype(common) / divisor.astype(common) * tau.astype(common)
    return jnp.where(above, scaled.astype(leaf.dtype), leaf)


def _phase(z: jax.Array) -> jax.Array:
    """Returns ``z / |z|``, also where the modulus overflows."""
    largest = jnp.maximum(jnp.abs(z.real), jnp.abs(z.imag))
    infinite = jnp.isinf(largest)
    half = jnp.where(infinite | (largest == 0), 1, largest / 2)

    def scaled(x):
        at_infinity = jnp.where(jnp.isinf(x), jnp.sign(x), 0)
        return jnp.where(infinite, at_infinity, x / 2 / half)

    x, y = scaled(z.real), scaled(z.imag)
    # 1 for a zero, which is clipped nowhere: no NaN, not even in a derivative.
    length = jnp.sqrt(jnp.where(largest == 0, 1, jnp.square(x) + jnp.square(y)))
    return jax.lax.complex(x / length, y / length)
