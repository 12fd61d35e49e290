"""The same function of a T5 with some of its weights larger and others smaller.

    rescaled(params, "values", 4.0)   the logits of before

An optimizer sees the scale of weights, a model does not: its norms divide by the size
of the residual stream, products of matrices keep a factor that moves from one to the
other, and a gain may give what the matrices behind it lack.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from examples.models.t5 import Params

Scaled = Literal[
    "residual_stream", "queries", "values", "feed_forward", "norm_gains", "all_matrices"
]

# What is scaled -> the powers of the factor that kinds of weights are multiplied by.
# The last norm's gains stand before the tied embedding, and the ReLU keeps factors.
_INTO_STREAM = {"embedding": 1, "attention output": 1, "feed-forward output": 1}
_BEHIND_GAINS = "query", "key", "value", "feed-forward input"
SCALED: Mapping[Scaled, Mapping[str, int]] = {
    "residual_stream": {**_INTO_STREAM, "last gain": -1},
    "queries": {"query": 1, "key": -1},
    "values": {"value": 1, "attention output": -1},
    "feed_forward": {"feed-forward input": 1, "feed-forward output": -1},
    "norm_gains": {"norm gain": 1, **dict.fromkeys(_BEHIND_GAINS, -1)},
    "all_matrices": {
        **_INTO_STREAM,
        **dict.fromkeys(_BEHIND_GAINS, 1),
        "norm gain": -1,
        "last gain": -1,
    },
}


def kind(path: Sequence[Any]) -> str:
    """What sort of weight a leaf of a T5's parameters is."""
    names = [str(getattr(key, "key", key)) for key in path]
    if "relative_bias" in names:
        return "relative bias"
    if names[-1] == "scale":
        return "norm gain"
    if "feed_forward" in names:
        return f"feed-forward {names[-2]}"
    return {"embed": "embedding", "output": "attention output"}.get(
        names[-2], names[-2]
    )


def named(scaled: str, factor: float) -> str:
    """For people: "residual stream x 4"."""
    return f"{scaled.replace('_', ' ')} x {factor:g}"


def of(settings: Mapping[str, Any]) -> str:
    """What the settings of a run have scaled, for people; "" where nothing is."""
    scaled = settings.get("scaled")
    return named(scaled, settings["scale"]) if scaled else ""


def rescaled(params: Params, scaled: Scaled, factor: float) -> Params:
    """Multiplies what is named in `SCALED` by a factor, and keeps the function.

    For a T5 with ReLU and a tied embedding; norms add their epsilon to the mean square,
    so that the stream must not become as small as that.
    """
    if "head" in params or any("gate" in x["feed_forward"] for x in _layers(params)):
        raise ValueError(
            "expected a T5 with ReLU and a tied embedding: no other keeps its function "
            f"when its {scaled} are scaled."
        )
    if not factor > 0:
        raise ValueError(f"expected a positive factor of the {scaled}, got {factor}.")
    powers = SCALED[scaled]

    def scale(path: Any, leaf: jax.Array) -> jax.Array:
        last = jax.tree_util.keystr(path) == "['decoder']['norm']['scale']"
        return leaf * factor ** powers.get("last gain" if last else kind(path), 0)

    return jax.tree_util.tree_map_with_path(scale, params)


def _layers(params: Params) -> list[Any]:
    stacks = params["encoder"], params["decoder"]
    return [layer for stack in stacks for layer in stack["layers"].values()]
