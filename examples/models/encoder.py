"""BERT and RoBERTa with their masked-language-model head, used functionally as T5 is.

    graphdef, params = init(config, seed=0)
    loss = make_loss(graphdef, config)
    grads = jax.jit(jax.grad(loss))(params, {"ids": ids_BxL, "labels": labels_BxL})

Shapes are in the names: B batch, L length of a row (T of the queries), M positions to
predict, D hidden_size, H heads, K a head's width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from examples.data.batching import IGNORED as IGNORED
from examples.models import functional
from examples.models.functional import Array, Embed, Params, Rngs


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and switches, named as on Hugging Face; the defaults are bert-base-uncased.

    DistilRoBERTa is a RoBERTa of 6 layers. RoBERTa numbers the positions of a row from
    `pad_token_id + 1`, so that its rows are shorter than its table of positions.
    """

    model_type: Literal["bert", "roberta"] = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0
    hidden_act: Literal["gelu"] = "gelu"  # the exact one
    # "pre" is from scratch only, and has one more norm behind the last layer.
    norm_placement: Literal["post", "pre"] = "post"
    causal: bool = False  # is_decoder on Hugging Face

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if choices := get_args(field.type):
                self._check(name, value in choices, " or ".join(map(repr, choices)))
            elif field.type is int:
                least = 0 if name == "pad_token_id" else 1
                self._check(name, value >= least, f"at least {least}")
            elif name.endswith("_prob"):
                self._check(name, 0 <= value < 1, "in [0, 1)")
        heads = self.num_attention_heads
        multiple = f"a multiple of num_attention_heads={heads}"
        self._check("hidden_size", self.hidden_size % heads == 0, multiple)
        more = f"more than pad_token_id + 1 = {self.pad_token_id + 1} for a RoBERTa"
        self._check("max_position_embeddings", self.max_length >= 1, more)

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            got = getattr(self, name)
            raise ValueError(f"EncoderConfig: {name} must be {expected}, got {got!r}.")

    @property
    def max_length(self) -> int:
        """The length of the longest row."""
        unused = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - unused


class LayerConfig(Protocol):
    """What a layer asks of a configuration, of texts or of images."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def hidden_dropout_prob(self) -> float: ...
    @property
    def attention_probs_dropout_prob(self) -> float: ...
    @property
    def norm_placement(self) -> Literal["post", "pre"]: ...


def init(config: EncoderConfig, seed: int | Array) -> tuple[nnx.GraphDef, Params]:
    """Fresh float32 weights with the spread of BERT's; `seed` may be traced."""
    return functional.split(Encoder(config, functional.rngs(seed)))


def make_loss(graphdef: nnx.GraphDef, config: EncoderConfig) -> Callable[..., Array]:
    """`loss(params, batch, dropout_key=None)`: mean cross-entropy per label.

    `batch` holds int32 arrays `ids` BxL, padded with `config.pad_token_id`, and
    `labels`: BxL, or BxM with `positions` BxM that say where in the row each belongs,
    which is cheaper, as only these meet the vocabulary. A label is the id to predict or
    `IGNORED`; a batch without labels has loss 0. Ids beyond the vocabulary and
    positions beyond the row are not checked and give NaN.
    """
    del config  # the model has it; every model's `make_loss` is called alike

    def loss(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None = None
    ) -> Array:
        model, rngs = nnx.merge(graphdef, params), functional.dropout_rngs(dropout_key)
        logits_BxMxV = model(batch["ids"], rngs, batch.get("positions"))
        labels_BxM = batch["labels"]
        given_BxM = labels_BxM != IGNORED
        return functional.mean_cross_entropy(logits_BxMxV, labels_BxM, given_BxM)

    return loss


def label_count(batch: Mapping[str, Array]) -> Array:
    """Number of labels: the weight of `batch` in a mean over several."""
    return (batch["labels"] != IGNORED).sum()


