"""What can be read from the summary of a heterogeneity run: names and numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.data import labelled
from examples.lab.directions import finite_mean

Moment = Mapping[str, Any]
Summary = dict[str, Any]

METRICS = ("accuracy", "nll", "brier", "ece")


def name(summary: Summary) -> str:
    """Task and model for people; the user's own texts by the name of their file."""
    settings = summary["settings"]
    own = settings["data"] and settings["task"] in labelled.NAMES
    task = Path(settings["data"]).stem if own else settings["task"]
    return f"{task}, {model_name(summary)}"


def model_name(summary: Summary) -> str:
    """The model for people."""
    settings = summary["settings"]
    return {
        "pretrained": f"pretrained ({settings['init']})",
        "post_ln": "Post-LN encoder from scratch",
        "pre_ln": "Pre-LN encoder from scratch",
        "vit": "ViT (Pre-LN) from scratch",
        "post_ln_vit": "Post-LN ViT from scratch",
        "resnet": "ResNet from scratch",
    }[settings["model"]]


def is_transformer(summary: Summary) -> bool:
    return summary["settings"]["model"] != "resnet"


def has_many_classes(summary: Summary) -> bool:
    """More than two: where the second paper sees momentum hold the head back."""
    return summary["settings"]["counts"]["classes"] > 2


def finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def paired(
    losses: Sequence[float | None], others: Sequence[float | None]
) -> list[float]:
    """Differences seed by seed, of the seeds with which neither diverged."""
    both = zip(losses, others, strict=False)  # one may have fewer seeds
    return [a - b for a, b in both if a is not None and b is not None]


def head_norms(one: Mapping[str, Any]) -> tuple[float, float]:
    """The norm of an optimizer's linear head at the start and at the end."""
    first, last = (finite_mean([x[i][1] for x in one["head_norms"]]) for i in (0, -1))
    return first, last


def head_growth(run: Mapping[str, Any]) -> float | None:
    """The norm of a training's linear head at the end / at the start."""
    norms = [norm for _, norm in run["head_norm"]]
    return None if run["diverged"] is not None else round(norms[-1] / norms[0], 4)


def clippings(moment: Moment) -> dict[str, dict[float, Mapping[str, Any]]]:
    """What was measured of clipped gradients: scope -> fraction -> numbers."""
    found: dict[str, dict[float, Mapping[str, Any]]] = {}
    for name, numbers in moment["directions"].items():
        if name.startswith("clipped "):
            _, fraction, scope = name.split()
            of_scope = found.setdefault(scope, {0.0: moment["directions"]["gradient"]})
            of_scope[float(fraction)] = numbers
    return found
