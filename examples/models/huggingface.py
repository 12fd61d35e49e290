"""T5 checkpoints in the Hugging Face layout, read and written without PyTorch.

    config, graphdef, params = load("t5-small")  # a folder, or a name on the hub
    save("my-t5", config, params)

A checkpoint is taken whole or not at all: missing, unknown and misshapen tensors are
named before the first one is read.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from examples.models.t5 import Params, T5Config, init

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
READABLE = ("F64", "F32", "F16", "BF16")

# Copies of the embedding that some writers keep, and a bias that T5 never uses.
COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
UNUSED = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}

Keys = tuple[str | int, ...]


def load(
    path_or_hub_name: str | Path, dtype: DTypeLike = jnp.float32
) -> tuple[T5Config, nnx.GraphDef, Params]:
    """The configuration, graphdef and weights of a T5 (v1.0 or v1.1) checkpoint.

    A folder holds config.json and model.safetensors, or shards with their index, in
    half, single or double precision. What is not a folder is fetched from the hub.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ImportError, ConnectionError: not a folder, and the hub is out of reach.
        ValueError: the checkpoint is not the T5 that its config.json describes.
    """
    folder = local_folder(path_or_hub_name)
    config = _read_config(folder / CONFIG)
    graphdef, shapes = _expected(config)
    copies = COPIES | ({"lm_head.weight"} if config.tie_word_embeddings else set())
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(path)) for path in weight_files(folder)]
        tensors = {
            name: file.get_slice(name)
            for file in files
            for name in file.keys()  # noqa: SIM118, it is no mapping
        }
        _check_headers(folder, tensors, shapes, ignored=copies | UNUSED)
        for name in sorted(copies & tensors.keys()):
            if not np.array_equal(tensors[name][:], tensors["shared.weight"][:]):
                raise ValueError(
                    f"{folder}: {name} differs from shared.weight, "
                    f"but {CONFIG} says that they are the same."
                )
        params = {
            path: jnp.asarray(_transposed(path, tensors[name][:]), dtype)
            for name, path in tensor_names(config).items()
        }
    return config, graphdef, unflatten_dict(params)


def save(
    folder: str | Path, config: T5Config, params: Params, dtype: DTypeLike = jnp.float16
) -> None:
    """Write config.json and model.safetensors for `load` and for transformers.

    Raises:
        ValueError: `params` is not a T5 of this `config`, or exceeds the `dtype`.
    """
    flat, (_, shapes), tensors = flatten_dict(params), _expected(config), {}
    names = tensor_names(config)
    if flat.keys() != set(names.values()):
        raise ValueError(f"save: params have not the structure of {config}.")
    for name, path in names.items():
        exact = _transposed(path, np.asarray(flat[path]))
        if exact.shape != shapes[name]:
            raise ValueError(
                f"save: expected {name} of shape {shapes[name]}, got {exact.shape}."
            )
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(exact.astype(jnp.dtype(dtype)))
        if np.isfinite(exact).all() and not np.isfinite(rounded).all():
            raise ValueError(
                f"save: {name} reaches {np.abs(exact).max():.3g}, beyond "
                f"{jnp.dtype(dtype)}; use bfloat16 or float32."
            )
        tensors[name] = rounded
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers refuses files that do not name a framework.
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    fields = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        **dataclasses.asdict(config),
    }
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def tensor_names(config: T5Config) -> dict[str, Keys]:
    """Where each tensor of a checkpoint is in `params`: its name -> the keys."""
    names: dict[str, Keys] = {"shared.weight": ("embed", "embedding")}
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


@functools.cache
def _expected(config: T5Config) -> tuple[nnx.GraphDef, dict[str, tuple[int, ...]]]:
    """The graphdef, and the shape of each tensor in a checkpoint."""
    graphdef, params = jax.eval_shape(functools.partial(init, config), 0)
    flat: dict[Keys, Any] = flatten_dict(params)
    names = tensor_names(config).items()
    return graphdef, {k: _transposed(path, flat[path].shape) for k, path in names}


def _transposed(path: Keys, x: Any) -> Any:
    """PyTorch multiplies by the transpose of a kernel; `x` is an array or a shape."""
    if path[-1] != "kernel":
        return x
    return x[::-1] if isinstance(x, tuple) else x.T


def local_folder(name: str | Path) -> Path:
    """The folder itself, or where the hub's files of that name are on this machine."""
    if Path(name).is_dir():
        return Path(name)
    if not isinstance(name, str) or Path(name).exists() or not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(
            f"{name}: expected a folder with {CONFIG} and {WEIGHTS}, or a name on the "
            "Hugging Face hub such as 't5-small'; there is no such folder."
        )
    offline = f"without it, put {CONFIG} and {WEIGHTS} into a folder and pass its path."
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a folder, and fetching it from the Hugging Face hub "
            f"needs huggingface_hub (pip install huggingface_hub); {offline}"
        ) from error
    try:
        patterns = [CONFIG, "model*.safetensors", INDEX, "spiece.model"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # from requests, httpx or its own: no common base
        raise ConnectionError(
            f"{name!r} is not a folder, and the Hugging Face hub did not provide it "
            f"({type(error).__name__}: {error}); {offline}"
        ) from error


def _read_config(path: Path) -> T5Config:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: {CONFIG} is missing.")
    try:
        raw = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not JSON of an object ({error}).") from error
    if raw.get("model_type", "t5") not in ("t5", "mt5"):
        raise ValueError(
            f"{path}: expected model_type 't5' or 'mt5', got {raw['model_type']!r}."
        )
    # transformers 5 writes tie_word_embeddings=true for every T5; that a v1.1 is
    # untied shows in scale_decoder_outputs=false, which older versions do not write.
    if raw.get("scale_decoder_outputs") is False:
        raw["tie_word_embeddings"] = False
    if raw.get("num_decoder_layers") is None:
        raw["num_decoder_layers"] = raw.get("num_layers")
    kinds = {field.name: type(field.default) for field in dataclasses.fields(T5Config)}
    given = {name: raw[name] for name in kinds if raw.get(name) is not None}
    wrong = [
        f"{name}={value!r}"
        for name, value in given.items()
        if not isinstance(value, (int, float) if kinds[name] is float else kinds[name])
    ]
    if wrong:
        raise ValueError(f"{path}: values of an unknown type: {', '.join(wrong)}.")
    try:
        return T5Config(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The file with the weights, or its shards."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder}: neither {WEIGHTS} nor {INDEX} is there.")
    try:
        shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / INDEX}: expected a JSON object with a weight_map ({error!r})."
        ) from error
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise FileNotFoundError(
            f"{folder}: {INDEX} names files that are missing: {', '.join(missing)}."
        )
    return [folder / shard for shard in sorted(shards)]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}).") from error


def _check_headers(
    folder: Path,
    tensors: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
) -> None:
    got = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    kinds = {name: tensor.get_dtype() for name, tensor in tensors.items()}
    common = [name for name in expected if name in got]
    complaints = {
        "missing tensors": [f"{k} {v}" for k, v in expected.items() if k not in got],
        "tensors that this T5 does not have": [
            f"{k} {v}" for k, v in got.items() if k not in expected and k not in ignored
        ],
        "misshapen tensors": [
            f"{k} (expected {expected[k]}, got {got[k]})"
            for k in common
            if got[k] != expected[k]
        ],
        f"tensors that are not one of {', '.join(READABLE)}": [
            f"{k} ({kinds[k]})" for k in common if kinds[k] not in READABLE
        ],
    }
    sentences = [
        f"{folder}: {complaint}: {_listed(names)}."
        for complaint, names in complaints.items()
        if names
    ]
    if sentences:
        raise ValueError("\n".join(sentences))


def _listed(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
