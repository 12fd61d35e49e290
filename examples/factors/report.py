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
from examples.tasks import by_name


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


FAR = 1.5  # times the ratio of the defaults, or a part of it


def said(root: Path) -> str:
    """Which factors move what clipping does to SGD, as a list for a page."""
    folder = root / "examples/results/factors"
    settings = run_folder.read_settings(folder)["settings"]
    found = _ratios(files.read_lines(folder / "variants.jsonl"))
    base = found.pop(("as it is", "defaults"))
    by_fraction = [
        f"{_percent(value)} {_spread(own)}"
        for (factor, value), own in found.items()
        if factor == "fraction"
    ]
    changes = {k: own for k, own in found.items() if k[0] != "fraction"}
    far = {
        k: own
        for k, own in changes.items()
        if not 1 / FAR < np.mean(own) / np.mean(base) < FAR
    }
    sentences = [
        "- **What clipping does to the sharpness of SGD's direction**: "
        f"{_spread(base)} of it is left with 5 % clipped, from "
        f"`{by_name.name_of(settings['init'])}` "
        f"([one factor at a time](../../{folder.relative_to(root)}/factors.md); in "
        f"brackets {settings['seeds']} seeds).",
        "- **Other fractions** leave " + ", ".join(by_fraction) + " of it.",
        f"- **What changes that by more than {FAR:g} times**: "
        + ("; ".join(f"{_named(*k)} {_spread(own)}" for k, own in far.items()) or "-")
        + ".",
        "- **What does not**: "
        + ("; ".join(_named(*k) for k in changes if k not in far) or "-")
        + ".",
    ]
    return "\n".join(sentences)


def _ratios(done: Sequence[Line]) -> dict[tuple[str, str], list[float]]:
    """Of each factor and change the ratios of clipped SGD, one for each seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for line in done:
        if line["diverged"] is None:
            key = line["factor"], described(line["variant"])
            ratio = finite_mean(line["ratios"]["clipped_sgd"])
            found.setdefault(key, []).append(ratio)
    return found


def _spread(own: Sequence[float]) -> str:
    return f"{np.mean(own):.2g} ({min(own):.2g} to {max(own):.2g})"


def _named(factor: str, value: str) -> str:
    """For a sentence: "scale of weights (values x 4)"."""
    scaled = value.removeprefix("scaled ").replace(", scale ", " x ")
    return f"{factor} ({scaled.replace('_', ' ')})"


def _percent(value: str) -> str:
    return f"{float(value.removeprefix('fraction ')):.1%}".replace(".0%", "%")


def _summary(ratios: Sequence[Sequence[float | None]]) -> str:
    known = [x for own in ratios if not math.isnan(x := finite_mean(own))]
    if not known:
        return "-"
    return _spread(known)


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the table of a run again."""
    print("\n".join(map(str, write(run))))


if __name__ == "__main__":
    command_line.report("factors.report", main)
