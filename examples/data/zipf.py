"""The task of the small examples: score bags of words, most of which are rare.

Word frequencies follow Zipf's law, as in text, so a few coordinates of every gradient
are far larger than the others: the case that clipping coordinates is made for.
"""

import jax
import jax.numpy as jnp

WORDS = 256


def batch_at(
    step: jax.typing.ArrayLike, size: int = 64, length: int = 16
) -> tuple[jax.Array, jax.Array]:
    """Word counts x_BxW and scores y_B, the same ones for the same step."""
    ranks = jnp.arange(1, WORDS + 1)
    key = jax.random.fold_in(jax.random.key(0), step)
    words_BxL = jax.random.categorical(key, -jnp.log(ranks), shape=(size, length))
    x_BxW = jax.nn.one_hot(words_BxL, WORDS).sum(axis=1)
    worth_W = jnp.cos(1.7 * ranks)
    return x_BxW, x_BxW @ worth_W / 2
