"""The second paper, claim by claim: `python -m examples.heterogeneity.verdict`.

Reads the summaries that `examples.heterogeneity` left in the run folders below one
folder, and writes verdict.md there. The paper's own numbers are not public to us; its
claims are put to what was measured, and nothing that was measured is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from examples.heterogeneity.claims import (
    SGD,
    SIGN,
    best_of,
    claims,
    complexity_ratio,
    equal_rates,
    growth,
    loss_of,
    rate_of,
)
from examples.heterogeneity.reading import Summary, clippings, name
from examples.heterogeneity.report import introduction
from examples.lab import command_line, provenance, run_folder
from examples.lab.optimizers import EPSILONS, label
from examples.lab.tables import Made, Table, Verdict

RESULTS = Path(__file__).parents[1] / "results" / "heterogeneity"


def main(folder: tyro.conf.Positional[Path] = RESULTS) -> Path:
    """Writes the verdict about every run below a folder."""
    runs = run_folder.read_summaries(folder)
    runs.sort(key=lambda run: (run["settings"]["task"], run["settings"]["model"]))
    verdict = Verdict(
        "The second paper's claims, and what was measured here",
        "Blocks are tensors. Losses are final training losses, each optimizer at its "
        "best learning rate, mean over the seeds. Every run below this folder is in "
        "the tables.",
        [
            claims(runs),
            overview(runs),
            softness(runs),
            heads(runs),
            signs(runs),
            clipping(runs),
        ],
        [
            Made(name(run), introduction(run), provenance.described(run["sessions"]))
            for run in runs
        ],
    )
    return verdict.write(folder / "verdict.md")


def overview(runs: Sequence[Summary]) -> Table:
    """The numbers of each run that the claims are about."""
    rows = []
    for run in runs:
        row = [name(run)]
        for of in ("l2", "rms"):
            row.append(_from_to(run, lambda m, of=of: m["heterogeneity"][of]["gini"]))
        row.append(_from_to(run, complexity_ratio))
        row += [f"{x:.3f}" for x in (best_of(run, SGD), best_of(run, SIGN))]
        row += [_text(loss_of(run, one)) for one in ("adam", "clipped_sgd")]
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
        [[name(run), *(_text(loss_of(run, one)) for one in names)] for run in runs],
    )


def heads(runs: Sequence[Summary]) -> Table:
    """Norm of the linear head at the end, relative to the start."""
    names = [*SGD, *SIGN, "adam"]
    return Table(
        "Growth of the linear head: norm at the end / at the start (learning rate: a "
        "head grows with it, so only equal ones compare)",
        ["", "classes", *(label(one, 0) for one in names)],
        [
            [
                name(run),
                str(run["settings"]["counts"]["classes"]),
                *(f"{growth(run, one):.2f} ({rate_of(run, one):g})" for one in names),
            ]
            for run in runs
        ],
    )


def signs(runs: Sequence[Summary]) -> Table:
    """The same of sign SGD, at the rates that both kinds of it have tried."""
    return Table(
        "Growth of the linear head under sign SGD, at equal rates",
        ["", "classes", "learning rate", "without momentum", "with"],
        [
            [
                name(run),
                str(run["settings"]["counts"]["classes"]),
                f"{rate:g}",
                f"{plain:.2f}",
                f"{averaged:.2f}",
            ]
            for run in runs
            for rate, (plain, averaged) in equal_rates(run).items()
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


def _from_to(run: Summary, value: Callable[[Mapping[str, Any]], float]) -> str:
    """At the first moment and at the last."""
    if not run["moments"]:
        return "-"
    first, last = (value(run["moments"][i]) for i in (0, -1))
    return f"{first:.3g}, {last:.3g}"


def _text(loss: float) -> str:
    """Of an optimizer that a run may not have."""
    return "-" if math.isnan(loss) else f"{loss:.3f}"


def cli() -> None:
    command_line.report("heterogeneity.verdict", main)


if __name__ == "__main__":
    cli()
