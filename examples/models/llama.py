"""Llama, the decoder of Touvron et al. (2023), used functionally as T5 is.

    graphdef, params = init(config, seed=0)
    loss = make_loss(graphdef, config)
    grads = jax.jit(jax.grad(loss))(params, {"ids": ids_BxL, "labels": labels_BxL})

Llama 1 and 2, TinyLlama, SmolLM2 and others are this model in different sizes. It has
no dropout. Computation follows the dtype of the weights; softmax and cross-entropy use
float32 at least.

Shapes are in the names: B batch, T tokens, L everything attended to, D hidden_size,
G key-value heads, R queries of each, K head_dim, F intermediate_size, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.models import functional
from examples.models.encoder import IGNORED
from examples.models.functional import Array, Embed, KeysValues, Params


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches, named as on Hugging Face; the defaults are SmolLM2-135M."""

    vocab_size: int = 49152
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int = 3
    head_dim: int = 64
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e5
    tie_word_embeddings: bool = True
    eos_token_id: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            number = field.type in (int, float) and field.name != "eos_token_id"
            if number and getattr(self, field.name) <= 0:
                self._refuse(field.name, "positive")
        if self.num_attention_heads % self.num_key_value_heads:
            groups = f"num_key_value_heads={self.num_key_value_heads}"
            self._refuse("num_attention_heads", f"a multiple of {groups}")
        if self.head_dim % 2:
            self._refuse("head_dim", "even, as positions turn pairs of coordinates")

    def _refuse(self, name: str, expected: str) -> None:
        got = getattr(self, name)
        raise ValueError(f"LlamaConfig: {name} must be {expected}, got {got!r}.")


def init(config: LlamaConfig, seed: int | Array) -> tuple[nnx.GraphDef, Params]:
    """Fresh float32 weights of standard deviation 0.02; `seed` may be traced."""
    return functional.split(Llama(config, functional.rngs(seed)))


