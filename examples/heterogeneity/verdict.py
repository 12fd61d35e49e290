"""The second paper, claim by claim: `python -m examples.heterogeneity.verdict`.

Reads the summaries that `examples.heterogeneity` left in the run folders below one
folder, and writes verdict.md there. The paper's own numbers are not public to us; its
claims are put to what was measured, and nothing that was measured is left out.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from scipy.stats import spearmanr

from examples.heterogeneity.reading import (
    Summary,
    clippings,
    finite,
    head_norms,
    name,
)
from examples.heterogeneity.report import introduction
from examples.lab import command_line, files, provenance, run_folder
from examples.lab.directions import finite_mean
from examples.lab.optimizers import EPSILONS, label
from examples.lab.tables import Table

RESULTS = Path(__file__).parents[1] / "results" / "heterogeneity"

_SGD = ("plain_sgd", "heavy_ball_sgd")
_SIGN = ("plain_sign_sgd", "sign_sgd")
_FEW = 2  # classes


def main(folder: tyro.conf.Positional[Path] = RESULTS) -> Path:
    """Writes the verdict about every run below a folder."""
    runs = run_folder.read_summaries(folder)
    runs.sort(key=lambda run: (run["settings"]["task"], run["settings"]["model"]))
    path = folder / "verdict.md"
    files.write_text(path, _markdown(runs))
    return path


def _markdown(runs: Sequence[Summary]) -> str:
    parts = [
        "# The second paper's claims, and what was measured here",
        "Blocks are tensors. Losses are final training losses, each optimizer at its "
        "best learning rate, mean over the seeds. Every run below this folder is in "
        "the tables.",
    ]
    tables = [claims(runs), overview(runs), softness(runs), heads(runs), clipping(runs)]
    for table in tables:
        parts += [f"## {table.title}", table.markdown()]
    listed = [
        f"- {name(run)}: {introduction(run)} {provenance.described(run['sessions'])}"
        for run in runs
    ]
    parts += ["## The runs", "\n".join(listed)]
    return "\n\n".join(parts) + "\n"


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


def overview(runs: Sequence[Summary]) -> Table:
    """The numbers of each run that the claims are about."""
    rows = []
    for run in runs:
        row = [name(run)]
        for of in ("l2", "rms"):
            row.append(_from_to(run, lambda m, of=of: m["heterogeneity"][of]["gini"]))
        row.append(_from_to(run, _complexity_ratio))
        row += [f"{x:.3f}" for x in (_best(run, _SGD), _best(run, _SIGN))]
        row += [_text(_loss(run, one)) for one in ("adam", "clipped_sgd")]
        rows.append(row)
    header = [
        "",
        "Gini of norms",
        "Gini per parameter",
        "Lambda_G / Lambda_P",
        "loss: SGD",
        "sign SGD",
        "Adam",
        "clipped SGD",
    ]
    return Table("Heterogeneity (first moment, last) and losses", header, rows)


def softness(runs: Sequence[Summary]) -> Table:
    """From a hard sign to a soft one."""
    names = ["sign_sgd", "adam", *(f"adam_eps_{e}" for e in EPSILONS), "heavy_ball_sgd"]
    return Table(
        "Adam between sign and gradient: the loss against epsilon",
        ["", *(label(one, 0) for one in names)],
        [[name(run), *(_text(_loss(run, one)) for one in names)] for run in runs],
    )


def heads(runs: Sequence[Summary]) -> Table:
    """Norm of the linear head at the end, relative to the start."""
    names = [*_SGD, *_SIGN, "adam"]
    return Table(
        "Growth of the linear head: norm at the end / at the start",
        ["", "classes", *(label(one, 0) for one in names)],
        [
            [
                name(run),
                str(run["settings"]["counts"]["classes"]),
                *(f"{_growth(run, one):.2f}" for one in names),
            ]
            for run in runs
        ],
    )


def clipping(runs: Sequence[Summary]) -> Table:
    """What clipping some of the coordinates does to the last measured gradient."""
    fractions = (0.0, 0.01, 0.05, 0.5)
    rows = []
    for run in runs:
        if not run["moments"]:
            continue
        for scope, found in clippings(run["moments"][-1]).items():
            row = [f"{name(run)}, {scope} threshold"]
            for fraction in fractions:
                numbers = found.get(fraction)
                row.append(
                    f"{numbers['heterogeneity']['l2']['gini']:.2f}, "
                    f"{numbers['bound']:.3g}"
                    if numbers
                    else "-"
                )
            rows.append(row)
    return Table(
        "Clipping: Gini of the block norms, and the bound sum_b |u_b|^2/|u|^2 h_b",
        ["", *(f"{100 * f:g} % clipped" for f in fractions)],
        rows,
    )


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
    return _best(run, _SGD) - _best(run, _SIGN)


def _gap(runs: Sequence[Summary]) -> list[str]:
    """Sign-based optimizers end lower than SGD."""
    gaps = {name(run): gap(run) for run in runs}
    apart = sum(_apart(run) for run in runs)
    return [
        "sign SGD ends at a lower training loss than SGD (both with or without "
        "momentum, the better one)",
        ", ".join(f"{who} {found:+.3f}" for who, found in gaps.items()),
        f"{sum(found > 0 for found in gaps.values())} of {len(gaps)} runs; in {apart} "
        "all seeds of the one are below all of the other",
    ]


def _apart(run: Summary) -> bool:
    """Whether all seeds of the better sign SGD are below those of the better SGD."""
    sign, sgd = (_seeds_of_best(run, names) for names in (_SIGN, _SGD))
    return bool(sign and sgd) and max(sign) < min(sgd)


def _seeds_of_best(run: Summary, optimizers: Sequence[str]) -> list[float]:
    """The losses of the optimizer with the lowest mean."""
    found = [one for optimizer in optimizers if (one := _of(run, optimizer))]
    best = min(found, key=lambda one: finite_mean(one["losses"]), default=None)
    return finite(best["losses"]) if best else []


def _predicted(runs: Sequence[Summary]) -> list[str]:
    """Lambda_G / Lambda_P at the start predicts how far SGD falls behind."""
    known = [run for run in runs if run["moments"]]
    ratios = [_complexity_ratio(run["moments"][0]) for run in known]
    gaps = [gap(run) for run in known]
    claim = (
        "Lambda_G / Lambda_P at the start predicts SGD's gap across models (holds "
        "above a correlation of 0.5)"
    )
    if len(known) < 3:
        return [claim, "fewer than three runs", "-"]
    found: Any = spearmanr(ratios, gaps)
    correlation = found.statistic
    return [
        claim,
        f"Spearman {correlation:.2f} over {len(known)} runs",
        "yes" if correlation > 0.5 else "**no**",
    ]


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
    many = [run for run in runs if run["settings"]["counts"]["classes"] > _FEW]
    found = {
        name(run): (_growth(run, "plain_sign_sgd"), _growth(run, "sign_sgd"))
        for run in many
    }
    return [
        "with many classes, momentum keeps sign SGD's linear head from growing (norm "
        "at the end / at the start, without momentum and with)",
        ", ".join(f"{who} {a:.2f} and {b:.2f}" for who, (a, b) in found.items()) or "-",
        f"{sum(a > b for a, b in found.values())} of {len(found)} runs",
    ]


def _from_to(run: Summary, value: Callable[[Mapping[str, Any]], float]) -> str:
    """At the first moment and at the last."""
    if not run["moments"]:
        return "-"
    first, last = (value(run["moments"][i]) for i in (0, -1))
    return f"{first:.3g}, {last:.3g}"


def _text(loss: float) -> str:
    """Of an optimizer that a run may not have."""
    return "-" if math.isnan(loss) else f"{loss:.3f}"


def _complexity_ratio(moment: Mapping[str, Any]) -> float:
    return moment["complexity"]["gradient"] / moment["complexity"]["sign"]


def _of(run: Summary, optimizer: str) -> Mapping[str, Any] | None:
    """The optimizer's numbers in a run, at the fraction that the run is about."""
    fraction = run["settings"]["fraction"]
    wanted = (optimizer, fraction)
    found = (o for o in run["optimizers"] if (o["name"], o["fraction"]) == wanted)
    return next(found, None)


def _loss(run: Summary, optimizer: str) -> float:
    one = _of(run, optimizer)
    return finite_mean(one["losses"]) if one else math.nan


def _best(run: Summary, optimizers: Sequence[str]) -> float:
    losses = [_loss(run, optimizer) for optimizer in optimizers]
    return min((x for x in losses if not math.isnan(x)), default=math.nan)


def _growth(run: Summary, optimizer: str) -> float:
    one = _of(run, optimizer)
    if one is None:
        return math.nan
    first, last = head_norms(one)
    return last / first


def cli() -> None:
    command_line.report("heterogeneity.verdict", main)


if __name__ == "__main__":
    cli()
