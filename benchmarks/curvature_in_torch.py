"""The same weights, batch and direction in torch: its gradient, and u^T H u.

Eager, as it is used there, and with attention in plain operations: the fused ones have
no second derivative.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from safetensors.torch import load_file

from examples.models import huggingface


def contestants(problem: Any, direction: Any) -> dict[str, Callable[[], Any]]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "weights", Path(name) / "direction"
        for folder, tree in zip(folders, (problem.params, direction), strict=True):
            huggingface.save(folder, problem.config, tree, jnp.float32)
        model = transformers.T5ForConditionalGeneration.from_pretrained(
            folders[0], attn_implementation="eager"
        ).eval()
        u = load_file(folders[1] / huggingface.WEIGHTS)
    weights = {name: w for name, w in model.named_parameters() if name in u}
    norm = torch.stack([u[name].double().norm() for name in weights]).norm().float()
    v = [u[name] / norm for name in weights]
    source, target = (
        torch.from_numpy(problem.batch[name]).long() for name in ("source", "target")
    )

    def gradient(*, create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        loss = model(input_ids=source, labels=target).loss
        return torch.autograd.grad(
            loss, list(weights.values()), create_graph=create_graph
        )

    def inner(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()

    def double_backward() -> float:
        g = gradient(create_graph=True)
        product = torch.autograd.grad(inner(g, v), list(weights.values()))
        return inner(product, v).item()

    if len(weights) != len(jax.tree.leaves(problem.params)):
        raise RuntimeError(f"diagnostics: torch has only {sorted(weights)}.")
    return {"torch gradient": gradient, "torch double backward": double_backward}