class Encoder(nnx.Module):
    """Embeddings, layers, and a head that shares the embedding of the ids."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        D = config.hidden_size
        self.embed = Embed(config.vocab_size, D, 0.02, rngs)
        self.position_embed = Embed(config.max_position_embeddings, D, 0.02, rngs)
        self.type_embed = Embed(config.type_vocab_size, D, 0.02, rngs)
        self.embed_norm = layer_norm(config, rngs)
        depth = config.num_hidden_layers
        self.layers = nnx.List(Layer(config, rngs) for _ in range(depth))
        if config.norm_placement == "pre":
            self.norm = layer_norm(config, rngs)
        self.head = Head(config, rngs)

    def __call__(
        self, ids_BxL: Array, rngs: Rngs = None, positions_BxM: Array | None = None
    ) -> Array:
        """Logits_BxLxV at every position, or logits_BxMxV at those given."""
        y_BxLxD = self.encode(ids_BxL, rngs)
        if positions_BxM is not None:
            y_BxLxD = jnp.take_along_axis(y_BxLxD, positions_BxM[..., None], axis=1)
        return self.head(y_BxLxD, self.embed)

    def encode(self, ids_BxL: Array, rngs: Rngs = None) -> Array:
        """What the last layer says of every position; pads are not attended to."""
        L, most = ids_BxL.shape[1], self.config.max_length
        if most < L:
            raise ValueError(f"Encoder: expected at most {most} ids in a row, got {L}.")
        real_BxL = ids_BxL != self.config.pad_token_id
        mask_Bx1xTxL = real_BxL[:, None, None, :]
        if self.config.causal:
            mask_Bx1xTxL &= jnp.tri(L, dtype=bool)[None, None]
        rows_BxL = jnp.broadcast_to(jnp.arange(L)[None], ids_BxL.shape)
        if self.config.model_type == "roberta":  # counts the tokens only
            rows_BxL = real_BxL.cumsum(axis=1) * real_BxL + self.config.pad_token_id
        y_BxLxD = self.embed(ids_BxL) + self.position_embed(rows_BxL)
        y_BxLxD = self.embed_norm(y_BxLxD + self.type_embed(jnp.zeros_like(ids_BxL)))
        y_BxLxD = functional.dropout(y_BxLxD, self.config.hidden_dropout_prob, rngs)
        for layer in self.layers:
            y_BxLxD = layer(y_BxLxD, mask_Bx1xTxL, rngs)
        return self.norm(y_BxLxD) if self.config.norm_placement == "pre" else y_BxLxD


class Layer(nnx.Module):
    """Self-attention and feed-forward, each with a residual and a norm."""

    def __init__(self, config: LayerConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs)
        self.attention_norm = layer_norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.feed_forward_norm = layer_norm(config, rngs)

    def __call__(self, y_BxLxD: Array, mask_Bx1xTxL: Array, rngs: Rngs) -> Array:
        if self.config.norm_placement == "pre":
            y_BxLxD += self.attention(self.attention_norm(y_BxLxD), mask_Bx1xTxL, rngs)
            return y_BxLxD + self.feed_forward(self.feed_forward_norm(y_BxLxD), rngs)
        y_BxLxD += self.attention(y_BxLxD, mask_Bx1xTxL, rngs)
        y_BxLxD = self.attention_norm(y_BxLxD)
        return self.feed_forward_norm(y_BxLxD + self.feed_forward(y_BxLxD, rngs))


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: LayerConfig, rngs: nnx.Rngs):
        self.config = config
        D = config.hidden_size
        self.query, self.key = linear(D, D, rngs), linear(D, D, rngs)
        self.value, self.output = linear(D, D, rngs), linear(D, D, rngs)

    def heads(self, y_BxLxD: Array) -> Array:
        return y_BxLxD.reshape(*y_BxLxD.shape[:2], self.config.num_attention_heads, -1)

    def __call__(self, y_BxLxD: Array, mask: Array, rngs: Rngs) -> Array:
        q_BxTxHxK = self.heads(self.query(y_BxLxD))
        k_BxLxHxK = self.heads(self.key(y_BxLxD))
        v_BxLxHxK = self.heads(self.value(y_BxLxD))
        q_BxTxHxK *= q_BxTxHxK.shape[-1] ** -0.5
        att_BxHxTxL = jnp.einsum("bthk,blhk->bhtl", q_BxTxHxK, k_BxLxHxK)
        att_BxHxTxL = functional.attend(att_BxHxTxL, mask, y_BxLxD.dtype)
        rate = self.config.attention_probs_dropout_prob
        att_BxHxTxL = functional.dropout(att_BxHxTxL, rate, rngs)
        y_BxTxHxK = jnp.einsum("bhtl,blhk->bthk", att_BxHxTxL, v_BxLxHxK)
        y_BxLxD = self.output(y_BxTxHxK.reshape(y_BxLxD.shape))
        return functional.dropout(y_BxLxD, self.config.hidden_dropout_prob, rngs)


class FeedForward(nnx.Module):
    def __init__(self, config: LayerConfig, rngs: nnx.Rngs):
        self.config = config
        self.input = linear(config.hidden_size, config.intermediate_size, rngs)
        self.output = linear(config.intermediate_size, config.hidden_size, rngs)

    def __call__(self, y_BxLxD: Array, rngs: Rngs) -> Array:
        y_BxLxD = self.output(jax.nn.gelu(self.input(y_BxLxD), approximate=False))
        return functional.dropout(y_BxLxD, self.config.hidden_dropout_prob, rngs)


class Head(nnx.Module):
    """Scores every id of the vocabulary with its embedding and a bias."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.dense = linear(config.hidden_size, config.hidden_size, rngs)
        self.norm = layer_norm(config, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))

    def __call__(self, y_BxMxD: Array, embed: Embed) -> Array:
        y_BxMxD = self.norm(jax.nn.gelu(self.dense(y_BxMxD), approximate=False))
        return embed.attend(y_BxMxD) + self.bias[...][None, None]


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return functional.linear(inputs, outputs, 0.02, rngs, use_bias=True)


def layer_norm(config: LayerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance is a difference of squares, which cancels.
    D, epsilon = config.hidden_size, config.layer_norm_eps
    return nnx.LayerNorm(D, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
