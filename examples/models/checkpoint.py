"""Checkpoints in the Hugging Face layout, whatever the model: folders and files.

A model says under which names its weights are kept; reading, checking and writing them
is here. A checkpoint is taken whole or not at all: missing, unknown and misshapen
tensors are named before the first one is read.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
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

from examples.data import pointers
from examples.models.functional import Params

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
READABLE = ("F64", "F32", "F16", "BF16")
VOCABULARY = ("spiece.model", "tokenizer.json", "vocab.*", "merges.txt")
OTHER_FORMATS = ("pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack")
CONVERT = (
    "Weights in another format are not read: where PyTorch is, convert them by `python "
    '-c "import torch; from safetensors.torch import save_file; save_file({k: '
    "x.contiguous().clone() for k, x in torch.load('pytorch_model.bin', "
    "weights_only=True).items()}, 'model.safetensors')\"`."
)

Keys = tuple[str | int, ...]


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
        patterns = [CONFIG, "model*.safetensors", INDEX, *VOCABULARY]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # from requests, httpx or its own: no common base
        raise ConnectionError(
            f"{name!r} is not a folder, and the Hugging Face hub did not provide it "
            f"({type(error).__name__}: {error}); {offline}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The file with the weights, or its shards."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        others = sorted(p.name for x in OTHER_FORMATS for p in folder.glob(x))
        found = f", but {_listed(others)}" if others else ""
        raise FileNotFoundError(
            f"{folder}: neither {WEIGHTS} nor {INDEX} is there{found}. {CONVERT}"
        )
    try:
        shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / INDEX}: expected a JSON object with a weight_map ({error!r})."
        ) from error
    if missing:
        raise FileNotFoundError(
            f"{folder}: {INDEX} names files that are missing: {', '.join(missing)}."
        )
    return [folder / shard for shard in sorted(shards)]


def read_config(
    folder: Path, model_types: Collection[str], default: str | None = None
) -> dict[str, Any]:
    """The fields of config.json, which describes one of `model_types`."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: {CONFIG} is missing.")
    pointers.refuse(path)
    try:
        raw = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not JSON of an object ({error}).") from error
    if (got := raw.get("model_type", default)) not in model_types:
        expected = " or ".join(map(repr, model_types))
        raise ValueError(f"{path}: expected model_type {expected}, got {got!r}.")
    return raw


def make_config(kind: Any, raw: Mapping[str, Any], folder: Path) -> Any:
    """The dataclass `kind` of those fields that it has; the others are its defaults."""
    path = folder / CONFIG
    kinds = {field.name: type(field.default) for field in dataclasses.fields(kind)}
    given = {name: raw[name] for name in kinds if raw.get(name) is not None}
    wrong = [
        f"{name}={value!r}"
        for name, value in given.items()
        if not isinstance(value, (int, float) if kinds[name] is float else kinds[name])
    ]
    if wrong:
        raise ValueError(f"{path}: values of an unknown type: {', '.join(wrong)}.")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors by name, to be read as slices while the files are open."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(path)) for path in weight_files(folder)]
        yield {
            name: file.get_slice(name)
            for file in files
            for name in file.keys()  # noqa: SIM118, it is no mapping
        }


@functools.cache
def skeleton(
    init: Callable[..., tuple[nnx.GraphDef, Params]], config: Any
) -> tuple[nnx.GraphDef, dict[Keys, tuple[int, ...]]]:
    """The graphdef, and the shape of each weight by its keys in `params`."""
    graphdef, params = jax.eval_shape(functools.partial(init, config), 0)
    flat: dict[Keys, Any] = flatten_dict(params)
    return graphdef, {keys: x.shape for keys, x in flat.items()}


