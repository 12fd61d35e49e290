"""Clips beside other clips, and searches for a threshold beside other searches.

Calls are queued. With many leaves and few coordinates their time may be the host's;
`kernels.py` has the device's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clip
from benchmarks import contestants, harness
from benchmarks.accelerator import inputs
from benchmarks.accelerator.notes import Notes, need, note_bytes, take_turns
from benchmarks.accelerator.presets import Preset
from benchmarks.contestants import Clip
from benchmarks.harness import Figure

OURS, LEAF, FIXED = "global clip", "leaf clip", "fixed clip"
NORM = "clip by global norm"
SLOW = ("jnp.sort clip", "lax.top_k clip")
# Compiled and measured one group after the other: there may be no time for the last.
GROUPS = ((FIXED, OURS, NORM), (LEAF,), SLOW)
GOALS = {"t5-small": 2.5, "1 G": 1.5}  # fixed clips that ours may take, in float32


def figures(tree: str, dtype: str) -> list[Figure]:
    goal = GOALS.get(tree, 4) if dtype == "float32" else 4
    return [
        Figure("global clip / fixed clip", OURS, FIXED, "<=", goal),
        Figure("leaf clip / fixed clip", LEAF, FIXED, "<=", 4),
        Figure("global clip / clip by global norm", OURS, NORM, "<=", 2),
        Figure("jnp.sort clip / global clip", "jnp.sort clip", OURS, ">=", 1),
        Figure("lax.top_k clip / global clip", "lax.top_k clip", OURS, ">=", 1),
        Figure("torch.kthvalue / global clip", "torch.kthvalue", OURS, ">=", 1),
        Figure("torch.topk / global clip", "torch.topk", OURS, ">=", 1),
        Figure("compile global clip, s", f"compile {OURS}", None, "<=", 2),
    ]


def measure(preset: Preset, tree: str, dtype: str, notes: Notes) -> None:
    """Everybody clips the same gradients; those that sort come last."""
    shapes = inputs.tree_shapes(tree, preset)
    gradients = inputs.gradients(shapes, dtype)
    size, bytes_ = sum(x.size for x in gradients), sum(x.nbytes for x in gradients)
    notes.say(coordinates=size, leaves=len(shapes), bytes=bytes_)
    need(2.5 * bytes_)  # gradients and updates
    given = contestants.Data(gradients, np.zeros(0), None)
    transformations = contestants.clips(slow=True)
    transformations[NORM] = optax.clip_by_global_norm(1.0)
    thresholds: dict[str, float] = {}
    for names in GROUPS:
        runs: dict[str, Callable[[], Any]] = {}
        for name in names:
            with notes.trying(name):
                clip = Clip(transformations[name], shapes, dtype)
                notes.add(f"compile {name}", clip.compile_seconds)
                note_bytes(notes, name, clip.update)
                updates = clip(given)
                if name == OURS:
                    thresholds[name] = float(
                        optax_clip.clip_metrics(clip.state)["threshold"]
                    )
                elif name in SLOW:
                    thresholds[name] = contestants.found(updates)
                del updates
                runs[name] = queued(clip, gradients)
        take_turns(notes, runs, preset.rounds, preset.turn)
        notes.conclude(figures(tree, dtype))
    take_turns(notes, _torch(notes, gradients, thresholds), preset.rounds, preset.turn)
    notes.conclude(figures(tree, dtype))
    notes.say(thresholds=thresholds)
    if len(set(thresholds.values())) > 1:
        raise AssertionError(f"The thresholds differ: {thresholds}.")


def queued(clip: Clip, gradients: list[jax.Array]) -> Callable[[], Any]:
    """A call that waits for nothing; the state goes from call to call."""

    def run():
        updates, clip.state = clip.update(gradients, clip.state)
        return updates

    return run


def _torch(notes: Notes, gradients: list, thresholds: dict) -> dict[str, Any]:
    """Searches in the magnitudes in one array, which is to torch's advantage."""
    torch = harness.import_torch()
    on_gpu = torch is not None and torch.cuda.is_available()
    if torch is None or (jax.default_backend() == "gpu" and not on_gpu):
        return {}
    found: dict[str, Any] = {}
    with notes.trying("torch"):
        flat = jnp.concatenate([jnp.abs(x).reshape(-1) for x in gradients])
        tensor = torch.from_dlpack(jax.block_until_ready(flat))
        m = contestants.skipped(tensor.numel())

        def kth_value():
            return torch.kthvalue(tensor, tensor.numel() - m).values

        def top_k():
            return torch.topk(tensor, m + 1).values[m]

        for name, search in (("torch.kthvalue", kth_value), ("torch.topk", top_k)):
            with notes.trying(name):
                thresholds[name] = search().item()
                found[name] = _waiting(torch, search, on_gpu)
    return found


def _waiting(torch: Any, search: Callable[[], Any], on_gpu: bool) -> Callable:
    def run():
        search()
        if on_gpu:
            torch.cuda.synchronize()
        return ()

    return run