def make_loss(graphdef: nnx.GraphDef, config: LlamaConfig) -> Callable[..., Array]:
    """`loss(params, batch, dropout_key=None)`: mean cross-entropy per label.

    `batch` holds int32 arrays `ids` BxL and `labels` BxL: the id to predict at each
    position, or `IGNORED`. Rows are padded at the end with any id and `IGNORED`, and
    need no mask, as nothing looks ahead. A batch without labels has loss 0. Ids outside
    the vocabulary are not checked and give NaN.
    """
    del config  # the model has it; every model's `make_loss` is called alike

    def loss(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        del dropout_key
        logits_BxLxV = nnx.merge(graphdef, params)(batch["ids"])
        labels_BxL = batch["labels"]
        given_BxL = labels_BxL != IGNORED
        return functional.mean_cross_entropy(logits_BxLxV, labels_BxL, given_BxL)

    return loss


def greedy_decode(
    graphdef: nnx.GraphDef, params: Params, ids_BxL: Array, lengths_B: Array
) -> Array:
    """The first `lengths_B` ids of each row, and the likeliest token at each step.

    A row is filled up with eos after one that it was not given, and the loop ends when
    every row has one. Under `jax.jit` the argument `graphdef` is static.
    """
    model = nnx.merge(graphdef, params)
    config, (B, L), eos = model.config, ids_BxL.shape, model.config.eos_token_id

    def unfinished(state):
        position, _, done_B, _ = state
        return (position < L - 1) & ~done_B.all()

    def step(state):
        position, ids_BxL, done_B, cache = state
        token_Bx1 = jax.lax.dynamic_slice_in_dim(ids_BxL, position, 1, axis=1)
        y_Bx1xD, cache = model.extend(token_Bx1, cache, position)
        best_B = model.logits(y_Bx1xD)[:, 0].argmax(-1).astype(ids_BxL.dtype)
        given_B = position + 1 < lengths_B
        next_B = jnp.where(given_B, ids_BxL[:, position + 1], best_B)
        next_B = jnp.where(done_B, eos, next_B)
        done_B |= ~given_B & (next_B == eos)
        return position + 1, ids_BxL.at[:, position + 1].set(next_B), done_B, cache

    given_BxL = jnp.arange(L)[None] < lengths_B[:, None]
    shape = B, L, config.num_key_value_heads, config.head_dim
    empty = jnp.zeros(shape, model.embed.embedding[...].dtype)
    cache = [(empty, empty)] * config.num_hidden_layers
    start = 0, jnp.where(given_BxL, ids_BxL, eos), jnp.zeros(B, bool), cache
    return jax.lax.while_loop(unfinished, step, start)[1]


class Llama(nnx.Module):
    """Embedding, layers, and an output that may be the embedding again."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(config.vocab_size, config.hidden_size, 0.02, rngs)
        depth = config.num_hidden_layers
        self.layers = nnx.List(Layer(config, rngs) for _ in range(depth))
        self.norm = _norm(config, rngs)
        if not config.tie_word_embeddings:
            self.head = _linear(config.hidden_size, config.vocab_size, rngs)

    def __call__(self, ids_BxT: Array) -> Array:
        """Logits_BxTxV of the token after each of `ids_BxT`."""
        return self.logits(self.extend(ids_BxT)[0])

    def extend(
        self,
        ids_BxT: Array,
        cache: list[KeysValues] | None = None,
        position: int | Array = 0,
    ) -> tuple[Array, list[KeysValues]]:
        """What the last layer says at each of `ids_BxT`, and all keys and values.

        With a `cache` of keys and values of length L, `ids_BxT` continues a sequence at
        `position`; without one it is the whole sequence, and L = T.
        """
        T, most = ids_BxT.shape[1], self.config.max_position_embeddings
        L = T if cache is None else cache[0][0].shape[1]
        if most < L:
            raise ValueError(f"Llama: expected at most {most} ids in a row, got {L}.")
        y_BxTxD = self.embed(ids_BxT)
        turn = rotation(self.config, L, y_BxTxD.dtype)
        turn, mask_TxL = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, position, T, axis=0),
            (turn, jnp.tri(L, dtype=bool)),
        )
        caches = []
        for i, layer in enumerate(self.layers):
            h_BxTxD = layer.attention_norm(y_BxTxD)
            keys_values = layer.attention.keys_values(h_BxTxD, turn)
            if cache is not None:
                keys_values = functional.write(cache[i], keys_values, position)
            caches.append(keys_values)
            y_BxTxD += layer.attention(h_BxTxD, keys_values, turn, mask_TxL)
            y_BxTxD += layer.feed_forward(layer.feed_forward_norm(y_BxTxD))
        return self.norm(y_BxTxD), caches

    def logits(self, y_BxTxD: Array) -> Array:
        tied = self.config.tie_word_embeddings
        return self.embed.attend(y_BxTxD) if tied else self.head(y_BxTxD)


class Layer(nnx.Module):
    """The weights of one layer; `Llama` says how they are used."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = _norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)


class Attention(nnx.Module):
    """Grouped-query attention: R heads of queries share one of keys and values."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config
        D, K = config.hidden_size, config.head_dim
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        self.query = _linear(D, queries * K, rngs)
        self.key, self.value = (
            _linear(D, groups * K, rngs),
            _linear(D, groups * K, rngs),
        )
        self.output = _linear(queries * K, D, rngs)

    def heads(self, y_BxTxHK: Array) -> Array:
        return y_BxTxHK.reshape(*y_BxTxHK.shape[:2], -1, self.config.head_dim)

    def keys_values(self, y_BxTxD: Array, turn: KeysValues) -> KeysValues:
        k_BxTxGxK, v_BxTxGxK = map(self.heads, (self.key(y_BxTxD), self.value(y_BxTxD)))
        return rotate(k_BxTxGxK, turn), v_BxTxGxK

    def __call__(
        self, y_BxTxD: Array, keys_values: KeysValues, turn: KeysValues, mask_TxL: Array
    ) -> Array:
        k_BxLxGxK, v_BxLxGxK = keys_values
        q_BxTxHxK = rotate(self.heads(self.query(y_BxTxD)), turn)
        B, T, H, K = q_BxTxHxK.shape
        G = self.config.num_key_value_heads
        q_BxTxGxRxK = (q_BxTxHxK * K**-0.5).reshape(B, T, G, H // G, K)
        att_BxGxRxTxL = jnp.einsum("btgrk,blgk->bgrtl", q_BxTxGxRxK, k_BxLxGxK)
        mask = mask_TxL[None, None, None]
        att_BxGxRxTxL = functional.attend(att_BxGxRxTxL, mask, y_BxTxD.dtype)
        y_BxTxGxRxK = jnp.einsum("bgrtl,blgk->btgrk", att_BxGxRxTxL, v_BxLxGxK)
        return self.output(y_BxTxGxRxK.reshape(B, T, H * K))


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.gate, self.input = _linear(D, F, rngs), _linear(D, F, rngs)
        self.output = _linear(F, D, rngs)

    def __call__(self, y_BxTxD: Array) -> Array:
        return self.output(jax.nn.silu(self.gate(y_BxTxD)) * self.input(y_BxTxD))


def rotation(config: LlamaConfig, length: int, dtype: jnp.dtype) -> KeysValues:
    """Cosine and sine LxK/2 of the angle by which position l turns pair i of a head."""
    pairs = np.arange(0, config.head_dim, 2) / config.head_dim
    angle = np.arange(length)[:, None] * config.rope_theta ** -pairs[None]  # float64
    return jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)


def rotate(y_BxTxHxK: Array, turn: KeysValues) -> Array:
    """Turns the pairs (i, i + K/2) of every head by the angle of its position."""
    cos_TxI, sin_TxI = (x[None, :, None] for x in turn)
    a, b = jnp.split(y_BxTxHxK, 2, axis=-1)
    parts = a * cos_TxI - b * sin_TxI, b * cos_TxI + a * sin_TxI
    return jnp.concatenate(parts, axis=-1)


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return functional.linear(inputs, outputs, 0.02, rngs)


def _norm(config: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
