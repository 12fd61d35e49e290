"""T5 checkpoints in the Hugging Face layout, read and written without PyTorch.

    config, graphdef, params = load("t5-small")  # a folder, or a name on the hub
    save("my-t5", config, params)

A checkpoint is taken whole or not at all, as `checkpoint` says.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models import checkpoint
from examples.models.checkpoint import WEIGHTS, Keys, local_folder, weight_files
from examples.models.t5 import Params, T5Config, init

__all__ = ["WEIGHTS", "load", "local_folder", "save", "tensor_names", "weight_files"]

# Other names of the embedding, and a bias that T5 never uses.
EMBEDDING = "shared.weight"
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}


def load(
    path_or_hub_name: str | Path, dtype: DTypeLike = jnp.float32
) -> tuple[T5Config, nnx.GraphDef, Params]:
    """The configuration, graphdef and weights of a T5 (v1.0 or v1.1) or mT5 checkpoint.

    A folder holds config.json and model.safetensors, or shards with their index, in
    half, single or double precision. What is not a folder is fetched from the hub. The
    embedding may have any of the names that writers give to it.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ImportError, ConnectionError: not a folder, and the hub is out of reach.
        ValueError: the checkpoint is not the T5 that its config.json describes, or
            exceeds the `dtype`.
    """
    folder = local_folder(path_or_hub_name)
    config = _read_config(folder)
    graphdef, shapes = checkpoint.skeleton(init, config)
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    with checkpoint.open_tensors(folder) as tensors:
        params = checkpoint.read_params(
            folder,
            tensors,
            tensor_names(config),
            shapes,
            model="T5",
            aliases={EMBEDDING: ALIASES + tied},
            unused=UNUSED,
            dtype=dtype,
        )
    return config, graphdef, params


def save(
    folder: str | Path, config: T5Config, params: Params, dtype: DTypeLike = jnp.float16
) -> None:
    """Write config.json and model.safetensors for `load` and for transformers.

    Raises:
        ValueError: `params` is not a T5 of this `config`, or exceeds the `dtype`.
    """
    fields = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        **dataclasses.asdict(config),
    }
    names, (_, shapes) = tensor_names(config), checkpoint.skeleton(init, config)
    checkpoint.write(folder, config, params, names, shapes, fields=fields, dtype=dtype)


def tensor_names(config: T5Config) -> dict[str, Keys]:
    """Where each tensor of a checkpoint is in `params`: its name -> the keys."""
    names: dict[str, Keys] = {EMBEDDING: ("embed", "embedding")}
    if not config.tie_word_embeddings:
        names["lm_head.weight"] = ("head", "kernel")
    attention = {"q": "query", "k": "key", "v": "value", "o": "output"}
    feed_forward = {"wi": "input", "wo": "output"}
    if config.feed_forward_proj == "gated-gelu":
        feed_forward = {"wi_0": "gate", "wi_1": "input", "wo": "output"}
    encoder = [
        ("SelfAttention", "attention", attention),
        ("DenseReluDense", "feed_forward", feed_forward),
    ]
    decoder = encoder.copy()
    decoder.insert(1, ("EncDecAttention", "cross_attention", attention))
    for stack, depth, parts in (
        ("encoder", config.num_layers, encoder),
        ("decoder", config.num_decoder_layers, decoder),
    ):
        names[f"{stack}.final_layer_norm.weight"] = (stack, "norm", "scale")
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[bias] = (stack, "relative_bias", "embedding")
        for i in range(depth):
            layer = (stack, "layers", i)
            for j, (theirs, ours, matrices) in enumerate(parts):
                prefix = f"{stack}.block.{i}.layer.{j}"
                norm = f"{prefix}.layer_norm.weight"
                names[norm] = (*layer, f"{ours}_norm", "scale")
                for their_matrix, our_matrix in matrices.items():
                    name = f"{prefix}.{theirs}.{their_matrix}.weight"
                    names[name] = (*layer, ours, our_matrix, "kernel")
    return names


def _read_config(folder: Path) -> T5Config:
    raw = checkpoint.read_config(folder, ("t5", "mt5"), default="t5")
    if raw.get("model_type") == "mt5":  # what transformers takes it to be
        raw = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"} | raw
    # transformers 5 writes tie_word_embeddings=true for every T5; that a v1.1 is
    # untied shows in scale_decoder_outputs=false, which older versions do not write.
    if raw.get("scale_decoder_outputs") is False:
        raw["tie_word_embeddings"] = False
    if raw.get("num_decoder_layers") is None:
        raw["num_decoder_layers"] = raw.get("num_layers")
    return checkpoint.make_config(T5Config, raw, folder)
