"""The table of the factor experiment, made from a run's files.

`python -m examples.factors.report RUN` makes it again.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from examples.factors.variants import COMPARED, FACTORS, Variant, described
from examples.lab import command_line, files, provenance, run_folder, tables
from examples.lab.directions import finite_mean
from examples.lab.optimizers import label
from examples.lab.tables import Table


def write(folder: Path) -> list[Path]:
    """Writes factors.md, of all variants that have been measured so far."""
    done = files.read_lines(folder / "variants.jsonl")
    content = run_folder.read_settings(folder)
    known = [(line["factor"], line["variant"]) for line in done]
    missing = [
        f"{factor} ({described(dataclasses.asdict(variant))})"
        for factor, variants in FACTORS.items()
        for variant in variants
        if (factor, dataclasses.asdict(variant)) not in known
        and not content["settings"]["smallest"]
    ]
    base = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(Variant()).items())
    report = tables.Report(
        "When does clipping lower SGD's sharpness much?",
        f"One factor at a time is changed. Defaults: {base}. Ratios: mean, and range "
        f"over three moments, on {content['settings']['test_size']} fixed pairs."
        + (f" Not run: {', '.join(missing)}." if missing else "")
        + _broken(done),
        [],
        [table(done)],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "factors.md")]


_KEEPS_THE_FUNCTION = "embedding scale"
_FAR = 0.5  # nats above the loss of the defaults


def _broken(done: list[dict[str, Any]]) -> str:
    """Says where a change that keeps the function ended at another loss."""
    base = next((x["loss"] for x in done if x["factor"] == "as it is"), None)
    if base is None:
        return ""
    found = [
        f"{described(line['variant'])} (loss {line['loss']:.2f}, the defaults' "
        f"{base:.2f})"
        for line in done
        if line["factor"] == _KEEPS_THE_FUNCTION
        and line["diverged"] is None
        and line["loss"] > base + _FAR
    ]
    if not found:
        return ""
    return (
        " Another scale of the embedding keeps the function that the model computes, "
        f"so its training was broken where it ended far above: {', '.join(found)}. "
        "Ratios of these rows say nothing about the scale."
    )


def table(done: list[dict[str, Any]]) -> Table:
    """One row for each variant, factor by factor."""
    factors = [*FACTORS]
    return Table(
        "What clipping does to the sharpness of SGD's direction, one factor at a time",
        [
            "factor",
            "value",
            "loss",
            "SGD's sharpness",
            *(f"{label(name, None)} / SGD" for name in COMPARED[1:]),
        ],
        [row(line) for line in sorted(done, key=lambda x: factors.index(x["factor"]))],
    )


def row(line: Mapping[str, Any]) -> list[str]:
    first = [line["factor"], described(line["variant"])]
    if line["diverged"] is not None:
        return [*first, f"diverged at update {line['diverged']}", "-", *["-"] * 4]
    return [
        *first,
        f"{line['loss']:.2f}",
        f"{finite_mean(line['sharpness']['sgd']):.3g}",
        *(_summary(line["ratios"][name]) for name in COMPARED[1:]),
    ]


def _summary(ratios: list[float | None]) -> str:
    known = [r for r in ratios if r is not None]
    if not known:
        return "-"
    return f"{finite_mean(known):.2g} ({min(known):.2g} to {max(known):.2g})"


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the table of a run again."""
    print("\n".join(map(str, write(run))))


if __name__ == "__main__":
    command_line.report("factors.report", main)
