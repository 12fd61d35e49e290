"""Whole models with weights drawn at random: losses, and batches without padding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.accelerator import inputs
from benchmarks.accelerator.presets import Preset
from examples.models import functional, llama, t5


class Problem(NamedTuple):
    """A model: its loss in float32, and a batch of as many rows as asked for."""

    loss: Callable[..., jax.Array]
    like: Any
    batch: Callable[[int], dict[str, np.ndarray]]

    def params(self) -> Any:
        return inputs.weights(self.like)

    def in_bfloat16(self, params: Any, batch: Any) -> jax.Array:
        """The loss with weights in float32, and all activations in bfloat16."""
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return self.loss(half, batch)


def make(name: str, preset: Preset) -> Problem:
    return {"t5-small": _t5, "smollm2-135m": _smollm2}[name](preset)


def _t5(preset: Preset) -> Problem:
    config = t5.T5Config(**preset.t5)
    graphdef = nnx.split(nnx.eval_shape(lambda: t5.T5(config, nnx.Rngs(0))))[0]
    like = jax.eval_shape(lambda: t5.init(config, 0)[1])

    def batch(rows: int) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(rows).integers
        shape = (2, rows, preset.length // 2)
        tokens = draw(2, config.vocab_size, shape, np.int32)
        return {"source": tokens[0], "target": tokens[1]}

    return Problem(t5.make_loss(graphdef, config), like, batch)


def _smollm2(preset: Preset) -> Problem:
    """With a scan over the layers, whose weights are stacked: it compiles as one."""
    config = llama.LlamaConfig(**preset.llama)
    depth = config.num_hidden_layers

    def layers():
        return functional.split(llama.Layer(config, functional.rngs(0)))[1]

    def stack(x):
        return jax.ShapeDtypeStruct((depth, *x.shape), x.dtype)

    make_layer = nnx.eval_shape(lambda: llama.Layer(config, nnx.Rngs(0)))
    graphdef = nnx.split(make_layer)[0]
    width = config.hidden_size
    like = {
        "embed": jax.ShapeDtypeStruct((config.vocab_size, width), jnp.float32),
        "layers": jax.tree.map(stack, jax.eval_shape(layers)),
        "norm": jax.ShapeDtypeStruct((width,), jnp.float32),
    }

    def loss(params, batch):
        y_BxTxD = params["embed"][batch["ids"]]
        T = y_BxTxD.shape[1]
        turn, mask_TxT = (
            llama.rotation(config, T, y_BxTxD.dtype),
            jnp.tri(T, dtype=bool),
        )

        def apply(y_BxTxD, weights):
            layer = nnx.merge(graphdef, weights)
            h_BxTxD = layer.attention_norm(y_BxTxD)
            keys_values = layer.attention.keys_values(h_BxTxD, turn)
            y_BxTxD += layer.attention(h_BxTxD, keys_values, turn, mask_TxT)
            return y_BxTxD + layer.feed_forward(layer.feed_forward_norm(y_BxTxD)), None

        y_BxTxD = jax.lax.scan(apply, y_BxTxD, params["layers"])[0]
        wide_BxTxD = y_BxTxD.astype(jnp.float32)
        rms_BxTx1 = jnp.sqrt(jnp.mean(wide_BxTxD**2, -1, keepdims=True) + 1e-5)
        y_BxTxD = (wide_BxTxD / rms_BxTx1).astype(y_BxTxD.dtype) * params["norm"]
        logits_BxTxV = y_BxTxD @ params["embed"].T
        loss_BxT = optax.softmax_cross_entropy_with_integer_labels(
            logits_BxTxV.astype(jnp.float32), batch["labels"]
        )
        return loss_BxT.mean()

    def batch(rows: int) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(rows).integers
        ids = draw(0, config.vocab_size, (rows, preset.length + 1), np.int32)
        return {"ids": ids[:, :-1], "labels": ids[:, 1:]}

    return Problem(loss, like, batch)
