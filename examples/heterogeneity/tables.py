"""The tables of a heterogeneity run, made from its summary."""

from collections.abc import Sequence

from examples.heterogeneity.reading import (
    METRICS,
    Moment,
    Summary,
    clippings,
    finite,
    head_norms,
    paired,
)
from examples.lab.directions import finite_mean
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.tables import Table
from examples.lab.winners import Rules, sweep_table

_READINGS = {"l2": "norms", "rms": "norms per parameter", "squared": "squared norms"}


def make_tables(summary: Summary) -> list[Table]:
    """Everything in numbers."""
    moments = summary["moments"]
    rules = Rules.of(summary["settings"])
    found = [_ranking(summary), sweep_table(summary["sweep"], rules)]
    if moments:
        found += [
            _heterogeneity(moments),
            _complexities(moments),
            _clipped(moments[-1]),
            _norms(moments),
            _extremes(moments[-1]),
        ]
    return found


def _ranking(summary: Summary) -> Table:
    """The lowest training loss first; what diverged is counted, not left out."""
    ranked = sorted(summary["optimizers"], key=lambda one: finite_mean(one["losses"]))
    plain = next((o["losses"] for o in ranked if o["name"] == "plain_sgd"), [])
    rows = []
    for one in ranked:
        losses = finite(one["losses"])
        diverged = len(one["losses"]) - len(losses)
        first, last = head_norms(one)
        rows.append(
            [
                label(one["name"], one["fraction"]),
                f"{one['learning_rate']:g}",
                f"**{finite_mean(losses):.3f}**",
                f"{min(losses):.3f} to {max(losses):.3f}"
                + (f", {diverged} diverged" if diverged else ""),
                _difference(one["losses"], plain),
                *(f"{finite_mean(one[metric]):.3f}" for metric in METRICS),
                f"{last / first:.2f}",
            ]
        )
    seeds = max(len(one["losses"]) for one in summary["optimizers"])
    return Table(
        f"Final training loss at the best learning rate, {seeds} seeds (differences: "
        "95 % bootstrap over the seeds that both have, for "
        f"{len(ranked) - bool(plain)} comparisons, none corrected), and what is held "
        "out",
        [
            "optimizer",
            "learning rate",
            "training loss",
            "lowest to highest",
            "minus SGD without momentum, seed by seed",
            "accuracy",
            "NLL",
            "Brier",
            "ECE",
            "head's norm, end / start",
        ],
        rows,
    )


def _difference(losses: Sequence[float | None], others: Sequence[float | None]) -> str:
    """On the same batches; SGD itself is not compared."""
    found = paired(losses, others)
    return str(bootstrap(found)) if found and losses is not others else "-"


def _heterogeneity(moments: Sequence[Moment]) -> Table:
    rows = [
        [
            f"step {moment['step']}, {name}",
            *(
                f"{moment['heterogeneity'][reading][column]:.3g}"
                for column in ("gini", "variation", "entropy", "max_over_median")
            ),
        ]
        for moment in moments
        for reading, name in _READINGS.items()
    ]
    return Table(
        f"Gradient heterogeneity of {len(moments[0]['blocks'])} blocks, along Adam's "
        "training",
        ["", "Gini", "variation", "entropy", "max / median"],
        rows,
    )


def _complexities(moments: Sequence[Moment]) -> Table:
    rows = []
    for moment in moments:
        complexity, correlation = moment["complexity"], moment["correlation"]
        low, high = correlation["spearman_interval"]
        directions = moment["directions"]
        rows.append(
            [
                f"step {moment['step']}",
                f"{moment['loss']:.3f}",
                f"{complexity['gradient']:.4g}",
                f"{complexity['sign']:.4g}",
                f"{complexity['gradient'] / complexity['sign']:.3g}",
                f"{directions['gradient']['sharpness']:.4g}",
                f"{directions['sign']['sharpness']:.4g}",
                f"{correlation['spearman']:.2f} ({low:.2f} to {high:.2f})",
                f"{complexity['sign_step']:.2g}",
            ]
        )
    return Table(
        "What the curvature of the blocks means: Lambda_G bounds the sharpness of the "
        "gradient for a block-diagonal Hessian, Lambda_P that of its sign",
        [
            "",
            "loss",
            "Lambda_G",
            "Lambda_P",
            "Lambda_G / Lambda_P",
            "sharpness, gradient",
            "sharpness, sign",
            "Spearman, block norm and curvature (95 %)",
            "sign step",
        ],
        rows,
    )


def _clipped(moment: Moment) -> Table:
    rows = [
        [
            f"{100 * fraction:g} %, {scope} threshold" if fraction else "not clipped",
            f"{numbers['heterogeneity']['l2']['gini']:.3f}",
            f"{numbers['heterogeneity']['rms']['gini']:.3f}",
            f"{numbers['bound']:.4g}",
            f"{numbers['sharpness']:.4g}",
        ]
        for scope, by_fraction in clippings(moment).items()
        for fraction, numbers in by_fraction.items()
        if fraction or scope == "global"
    ]
    sign = moment["directions"]["sign"]
    rows.append(
        [
            "sign",
            f"{sign['heterogeneity']['l2']['gini']:.3f}",
            f"{sign['heterogeneity']['rms']['gini']:.3f}",
            f"{sign['bound']:.4g}",
            f"{sign['sharpness']:.4g}",
        ]
    )
    return Table(
        f"Does clipping undo it? The gradient at step {moment['step']}, clipped",
        ["", "Gini of norms", "Gini per parameter", "bound", "sharpness"],
        rows,
    )


def _norms(moments: Sequence[Moment]) -> Table:
    return Table(
        "Layer norms, in the order of the model: mean spectral norm of the Jacobian",
        ["", *(f"step {moment['step']}" for moment in moments)],
        [
            [f"`{name}`", *(f"{moment['norms'][name]:.3g}" for moment in moments)]
            for name in moments[0]["norms"]
        ],
    )


def _extremes(moment: Moment, count: int = 8) -> Table:
    """The blocks with the largest gradients per parameter."""
    blocks = sorted(moment["blocks"].items(), key=lambda item: -item[1]["rms"])
    return Table(
        f"The blocks with the largest gradient per parameter at step {moment['step']}",
        ["", "entries", "norm", "per parameter", "largest, smallest eigenvalue"],
        [
            [
                f"`{name}`",
                f"{block['size']:,.0f}",
                f"{block['l2']:.3g}",
                f"{block['rms']:.3g}",
                ", ".join(f"{x:.3g}" for x in finite([block["top"], block["bottom"]])),
            ]
            for name, block in blocks[:count]
        ],
    )
