"""The tables of a sharpness run, made from its summary."""

from collections.abc import Mapping
from typing import Any

from examples.lab import paper
from examples.lab.directions import finite_mean
from examples.lab.optimizers import LONG_VERSION, PAPER, label
from examples.lab.tables import Table, span
from examples.sharpness import claims, step_curvature
from examples.sharpness.kinds import KINDS

Summary = dict[str, Any]


def make_tables(summary: Summary) -> list[Table]:
    """Everything in numbers."""
    settings, epochs = summary["settings"], summary["epochs"]
    theirs = paper.reported(settings)
    rows = []
    for epoch, cell in epochs.items():
        rows.append(
            [f"epoch {epoch}, ours", *(_mean(cell, name) for name in paper.COLUMNS)]
        )
        rows.append(
            ["lowest to highest", *(_range(cell, name) for name in paper.COLUMNS)]
        )
        if int(epoch) in theirs:
            published = theirs[int(epoch)]
            rows.append(
                [
                    f"epoch {epoch}, the paper's",
                    *(f"{published[n]:.3g}" for n in paper.COLUMNS),
                ]
            )
    found = [
        Table(
            "Ratio to the sharpness of SGD's direction, mean over the measured batches",
            ["", *(label(name, settings["fraction"]) for name in paper.COLUMNS)],
            rows,
        ),
        _invariants(summary),
        Table(
            "The same of the longer version's optimizers",
            ["", *(label(name, settings["fractions"][name]) for name in LONG_VERSION)],
            [
                [f"epoch {epoch}", *(_mean(cell, name) for name in LONG_VERSION)]
                for epoch, cell in epochs.items()
            ],
        ),
        Table(
            "Sharpness itself, mean over the measured batches",
            ["", *(label(name, settings["fraction"]) for name in PAPER), "loss"],
            [
                [
                    f"epoch {epoch}",
                    *(
                        f"{finite_mean(cell['directions'][name]['sharpness']):.4g}"
                        for name in PAPER
                    ),
                    f"{cell['loss']:.3f}",
                ]
                for epoch, cell in epochs.items()
            ],
        ),
        _landscapes(summary),
    ]
    if step_curvature.has(summary):
        found.append(step_curvature.table(summary))
    if "split" in summary:
        found.append(_split(summary))
    if summary["correlation"]:
        found.append(_correlation(summary))
    return found


def _split(summary: Summary) -> Table:
    """Who carries the sharpness: kinds of blocks, at one batch of each epoch."""
    rows = []
    for epoch, directions in summary["split"].items():
        for name, parts in directions.items():
            total = sum(part["within"] + part["cross"] for part in parts.values())
            row = [
                f"epoch {epoch}, {label(name, summary['settings']['fractions'][name])}"
            ]
            for one in KINDS:
                part = parts.get(one)
                row.append(
                    f"{part['norm']:.1%}, {part['within'] / total:.0%}, "
                    f"{(part['within'] + part['cross']) / total:.0%}"
                    if part and total
                    else "-"
                )
            rows.append([*row, f"{total:.4g}"])
    return Table(
        "Who carries the sharpness, one batch of each epoch: of each kind of block the "
        "fraction of ||u||^2, then that of the sharpness by itself, and with its terms "
        "with the other kinds",
        ["", *KINDS, "sharpness"],
        rows,
    )


def _invariants(summary: Summary) -> Table:
    epochs = summary["epochs"]
    found = {epoch: claims.holding(cell) for epoch, cell in epochs.items()}
    return Table(
        "What holds in all of the paper's tables: here, of the means (and of how many "
        "batches)",
        ["", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [
                one.claim,
                *(
                    f"{'yes' if mean else 'NO'} ({sum(batches)}/{len(batches)})"
                    for mean, batches in (found[epoch][i] for epoch in epochs)
                ),
            ]
            for i, one in enumerate(paper.INVARIANTS)
        ],
    )


def _landscapes(summary: Summary) -> Table:
    settings, epochs = summary["settings"], summary["epochs"]
    rows = []
    for name in (*PAPER, *LONG_VERSION):
        row = [label(name, settings["fractions"][name])]
        for cell in epochs.values():
            of = cell["directions"][name]
            rho = "-" if of.get("rho") is None else f"{of['rho']:.2f}"
            row.append(
                f"{of['decrease']:.3g} at {of['lowest_step']:.3g} ({rho})"
                if "decrease" in of
                else "-"
            )
        rows.append(row)
    return Table(
        "Local loss reduction, the step to it, and (reduction / parabola's), one batch",
        ["", *(f"epoch {epoch}" for epoch in epochs)],
        rows,
    )


def _correlation(summary: Summary) -> Table:
    kinds = (
        ("Pearson, of the logarithms", "pearson"),
        ("Spearman, of the ranks", "spearman"),
    )
    found = summary["correlation"]
    rows = [
        [name, *(_number(x) for x in (found[key], *found[f"{key}_interval"]))]
        for name, key in kinds
    ]
    if within := summary.get("correlation_within"):
        drawn = f"{within['coordinates']} coordinates of {within['tensors']} tensors"
        rows += [
            [
                f"{name}; within tensors, {drawn}",
                *(_number(x) for x in (within[key], *within[f"{key}_interval"])),
            ]
            for name, key in kinds
        ]
    pooled = (
        "; tensors are pooled, whose scales alone could produce it, and below it every "
        "magnitude is divided by the geometric mean of its tensor"
        if within
        else "; all tensors pooled, whose scales alone could produce it"
    )
    return Table(
        "Do large gradient coordinates have large curvature? |g_i| against |H_ii| of "
        f"{summary['settings']['coordinates']} random coordinates at the end, with "
        f"95 % intervals{pooled}",
        ["", "correlation", "from", "to"],
        rows,
    )


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def _mean(cell: Mapping[str, Any], name: str) -> str:
    mean = cell["directions"][name]["ratio"]
    return "-" if mean is None else f"**{mean:.3g}**"


def _range(cell: Mapping[str, Any], name: str) -> str:
    ratios = [r for r in cell["directions"][name]["ratios"] if r is not None]
    return span(ratios)
