"""Images with a label each: where they come from, and what of them is held out.

    load("fashion_mnist", seed=0) -> Split(train, valid, classes) of Arrays

`images` are float32 of shape (B, H, W, C), standardised; `labels` are int32 (B,).
Nothing is augmented.
"""

import gzip
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.data import hub
from examples.data.batching import Arrays

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_HELD_OUT = 0.1  # where there is no official part to hold out
_RESIZED, _CROP = 256, 224
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, standard deviation


class Split(NamedTuple):
    train: Arrays
    valid: Arrays
    classes: tuple[str, ...]


class HubSet(NamedTuple):
    """A set on the Hugging Face hub, its label's column, and its parts."""

    path: str
    label: str
    train: tuple[str, ...]
    valid: str


HUB = {
    "flowers102": HubSet("nelorth/oxford-flowers", "label", ("train",), "test"),
    "fgvc_aircraft": HubSet(
        "HuggingFaceM4/FGVC-Aircraft", "variant", ("train", "validation"), "test"
    ),
}


def load(name: str, seed: int, folder: Path | None = None) -> Split:
    """A set by its name; `folder` has the files of Fashion-MNIST.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: it is not there, or not what is
            expected, said in one sentence.
    """
    if name == "fashion_mnist":
        return fashion_mnist_split(folder or FASHION_MNIST)
    if folder:
        raise ValueError(f"--data is a folder of Fashion-MNIST's files; got {name}.")
    return digits_split(seed) if name == "digits" else hub_split(name)


def fashion_mnist_files(folder: Path) -> list[Path]:
    """Training images and labels, test images and labels; gzipped or not."""
    names = [
        f"{part}-{kind}"
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    found = []
    for name in names:
        candidates = [folder / name, folder / f"{name}.gz"]
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            raise FileNotFoundError(
                f"{candidates[1]}: expected a file of Fashion-MNIST, found no such "
                "file: apt-get install dataset-fashion-mnist, or give the folder of "
                "the four files with --data."
            )
        found.append(existing[0])
    return found


def fashion_mnist_split(folder: Path) -> Split:
    """60,000 images of 28 x 28 to train on, the 10,000 test images held out."""
    arrays = [read_idx(path) for path in fashion_mnist_files(folder)]
    parts = []
    for images, labels in (arrays[:2], arrays[2:]):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{folder}: expected images N x H x W and N labels, got shapes "
                f"{images.shape} and {labels.shape}."
            )
        parts.append((images[..., None] / np.float32(255), labels))
    mean, deviation = parts[0][0].mean(), parts[0][0].std()
    train, valid = (
        _arrays((images - mean) / deviation, labels) for images, labels in parts
    )
    return Split(train, valid, _FASHION)


def digits_split(seed: int) -> Split:
    """Scikit-learn's 1,797 digits of 8 x 8, a tenth held out."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "digits are scikit-learn's, which is not installed: pip install "
            "scikit-learn."
        ) from error
    found: Any = datasets.load_digits()
    images = found.images[..., None].astype(np.float32)
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(seed).permutation(len(images))
    end = round(_HELD_OUT * len(images))
    valid, train = (
        _arrays(images[rows], found.target[rows]) for rows in (order[:end], order[end:])
    )
    return Split(train, valid, tuple(map(str, found.target_names)))


def hub_split(name: str) -> Split:
    """Flowers-102 or FGVC-Aircraft in 224 x 224, the official test part held out."""
    source = HUB[name]
    found = hub.load(name, source.path, instead="fashion_mnist and digits")
    rows = [row for part in source.train for row in found[part]]
    feature = found[source.train[0]].features[source.label]
    return Split(
        _from_hub(rows, source.label),
        _from_hub(found[source.valid], source.label),
        tuple(map(str, feature.names)),
    )


def read_idx(path: Path) -> np.ndarray:
    """A file of unsigned bytes in the format of MNIST, gzipped or not."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: expected a gzip file ({error}).") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path}: expected an idx file of unsigned bytes, got a file that begins "
            f"with {data[:4]!r}."
        )
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != np.prod(shape):
        raise ValueError(
            f"{path}: expected {np.prod(shape):,} bytes for the shape {shape}, got "
            f"{len(data) - start:,}."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _from_hub(rows: Any, label: str) -> Arrays:
    mean, deviation = (np.array(x, np.float32) for x in _IMAGENET)
    images = np.stack([(_cropped(row["image"]) - mean) / deviation for row in rows])
    return _arrays(images, np.array([row[label] for row in rows]))


def _cropped(image: Any) -> np.ndarray:
    """The middle of a Pillow image whose shorter side was made 256."""
    scale = _RESIZED / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - _CROP) // 2, (height - _CROP) // 2
    image = image.convert("RGB").resize((width, height))
    image = image.crop((left, top, left + _CROP, top + _CROP))
    return np.asarray(image, np.float32) / 255


def _arrays(images: np.ndarray, labels: np.ndarray) -> Arrays:
    return {
        "images": np.ascontiguousarray(images, np.float32),
        "labels": np.asarray(labels, np.int32),
    }


NAMES = ("fashion_mnist", "digits", *HUB)
