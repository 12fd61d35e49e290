"""Sorting images into classes as a task: a ViT or a ResNet with one linear head.

task = load("fashion_mnist", model="vit", init=None, batch_size=16, held_out=256,
            seed=0)
"""

from pathlib import Path
from typing import Any

from examples.data import images
from examples.data.batching import Arrays, count
from examples.models import functional, huggingface_vision, resnet, vit
from examples.models.checkpoint import local_folder, weight_files
from examples.tasks.classification import (
    ClassificationTask,
    Logits,
    check_model,
)
from examples.tasks.task import check_rows

TASKS = images.NAMES
MODELS = ("pretrained", "vit", "post_ln_vit", "resnet")


def load(
    task: str,
    *,
    model: str,
    init: str,
    batch_size: int,
    held_out: int,
    seed: int,
    folder: Path | None = None,
    rows: int | None = None,
) -> ClassificationTask:
    """Loads everything.

    A pretrained model is the checkpoint `init` with a fresh head; the others are small
    ones from scratch, of nearly the same number of parameters.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    check_model("images", model, MODELS)
    files: list[Path] = []
    if task == "fashion_mnist":
        files += images.fashion_mnist_files(folder or images.FASHION_MNIST)
    checkpoint = local_folder(init) if model == "pretrained" else None
    files += weight_files(checkpoint) if checkpoint else []
    split = images.load(task, seed, folder)
    train = {name: array[:rows] for name, array in split.train.items()}
    valid = {name: array[:held_out] for name, array in split.valid.items()}
    check_rows("training images", count(train), batch_size)
    classes = len(split.classes)
    if checkpoint:
        loaded = huggingface_vision.load(checkpoint, classes, seed)
        config, graphdef, params, logits = loaded
    else:
        config, graphdef, params, logits = small(model, train, classes, seed)
    return ClassificationTask(
        config=config,
        graphdef=graphdef,
        params=params,
        logits=logits,
        classes=split.classes,
        dropout=False,
        files=files,
        train=train,
        held_out=valid,
        batch_size=batch_size,
        seed=seed,
    )


def small(
    model: str, train: Arrays, classes: int, seed: int
) -> tuple[Any, Any, Any, Logits]:
    """About 0.2 M parameters, for small images."""
    _, size, _, channels = train["images"].shape
    if model == "resnet":
        config = resnet.ResNetConfig(
            num_channels=channels,
            embedding_size=16,
            hidden_sizes=(16, 32, 64),
            depths=(2, 2, 2),
            stem="small",
            norm="group",
        )
        graphdef, params = resnet.init(config, classes, seed)
        return config, graphdef, params, functional.logits(graphdef, "images")
    config = vit.ViTConfig(
        image_size=size,
        patch_size=max(size // 7, 2),
        num_channels=channels,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        norm_placement="post" if model == "post_ln_vit" else "pre",
    )
    graphdef, params = vit.init(config, classes, seed)
    return config, graphdef, params, functional.logits(graphdef, "images")
