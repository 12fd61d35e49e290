"""Which kind of block a tensor is, and who carries a direction's sharpness."""

from collections.abc import Mapping
from typing import Any

from optax_clip import diagnostics

KINDS = ("norm gains", "embedding", "attention", "feed-forward", "others")

# Those whose sharpness is split.
SPLIT = ("sgd", "clipped_sgd", "adam", "sign_sgd")


def kind(path: str) -> str:
    """The kind of a tensor, by its path in any of the project's models."""
    module = path.rpartition("/")[0]
    if module.endswith("norm"):
        return "norm gains"
    if module.endswith("embed"):
        return "embedding"
    if "attention" in path or "relative_bias" in path:
        return "attention"
    return "feed-forward" if "feed_forward" in path else "others"


def numbers(parts: Mapping[str, diagnostics.SharpnessPart]) -> dict[str, Any]:
    """Of each kind: what of norm, slope and sharpness it has, for a file.

    `within` is v_b^T H v_b, `cross` the sum of its terms with the other kinds; over all
    kinds `within` and `cross` sum to the sharpness.
    """
    return {
        name: {
            "norm": float(part.norm),
            "slope": float(part.slope),
            "within": float(part.within),
            "cross": float(sum(part.cross.values())),
        }
        for name, part in parts.items()
    }
