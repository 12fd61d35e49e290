"""ViT and ResNet checkpoints in the Hugging Face layout, with a fresh linear head.

    config, graphdef, params, logits = load("google/vit-base-patch16-224", classes=102)

The checkpoint's own classifier, and a pooler, are left out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from examples.models import checkpoint, functional, resnet, vit
from examples.models.checkpoint import Keys
from examples.models.functional import Params
from examples.models.huggingface_encoder import linear_names, norm_names
from examples.models.resnet import ResNetConfig
from examples.models.vit import ViTConfig

_LAYER = {
    "attention.attention.query": ("attention", "query"),
    "attention.attention.key": ("attention", "key"),
    "attention.attention.value": ("attention", "value"),
    "attention.output.dense": ("attention", "output"),
    "layernorm_before": ("attention_norm",),
    "intermediate.dense": ("feed_forward", "input"),
    "output.dense": ("feed_forward", "output"),
    "layernorm_after": ("feed_forward_norm",),
}


class Loaded(NamedTuple):
    config: ViTConfig | ResNetConfig
    graphdef: nnx.GraphDef
    params: Params
    logits: Callable[..., jax.Array]


def load(path_or_hub_name: str | Path, classes: int, seed: int = 0) -> Loaded:
    """Configuration, graphdef and weights; files and errors as `huggingface.load`."""
    folder = checkpoint.local_folder(path_or_hub_name)
    raw = checkpoint.read_config(folder, ("vit", "resnet"))
    if raw["model_type"] == "vit":
        return _load_vit(folder, raw, classes, seed)
    return _load_resnet(folder, raw, classes, seed)


def _load_vit(folder: Path, raw: dict[str, Any], classes: int, seed: int) -> Loaded:
    _expect(folder, raw, hidden_act="gelu", qkv_bias=True)
    config = checkpoint.make_config(ViTConfig, raw | {"norm_placement": "pre"}, folder)
    graphdef, params = vit.init(config, classes, seed)
    names = norm_names("vit.layernorm", "norm")
    names["vit.embeddings.cls_token"] = ("cls_embed",)
    names["vit.embeddings.position_embeddings"] = ("position_embed",)
    projection = "vit.embeddings.patch_embeddings.projection"
    names |= linear_names(projection, "patch_embed")
    for i in range(config.num_hidden_layers):
        for theirs, ours in _LAYER.items():
            entry = norm_names if "norm" in theirs else linear_names
            names |= entry(f"vit.encoder.layer.{i}.{theirs}", "layers", i, *ours)
    read = _read(folder, params, names, "ViT", "vit.")
    return Loaded(config, graphdef, read, functional.logits(graphdef, "images"))


def _load_resnet(folder: Path, raw: dict[str, Any], classes: int, seed: int) -> Loaded:
    _expect(folder, raw, hidden_act="relu", layer_type="basic")
    _expect(folder, raw, downsample_in_first_stage=False)
    sizes = {k: tuple(raw[k]) for k in ("hidden_sizes", "depths") if k in raw}
    fields = raw | sizes | {"stem": "imagenet", "norm": "frozen"}
    config = checkpoint.make_config(ResNetConfig, fields, folder)
    model = resnet.ResNet(config, classes, functional.rngs(seed))
    graphdef, params, statistics = resnet.split(model)
    names = _convolution("resnet.embedder.embedder", "stem")
    block = 0
    for stage, depth in enumerate(config.depths):
        for i in range(depth):
            prefix = f"resnet.encoder.stages.{stage}.layers.{i}"
            keys = "blocks", block
            names |= _convolution(f"{prefix}.layer.0", *keys, "first")
            names |= _convolution(f"{prefix}.layer.1", *keys, "second")
            if "shortcut" in params["blocks"][block]:
                names |= _convolution(f"{prefix}.shortcut", *keys, "shortcut")
            block += 1
    frozen: dict[str, Keys] = {
        name.replace(".weight", theirs): (*keys[:-1], ours)
        for name, keys in names.items()
        if keys[-1] == "scale"
        for theirs, ours in ((".running_mean", "mean"), (".running_var", "var"))
    }
    read = _read(folder, params, names, "ResNet", "resnet.", statistics, frozen)
    flat = flatten_dict(read)
    held = {keys: flat.pop(keys) for keys in frozen.values()}
    statistics = unflatten_dict(held)
    logits = functional.logits(graphdef, "images", statistics)
    return Loaded(config, graphdef, unflatten_dict(flat), logits)


def _convolution(name: str, *keys: str | int) -> dict[str, Keys]:
    names: dict[str, Keys] = {f"{name}.convolution.weight": (*keys, "conv", "kernel")}
    return names | norm_names(f"{name}.normalization", *keys, "norm")


def _read(
    folder: Path,
    params: Params,
    names: dict[str, Keys],
    model: str,
    prefix: str,
    statistics: Params | None = None,
    frozen: dict[str, Keys] | None = None,
) -> Params:
    """The weights of the checkpoint, and the fresh head."""
    arrays: dict[Keys, Any] = flatten_dict(params) | flatten_dict(statistics or {})
    shapes = {keys: x.shape for keys, x in arrays.items()}
    names = names | (frozen or {})
    with checkpoint.open_tensors(folder) as tensors:
        if not any(name.startswith(prefix) for name in tensors):  # saved without a head
            names = {name.removeprefix(prefix): keys for name, keys in names.items()}
        ours = {name: x for name, x in tensors.items() if not _left_out(name)}
        read = checkpoint.read_params(
            folder,
            ours,
            names,
            shapes,
            model=model,
            aliases={},
            unused=(),
            dtype=jnp.float32,
        )
    return read | {"head": params["head"]}


def _left_out(name: str) -> bool:
    return name.startswith(("classifier.", "pooler.", "vit.pooler.")) or name.endswith(
        "num_batches_tracked"
    )


def _expect(folder: Path, raw: dict[str, Any], **fields: Any) -> None:
    for name, value in fields.items():
        if raw.get(name, value) != value:
            raise ValueError(
                f"{folder / checkpoint.CONFIG}: expected {name} {value!r}, got "
                f"{raw[name]!r}."
            )
