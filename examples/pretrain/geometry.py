"""How far a T5's weights have grown, and how its loss bends along SGD's direction.

`python -m examples.pretrain geometry --folder FOLDER` writes FOLDER/geometry.json. The
weights of a trained T5 are 8 to 23 times as large as at the start, because its updates
are relative to them; how far optimizers differ depends on it. Where the surface is
jagged at a scale far below a step, the second derivative at a point says nothing about
the step: here the one is beside the other.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import optax_clip
from examples.data import translation, vocabulary
from examples.data.batching import Arrays, batch_at
from examples.lab import command_line
from examples.lab.files import write_json
from examples.models import huggingface, t5
from examples.models.t5_scales import kind
from examples.pretrain import shrinking
from examples.tasks.translation import vocabulary_of
from optax_clip import diagnostics

# google/t5-v1_1-small as published, against the initialisation of Mesh TensorFlow: from
# the standard deviations in pull request 26441 of huggingface/transformers.
RELEASED = {
    "embedding": "11.6",
    "query": "9",
    "key": "8",
    "value": "16",
    "attention output": "16",
    "feed-forward input": "7 to 26",
    "feed-forward output": "17 to 23",
}
LABELS = {"sgd": "SGD", "clipped_sgd": "SGD, 5 % clipped"}
DISTANCES = (1e-3, 1e-2, 1e-1)
_FRACTION = 0.05
_MAX_LENGTH = 40


def main(folder: Path, pairs: int = 48, moments: int = 2, seed: int = 0) -> None:
    """Measures a T5 checkpoint on pairs of the help that no mixture translated.

    Args:
        folder: the checkpoint; geometry.json goes there.
        pairs: in the batch of a direction, and in the one that it is measured on.
        moments: how many such pairs of batches.
        seed: of the batches.
    """
    with command_line.refusals("pretrain.geometry"):
        config, graphdef, params = huggingface.load(folder)
        words, _ = vocabulary_of(folder, config.vocab_size)
    write(folder, measure(config, graphdef, params, pairs, moments, seed, words))
    print(f"{folder / 'geometry.json'}: growth of weights, curvature along SGD")


def measure(
    config: t5.T5Config,
    graphdef: nnx.GraphDef,
    params: t5.Params,
    pairs: int = 48,
    moments: int = 2,
    seed: int = 0,
    words: vocabulary.Vocabulary | None = None,
) -> dict[str, Any]:
    """What geometry.json holds; without words they are the committed ones."""
    part = translation.libreoffice_parts().untranslated
    rows = translation.tokenise(part, words or vocabulary.load(), _MAX_LENGTH).arrays
    _, initial = t5.init(config, seed)
    loss = t5.make_loss(graphdef, config)
    return {
        "pairs": pairs,
        "growth": growth(params, initial),
        **{
            name: list(curvatures(loss, weights, rows, pairs, moments, seed))
            for name, weights in {
                "moments": params,
                "shrunk": shrinking.shrunk(params, initial),
            }.items()
        },
    }


def write(folder: Path, measured: Mapping[str, Any]) -> None:
    write_json(folder / "geometry.json", measured)


def growth(params: t5.Params, initial: t5.Params) -> dict[str, dict[str, float]]:
    """The RMS of every kind of weight, and how many times as large it has become."""
    now, before = (_by_kind(tree) for tree in (params, initial))
    return {
        kind: {"rms": now[kind], "growth": now[kind] / before[kind]} for kind in now
    }


def curvatures(
    loss: Callable[..., jax.Array],
    params: t5.Params,
    rows: Arrays,
    size: int,
    moments: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Of SGD's direction as it is and 5 % clipped: at a point and over distances.

    Each direction is that of one batch, and measured on another.
    """
    along = functools.partial(diagnostics.directional_derivatives, loss, params)
    over = functools.partial(along, mode="finite_difference")
    for moment in range(moments):
        batches = [batch_at(rows, size, seed, 2 * moment + i) for i in range(2)]
        for name, direction in directions(_gradient(loss, params, batches[0])).items():
            point = along(direction, batches[1])
            found = [
                float(over(direction, batches[1], step=h).sharpness) for h in DISTANCES
            ]
            yield {
                "direction": name,
                "moment": moment,
                "loss": float(point.loss),
                "direction_norm": float(point.direction_norm),
                "point": float(point.sharpness),
                "distances": dict(zip(map(str, DISTANCES), found, strict=True)),
            }


@functools.partial(jax.jit, static_argnames="loss")
def _gradient(loss: Callable[..., jax.Array], params: t5.Params, batch: Arrays) -> Any:
    return jax.grad(loss)(params, batch)


def directions(gradient: t5.Params) -> dict[str, t5.Params]:
    """What is measured of a gradient."""
    clip = optax_clip.clip_top_k_coordinates(_FRACTION)
    clipped, _ = jax.jit(clip.update)(gradient, clip.init(gradient))
    return {"sgd": gradient, "clipped_sgd": clipped}


def _by_kind(params: t5.Params) -> dict[str, float]:
    squares: dict[str, list[tuple[float, int]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        square = float(jnp.sum(jnp.square(leaf)))
        squares.setdefault(kind(path), []).append((square, leaf.size))
    return {
        name: float(np.sqrt(sum(x for x, _ in own) / sum(n for _, n in own)))
        for name, own in sorted(squares.items())
    }
