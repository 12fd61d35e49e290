"""What the second paper says, put to runs: claim, what was found, whether it holds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from examples.heterogeneity.reading import (
    Summary,
    has_many_classes,
    head_norms,
    name,
    paired,
)
from examples.lab.directions import finite_mean
from examples.lab.statistics import Interval, bootstrap
from examples.lab.tables import Table, span

SGD = ("plain_sgd", "heavy_ball_sgd")
SIGN = ("plain_sign_sgd", "sign_sgd")

# Whose gradients are more heterogeneous than whose: claim -> kinds of models.
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "transformers' gradients are more heterogeneous than a ResNet's": (
        ("vit", "post_ln_vit"),
        ("resnet",),
    ),
    "Post-LN makes gradients more heterogeneous than Pre-LN": (
        ("post_ln", "post_ln_vit"),
        ("pre_ln", "vit"),
    ),
}
READINGS = {"l2": "norms", "rms": "norms per parameter"}


class Comparison(NamedTuple):
    """The Gini coefficients of two models on one task, moment by moment."""

    one: Summary
    other: Summary
    reading: str
    ginis: list[tuple[float, float]]

    @property
    def held(self) -> int:
        return sum(a > b for a, b in self.ginis)


def claims(runs: Sequence[Summary]) -> Table:
    """Claim, what was found, whether it holds."""
    rows = [
        *(row for claim in KINDS for row in _compared(runs, claim)),
        _gap(runs),
        _predicted(runs),
        _correlated(runs),
        *_bounded(runs),
        _momentum(runs),
    ]
    return Table("Claims", ["", "found", "holds"], rows)


def _compared(runs: Sequence[Summary], claim: str) -> list[list[str]]:
    """Whether the Gini of one kind of model is above another's, on the same task."""
    return [
        [
            f"{claim}: {name(found.one)} against {name(found.other)}, Gini of "
            f"{READINGS[found.reading]}",
            ", ".join(f"{a:.2f} against {b:.2f}" for a, b in found.ginis),
            f"{found.held} of {len(found.ginis)} moments",
        ]
        for found in comparisons(runs, claim)
    ]


def comparisons(runs: Sequence[Summary], claim: str) -> list[Comparison]:
    """Every pair of runs that a claim about kinds of models compares."""
    more, less = KINDS[claim]
    found = []
    for one in runs:
        for other in runs:
            kinds = one["settings"]["model"] in more, other["settings"]["model"] in less
            if all(kinds) and one["settings"]["task"] == other["settings"]["task"]:
                for reading in READINGS:
                    ours, theirs = (_ginis(run, reading) for run in (one, other))
                    both = [(ours[at], theirs[at]) for at in ours if at in theirs]
                    found.append(Comparison(one, other, reading, both))
    return [one for one in found if one.ginis]


def _ginis(run: Summary, reading: str) -> dict[int, float]:
    """By step."""
    return {m["step"]: m["heterogeneity"][reading]["gini"] for m in run["moments"]}


def gap(run: Summary) -> float:
    """How much lower the better sign SGD ends than the better SGD."""
    return best_of(run, SGD) - best_of(run, SIGN)


def _gap(runs: Sequence[Summary]) -> list[str]:
    """Sign-based optimizers end lower than SGD."""
    gaps = {name(run): interval(run) for run in runs}
    return [
        "sign SGD ends at a lower training loss than SGD (both with or without "
        "momentum, the one with the lower mean; SGD minus sign SGD seed by seed, 95 % "
        "bootstrap over the seeds)",
        ", ".join(f"{who} {found or '-'}" for who, found in gaps.items()),
        f"{sum(gap(run) > 0 for run in runs)} of {len(gaps)} runs; in "
        f"{sum(map(clear, runs))} all of Student's 95 % interval is above 0",
    ]


def interval(run: Summary) -> Interval | None:
    """How much lower the better sign SGD ends, seed by seed; None of one seed."""
    found = paired(*(losses_of_best(run, names) for names in (SGD, SIGN)))
    return bootstrap(found) if len(found) > 1 else None


def clear(run: Summary) -> bool:
    """Whether all of Student's interval is above 0."""
    found = interval(run)
    return found is not None and found.is_above_zero


def losses_of_best(run: Summary, optimizers: Sequence[str]) -> list[float | None]:
    """The losses of the optimizer with the lowest mean, by seed."""
    found = [one for optimizer in optimizers if (one := _of(run, optimizer))]
    best = min(found, key=lambda one: finite_mean(one["losses"]), default=None)
    return list(best["losses"]) if best else []


def _predicted(runs: Sequence[Summary]) -> list[str]:
    """Lambda_G / Lambda_P at the start predicts how far SGD falls behind."""
    return [
        "Lambda_G / Lambda_P at the start predicts SGD's gap across models (holds "
        "where the 95 % interval of the correlation is above 0, fails where it is "
        "below 0.5)",
        *prediction(runs),
    ]


def prediction(runs: Sequence[Summary]) -> tuple[str, str]:
    """The correlation of complexities and SGD's gaps, and whether it holds."""
    known = [run for run in runs if run["moments"]]
    ratios = [complexity_ratio(run["moments"][0]) for run in known]
    gaps = [gap(run) for run in known]
    if len(known) < 5:
        return "fewer than five runs", "-"
    found: Any = spearmanr(ratios, gaps)
    low, high = fisher(found.statistic, len(known))
    return (
        f"Spearman {found.statistic:.2f} ({low:.2f} to {high:.2f}) over {len(known)} "
        f"runs{_of_other_curvature(known)}",
        "yes" if low > 0 else "**no**" if high < 0.5 else "inconclusive",
    )


