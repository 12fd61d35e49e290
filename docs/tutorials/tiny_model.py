"""What the tutorials train: a transformer of one block on made-up text.

The text is as uneven as real text is: its words are drawn by Zipf's law, the first of
512 words 512 times as often as the last. Every second word, however, is determined by
the word before it. This can be learned.
"""

import functools

import jax
import jax.numpy as jnp

VOCABULARY, WIDTH, LENGTH, BATCH = 512, 32, 16, 32


@functools.partial(jax.jit, static_argnames="size")
def batch_at(step, size=BATCH):
    """Word numbers of shape (size, LENGTH + 1), the same ones for the same step."""
    key = jax.random.fold_in(jax.random.key(1), step)
    draw, toss = jax.random.split(key)
    zipf = jnp.cumsum(1 / jnp.arange(1, VOCABULARY + 1))
    chance = jax.random.uniform(draw, (LENGTH + 1, size)) * zipf[-1]
    drawn = jnp.searchsorted(zipf, chance, method="compare_all")
    follows = jax.random.bernoulli(toss, 0.5, (LENGTH + 1, size))

    def write(word, chance):
        drawn, follows = chance
        word = jnp.where(follows, (word * 7 + 3) % VOCABULARY, drawn)
        return word, word

    _, words = jax.lax.scan(write, drawn[0], (drawn, follows))
    return words.T


@jax.jit
def init_params(seed=0):
    """A tree of nine arrays with 44,096 parameters."""
    shapes = {
        "embedding": (VOCABULARY, WIDTH),
        "attention": dict.fromkeys(("query", "key", "value"), (WIDTH, WIDTH)),
        "feed_forward": {"in": (WIDTH, 4 * WIDTH), "out": (4 * WIDTH, WIDTH)},
        "head": (WIDTH, VOCABULARY),
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: type(x) is tuple)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    params = structure.unflatten(
        jax.random.normal(k, shape) / shape[0] ** 0.5
        for k, shape in zip(keys, leaves, strict=True)
    )
    params["embedding"] *= VOCABULARY**0.5  # of unit size, as in a transformer
    params["norm"] = {"attention": jnp.ones(WIDTH), "feed_forward": jnp.ones(WIDTH)}
    return params


def loss(params, batch):
    """Mean cross-entropy of the next word; there is no dropout."""
    words, targets = batch[:, :-1], batch[:, 1:]
    x = params["embedding"][words]
    x = x + attend(params["attention"], norm(params["norm"]["attention"], x))
    x = x + feed(params["feed_forward"], norm(params["norm"]["feed_forward"], x))
    logits = x @ params["head"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -chosen.mean()


def norm(gain, x):
    """Root-mean-square norm."""
    return gain * x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def attend(params, x):
    """Causal attention of one head."""
    query, key, value = (x @ params[name] for name in ("query", "key", "value"))
    scores = query @ key.swapaxes(-1, -2) / WIDTH**0.5
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    return jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)) @ value


def feed(params, x):
    """Two layers, applied to every word."""
    return jax.nn.relu(x @ params["in"]) @ params["out"]
