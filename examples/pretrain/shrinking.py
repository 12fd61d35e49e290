"""The same function of a T5 with smaller weights: what their scale does, and no more.

    shrunk(params, initial)   logits as before, weights about as large as `initial`

A T5 with ReLU computes the same when the residual stream becomes smaller (its norms
divide by it), when values shrink and the output after them grows, and when the first
half of a feed-forward shrinks and the second grows.
"""

from typing import Any

import jax.numpy as jnp

from examples.models.t5 import Params


def shrunk(params: Params, initial: Params) -> Params:
    """The weights of the same function, scaled towards the size of `initial`."""
    stream = _rms(params["embed"]["embedding"]) / _rms(initial["embed"]["embedding"])
    stacks = {
        name: _stack(params[name], initial[name], stream)
        for name in ("encoder", "decoder")
    }
    # Tied logits are products with the embedding, which has become smaller.
    gain = stacks["decoder"]["norm"]["scale"] * stream
    stacks["decoder"] |= {"norm": {"scale": gain}}
    return {
        **params,
        **stacks,
        "embed": {"embedding": params["embed"]["embedding"] / stream},
    }


def _stack(stack: Any, initial: Any, stream: Any) -> Any:
    layers = {
        i: _layer(layer, initial["layers"][i], stream)
        for i, layer in stack["layers"].items()
    }
    return {**stack, "layers": layers}


def _layer(layer: Any, initial: Any, stream: Any) -> Any:
    changed = dict(layer)
    for name in ("attention", "cross_attention"):
        if name in layer:
            changed[name] = _two(layer[name], initial[name], "value", "output", stream)
    name = "feed_forward"
    changed[name] = _two(layer[name], initial[name], "input", "output", stream)
    return changed


def _two(block: Any, initial: Any, first: str, second: str, stream: Any) -> Any:
    """Shrinks the first of two factors, and their product as the stream shrinks."""
    kernel = block[first]["kernel"]
    grown = _rms(kernel) / _rms(initial[first]["kernel"])
    return {
        **block,
        first: {"kernel": kernel / grown},
        second: {"kernel": block[second]["kernel"] * grown / stream},
    }


def _rms(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