def read_params(
    folder: Path,
    tensors: Mapping[str, Any],
    names: Mapping[str, Keys],
    shapes: Mapping[Keys, tuple[int, ...]],
    *,
    model: str,
    aliases: Mapping[str, Collection[str]],
    unused: Collection[str],
    dtype: DTypeLike,
) -> Params:
    """The weights at the keys that `names` gives to their tensors.

    `aliases` are further names of a tensor: any of them will do, and several must be
    equal. `unused` tensors may be anything.
    """
    expected = {name: _to_torch(keys, shapes[keys]) for name, keys in names.items()}
    tensors = {name: x for name, x in tensors.items() if name not in unused}
    for name, others in aliases.items():
        found = {k: tensors.pop(k) for k in (name, *others) if k in tensors}
        for copy in found:
            if not _equal(found[copy], tensors.setdefault(name, found[copy])):
                raise ValueError(
                    f"{folder}: {copy} differs from {next(iter(found))}, but to the "
                    f"{model} of {CONFIG} they are one tensor."
                )
    _check_headers(folder, tensors, expected, model)
    flat = {}
    for name, keys in names.items():
        x = _rounded(tensors[name][:], dtype, f"{folder}: {name}")
        flat[keys] = jnp.asarray(_from_torch(keys, x))
    return unflatten_dict(flat)


def write(
    folder: str | Path,
    config: Any,
    params: Params,
    names: Mapping[str, Keys],
    shapes: Mapping[Keys, tuple[int, ...]],
    *,
    fields: Mapping[str, Any],
    dtype: DTypeLike,
) -> None:
    """Write `fields` as config.json, and `params` under their `names`.

    Raises:
        ValueError: `params` are not those of this `config`, or exceed the `dtype`.
    """
    flat, tensors = flatten_dict(params), {}
    if flat.keys() != set(names.values()):
        raise ValueError(f"save: params have not the structure of {config}.")
    for name, keys in names.items():
        exact = _to_torch(keys, np.asarray(flat[keys]))
        expected = _to_torch(keys, shapes[keys])
        if exact.shape != expected:
            raise ValueError(
                f"save: expected {name} of shape {expected}, got {exact.shape}."
            )
        tensors[name] = np.ascontiguousarray(_rounded(exact, dtype, f"save: {name}"))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers refuses files that do not name a framework.
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(dict(fields), indent=2) + "\n")


def _open(path: Path) -> Any:
    pointers.refuse(path)
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}).") from error


def _check_headers(
    folder: Path,
    tensors: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    model: str,
) -> None:
    got = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    kinds = {name: tensor.get_dtype() for name, tensor in tensors.items()}
    common = [name for name in expected if name in got]
    complaints = {
        "missing tensors": [f"{k} {v}" for k, v in expected.items() if k not in got],
        f"tensors that this {model} does not have": [
            f"{k} {v}" for k, v in got.items() if k not in expected
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


def _equal(a: Any, b: Any) -> bool:
    """Whether two tensors in files are the same; what cannot be read is not."""
    readable = {a.get_dtype(), b.get_dtype()} <= set(READABLE)
    return a is b or (readable and np.array_equal(a[:], b[:]))


def _rounded(exact: np.ndarray, dtype: DTypeLike, name: str) -> np.ndarray:
    """A tensor in a `dtype`, refused where that makes numbers infinite."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(jnp.dtype(dtype))
    narrower = jnp.finfo(dtype).max < jnp.finfo(exact.dtype).max
    if narrower and np.isfinite(exact).all() and not np.isfinite(rounded).all():
        raise ValueError(
            f"{name} reaches {np.abs(exact).max():.3g}, beyond {jnp.dtype(dtype)}; use "
            "bfloat16 or float32."
        )
    return rounded


def _to_torch(keys: Keys, x: Any) -> Any:
    """A kernel in PyTorch's order of axes; `x` is an array or a shape.

    Those of a matrix are outputs, inputs, and of a convolution outputs, inputs, height,
    width; Flax has the inputs and the outputs last.
    """
    if keys[-1] != "kernel":
        return x
    shape = x if isinstance(x, tuple) else x.shape
    axes = (1, 0) if len(shape) == 2 else (3, 2, 0, 1)
    return tuple(x[i] for i in axes) if isinstance(x, tuple) else x.transpose(axes)


def _from_torch(keys: Keys, x: np.ndarray) -> np.ndarray:
    """The way back."""
    if keys[-1] != "kernel":
        return x
    return x.transpose((1, 0) if x.ndim == 2 else (2, 3, 1, 0))


def _listed(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
