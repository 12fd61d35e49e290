"""T5, the encoder-decoder of Raffel et al. (2020), as a pure function of its weights.

The model is an `nnx.Module`, but it is used functionally: `init` splits it once into
a static `graphdef` and `params`, a nested dict of arrays. What follows is plain JAX::

    graphdef, params = init(config, seed=0)
    loss = make_loss(graphdef, config)
    grads = jax.jit(jax.grad(loss))(params, batch)

Every array of the model is a weight: dropout takes its key at call time, so `jvp` of
`grad`, `vmap` and `scan` see an ordinary function. Computation follows the dtype of
the weights; softmax and cross-entropy use float32 at least, and so do the sums that
overflow in float16.

Shapes are in the names: B batch, S source, T target, L everything attended to,
D d_model, H heads, K d_kv, F d_ff, V vocabulary. Masks are true where allowed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.models import functional
from examples.models.functional import Array, Embed, KeysValues, Params, Rngs, linear


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and switches of a T5, named as on Hugging Face; the defaults are t5-small.

    T5 v1.1 has `feed_forward_proj="gated-gelu"` and `tie_word_embeddings=False`.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    # A tied head scales its input by d_model**-0.5, a head of its own does not.
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self):
        known = self.feed_forward_proj in ("relu", "gated-gelu")
        self._check("feed_forward_proj", known, "'relu' or 'gated-gelu'")
        for field in dataclasses.fields(self):
            if field.type is int and not field.name.endswith("_token_id"):
                self._check(field.name, getattr(self, field.name) >= 1, "at least 1")
        self._check("dropout_rate", 0 <= self.dropout_rate < 1, "in [0, 1)")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            got = getattr(self, name)
            raise ValueError(f"T5Config: {name} must be {expected}, got {got!r}.")


def init(config: T5Config, seed: int | Array) -> tuple[nnx.GraphDef, Params]:
    """Fresh float32 weights with the variances of Mesh TensorFlow's T5.

    `seed` may be traced: `jax.vmap(functools.partial(init, config))(seeds)` works.
    """
    return functional.split(T5(config, functional.rngs(seed)))


def make_loss(
    graphdef: nnx.GraphDef, config: T5Config, *, mask_source: bool = True
) -> Callable[..., Array]:
    """`loss(params, batch, dropout_key=None)`: mean cross-entropy per target token.

    `batch` holds int32 arrays `source` BxS and `target` BxT, padded at the end; a
    target ends with eos. A batch without target tokens has loss 0. Ids outside the
    vocabulary are not checked and give NaN. `mask_source=False` lets the model attend
    to the padding of the source.
    """

    def loss(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        model, rngs = nnx.merge(graphdef, params), functional.dropout_rngs(dropout_key)
        target_BxT = batch["target"]
        input_BxT = jnp.roll(target_BxT, 1, axis=1)
        input_BxT = input_BxT.at[:, 0].set(config.decoder_start_token_id)
        logits_BxTxV = model(batch["source"], input_BxT, rngs, mask_source=mask_source)
        given_BxT = target_BxT != config.pad_token_id
        return functional.mean_cross_entropy(logits_BxTxV, target_BxT, given_BxT)

    return loss


def token_count(batch: Mapping[str, Array], pad_token_id: int = 0) -> Array:
    """Number of target tokens: the weight of `batch` in a mean over several."""
    return (batch["target"] != pad_token_id).sum()


def greedy_decode(
    graphdef: nnx.GraphDef,
    params: Params,
    source_BxS: Array,
    max_length: int,
    *,
    mask_source: bool = True,
) -> Array:
    """The likeliest token at each step: int32 ids_BxL with L = `max_length`.

    Rows are padded after eos; the loop ends when every row has one. Under `jax.jit`
    the arguments `graphdef` and `max_length` are static.
    """
    model = nnx.merge(graphdef, params)
    config = model.config
    source = model.encode(source_BxS, mask_source=mask_source)

    def unfinished(state):
        return (state[0] < max_length) & ~state[3].all()

    def step(state):
        position, ids_BxL, token_B, done_B, cache = state
        y_Bx1xD, cache = model.decoder(
            model.embed(token_B[:, None]), *source, cache=cache, position=position
        )
        token_B = model.logits(y_Bx1xD)[:, 0].argmax(-1).astype(jnp.int32)
        token_B = jnp.where(done_B, config.pad_token_id, token_B)
        ids_BxL = ids_BxL.at[:, position].set(token_B)
        done_B |= token_B == config.eos_token_id
        return position + 1, ids_BxL, token_B, done_B, cache

    keys_BxSxHxK = source[1][0][0]
    B, _, H, K = keys_BxSxHxK.shape
    empty = jnp.zeros((B, max_length, H, K), keys_BxSxHxK.dtype)
    start = (
        0,
        jnp.full((B, max_length), config.pad_token_id, jnp.int32),
        jnp.full(B, config.decoder_start_token_id, jnp.int32),
        jnp.zeros(B, bool),
        [(empty, empty)] * config.num_decoder_layers,
    )
    return jax.lax.while_loop(unfinished, step, start)[1]


class T5(nnx.Module):
    """Encoder, decoder and the embedding they share."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(config.vocab_size, config.d_model, 1.0, rngs)
        self.encoder = Stack(config, config.num_layers, rngs, causal=False)
        self.decoder = Stack(config, config.num_decoder_layers, rngs, causal=True)
        if not config.tie_word_embeddings:
            self.head = linear(config.d_model, config.vocab_size, 1.0, rngs)

    def __call__(
        self,
        source_BxS: Array,
        input_BxT: Array,
        rngs: Rngs = None,
        *,
        mask_source: bool = True,
    ) -> Array:
        """Logits_BxTxV of the token after each of `input_BxT`."""
        source = self.encode(source_BxS, rngs, mask_source=mask_source)
        y_BxTxD, _ = self.decoder(self.embed(input_BxT), *source, rngs=rngs)
        return self.logits(y_BxTxD)

    def encode(
        self, source_BxS: Array, rngs: Rngs = None, *, mask_source: bool = True
    ) -> tuple[Array | None, list[KeysValues]]:
        """The source as each decoder layer sees it: a mask, and keys and values."""
        real_BxS = source_BxS != self.config.pad_token_id
        mask_Bx1x1xS = real_BxS[:, None, None, :] if mask_source else None
        y_BxSxD, _ = self.encoder(self.embed(source_BxS), mask_Bx1x1xS, rngs=rngs)
        layers = self.decoder.layers
        return mask_Bx1x1xS, [x.cross_attention.keys_values(y_BxSxD) for x in layers]

    def logits(self, y_BxTxD: Array) -> Array:
        if self.config.tie_word_embeddings:
            return self.embed.attend(y_BxTxD * self.config.d_model**-0.5)
        return self.head(y_BxTxD)


