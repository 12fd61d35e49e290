"""Write tests/goldens/vision_*.npz: what transformers' PyTorch ViT and ResNet compute.

    python tests/golden_makers/make_vision_goldens.py

As `make_t5_goldens.py`, made with torch 2.14.1 (CPU) and transformers 5.24.0. The
weights have the names of the checkpoints on the hub, which transformers reads.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_t5_goldens import VERSIONS, distance, write
from safetensors.numpy import load_file

CLASSES = 3
CASES = {
    "vit": transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=3,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        num_labels=CLASSES,
        attn_implementation="eager",
    ),
    "resnet": transformers.ResNetConfig(
        embedding_size=6,
        hidden_sizes=[6, 8],
        depths=[1, 2],
        layer_type="basic",
        num_labels=CLASSES,
    ),
}


def make_model(case: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(CASES[case])
    with torch.no_grad():
        for weight in model.parameters():  # no bias of zero, and no norm of one
            weight.add_(0.2 * torch.randn_like(weight))
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                statistic.add_(0.2 * torch.randn_like(statistic))
            if name.endswith("running_var"):
                statistic.mul_(1 + torch.rand_like(statistic))
    return model.eval()  # the running statistics, not those of the batch


def differentiate(model, images, labels):
    names, weights = zip(*model.named_parameters(), strict=True)
    logits = model(pixel_values=images).logits
    loss = torch.nn.functional.cross_entropy(logits, labels)
    gradient = torch.autograd.grad(loss, weights)
    return logits.detach(), dict(zip(names, gradient, strict=True))


def saved(model: torch.nn.Module) -> tuple[dict[str, np.ndarray], str]:
    """Tensors and config.json as `save_pretrained` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
        config = json.loads((Path(folder) / "config.json").read_text())
    return tensors, json.dumps(config)


def make_case(case: str) -> None:
    model = make_model(case)
    size = 8 if case == "vit" else 24
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 3, size, size)).astype(np.float32)
    labels = rng.integers(CLASSES, size=3)
    tensors, config = saved(model)
    batch = torch.from_numpy(images), torch.from_numpy(labels)
    single, gradient = differentiate(model, *batch)
    double = differentiate(model.double(), batch[0].double(), batch[1])
    exact, exact_gradient = double
    golden = {
        "versions": VERSIONS,
        "config": config,
        "images": images.transpose(0, 2, 3, 1),
        "labels": labels.astype(np.int8),
        "logits": exact.numpy(),
        "float32_error/logits": distance(single, exact),
        "float32_error/gradient": max(
            distance(gradient[k], exact_gradient[k])
            for k in gradient
            if not k.endswith("key.bias")  # zero but for roundings
        ),
    }
    golden |= {f"weight/{k}": x for k, x in tensors.items()}
    golden |= {f"gradient/{k}": x.numpy() for k, x in exact_gradient.items()}
    write(f"vision_{case}", golden)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    transformers.logging.set_verbosity_error()
    for case in CASES:
        make_case(case)
