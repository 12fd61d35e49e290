"""Write tests/goldens/t5_*.npz: what transformers' PyTorch T5 computes.

    python tests/golden_makers/make_t5_goldens.py

Made once, with torch 2.13.0 (CPU) and transformers 5.23.0 on Python 3.11; each file
carries the versions that wrote it. The tests themselves need neither package. Results
are float64, from weights that are exact in float32; beside them is the error that
PyTorch itself makes in float32, which is the yardstick for ours.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

GOLDENS = Path(__file__).parents[1] / "goldens"
VERSIONS = f"torch {torch.__version__}, transformers {transformers.__version__}"
MAX_LENGTH = 16

SIZES = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,  # the heads together are narrower than the model, as in t5-3b
    "decoder_start_token_id": 0,
}
CASES = {
    # Both sequences are longer than the largest distance told apart.
    "v1_0": (
        {
            "num_decoder_layers": 3,
            "feed_forward_proj": "relu",
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
        },
        (30, 26),
    ),
    "gated_tied": (
        {"num_decoder_layers": 1, "feed_forward_proj": "gated-gelu"},
        (12, 10),
    ),
    "v1_1": (
        {
            "num_decoder_layers": 1,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        (12, 10),
    ),
}
BUCKETS = [(32, 128), (32, 256), (8, 20), (16, 64), (20, 100)]


def make_model(options: dict, seed: int) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            **SIZES, **options, attn_implementation="eager"
        )  # has second gradients
    )
    if not model.config.scale_decoder_outputs:
        # transformers 5 ties the head of a new v1.1 model, against its own documents.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(64, 16))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:  # all ones would hide a misplaced scale
                weight.add_(0.3 * torch.randn_like(weight))
            elif "relative" in name or ".q." in name:  # attention that discriminates
                weight.mul_(4)
            elif name == "shared.weight":  # or a tied head would echo its input
                weight.mul_(0.25)
    return model.eval()


def make_batch(lengths: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Three rows of random ids: one full, one source and one target mostly padding."""
    rng = np.random.default_rng(seed)
    source = rng.integers(2, 64, (3, lengths[0]))
    target = rng.integers(2, 64, (3, lengths[1]))
    for ids, ends in ((source, (0, 5, 2)), (target, (0, 1, 6))):
        for row, padding in zip(ids, ends, strict=True):
            end = len(row) - padding
            row[end - 1], row[end:] = 1, 0
    return {"source": source, "target": target}


def run(model: T5ForConditionalGeneration, batch: dict[str, np.ndarray], mask: bool):
    source, target = (torch.from_numpy(batch[k]) for k in ("source", "target"))
    return model(
        input_ids=source,
        attention_mask=(source != 0).long() if mask else torch.ones_like(source),
        labels=target.masked_fill(target == 0, -100),
    )


class Derivatives(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor
    gradient: dict[str, torch.Tensor]
    hvp: dict[str, torch.Tensor]


def differentiate(model: T5ForConditionalGeneration, batch, v) -> Derivatives:
    """Everything up to the second derivative along `v`, by tensor name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    output = run(model, batch, mask=True)
    gradient = torch.autograd.grad(output.loss, weights, create_graph=True)
    slope = sum((g * v[k]).sum() for k, g in zip(names, gradient, strict=True))
    hvp = torch.autograd.grad(slope, weights)
    return Derivatives(
        output.logits.detach(),
        output.loss.detach(),
        {k: g.detach() for k, g in zip(names, gradient, strict=True)},
        dict(zip(names, hvp, strict=True)),
    )


def generate(model: T5ForConditionalGeneration, batch) -> np.ndarray:
    """Greedy ids without the start token, padded to MAX_LENGTH."""
    source = torch.from_numpy(batch["source"])
    ids = model.generate(
        source,
        attention_mask=(source != 0).long(),
        max_new_tokens=MAX_LENGTH,
        do_sample=False,
        use_cache=False,
        num_beams=1,
    ).numpy()[:, 1:]
    return np.pad(ids, ((0, 0), (0, MAX_LENGTH - ids.shape[1])))


def is_telling(ids: np.ndarray) -> bool:
    """Whether a row ends early, another does not end, and no row repeats one token."""
    ended = (ids == 1).any(axis=1)
    return ended.any() and not ended.all() and all(len(set(row)) > 4 for row in ids)


def norm_in_full_precision(self, y: torch.Tensor) -> torch.Tensor:
    """What T5LayerNorm computes, without its detour to float32."""
    variance = y.pow(2).mean(-1, keepdim=True)
    return self.weight * (y * torch.rsqrt(variance + self.variance_epsilon))


def distance(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative to the length of `exact`."""
    return ((actual - exact).norm() / exact.norm()).item()


def make_case(name: str) -> None:
    options, lengths = CASES[name]
    for seed in range(10_000):
        model, batch = make_model(options, seed), make_batch(lengths, seed)
        if is_telling(ids := generate(model, batch)):
            break
    weights = {k: w.detach().clone() for k, w in model.named_parameters()}
    v = {k: torch.randn_like(w) for k, w in weights.items()}
    single = differentiate(model, batch, v)

    model = model.double()
    for module in model.modules():
        if isinstance(module, T5LayerNorm):
            module.forward = norm_in_full_precision.__get__(module)
    exact = differentiate(model, batch, v)
    golden = {
        "versions": VERSIONS,
        "seed": seed,
        "config": json.dumps(model.config.to_diff_dict()),
        **{key: ids.astype(np.int8) for key, ids in batch.items()},
        "logits": exact.logits.numpy(),
        "loss": exact.loss.item(),
        "loss_without_source_mask": run(model, batch, mask=False).loss.item(),
        "generated": ids.astype(np.int8),
        "float32_error/logits": distance(single.logits, exact.logits),
        "float32_error/gradient": max(
            distance(single.gradient[k], exact.gradient[k]) for k in v
        ),
        "float32_error/hvp": max(distance(single.hvp[k], exact.hvp[k]) for k in v),
    }
    for k in v:
        golden[f"weight/{k}"] = weights[k].numpy()
        golden[f"gradient/{k}"] = exact.gradient[k].numpy()
        golden[f"v/{k}"] = v[k].numpy()
        golden[f"hvp/{k}"] = exact.hvp[k].numpy()
    write(f"t5_{name}", golden)


def make_buckets() -> None:
    offset = torch.arange(-600, 601)
    golden = {"versions": VERSIONS, "offset": offset.numpy()}
    for num_buckets, max_distance in BUCKETS:
        for bidirectional in (False, True):
            bucket = T5Attention._relative_position_bucket(
                offset, bidirectional, num_buckets, max_distance
            )
            key = f"{num_buckets}/{max_distance}/{bidirectional}"
            golden[key] = bucket.numpy().astype(np.int8)
    write("t5_buckets", golden)


def write(name: str, golden: dict) -> None:
    path = GOLDENS / f"{name}.npz"
    np.savez_compressed(path, **golden)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    transformers.logging.set_verbosity_error()
    GOLDENS.mkdir(exist_ok=True)
    make_buckets()
    for case in CASES:
        make_case(case)