class Stack(nnx.Module):
    """The encoder or, if `causal`, the decoder: all layers share one relative bias."""

    def __init__(self, config: T5Config, depth: int, rngs: nnx.Rngs, *, causal: bool):
        self.config, self.causal = config, causal
        buckets, heads = config.relative_attention_num_buckets, config.num_heads
        self.relative_bias = Embed(buckets, heads, config.d_model**-0.5, rngs)
        self.layers = nnx.List(Layer(config, rngs, causal) for _ in range(depth))
        self.norm = Norm(config, rngs)

    def __call__(
        self,
        y_BxTxD: Array,
        source_mask_Bx1x1xS: Array | None,
        memory: list[KeysValues] | None = None,
        *,
        rngs: Rngs = None,
        cache: list[KeysValues] | None = None,
        position: int | Array = 0,
    ) -> tuple[Array, list[KeysValues]]:
        """Outputs, and the keys and values of self-attention.

        With a `cache` of keys and values of length L, `y_BxTxD` continues a sequence
        at `position`; without one it is the whole sequence, and L = T.
        """
        T = y_BxTxD.shape[1]
        L = T if cache is None else cache[0][0].shape[1]
        bias_1xHxTxL = _rows(self.bias(L), position, T)
        mask = source_mask_Bx1x1xS
        if self.causal:
            mask = _rows(jnp.tri(L, dtype=bool)[None, None], position, T)
        y_BxTxD = without_overflow(_dropout(y_BxTxD, self.config, rngs))
        cache_out = []
        for i, layer in enumerate(self.layers):
            h_BxTxD = layer.attention_norm(y_BxTxD)
            keys_values = layer.attention.keys_values(h_BxTxD)
            if cache is not None:
                keys_values = functional.write(cache[i], keys_values, position)
            cache_out.append(keys_values)
            y_BxTxD += layer.attention(h_BxTxD, keys_values, mask, bias_1xHxTxL, rngs)
            if memory is not None:
                h_BxTxD = layer.cross_attention_norm(y_BxTxD)
                cross = layer.cross_attention
                y_BxTxD += cross(h_BxTxD, memory[i], source_mask_Bx1x1xS, None, rngs)
            y_BxTxD += layer.feed_forward(layer.feed_forward_norm(y_BxTxD), rngs)
        return _dropout(self.norm(y_BxTxD), self.config, rngs), cache_out

    def bias(self, length: int) -> Array:
        position_L = np.arange(length)
        bucket_LxL = relative_position_bucket(
            position_L[None, :] - position_L[:, None],
            bidirectional=not self.causal,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        return self.relative_bias(jnp.asarray(bucket_LxL)).transpose(2, 0, 1)[None]


class Layer(nnx.Module):
    """The weights of one layer; `Stack` says how they are used."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, cross: bool):
        self.attention_norm = Norm(config, rngs)
        self.attention = Attention(config, rngs)
        if cross:
            self.cross_attention_norm = Norm(config, rngs)
            self.cross_attention = Attention(config, rngs)
        self.feed_forward_norm = Norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)


class Attention(nnx.Module):
    """Multi-head attention to keys and values that the caller provides.

    The scores are not divided by sqrt(K): T5 has that factor in its initialisation.
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        self.config = config
        D, K, HK = config.d_model, config.d_kv, config.num_heads * config.d_kv
        self.query = linear(D, HK, (D * K) ** -0.5, rngs)
        self.key = linear(D, HK, D**-0.5, rngs)
        self.value = linear(D, HK, D**-0.5, rngs)
        self.output = linear(HK, D, HK**-0.5, rngs)

    def keys_values(self, y_BxLxD: Array) -> KeysValues:
        return self.heads(self.key(y_BxLxD)), self.heads(self.value(y_BxLxD))

    def heads(self, y_BxLxHK: Array) -> Array:
        return y_BxLxHK.reshape(*y_BxLxHK.shape[:2], self.config.num_heads, -1)

    def __call__(
        self,
        y_BxTxD: Array,
        keys_values: KeysValues,
        mask: Array | None,
        bias_1xHxTxL: Array | None,
        rngs: Rngs,
    ) -> Array:
        q_BxTxHxK = self.heads(self.query(y_BxTxD))
        k_BxLxHxK, v_BxLxHxK = keys_values
        att_BxHxTxL = jnp.einsum("bthk,blhk->bhtl", q_BxTxHxK, k_BxLxHxK)
        att_BxHxTxL = functional.at_least_float32(att_BxHxTxL)
        if bias_1xHxTxL is not None:
            att_BxHxTxL += bias_1xHxTxL.astype(att_BxHxTxL.dtype)
        att_BxHxTxL = functional.attend(att_BxHxTxL, mask, y_BxTxD.dtype)
        att_BxHxTxL = _dropout(att_BxHxTxL, self.config, rngs)
        y_BxTxHxK = jnp.einsum("bhtl,blhk->bthk", att_BxHxTxL, v_BxLxHxK)
        y_BxTxD = self.output(y_BxTxHxK.reshape(*y_BxTxHxK.shape[:2], -1))
        return _dropout(y_BxTxD, self.config, rngs)


class FeedForward(nnx.Module):
    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        self.config = config
        D, F = config.d_model, config.d_ff
        self.input = linear(D, F, D**-0.5, rngs)
        if config.feed_forward_proj == "gated-gelu":
            self.gate = linear(D, F, D**-0.5, rngs)
        self.output = linear(F, D, F**-0.5, rngs)

    def __call__(self, y_BxTxD: Array, rngs: Rngs) -> Array:
        h_BxTxF = without_overflow(self.input(y_BxTxD))
        if self.config.feed_forward_proj == "gated-gelu":
            h_BxTxF *= jax.nn.gelu(self.gate(y_BxTxD), approximate=True)
        else:
            h_BxTxF = jax.nn.relu(h_BxTxF)
        y_BxTxD = self.output(_dropout(h_BxTxF, self.config, rngs))
        return _dropout(y_BxTxD, self.config, rngs)


class Norm(nnx.RMSNorm):
    """Its output has the type of the weights, whatever its input has."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        super().__init__(config.d_model, epsilon=config.layer_norm_epsilon, rngs=rngs)

    def __call__(self, y_BxTxD: Array) -> Array:
        assert self.scale is not None
        return super().__call__(y_BxTxD).astype(self.scale[...].dtype)


def relative_position_bucket(
    offset: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket ids of key position minus query position: exact near, logarithmic far.

    Half of the buckets count single steps, the other half grow logarithmically up to
    `max_distance`; everything beyond shares the last one. Looking both ways halves
    the buckets once more; looking back only, all of the future is in bucket 0.
    """
    if bidirectional:
        num_buckets //= 2
        first, distance = np.where(offset > 0, num_buckets, 0), np.abs(offset)
    else:
        first, distance = 0, np.maximum(-offset, 0)
    exact = num_buckets // 2
    # In float32, as wherever T5 was trained: rounding decides on powers of two.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio) / np.float32(np.log(max_distance / exact))
    far = exact + (growth * np.float32(num_buckets - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))
    return (first + bucket).astype(np.int32)


def without_overflow(y: Array) -> Array:
    """What is summed up in float32 where the weights have float16, which ends at 65504.

    Trained T5s exceed that behind the feed-forward's output, and between the layers.
    """
    return y.astype(jnp.float32) if y.dtype == jnp.float16 else y


def _dropout(y: Array, config: T5Config, rngs: Rngs) -> Array:
    return functional.dropout(y, config.dropout_rate, rngs)


def _rows(full_1xHxLxL: Array, position: int | Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(full_1xHxLxL, position, count, axis=2)
