"""What the second paper says, put to runs: claim, what was found, whether it holds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.stats import spearmanr

from examples.heterogeneity.reading import Summary, head_norms, name, paired
from examples.lab.directions import finite_mean
from examples.lab.statistics import Interval, bootstrap
from examples.lab.tables import Table

SGD = ("plain_sgd", "heavy_ball_sgd")
SIGN = ("plain_sign_sgd", "sign_sgd")
_FEW = 2  # classes


def claims(runs: Sequence[Summary]) -> Table:
    """Claim, what was found, whether it holds."""
    rows = [
        *_compared(
            runs,
            "transformers' gradients are more heterogeneous than a ResNet's",
            ("vit", "post_ln_vit"),
            "resnet",
        ),
        *_compared(
            runs,
            "Post-LN makes gradients more heterogeneous than Pre-LN",
            ("post_ln", "post_ln_vit"),
            ("pre_ln", "vit"),
        ),
        _gap(runs),
        _predicted(runs),
        _correlated(runs),
        *_bounded(runs),
        _momentum(runs),
    ]
    return Table("Claims", ["", "found", "holds"], rows)


def _compared(
    runs: Sequence[Summary], claim: str, more: Iterable[str], less: str | Iterable[str]
) -> list[list[str]]:
    """Whether the Gini of one kind of model is above another's, on the same task."""
    pairs = [
        (one, other)
        for one in runs
        for other in runs
        if one["settings"]["model"] in more
        and other["settings"]["model"] in ([less] if isinstance(less, str) else less)
        and one["settings"]["task"] == other["settings"]["task"]
    ]
    rows = []
    for one, other in pairs:
        for reading, words in (("l2", "norms"), ("rms", "norms per parameter")):
            ours, theirs = (
                {m["step"]: m["heterogeneity"][reading]["gini"] for m in run["moments"]}
                for run in (one, other)
            )
            found = [(ours[step], theirs[step]) for step in ours if step in theirs]
            if found:
                values = ", ".join(f"{a:.2f} against {b:.2f}" for a, b in found)
                held = sum(a > b for a, b in found)
                rows.append(
                    [
                        f"{claim}: {name(one)} against {name(other)}, Gini of {words}",
                        values,
                        f"{held} of {len(found)} moments",
                    ]
                )
    return rows


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
    found = paired(*(_losses_of_best(run, names) for names in (SGD, SIGN)))
    return bootstrap(found) if len(found) > 1 else None


def clear(run: Summary) -> bool:
    """Whether all of Student's interval is above 0."""
    found = interval(run)
    return found is not None and found.is_above_zero


def _losses_of_best(run: Summary, optimizers: Sequence[str]) -> list[float | None]:
    """The losses of the optimizer with the lowest mean, by seed."""
    found = [one for optimizer in optimizers if (one := _of(run, optimizer))]
    best = min(found, key=lambda one: finite_mean(one["losses"]), default=None)
    return list(best["losses"]) if best else []


def _predicted(runs: Sequence[Summary]) -> list[str]:
    """Lambda_G / Lambda_P at the start predicts how far SGD falls behind."""
    known = [run for run in runs if run["moments"]]
    ratios = [complexity_ratio(run["moments"][0]) for run in known]
    gaps = [gap(run) for run in known]
    claim = (
        "Lambda_G / Lambda_P at the start predicts SGD's gap across models (holds "
        "where the 95 % interval of the correlation is above 0, fails where it is "
        "below 0.5)"
    )
    if len(known) < 5:
        return [claim, "fewer than five runs", "-"]
    found: Any = spearmanr(ratios, gaps)
    low, high = fisher(found.statistic, len(known))
    holds = "yes" if low > 0 else "**no**" if high < 0.5 else "inconclusive"
    return [
        claim,
        f"Spearman {found.statistic:.2f} ({low:.2f} to {high:.2f}) over {len(known)} "
        f"runs{_of_other_curvature(known)}",
        holds,
    ]


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
    found = [
        (moment["correlation"]["spearman"], moment["correlation"]["spearman_interval"])
        for run in runs
        for moment in run["moments"]
    ]
    values = [value for value, _ in found]
    return [
        "blocks with large gradient norms have large curvature (Spearman; holds where "
        "the 95 % interval is above 0)",
        f"{min(values):.2f} to {max(values):.2f}" if values else "-",
        f"{sum(low > 0 for _, (low, _) in found)} of {len(found)} moments",
    ]


def _bounded(runs: Sequence[Summary]) -> list[list[str]]:
    """The bounds that hold for a block-diagonal Hessian."""
    rows = []
    for direction, bound in (("gradient", "Lambda_G"), ("sign", "Lambda_P")):
        quotients = [
            d["sharpness"] / d["bound"]
            for run in runs
            for moment in run["moments"]
            for d in [moment["directions"][direction]]
        ]
        rows.append(
            [
                f"sharpness along the {direction} is at most {bound}, as if the "
                "Hessian were block-diagonal",
                f"sharpness / {bound} {min(quotients):.2g} to {max(quotients):.2g}"
                if quotients
                else "-",
                f"{sum(q <= 1 for q in quotients)} of {len(quotients)} moments",
            ]
        )
    return rows


def _momentum(runs: Sequence[Summary]) -> list[str]:
    """Momentum keeps the head of sign SGD from growing, with many classes."""
    found = {
        name(run): equal_rates(run)
        for run in runs
        if run["settings"]["counts"]["classes"] > _FEW
    }
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
