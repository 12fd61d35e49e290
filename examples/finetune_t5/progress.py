"""How many steps an optimizer needs to the lowest held-out loss of SGD.

The fraction of the way from SGD to Adam that another optimizer covers is counted in
those steps: at 0 it needs as many as SGD, at 1 as few as Adam.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]  # a line of seeds.jsonl, or what a summary has of a training
Curve = Sequence[Sequence[Any]]  # of (step, loss on held-out pairs, None if not finite)


def steps_to(curve: Curve, target: float) -> float | None:
    """The first step with such a loss, interpolated; None where it has none."""
    before = None
    for step, loss in _finite(curve):
        if loss <= target:
            if before is None or loss == before[1]:
                return float(step)
            fraction = (before[1] - target) / (before[1] - loss)
            return before[0] + fraction * (step - before[0])
        before = step, loss
    return None


def to_the_end_of_sgd(curves: Mapping[str, Curve]) -> dict[str, float | None]:
    """The steps of each optimizer to the lowest loss of SGD."""
    if not _finite(curves.get("sgd", ())):
        return {}
    target = min(loss for _, loss in _finite(curves["sgd"]))
    return {name: steps_to(curve, target) for name, curve in curves.items()}


def of_runs(runs: Mapping[str, Run]) -> dict[str, float | None]:
    """The same of trainings, by their losses on held-out pairs."""
    return to_the_end_of_sgd({name: run["valid_losses"] for name, run in runs.items()})


def by_seed(runs: Iterable[Run]) -> dict[int, dict[str, Run]]:
    """Trainings by seed and optimizer."""
    found: dict[int, dict[str, Run]] = {}
    for run in runs:
        found.setdefault(run["seed"], {})[run["optimizer"]] = run
    return found


def beside_sgd(runs: Iterable[Run], name: str) -> list[tuple[Run, Run]]:
    """Those of an optimizer that came to their end, with SGD's of the same seed."""
    ended = by_seed(run for run in runs if run["diverged"] is None)
    return [
        (named[name], named["sgd"])
        for named in ended.values()
        if named.keys() >= {name, "sgd"}
    ]


def covered(steps: Mapping[str, float | None], name: str) -> float | None:
    """The fraction of the way from SGD to Adam, in steps; None where there is none."""
    sgd, adam, own = steps.get("sgd"), steps.get("adam"), steps.get(name)
    if sgd is None or adam is None or own is None or adam >= sgd:
        return None
    return (sgd - own) / (sgd - adam)


def _finite(curve: Curve) -> list[Sequence[Any]]:
    return [point for point in curve if point[1] is not None]
