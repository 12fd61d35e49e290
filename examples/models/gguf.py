"""Llama checkpoints in GGUF, the file format of llama.cpp.

    config, graphdef, params = load(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    open_file(path).get("tokenizer.ggml.tokens")  # its subwords: see examples.data.bpe

Weights of any quantisation that the `gguf` library can undo become float32. A file is
taken whole or not at all, as `checkpoint` says.
"""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from examples.data import pointers
from examples.models import checkpoint
from examples.models.checkpoint import Keys
from examples.models.functional import Params
from examples.models.llama import LlamaConfig, init

LAYER = {
    "attn_norm": ("attention_norm", "scale"),
    "attn_q": ("attention", "query", "kernel"),
    "attn_k": ("attention", "key", "kernel"),
    "attn_v": ("attention", "value", "kernel"),
    "attn_output": ("attention", "output", "kernel"),
    "ffn_norm": ("feed_forward_norm", "scale"),
    "ffn_gate": ("feed_forward", "gate", "kernel"),
    "ffn_up": ("feed_forward", "input", "kernel"),
    "ffn_down": ("feed_forward", "output", "kernel"),
}
_OUTPUT = "output.weight"  # left out where it is the embedding
_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class File:
    """A GGUF that is mapped into memory: its metadata are read, its tensors not."""

    path: Path
    reader: gguf.GGUFReader

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """One entry of the metadata."""
        if key in self.reader.fields:
            return self.reader.fields[key].contents()
        if default is _REQUIRED:
            raise ValueError(f"{self.path}: expected metadata with {key}, found none.")
        return default


def open_file(path: Path) -> File:
    """The file at that path, which must be a GGUF.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or cut off.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a GGUF file, found no such file.")
    pointers.refuse(path)
    try:
        return File(path, gguf.GGUFReader(path))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{path}: expected a whole GGUF file with quantisations that the gguf "
            f"library knows ({error}): fetch it again, update gguf, or use a file in "
            "F16 or Q8_0."
        ) from error


def load(
    path: Path | File, dtype: DTypeLike = jnp.float32
) -> tuple[LlamaConfig, nnx.GraphDef, Params]:
    """The configuration, graphdef and weights of a Llama.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a GGUF of a Llama, or has a quantisation, experts or
            stretched positions that are not supported.
    """
    file = path if isinstance(path, File) else open_file(path)
    config = read_config(file)
    _check_quantisations(file)
    graphdef, shapes = checkpoint.skeleton(init, config)
    heads = {
        f"blk.{i}.{name}.weight": count
        for i in range(config.num_hidden_layers)
        for name, count in (
            ("attn_q", config.num_attention_heads),
            ("attn_k", config.num_key_value_heads),
        )
    }
    params = checkpoint.read_params(
        file.path,
        {t.name: _Tensor(t, heads.get(t.name)) for t in file.reader.tensors},
        tensor_names(config),
        shapes,
        model="Llama",
        aliases={},
        unused=(),
        dtype=dtype,
    )
    return config, graphdef, params


def read_config(file: File) -> LlamaConfig:
    """What the metadata say, and which tensors there are."""
    if (architecture := file.get("general.architecture")) != "llama":
        raise ValueError(
            f"{file.path}: expected the architecture 'llama', got {architecture!r}."
        )

    def get(name: str, default: Any = _REQUIRED) -> Any:
        return file.get(f"llama.{name}", default)

    shapes = {t.name: _shape(t) for t in file.reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ValueError(f"{file.path}: missing tensors: token_embd.weight.")
    width, heads = get("embedding_length"), get("attention.head_count")
    if not (isinstance(width, int) and isinstance(heads, int) and heads > 0):
        raise ValueError(
            f"{file.path}: expected one width and one number of heads for all layers, "
            f"got {width!r} and {heads!r}."
        )
    head_dim = get("attention.key_length", width // heads)
    for name, expected in (
        ("rope.scaling.type", "none"),
        ("rope.dimension_count", head_dim),
        ("attention.value_length", head_dim),
        ("expert_count", 0),
    ):
        if (got := get(name, expected)) != expected:
            raise ValueError(
                f"{file.path}: expected llama.{name} {expected!r}, got {got!r}."
            )
    try:
        return LlamaConfig(
            vocab_size=shapes["token_embd.weight"][0],
            hidden_size=width,
            intermediate_size=get("feed_forward_length"),
            num_hidden_layers=get("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=get("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=get("context_length"),
            rms_norm_eps=_decimal(get("attention.layer_norm_rms_epsilon")),
            rope_theta=_decimal(get("rope.freq_base", 1e4)),
            tie_word_embeddings=_OUTPUT not in shapes,
            eos_token_id=file.get("tokenizer.ggml.eos_token_id", 2),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file.path}: {error}") from error


def tensor_names(config: LlamaConfig) -> dict[str, Keys]:
    """Where each tensor of a file is in `params`: its name -> the keys."""
    names: dict[str, Keys] = {
        "token_embd.weight": ("embed", "embedding"),
        "output_norm.weight": ("norm", "scale"),
    }
    if not config.tie_word_embeddings:
        names[_OUTPUT] = ("head", "kernel")
    for i in range(config.num_hidden_layers):
        for theirs, ours in LAYER.items():
            names[f"blk.{i}.{theirs}.weight"] = ("layers", i, *ours)
    return names


class _Tensor:
    """A tensor of a GGUF as `checkpoint` reads those of safetensors.

    Of queries and keys llama.cpp turns the pairs (2i, 2i + 1) and not (i, i + K/2), and
    has permuted the rows of each head to that end; `heads` undoes it.
    """

    def __init__(self, tensor: gguf.ReaderTensor, heads: int | None):
        self.tensor, self.heads = tensor, heads

    def get_shape(self) -> list[int]:
        return _shape(self.tensor)

    def get_dtype(self) -> str:
        return "F32"  # what is read from it

    def __getitem__(self, rows: slice) -> np.ndarray:
        x = gguf.dequantize(self.tensor.data, self.tensor.tensor_type)
        x = x.reshape(self.get_shape())
        if self.heads:
            pairs = x.reshape(self.heads, -1, 2, x.shape[1])
            x = pairs.swapaxes(1, 2).reshape(x.shape)
        return x[rows]


def _shape(tensor: gguf.ReaderTensor) -> list[int]:
    return [int(n) for n in reversed(tensor.shape)]


def _check_quantisations(file: File) -> None:
    for kind, tensor in {t.tensor_type: t for t in file.reader.tensors}.items():
        try:
            gguf.dequantize(tensor.data[:1], kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{file.path}: {tensor.name} is quantised as {kind.name}, which the "
                "gguf library of this environment cannot undo: use a file in F16 or "
                "Q8_0, say."
            ) from error


def _decimal(single: float) -> float:
    """The shortest decimal with that value in single precision: 1e-05, not 9.99e-06."""
    return float(str(np.float32(single)))
