"""Losses with known or dense Hessians, and the naive formulas in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

VOCABULARY, LENGTH, WIDTH, HEADS = 7, 5, 4, 2


def transformer_params(rng, dtype=jnp.float32):
    """One pre-norm layer with tied embeddings, as plain arrays."""

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)

    return {
        "embedding": normal(VOCABULARY, WIDTH) * 2,
        "attention": {name: normal(WIDTH, WIDTH) for name in ("q", "k", "v", "o")},
        "mlp": [normal(WIDTH, 2 * WIDTH), normal(2 * WIDTH, WIDTH)],
        "norm": {"scale": jnp.ones(WIDTH, dtype), "bias": normal(WIDTH) / 10},
    }


def layer_norm(x_BxTxD, scale, bias):
    x = x_BxTxD - x_BxTxD.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale + bias


def transformer_loss(params, batch):
    """Mean cross-entropy of the next token over the tokens of nonzero mask."""
    tokens_BxT, mask_BxT = batch["tokens"], batch["mask"][:, 1:]
    x_BxTxD = params["embedding"][tokens_BxT[:, :-1]]
    scale, bias = (params["norm"][name][None, None] for name in ("scale", "bias"))
    y_BxTxD = layer_norm(x_BxTxD, scale, bias)

    def heads(kernel):
        y = y_BxTxD @ kernel
        return y.reshape(*y.shape[:2], HEADS, -1)

    q, k, v = (heads(params["attention"][name]) for name in "qkv")
    scores_BxHxTxT = jnp.einsum("bthd,bshd->bhts", q, k)
    causal = jnp.tril(jnp.ones(scores_BxHxTxT.shape[-2:], bool))
    weights = jax.nn.softmax(
        jnp.where(causal[None, None], scores_BxHxTxT, -1e4), axis=-1
    )
    mixed = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x_BxTxD.shape)
    x_BxTxD += mixed @ params["attention"]["o"]
    x_BxTxD += jax.nn.gelu(x_BxTxD @ params["mlp"][0]) @ params["mlp"][1]
    logits_BxTxV = x_BxTxD @ params["embedding"].T
    log_p = jax.nn.log_softmax(logits_BxTxV)
    picked = jnp.take_along_axis(log_p, tokens_BxT[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(picked * mask_BxT) / jnp.sum(mask_BxT)


def waves(x, batch):
    """A light loss that mixes all parameters: the weighted mean over rows."""
    y = jnp.tanh(batch["rows"] @ x["w"]) + x["b"][None]
    losses = jnp.mean(jnp.sin(y) * y, axis=1)
    return jnp.sum(losses * batch["mask"]) / jnp.sum(batch["mask"])


def tokens(batch):
    """The weight that makes parts of a batch add up to the batch."""
    return jnp.sum(batch["mask"])


def draw_waves(rng, dtype=jnp.float32):
    """Parameters, a direction and a batch for `waves`."""
    x, u = ({"w": rng.normal(size=(4, 8)), "b": rng.normal(size=8)} for _ in range(2))
    batch = {"rows": rng.normal(size=(8, 4)), "mask": 1 + rng.permutation(8)}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (x, u, batch))


def text(rng, rows=8, dtype=jnp.float32):
    """A batch whose rows have different numbers of tokens."""
    lengths = rng.integers(2, LENGTH + 1, size=(rows, 1))
    return {
        "tokens": jnp.asarray(rng.integers(0, VOCABULARY, size=(rows, LENGTH))),
        "mask": jnp.asarray(np.arange(LENGTH)[None] < lengths, dtype),
    }


def like(rng, params):
    """A random direction."""
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params
    )


def dense(loss, params, *args):
    """Loss, gradient and Hessian over the flat parameters, as NumPy arrays."""
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def derivatives(x, *args):
        def f(x):
            return loss(unravel(x), *args)

        return f(x), jax.grad(f)(x), jax.hessian(f)(x)

    return tuple(np.asarray(d, np.float64) for d in derivatives(flat, *args))


def flat(tree):
    """The flat NumPy float64 vector of a tree."""
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def quadratic(x, diagonal):
    """Half of x^T diag(a) x over a pytree: the Hessian is diag(a)."""
    terms = jax.tree.map(lambda x, a: jnp.sum(a * x * x) / 2, x, diagonal)
    return sum(jax.tree.leaves(terms))
