"""Who takes part in `benchmarks.selection`, and the gradients they are given."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import optax_clip
from benchmarks.harness import import_torch
from benchmarks.shapes import Shapes

FRACTION = 0.05
INEXACT = ("fixed clip", "leaf clip")  # whose threshold is another one
SLOW = ("jnp.sort clip", "lax.top_k clip", "torch.sort")  # one round each, the first


class Data(NamedTuple):
    """The gradients of a round, and all magnitudes as the peers like them best."""

    gradients: list[jax.Array]
    array: np.ndarray
    tensor: Any


def draw(seed: int, shapes: Shapes, dtype: str, *, peers: bool) -> Data:
    """Normal times log-normal, every leaf with a scale of its own, over two decades."""
    rng = np.random.default_rng(seed)

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        values = rng.standard_normal(shape, np.float32)
        np.exp(values, out=values)
        values *= rng.standard_normal(shape, np.float32)
        values *= 10 ** rng.uniform(-1, 1)
        return jnp.asarray(values, dtype)

    gradients = [leaf(shape) for shape in shapes]
    flat = [np.asarray(leaf).reshape(-1) for leaf in gradients] if peers else [[]]
    array = np.concatenate(flat)
    np.abs(array, out=array)
    return Data(gradients, array, as_tensor(array, dtype) if peers else None)


def as_tensor(array: np.ndarray, dtype: str) -> Any:
    """The same memory, or a copy on the GPU that JAX uses; None without torch."""
    if (torch := import_torch()) is None:
        return None
    integers = np.dtype(f"i{array.itemsize}")  # numpy and torch share no bfloat16
    tensor = torch.from_numpy(array.view(integers)).view(getattr(torch, dtype))
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return tensor.cuda() if on_gpu else tensor


class Clip:
    """A compiled clip and its state, which goes from call to call as in training."""

    def __init__(
        self, transformation: optax.GradientTransformation, shapes: Shapes, dtype: str
    ):
        like: Any = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in shapes]
        self.state = transformation.init(like)
        jax.clear_caches()  # nobody profits from what another one traced
        start = time.perf_counter()
        self.update = jax.jit(transformation.update).lower(like, self.state).compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, data: Data) -> list[jax.Array]:
        result = self.update(data.gradients, self.state)
        updates, self.state = jax.block_until_ready(result)
        return updates

    def temporary_bytes(self) -> list[float]:
        """What it needs beyond gradients and updates; empty if the device is silent."""
        memory = self.update.memory_analysis()
        return [] if memory is None else [memory.temp_size_in_bytes]


def clips(*, slow: bool) -> dict[str, optax.GradientTransformation]:
    top_k = optax_clip.clip_top_k_coordinates
    contestants = {
        "fixed clip": optax.clip(1.0),
        "global clip": top_k(FRACTION),
        "leaf clip": top_k(FRACTION, scope="leaf"),
    }
    if slow:
        contestants |= {
            "jnp.sort clip": clip_by(lambda x, m: jnp.sort(x)[x.size - 1 - m]),
            "lax.top_k clip": clip_by(lambda x, m: lax.top_k(x, m + 1)[0][-1]),
        }
    return contestants


def clip_by(
    threshold: Callable[[jax.Array, int], jax.Array],
) -> optax.GradientTransformation:
    """The clip as it is usually written: from all magnitudes in one array."""

    def update(updates, params=None):
        del params
        magnitudes = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in updates])
        tau = threshold(magnitudes, skipped(magnitudes.size))
        return [jnp.clip(leaf, -tau, tau) for leaf in updates]

    return optax.stateless(update)


def peers(*, slow: bool) -> dict[str, Callable[[Data], float]]:
    """Searches for the threshold alone, in magnitudes concatenated beforehand."""
    contestants: dict[str, Callable[[Data], float]] = {"np.partition": partition}
    if (torch := import_torch()) is not None:

        def kth_value(data: Data) -> float:
            size = data.tensor.numel()
            return torch.kthvalue(data.tensor, size - skipped(size)).values.item()

        def top_k(data: Data) -> float:
            m = skipped(data.tensor.numel())
            return torch.topk(data.tensor, m + 1).values[m].item()

        def sort(data: Data) -> float:
            m = skipped(data.tensor.numel())
            return torch.sort(data.tensor, descending=True).values[m].item()

        contestants |= {"torch.kthvalue": kth_value, "torch.topk": top_k}
        contestants |= {"torch.sort": sort} if slow else {}
    return contestants


def partition(data: Data) -> float:
    array = data.array
    # numpy has no fast bfloat16; the bits of magnitudes are in the same order.
    keys = array.view(np.uint16) if array.itemsize == 2 else array
    rank = array.size - 1 - skipped(array.size)
    return np.partition(keys, rank)[rank : rank + 1].view(array.dtype).item()


def skipped(size: int) -> int:
    """How many coordinates are above the threshold, ties aside."""
    return math.floor(FRACTION * size)


def found(answer: float | list[jax.Array]) -> float:
    """The threshold: itself, or the largest magnitude of a clipped tree."""
    return max(map(float, map(_peak, answer))) if isinstance(answer, list) else answer


@jax.jit
def _peak(leaf: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(leaf))