def fisher(correlation: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation, by Fisher's transformation."""
    if abs(correlation) >= 1:
        return correlation, correlation
    middle = math.atanh(correlation)
    width = 1.96 * math.sqrt(1.06 / (count - 3))
    return math.tanh(middle - width), math.tanh(middle + width)


def largest_alone(run: Summary) -> bool:
    """Whether a block's curvature is its largest eigenvalue, not its spectral norm.

    So it was where convolutions are slow, before both ends were taken everywhere.
    """
    blocks = (b for moment in run["moments"] for b in moment["blocks"].values())
    return any(block["bottom"] is None for block in blocks)


def _of_other_curvature(runs: Sequence[Summary]) -> str:
    named = [name(run) for run in runs if largest_alone(run)]
    if not named:
        return ""
    return (
        f"; curvature is the largest eigenvalue in {', '.join(named)}, the spectral "
        "norm elsewhere"
    )


def _correlated(runs: Sequence[Summary]) -> list[str]:
    """Blocks with large gradients have large curvature."""
    found = correlations(runs)
    values = [value for value, _ in found]
    return [
        "blocks with large gradient norms have large curvature (Spearman; holds where "
        "the 95 % interval is above 0)",
        f"{min(values):.2f} to {max(values):.2f}" if values else "-",
        f"{sum(above for _, above in found)} of {len(found)} moments",
    ]


def correlations(runs: Sequence[Summary]) -> list[tuple[float, bool]]:
    """Of gradients and curvature, by moment: Spearman's, is its interval above 0?"""
    found = [moment["correlation"] for run in runs for moment in run["moments"]]
    return [(one["spearman"], one["spearman_interval"][0] > 0) for one in found]


def _bounded(runs: Sequence[Summary]) -> list[list[str]]:
    """The bounds that hold for a block-diagonal Hessian."""
    rows = []
    for direction, bound in (("gradient", "Lambda_G"), ("sign", "Lambda_P")):
        found = of_the_bound(runs, direction)
        rows.append(
            [
                f"sharpness along the {direction} is at most {bound}, as if the "
                "Hessian were block-diagonal",
                f"sharpness / {bound} {span(found)}",
                f"{sum(q <= 1 for q in found)} of {len(found)} moments",
            ]
        )
    return rows


def of_the_bound(runs: Sequence[Summary], direction: str) -> list[float]:
    """The sharpness along a direction, relative to its bound, by moment."""
    found = [m["directions"][direction] for run in runs for m in run["moments"]]
    return [one["sharpness"] / one["bound"] for one in found]


def _momentum(runs: Sequence[Summary]) -> list[str]:
    """Momentum keeps the head of sign SGD from growing, with many classes."""
    found = {name(run): equal_rates(run) for run in runs if has_many_classes(run)}
    held = {
        who: sum(plain > averaged for plain, averaged in pairs.values())
        for who, pairs in found.items()
    }
    count = sum(map(len, found.values()))
    return [
        "with many classes, momentum keeps sign SGD's linear head from growing (by "
        "rates that were tried with and without it)",
        ", ".join(f"{who} {held[who]} of {len(found[who])}" for who in found) or "-",
        f"{sum(held.values())} of {count} rates" if count else "not measured",
    ]


def equal_rates(run: Summary) -> dict[float, tuple[float, float]]:
    """The head's growth without and with sign SGD's momentum, where both were tried.

    A head grows with the learning rate, so only equal ones compare.
    """
    plain, averaged = (growth_by_rate(run, one) for one in SIGN)
    both = sorted(plain.keys() & averaged.keys())
    return {rate: (plain[rate], averaged[rate]) for rate in both}


def growth_by_rate(run: Summary, optimizer: str) -> dict[float, float]:
    """How much the linear head grew, by learning rate.

    At the chosen one it is the mean over the seeds, at the others of the search one
    training, if it did not diverge.
    """
    key = optimizer, run["settings"]["fraction"]
    found = {
        tried["learning_rate"]: tried["head_growth"]
        for tried in run["sweep"]
        if (tried["name"], tried["fraction"]) == key
        and tried.get("head_growth")  # summaries from before the rules have none
    }
    if one := _of(run, optimizer):
        found[one["learning_rate"]] = growth(run, optimizer)
    return found


def rate_of(run: Summary, optimizer: str) -> float:
    one = _of(run, optimizer)
    return one["learning_rate"] if one else math.nan


def complexity_ratio(moment: Mapping[str, Any]) -> float:
    return moment["complexity"]["gradient"] / moment["complexity"]["sign"]


def _of(run: Summary, optimizer: str) -> Mapping[str, Any] | None:
    """The optimizer's numbers in a run, at the fraction that the run is about."""
    fraction = run["settings"]["fraction"]
    wanted = (optimizer, fraction)
    found = (o for o in run["optimizers"] if (o["name"], o["fraction"]) == wanted)
    return next(found, None)


def loss_of(run: Summary, optimizer: str) -> float:
    one = _of(run, optimizer)
    return finite_mean(one["losses"]) if one else math.nan


def best_of(run: Summary, optimizers: Sequence[str]) -> float:
    losses = [loss_of(run, optimizer) for optimizer in optimizers]
    return min((x for x in losses if not math.isnan(x)), default=math.nan)


def growth(run: Summary, optimizer: str) -> float:
    one = _of(run, optimizer)
    if one is None:
        return math.nan
    first, last = head_norms(one)
    return last / first
