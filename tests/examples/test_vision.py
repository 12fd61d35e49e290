"""ViT and ResNet, and images.

The golden numbers come from `make_vision_goldens.py`; see `test_t5.py`.
"""

import functools
import gzip
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from examples.data import images
from examples.models import huggingface_vision, resnet, vit
from examples.tasks import images as image_classification

from . import models

golden = functools.partial(models.golden, "vision")


# Parity with transformers


@pytest.mark.parametrize("case", ["vit", "resnet"])
def test_logits_and_gradients_are_those_of_torch(case, tmp_path):
    models.golden_checkpoint("vision", case, tmp_path)
    loaded = huggingface_vision.load(tmp_path, classes=3)
    theirs = models.golden_tensors("vision", case, "weight")
    head = {k.rpartition(".")[2]: x for k, x in theirs.items() if "classifier" in k}
    head = {"kernel": head["weight"].T, "bias": head["bias"]}
    params = loaded.params | {"head": jax.tree.map(jnp.asarray, head)}
    batch = {k: jnp.asarray(golden(case)[k]) for k in ("images", "labels")}

    def loss(params):
        logits = loaded.logits(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"].astype(int)
        )
        return losses.mean(), logits

    (_, logits), gradient = models.jit(jax.value_and_grad(loss, has_aux=True))(params)
    check = functools.partial(models.assert_as_good_as_torch, "vision", case)
    check("logits", logits, golden(case)["logits"])
    theirs = models.golden_tensors("vision", case, "gradient")
    ours = flatten_dict(gradient)
    assert len(ours) == len(theirs)
    # By their lengths, which tells all tensors apart without another list of names.
    lengths = sorted(float(jnp.linalg.norm(x)) for x in ours.values())
    expected = sorted(float(np.linalg.norm(x)) for x in theirs.values())
    np.testing.assert_allclose(lengths, expected, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    models.golden_checkpoint("vision", "resnet", tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"basic"', '"bottleneck"'))
    with pytest.raises(ValueError, match="expected layer_type 'basic'"):
        huggingface_vision.load(tmp_path, classes=3)


# The small models


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return images.digits_split(0)


@pytest.mark.parametrize("model", ["vit", "post_ln_vit", "resnet"])
def test_a_fresh_model_knows_nothing_and_everything_learns(digits, model):
    batch = {name: array[:4] for name, array in digits.train.items()}
    _, _, params, logits = image_classification.small(model, digits.train, 10, 0)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch), batch["labels"]
        ).mean()

    value, gradient = models.jit(jax.value_and_grad(loss))(params)
    assert abs(float(value) - np.log(10)) < 0.5
    still = {
        "/".join(map(str, path))
        for path, leaf in flatten_dict(gradient).items()
        if float(jnp.linalg.norm(leaf)) < 1e-7
    }
    # A bias of the keys changes no attention.
    assert all(name.endswith("key/bias") for name in still)


def test_a_row_has_nothing_to_do_with_the_others(digits):
    batch = digits.train["images"][:3]
    _, _, params, logits = image_classification.small("resnet", digits.train, 10, 0)
    together = logits(params, {"images": batch})
    alone = logits(params, {"images": batch[:1]})
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_transformer_and_resnet_have_about_as_many_parameters():
    arrays = {"images": np.zeros((1, 28, 28, 1), np.float32)}
    sizes = {}
    for model in ("vit", "post_ln_vit", "resnet"):
        params = jax.eval_shape(
            lambda m=model: image_classification.small(m, arrays, 10, 0)[2]
        )
        sizes[model] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert max(sizes.values()) < 1.25 * min(sizes.values())
    assert sizes["vit"] - sizes["post_ln_vit"] == 2 * 64  # the norm behind the layers


@pytest.mark.parametrize("which", ["image", "heads"])
def test_sizes_that_do_not_divide_are_refused(which):
    sizes = {"image": {"patch_size": 15}, "heads": {"num_attention_heads": 7}}
    with pytest.raises(ValueError, match="must be a multiple of"):
        vit.ViTConfig(**sizes[which])


def test_stages_without_a_depth_are_refused():
    with pytest.raises(ValueError, match="expected a depth for each of hidden_sizes"):
        resnet.ResNetConfig(depths=(1,))


# Images


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    """Six images to train on and two held out; one file is not gzipped."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("t10k", 2)):
        pictures = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        path = tmp_path / f"{part}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(idx(pictures)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_fashion_mnist_is_standardised(fashion):
    split = images.load("fashion_mnist", 0, fashion)
    assert split.train["images"].shape == (6, 28, 28, 1)
    assert split.valid["labels"].tolist() == [0, 1]
    assert split.train["images"].mean() == pytest.approx(0, abs=1e-5)
    assert split.train["images"].std() == pytest.approx(1, abs=1e-5)
    assert len(split.classes) == 10


def test_a_task_of_images(fashion):
    task = image_classification.load(
        "fashion_mnist",
        model="vit",
        init="none",
        batch_size=2,
        held_out=1,
        seed=0,
        folder=fashion,
        rows=4,
    )
    assert task.counts() == {"train": 4, "held_out": 1, "classes": 10}
    (batch,) = task.held_out_batches()
    assert batch["images"].shape == (2, 28, 28, 1)
    assert int(task.weight(batch)) == 1
    assert len(task.files) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x01\0\0\0\x05abc", r"expected 5 bytes for the shape \(5,\), got 3"),
        (b"\0\0\x0d\x01", "expected an idx file of unsigned bytes"),
        (b"", "expected an idx file of unsigned bytes"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        images.read_idx(path)


def test_a_bad_gzip_file_is_refused(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(b"abc")
    with pytest.raises(ValueError, match="expected a gzip file"):
        images.read_idx(path)


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="install dataset-fashion-mnist"):
        images.load("fashion_mnist", 0, tmp_path)


def test_digits_are_split_without_a_leak(digits):
    assert len(digits.train["labels"]) == 1_617
    assert len(digits.valid["labels"]) == 180
    assert {len(part["labels"]) for part in digits[:2]} == {1_617, 180}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "pre_ln"}, "for images expected one of pretrained, vit"),
        (
            {"rows": 1},
            "expected at least 2 training images, which are used at a time, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fashion, options, message):
    arguments = {"model": "vit", "init": "", "batch_size": 2, "held_out": 1, "seed": 0}
    with pytest.raises(ValueError, match=message):
        image_classification.load(
            "fashion_mnist", folder=fashion, **arguments | options
        )


class Rows(list):
    @property
    def features(self):
        return {"variant": types.SimpleNamespace(names=["707", "A320"])}


def test_sets_of_the_hub_are_cropped_to_one_size(monkeypatch):
    image = pytest.importorskip("PIL.Image").new("L", (100, 50), 255)
    row = {"image": image, "variant": 1}

    def load_dataset(name):
        assert name == "HuggingFaceM4/FGVC-Aircraft"
        parts = ("train", "validation", "test")
        return {part: Rows([row]) for part in parts}

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    split = images.load("fgvc_aircraft", 0)
    assert split.train["images"].shape == (2, 224, 224, 3)
    assert split.valid["labels"].tolist() == [1]
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(split.valid["images"][0, 0, 0], white, rtol=1e-5)


def test_the_hub_out_of_reach_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match="flowers102 needs the `datasets` package"):
        images.load("flowers102", 0)
