"""What the tests of the example models share: golden files, weights, checkpoints."""

import functools
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

GOLDENS = Path(__file__).parents[1] / "goldens"

# Compilation is all the time these tests take, and optimised code is not their point.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def golden(model, case):
    with np.load(GOLDENS / f"{model}_{case}.npz") as file:
        return dict(file)


def golden_tensors(model, case, kind):
    return {
        key.removeprefix(f"{kind}/"): value
        for key, value in golden(model, case).items()
        if key.startswith(f"{kind}/")
    }


def golden_checkpoint(model, case, folder):
    """Fill `folder` with the weights and the config.json of transformers."""
    save_file(golden_tensors(model, case, "weight"), folder / "model.safetensors")
    (folder / "config.json").write_text(str(golden(model, case)["config"]))


def to_tensors(names, tree):
    """The leaves of a tree like `params`, named and oriented as in PyTorch."""
    flat = flatten_dict(tree)
    return {
        name: np.asarray(flat[keys]).T if keys[-1] == "kernel" else flat[keys]
        for name, keys in names.items()
    }


def assert_as_good_as_torch(model, case, kind, actual, exact):
    """Within 4 times the distance of PyTorch's float32 from the truth.

    In float64 as many roundings are allowed; distances are relative to the length.
    """
    actual, dtype = np.asarray(actual, np.float64), np.asarray(actual).dtype
    roundings = golden(model, case)[f"float32_error/{kind}"] / np.finfo(np.float32).eps
    tolerance = 4 * roundings * np.finfo(dtype).eps
    assert actual.shape == exact.shape
    assert np.linalg.norm(actual - exact) <= tolerance * np.linalg.norm(exact)


def random_model(init, config):
    """The same weights for every test; NumPy's, as `init` takes seconds to compile."""
    graphdef, shapes = jax.eval_shape(functools.partial(init, config), 0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.5, size=x.shape), x.dtype), shapes
    )
    return config, graphdef, params


def rewrite(folder, change):
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rename(folder, old, new):
    """Give a tensor of a checkpoint another name."""

    def change(tensors):
        tensors[new] = tensors.pop(old)

    rewrite(folder, change)


def change_config(folder, drop=(), **fields):
    """Change the config.json of a checkpoint in place."""
    path = folder / "config.json"
    raw = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps(raw | fields))


def make_pointer(path):
    """Put in place of a file what a clone without Git LFS has there."""
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{64 * '0'}\nsize {path.stat().st_size}\n"
    )


def hub(monkeypatch, snapshot_download):
    """Put a function in the place of the Hugging Face hub's."""
    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def byte_characters():
    """The character that stands for each byte in a byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    shifted = {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [shifted.get(byte, chr(byte)) for byte in range(256)]


def byte_tokenizer():
    """A byte-level BPE without merges, with the special tokens of SmolLM2."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*names, *byte_characters()]
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    return tokenizer
