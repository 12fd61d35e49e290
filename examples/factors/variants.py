"""The variants of the factor experiment: one small experiment, changed in one thing."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from examples.models.t5_scales import SCALED, Scaled

COMPARED = (
    "sgd",
    "clipped_sgd",
    "adam",
    "normalized_sgd",
    "clipped_normalized_sgd",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One experiment; the defaults are what all others differ from in one thing."""

    start: Literal["pretrained", "random"] = "pretrained"
    adam_steps: int = 0  # of 16 pairs, before SGD takes over
    source_length: int = 40  # tokens that sources are padded to
    mask_source: bool = True  # False: the padding is attended to
    vocabulary: int = 8192
    scaled: Scaled | None = None  # the function stays the same
    scale: float = 1.0
    batch_size: int = 64
    rate: float = 0.0316  # SGD's: swept on the task, at batches of 16, as it is
    fraction: float = 0.05
    momentum_updates: int = 20  # SGD's, measured after the second half


# Factor -> variants, each of which differs from another one in that factor.
FACTORS: Mapping[str, tuple[Variant, ...]] = {
    "as it is": (Variant(),),
    "scale of weights": tuple(
        Variant(scaled=name, scale=scale) for name in SCALED for scale in (0.25, 4.0)
    ),
    "training by Adam": tuple(Variant(adam_steps=n) for n in (50, 200)),
    "training by Adam, from random weights": tuple(
        Variant("random", adam_steps=n) for n in (0, 200, 800)
    ),
    "fraction": tuple(Variant(fraction=f) for f in (0.001, 0.01, 0.2, 0.5)),
    "batch size": tuple(Variant(batch_size=n) for n in (16, 256)),
    "SGD's learning rate": tuple(Variant(rate=r) for r in (0.001, 0.01, 0.1)),
    "padding": (
        Variant(source_length=160),
        Variant(source_length=160, mask_source=False),
    ),
    "vocabulary, from random weights": tuple(
        Variant("random", adam_steps=200, vocabulary=n) for n in (2048, 4096)
    ),
}


def compared_with(factor: str, variant: Variant) -> Variant:
    """The variant that another one differs from in its factor alone."""
    if not variant.mask_source:
        return dataclasses.replace(variant, mask_source=True)
    if "vocabulary" in factor:
        return dataclasses.replace(variant, vocabulary=Variant.vocabulary)
    if variant.start == "random" and variant.adam_steps:
        return dataclasses.replace(variant, adam_steps=0)
    return Variant()


def described(variant: Mapping[str, Any]) -> str:
    """What differs from the defaults."""
    base = dataclasses.asdict(Variant())
    changed = {k: v for k, v in variant.items() if v != base[k]}
    return ", ".join(f"{k} {v}" for k, v in changed.items()) or "defaults"
