"""The table of the factor experiment, made from a run's files.

`python -m examples.factors.report RUN` makes it again.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from examples.factors.variants import COMPARED, FACTORS, Variant, described
from examples.lab import command_line, files, provenance, run_folder, tables
from examples.lab.directions import finite_mean
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.tables import Table


def write(folder: Path) -> list[Path]:
    """Writes factors.md, of all variants that have been measured so far."""
    done = files.read_lines(folder / "variants.jsonl")
    content = run_folder.read_settings(folder)
    settings = content["settings"]
    known = [(line["factor"], line["variant"]) for line in done]
    missing = [
        f"{factor} ({described(dataclasses.asdict(variant))})"
        for factor, variants in FACTORS.items()
        for variant in variants
        if (factor, dataclasses.asdict(variant)) not in known
        and not settings["smallest"]
    ]
    base = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(Variant()).items())
    report = tables.Report(
        "When does clipping lower SGD's sharpness much?",
        f"From `{settings['init']}`, one factor at a time is changed. Defaults: "
        f"{base}. A scale multiplies weights of one kind and divides others, so that "
        "the model computes the same (`examples.models.t5_scales`). Ratios are means "
        "over three moments of a trajectory; a number is their mean over the seeds, in "
        f"brackets the lowest and highest of {settings['seeds']} seeds, on "
        f"{settings['test_size']} held-out pairs."
        + (f" Not run: {', '.join(missing)}." if missing else ""),
        [],
        [table(done)],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "factors.md")]


def table(done: list[Line]) -> Table:
    """One row for each variant, factor by factor."""
    factors = [*FACTORS]
    variants: dict[str, list[Line]] = {}
    for line in sorted(done, key=lambda x: factors.index(x["factor"])):
        variants.setdefault(str((line["factor"], line["variant"])), []).append(line)
    return Table(
        "What clipping does to the sharpness of SGD's direction, one factor at a time",
        [
            "factor",
            "value",
            "loss",
            "SGD's sharpness",
            *(f"{label(name, None)} / SGD" for name in COMPARED[1:]),
        ],
        [row(seeds) for seeds in variants.values()],
    )


def row(seeds: Sequence[Line]) -> list[str]:
    """A variant, from the lines of its seeds."""
    first = [seeds[0]["factor"], described(seeds[0]["variant"])]
    kept = [line for line in seeds if line["diverged"] is None]
    if lost := len(seeds) - len(kept):
        first[1] += f" ({lost} of {len(seeds)} diverged)"
    if not kept:
        return [*first, "-", "-", *["-"] * len(COMPARED[1:])]
    return [
        *first,
        f"{np.mean([line['loss'] for line in kept]):.2f}",
        f"{finite_mean(finite_mean(x['sharpness']['sgd']) for x in kept):.3g}",
        *(_summary([x["ratios"][name] for x in kept]) for name in COMPARED[1:]),
    ]


def _summary(ratios: Sequence[Sequence[float | None]]) -> str:
    known = [x for own in ratios if not math.isnan(x := finite_mean(own))]
    if not known:
        return "-"
    return f"{np.mean(known):.2g} ({min(known):.2g} to {max(known):.2g})"


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the table of a run again."""
    print("\n".join(map(str, write(run))))


if __name__ == "__main__":
    command_line.report("factors.report", main)
