"""Write tests/goldens/llama_*.npz: what transformers' PyTorch Llama computes.

    python tests/golden_makers/make_llama_goldens.py

As `make_t5_goldens.py`, made with torch 2.13.0 (CPU) and transformers 5.24.0.
"""

import json
from typing import NamedTuple

import numpy as np
import torch
import transformers
from make_t5_goldens import VERSIONS, distance, write
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

LENGTH, GENERATED = 24, 20  # tokens of a row, and of one that begins with a prompt
PROMPTS = (3, 1, 6)

SIZES = {
    "vocab_size": 48,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
CASES = {
    "smollm2": {  # three queries for each key, output tied to the embedding
        "hidden_size": 12,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
    },
    "llama": {  # a key for each query, an output of its own
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
    "wide_heads": {  # two keys for four queries, heads together wider than the model
        "hidden_size": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
}


def make_model(options: dict, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    eager = "eager"  # has second gradients
    config = LlamaConfig(**SIZES, **options, attn_implementation=eager)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # all ones would hide a misplaced scale
                weight.add_(0.3 * torch.randn_like(weight))
            else:  # attention that discriminates, and logits that do not echo the input
                weight.add_(
                    (0.3 if "embed" in name else 0.5) * torch.randn_like(weight)
                )
    return model.eval()


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Three rows of random ids: one full, two that end in padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, SIZES["vocab_size"], (3, LENGTH))
    labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    for row, padding in enumerate((0, 5, 17)):
        ids[row, LENGTH - padding :] = 0
        labels[row, LENGTH - padding - 1 :] = -100
    return {"ids": ids, "labels": labels}


class Derivatives(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor
    gradient: dict[str, torch.Tensor]
    hvp: dict[str, torch.Tensor]


def differentiate(model: LlamaForCausalLM, batch, v) -> Derivatives:
    """Everything up to the second derivative along `v`, by tensor name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    ids, labels = (torch.from_numpy(batch[k]) for k in ("ids", "labels"))
    logits = model(input_ids=ids).logits
    # Not the model's own, which shifts the labels.
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    slope = sum((g * v[k]).sum() for k, g in zip(names, gradient, strict=True))
    hvp = torch.autograd.grad(slope, weights)
    return Derivatives(
        logits.detach(),
        loss.detach(),
        {k: g.detach() for k, g in zip(names, gradient, strict=True)},
        dict(zip(names, hvp, strict=True)),
    )


def generate(model: LlamaForCausalLM, batch) -> np.ndarray:
    """Each row's prompt and what follows it, filled up with eos; one row at a time."""
    rows = []
    for ids, length in zip(batch["ids"], PROMPTS, strict=True):
        prompt = torch.from_numpy(ids[None, :length])
        row = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=GENERATED - length,
            do_sample=False,
            use_cache=False,
            num_beams=1,
            pad_token_id=SIZES["eos_token_id"],
        ).numpy()[0]
        fill = GENERATED - len(row)
        rows.append(np.pad(row, (0, fill), constant_values=SIZES["eos_token_id"]))
    return np.stack(rows)


def is_telling(ids: np.ndarray) -> bool:
    """Whether a row ends early, another does not end, and no row repeats one token."""
    ended = (ids == SIZES["eos_token_id"]).any(axis=1)
    return ended.any() and not ended.all() and all(len(set(row)) > 6 for row in ids)


def norm_in_full_precision(self, y: torch.Tensor) -> torch.Tensor:
    """What LlamaRMSNorm computes, without its detour to float32."""
    variance = y.pow(2).mean(-1, keepdim=True)
    return self.weight * (y * torch.rsqrt(variance + self.variance_epsilon))


def rotary_in_full_precision(self, y: torch.Tensor, position_ids: torch.Tensor):
    """What LlamaRotaryEmbedding computes, without its detour to float32."""
    config = self.config
    head_dim = getattr(config, "head_dim", None)
    K = head_dim or config.hidden_size // config.num_attention_heads
    pairs = torch.arange(0, K, 2, dtype=torch.float64) / K
    frequency = config.rope_parameters["rope_theta"] ** -pairs
    angle = position_ids.double()[..., None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(y.dtype), angle.sin().to(y.dtype)


def softmax_in_full_precision(scores: torch.Tensor, dim: int, dtype: torch.dtype):
    """What the attention computes, without its detour to float32."""
    return torch.softmax(scores, dim, dtype=torch.promote_types(scores.dtype, dtype))


def make_case(name: str) -> None:
    for seed in range(10_000):
        model, batch = make_model(CASES[name], seed), make_batch(seed)
        if is_telling(ids := generate(model, batch)):
            break
    weights = {k: w.detach().clone() for k, w in model.named_parameters()}
    v = {k: torch.randn_like(w) for k, w in weights.items()}
    single = differentiate(model, batch, v)

    model = model.double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = norm_in_full_precision.__get__(module)
        if isinstance(module, LlamaRotaryEmbedding):
            module.forward = rotary_in_full_precision.__get__(module)
    exact = differentiate(model, batch, v)
    assert exact.logits.dtype == torch.float64
    golden = {
        "versions": VERSIONS,
        "seed": seed,
        "config": json.dumps(model.config.to_diff_dict()),
        "ids": batch["ids"].astype(np.int8),
        "labels": batch["labels"].astype(np.int8),
        "logits": exact.logits.numpy(),
        "loss": exact.loss.item(),
        "prompts": np.array(PROMPTS),
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
    write(f"llama_{name}", golden)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    torch.nn.functional.softmax = softmax_in_full_precision
    transformers.logging.set_verbosity_error()
    for case in CASES:
        make_case(case)
