"""Write tests/goldens/encoder_*.npz: what transformers' PyTorch BERTs compute.

    python tests/golden_makers/make_encoder_goldens.py

As `make_t5_goldens.py`, made with torch 2.14.1 (CPU) and transformers 5.24.0.
"""

import json
from typing import NamedTuple

import numpy as np
import torch
import transformers
from make_t5_goldens import VERSIONS, distance, write

SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "layer_norm_eps": 1e-5,
}
CASES = {
    "bert": (transformers.BertForMaskedLM, transformers.BertConfig, {}),
    "roberta": (
        transformers.RobertaForMaskedLM,
        transformers.RobertaConfig,
        {"type_vocab_size": 1, "pad_token_id": 1},
    ),
    "causal": (
        transformers.BertLMHeadModel,
        transformers.BertConfig,
        {"is_decoder": True, "use_cache": False},
    ),
}
LENGTH = 11


def make_model(case: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind, config, options = CASES[case]
    model = kind(config(**SIZES, **options, attn_implementation="eager"))
    with torch.no_grad():
        for weight in model.parameters():  # no bias of zero, and no norm of one
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def make_batch(pad: int) -> dict[str, np.ndarray]:
    """Three rows of random ids, two of them padded; a third of the ids are labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, SIZES["vocab_size"], (3, LENGTH))
    labels = rng.integers(2, SIZES["vocab_size"], (3, LENGTH))
    labels[rng.random(labels.shape) > 1 / 3] = -100
    for row, padding in enumerate((0, 3, 7)):
        ids[row, LENGTH - padding :] = pad
        labels[row, LENGTH - padding :] = -100
    return {"ids": ids, "labels": labels}


class Derivatives(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor
    gradient: dict[str, torch.Tensor]


def differentiate(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> Derivatives:
    names, weights = zip(*model.named_parameters(), strict=True)
    ids, labels = (torch.from_numpy(batch[k]) for k in ("ids", "labels"))
    mask = (ids != model.config.pad_token_id).long()
    logits = model(input_ids=ids, attention_mask=mask).logits
    # Not the model's own: that of a causal one shifts the labels.
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    gradient = torch.autograd.grad(loss, weights)
    return Derivatives(
        logits.detach(), loss.detach(), dict(zip(names, gradient, strict=True))
    )


def make_case(case: str) -> None:
    model = make_model(case)
    batch = make_batch(model.config.pad_token_id)
    weights = {k: w.detach().clone() for k, w in model.named_parameters()}
    single = differentiate(model, batch)
    exact = differentiate(model.double(), batch)
    golden = {
        "versions": VERSIONS,
        "config": json.dumps(model.config.to_diff_dict()),
        **{key: x.astype(np.int8) for key, x in batch.items()},
        "logits": exact.logits.numpy(),
        "loss": exact.loss.item(),
        "float32_error/logits": distance(single.logits, exact.logits),
        "float32_error/gradient": max(
            distance(single.gradient[k], exact.gradient[k])
            for k in weights
            if not k.endswith("key.bias")  # zero but for roundings
        ),
    }
    for k, weight in weights.items():
        golden[f"weight/{k}"] = weight.numpy()
        golden[f"gradient/{k}"] = exact.gradient[k].numpy()
    write(f"encoder_{case}", golden)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    transformers.logging.set_verbosity_error()
    for case in CASES:
        make_case(case)
