"""Llama checkpoints in the Hugging Face layout: Llama, TinyLlama, SmolLM2.

    config, graphdef, params = load("HuggingFaceTB/SmolLM2-135M")  # or a folder
    save("my-llama", config, params)

Sizes and weights are read as `checkpoint` says; what is particular to them is here.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models import checkpoint
from examples.models.checkpoint import Keys, local_folder
from examples.models.functional import Params
from examples.models.llama import LlamaConfig, init

LAYER = {
    "input_layernorm": ("attention_norm", "scale"),
    "self_attn.q_proj": ("attention", "query", "kernel"),
    "self_attn.k_proj": ("attention", "key", "kernel"),
    "self_attn.v_proj": ("attention", "value", "kernel"),
    "self_attn.o_proj": ("attention", "output", "kernel"),
    "post_attention_layernorm": ("feed_forward_norm", "scale"),
    "mlp.gate_proj": ("feed_forward", "gate", "kernel"),
    "mlp.up_proj": ("feed_forward", "input", "kernel"),
    "mlp.down_proj": ("feed_forward", "output", "kernel"),
}


def load(
    path_or_hub_name: str | Path, dtype: DTypeLike = jnp.float32
) -> tuple[LlamaConfig, nnx.GraphDef, Params]:
    """The configuration, graphdef and weights; files and errors as `huggingface.load`.

    Biases and stretched positions, which some relatives of Llama have, are refused.
    """
    folder = local_folder(path_or_hub_name)
    config = read_config(folder)
    graphdef, shapes = checkpoint.skeleton(init, config)
    aliases = {"model.embed_tokens.weight": ["lm_head.weight"]}
    layers = range(config.num_hidden_layers)
    with checkpoint.open_tensors(folder) as tensors:
        if not any(name.startswith("model.") for name in tensors):  # without a head
            tensors = {f"model.{name}": x for name, x in tensors.items()}
        params = checkpoint.read_params(
            folder,
            tensors,
            tensor_names(config),
            shapes,
            model="Llama",
            aliases=aliases if config.tie_word_embeddings else {},
            unused={f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in layers},
            dtype=dtype,
        )
    return config, graphdef, params


def save(
    folder: str | Path,
    config: LlamaConfig,
    params: Params,
    dtype: DTypeLike = jnp.float16,
) -> None:
    """Write config.json and model.safetensors for `load` and for transformers.

    Raises:
        ValueError: `params` is not a Llama of this `config`, or exceeds the `dtype`.
    """
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **dataclasses.asdict(config),
    }
    names, (_, shapes) = tensor_names(config), checkpoint.skeleton(init, config)
    checkpoint.write(folder, config, params, names, shapes, fields=fields, dtype=dtype)


def tensor_names(config: LlamaConfig) -> dict[str, Keys]:
    """Where each tensor of a checkpoint is in `params`: its name -> the keys."""
    names: dict[str, Keys] = {
        "model.embed_tokens.weight": ("embed", "embedding"),
        "model.norm.weight": ("norm", "scale"),
    }
    if not config.tie_word_embeddings:
        names["lm_head.weight"] = ("head", "kernel")
    for i in range(config.num_hidden_layers):
        for theirs, ours in LAYER.items():
            names[f"model.layers.{i}.{theirs}.weight"] = ("layers", i, *ours)
    return names


def read_config(folder: Path) -> LlamaConfig:
    """What config.json says, in the words of transformers 4 or 5.

    Raises:
        ValueError: it describes something that `llama.Llama` is not.
    """
    raw = checkpoint.read_config(folder, ("llama",))
    # transformers 5 has rope_parameters, 4 has rope_theta and rope_scaling.
    where = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope: dict[str, Any] = raw.get(where) or {}
    if not isinstance(rope, dict):
        raise ValueError(  # noqa: TRY004, of a file
            f"{folder / checkpoint.CONFIG}: expected {where} to be an object, "
            f"got {rope!r}."
        )
    raw["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 1e4))
    raw["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    for name, value in {
        "rope_type": "default",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }.items():
        if raw.get(name, value) != value:
            raise ValueError(
                f"{folder / checkpoint.CONFIG}: expected {name} {value!r}, "
                f"got {raw[name]!r}."
            )
    # What a config.json leaves out is what transformers takes it to be.
    width, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    numbers = isinstance(width, int) and isinstance(heads, int) and heads > 0
    for name, default in {
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "num_key_value_heads": heads,
        "head_dim": width // heads if numbers else None,
    }.items():
        if raw.get(name) is None:
            raw[name] = default
    if isinstance(raw["eos_token_id"], list) and raw["eos_token_id"]:
        raw["eos_token_id"] = raw["eos_token_id"][0]
    return checkpoint.make_config(LlamaConfig, raw, folder)
