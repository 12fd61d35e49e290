"""The table of the factor experiment, made from a run's files.

`python -m examples.factors.report RUN` makes it again.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tyro

from examples.factors.variants import (
    COMPARED,
    FACTORS,
    Variant,
    compared_with,
    described,
)
from examples.lab import command_line, files, provenance, run_folder, tables
from examples.lab.directions import finite_mean
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.statistics import Interval, bootstrap
from examples.lab.tables import Table
from examples.tasks import by_name

SMALL = 0.05  # a change that is called none


def write(folder: Path) -> list[Path]:
    """Writes factors.md, of all variants that have been measured so far."""
    done = files.read_lines(folder / "variants.jsonl")
    content = run_folder.read_settings(folder)
    settings = content["settings"]
    known = [(line["factor"], line["variant"]) for line in done]
    seeds = settings["seeds"]
    missing = [
        f"{factor} ({described(dataclasses.asdict(variant))})"
        for factor, variants in FACTORS.items()
        for variant in variants
        if known.count((factor, dataclasses.asdict(variant))) < seeds
        and not settings["smallest"]
    ]
    base = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(Variant()).items())
    report = tables.Report(
        "When does clipping lower SGD's sharpness much?",
        f"From `{settings['init']}`, one factor at a time is changed. Defaults: "
        f"{base}. A scale multiplies weights of one kind and divides others, so that "
        "the model computes the same (`examples.models.t5_scales`); SGD has one "
        "rate in all variants that do not name another. Ratios are means "
        "over three moments of a trajectory; a number is their mean over the seeds, in "
        f"brackets the lowest and highest of {seeds} seeds, on "
        f"{settings['test_size']} held-out pairs."
        + (
            f" Not run, or not with all seeds: {', '.join(missing)}." if missing else ""
        ),
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


def said(root: Path) -> str:
    """Which factors move what clipping does to SGD, as a list for a page."""
    folder = root / "examples/results/factors"
    settings = run_folder.read_settings(folder)["settings"]
    found = _ratios(files.read_lines(folder / "variants.jsonl"))
    base = found.get(Variant(), {})
    if not base:
        return "- Not measured yet."
    groups: dict[str, list[str]] = {"less": [], "more": [], "cannot be told": []}
    unfinished = 0
    for factor, variant in _changes():
        both = [found.get(v, {}) for v in (variant, compared_with(factor, variant))]
        if min(map(len, both)) < settings["seeds"]:
            unfinished += 1
            continue
        own, other = both
        change = bootstrap([math.log(own[seed] / other[seed]) for seed in sorted(own)])
        text = f"{_named(factor, variant)} {math.exp(change.mean):.2f}"
        groups[_clear(change) or "cannot be told"].append(text)
    compared = sum(map(len, groups.values()))
    place = f"../../{folder.relative_to(root)}/factors.md"
    return "\n".join(
        [
            "- **What clipping does to the sharpness of SGD's direction**: "
            f"{_spread(list(base.values()))} of it is left with "
            f"{100 * Variant.fraction:g} % clipped, from "
            f"`{by_name.name_of(settings['init'])}` ([one factor at a time]({place}); "
            f"in brackets the lowest and highest of {len(base)} seeds). Below is by "
            "what a change of one thing multiplies that: geometric means of "
            f"{compared} comparisons, seed by seed; not ended with all seeds, or "
            f"diverged with one: {unfinished}. SGD has one rate in all that do not "
            f"change it. A change is clear if it is by {SMALL:.0%} at least and all of "
            "Student's 95 % interval is on its side of 1.",
            *(
                f"- **{title}**: {'; '.join(groups[name])}."
                for name, title in (
                    ("less", "Clearly less is left"),
                    ("more", "Clearly more is left"),
                    ("cannot be told", "No clear change"),
                )
                if groups[name]
            ),
        ]
    )


def _clear(change: Interval) -> str | None:
    """Whether a factor, as a logarithm, leaves less or more for sure."""
    if abs(change.mean) < math.log1p(SMALL):
        return None
    return "less" if change.is_below_zero else "more" if change.is_above_zero else None


def _changes() -> Iterator[tuple[str, Variant]]:
    """Every variant but the defaults, with its factor."""
    for factor, variants in FACTORS.items():
        yield from ((factor, v) for v in variants if v != Variant())


def _ratios(done: Sequence[Line]) -> dict[Variant, dict[int, float]]:
    """Of each variant and seed the ratio of clipped SGD, where it has a logarithm."""
    found: dict[Variant, dict[int, float]] = {}
    for line in done:
        if line["diverged"] is None:
            ratio = finite_mean(line["ratios"]["clipped_sgd"])
            if ratio > 0:
                own = found.setdefault(Variant(**line["variant"]), {})
                own[line["seed"]] = ratio
    return found


def _spread(own: Sequence[float]) -> str:
    return f"{np.mean(own):.2g} ({min(own):.2g} to {max(own):.2g})"


def _named(factor: str, variant: Variant) -> str:
    """For a sentence: "scale of weights (values x 4)"."""
    value = described(dataclasses.asdict(variant)).removeprefix("scaled ")
    return f"{factor} ({value.replace(', scale ', ' x ').replace('_', ' ')})"


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
