"""BERT and RoBERTa checkpoints in the Hugging Face layout, with or without their head.

    config, graphdef, params = load("distilroberta-base")  # a folder or a hub name
    save("my-roberta", config, params)

Sizes and weights are read as `checkpoint` says; what is particular to them is here.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models import checkpoint
from examples.models.checkpoint import Keys, local_folder
from examples.models.encoder import EncoderConfig, Head, Params, init

MODELS = {"bert": "Bert", "roberta": "Roberta"}  # as transformers spells its classes
EMBEDDINGS = {
    "word": "embed",
    "position": "position_embed",
    "token_type": "type_embed",
}
LAYER = {
    "attention.self.query": ("attention", "query"),
    "attention.self.key": ("attention", "key"),
    "attention.self.value": ("attention", "value"),
    "attention.output.dense": ("attention", "output"),
    "attention.output.LayerNorm": ("attention_norm",),
    "intermediate.dense": ("feed_forward", "input"),
    "output.dense": ("feed_forward", "output"),
    "output.LayerNorm": ("feed_forward_norm",),
}


def load(
    path_or_hub_name: str | Path,
    dtype: DTypeLike = jnp.float32,
    *,
    fresh_head: int | None = None,
) -> tuple[EncoderConfig, nnx.GraphDef, Params]:
    """The configuration, graphdef and weights of a BERT or RoBERTa checkpoint.

    Files and errors are those of `huggingface.load`. A checkpoint without a masked-LM
    head, such as an encoder of sentences, is refused unless `fresh_head` is a seed for
    a new one. A pooler is left out.
    """
    folder = local_folder(path_or_hub_name)
    config = _read_config(folder)
    graphdef, shapes = checkpoint.skeleton(init, config)
    model, prefix = MODELS[config.model_type], f"{config.model_type}."
    with checkpoint.open_tensors(folder) as by_name:
        tensors = {_renamed(name): tensor for name, tensor in by_name.items()}
        if not any(name.startswith(prefix) for name in tensors):
            prefix = ""  # saved from the encoder alone
        names = tensor_names(config, prefix)
        head = [name for name, keys in names.items() if keys[0] == "head"]
        headless = not any(name in tensors for name in head)
        if headless and fresh_head is None:
            raise ValueError(
                f"{folder}: this {model} has no masked-LM head ({head[0]} and the "
                "like); pass fresh_head=seed to start with a new one."
            )
        if headless:
            names = {k: keys for k, keys in names.items() if k not in head}
        params = checkpoint.read_params(
            folder,
            tensors,
            names,
            shapes,
            model=model,
            aliases={} if headless else _aliases(config, prefix),
            unused=_unused(prefix),
            dtype=dtype,
        )
    if headless:
        state = nnx.state(Head(config, nnx.Rngs(fresh_head)))
        params["head"] = jax.tree.map(
            lambda x: x.astype(dtype), nnx.to_pure_dict(state)
        )
    return config, graphdef, params


def save(
    folder: str | Path,
    config: EncoderConfig,
    params: Params,
    dtype: DTypeLike = jnp.float16,
) -> None:
    """Write config.json and model.safetensors for `load` and for transformers.

    Raises:
        ValueError: `params` is not an encoder of this `config`, or exceeds the `dtype`,
            or the norms are in front, which neither BERT nor RoBERTa has.
    """
    if config.norm_placement == "pre":
        raise ValueError(
            "save: expected norm_placement 'post', got 'pre', which neither BERT nor "
            "RoBERTa has; keep such params in an Orbax checkpoint."
        )
    fields: dict[str, Any] = dataclasses.asdict(config)
    del fields["norm_placement"], fields["causal"]
    fields["is_decoder"] = config.causal
    architecture = "ForMaskedLM"
    if config.causal:
        bert = config.model_type == "bert"
        architecture = "LMHeadModel" if bert else "ForCausalLM"
    fields["architectures"] = [f"{MODELS[config.model_type]}{architecture}"]
    names, (_, shapes) = tensor_names(config), checkpoint.skeleton(init, config)
    checkpoint.write(folder, config, params, names, shapes, fields=fields, dtype=dtype)


def tensor_names(config: EncoderConfig, prefix: str | None = None) -> dict[str, Keys]:
    """Where each tensor of a checkpoint is in `params`: its name -> the keys.

    `prefix` stands before all but the head, and is the type of the model if not given.
    """
    prefix = f"{config.model_type}." if prefix is None else prefix
    names = norm_names(f"{prefix}embeddings.LayerNorm", "embed_norm")
    for theirs, ours in EMBEDDINGS.items():
        names[f"{prefix}embeddings.{theirs}_embeddings.weight"] = (ours, "embedding")
    for i in range(config.num_hidden_layers):
        for theirs, ours in LAYER.items():
            entry = norm_names if "LayerNorm" in theirs else linear_names
            names |= entry(f"{prefix}encoder.layer.{i}.{theirs}", "layers", i, *ours)
    if config.model_type == "bert":
        names |= linear_names("cls.predictions.transform.dense", "head", "dense")
        names |= norm_names("cls.predictions.transform.LayerNorm", "head", "norm")
        names["cls.predictions.bias"] = ("head", "bias")
    else:
        names |= linear_names("lm_head.dense", "head", "dense")
        names |= norm_names("lm_head.layer_norm", "head", "norm")
        names["lm_head.bias"] = ("head", "bias")
    return names


def linear_names(name: str, *keys: str | int) -> dict[str, Keys]:
    return {f"{name}.weight": (*keys, "kernel"), f"{name}.bias": (*keys, "bias")}


def norm_names(name: str, *keys: str | int) -> dict[str, Keys]:
    return {f"{name}.weight": (*keys, "scale"), f"{name}.bias": (*keys, "bias")}


def _renamed(name: str) -> str:
    """The first BERTs call a norm's weight gamma and its bias beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _aliases(config: EncoderConfig, prefix: str) -> dict[str, list[str]]:
    """What some writers store twice: the decoder of the head."""
    head = "cls.predictions" if config.model_type == "bert" else "lm_head"
    return {
        f"{prefix}embeddings.word_embeddings.weight": [f"{head}.decoder.weight"],
        f"{head}.bias": [f"{head}.decoder.bias"],
    }


def _unused(prefix: str) -> set[str]:
    """The pooler, the head that scores the next sentence, and a constant."""
    pooler, pairs = f"{prefix}pooler.dense", "cls.seq_relationship"
    names = {f"{layer}.{x}" for layer in (pooler, pairs) for x in ("weight", "bias")}
    return names | {f"{prefix}embeddings.position_ids"}


def _read_config(folder: Path) -> EncoderConfig:
    raw = checkpoint.read_config(folder, tuple(MODELS))
    for name, value in {
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }.items():
        if raw.get(name, value) != value:
            raise ValueError(
                f"{folder / checkpoint.CONFIG}: expected {name} {value!r}, "
                f"got {raw[name]!r}."
            )
    if raw.get("pad_token_id") is None and raw["model_type"] == "roberta":
        raw["pad_token_id"] = 1
    raw["causal"] = raw.get("is_decoder")
    raw["norm_placement"] = "post"
    return checkpoint.make_config(EncoderConfig, raw, folder)
