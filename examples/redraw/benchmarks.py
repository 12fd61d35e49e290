"""What pages say of `benchmarks/results`: measured here, there, and predicted."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.lab.tables import Table

Record = Mapping[str, Any]

_RESULTS = "benchmarks/results"
_KINDS = ("auto", "explicit")
_SELECTION = (  # the columns of contestants, and the figure in each
    ("global / fixed", "global clip / fixed clip"),
    ("leaf / fixed", "leaf clip / fixed clip"),
    ("`np.partition` / global", "np.partition / global clip"),
    ("`kthvalue` / global", "torch.kthvalue / global clip"),
    ("compile global", "compile global clip, s"),
    ("compile leaf", "compile leaf clip, s"),
)
_LAYOUTS = ("replicated", "FSDP", "tensor parallel", "mixed")
# Bytes a second, as sold.
_BANDWIDTHS = {
    "NVIDIA A100 80 GB": 2.04e12,
    "NVIDIA H100 SXM": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "TPU v5e": 0.82e12,
    "TPU v5p": 2.77e12,
    "TPU v6e": 1.64e12,
}


def placement(root: Path) -> str:
    """A clip on one device of several, and on every mesh."""
    records = _read(root / _RESULTS / "placement.json")
    rows, missed = [], []
    for record in records:
        seconds = record["measured"]
        one, several = (
            _milliseconds(seconds[name]) for name in ("one device of one", "one device")
        )
        pairs = [
            " / ".join(_milliseconds(seconds[f"{kind} {layout}"]) for kind in _KINDS)
            for layout in _LAYOUTS
        ]
        rows.append([record["tree"], one, several, *pairs])
        missed += [
            f"{row['figure']}, {record['tree']}: {row['median']:.2f} ({row['target']})"
            for row in record["rows"]
            if row["met"] is False
        ]
    header = ["tree", "one device of one", f"one of {records[0]['devices']}", *_LAYOUTS]
    table = Table("Placement", header, rows)
    targets = "; ".join(missed) or "none"
    said = f"Targets that were missed: {targets}."
    return f"{table.markdown()}\n\n{said} {_origin(records[0])}"


def selection(root: Path) -> str:
    """A clip beside other clips and searches, with every size, layout and type."""
    records = sorted(
        _read(root / _RESULTS / "selection.json"),
        key=lambda r: (r["layout"] != "t5-small", r["leaves"], r["coordinates"]),
    )
    rows = []
    for record in records:
        figures = {figure["figure"]: figure for figure in record["rows"]}
        rows.append(
            [
                f"{record['layout']}, {_count(record['coordinates'])}",
                record["dtype"],
                f"{_milliseconds(record['measured']['fixed clip'])} ms",
                *(_figure(figures[name]) for _, name in _SELECTION),
                record["date"][:10],
            ]
        )
    targets = {figure["figure"]: figure["target"] for figure in records[0]["rows"]}
    rows.append(["target", "", "", *(targets[name] for _, name in _SELECTION), ""])
    columns = [column for column, _ in _SELECTION]
    header = ["coordinates", "type", "fixed clip", *columns, "measured"]
    main = _whole(root)
    also = "; ".join(
        f"{figure['figure']} {_figure(figure)} ({figure['target']})"
        for figure in main["rows"]
        if figure["figure"] not in dict(_SELECTION).values()
    )
    said = f"Also, on T5-small's shapes in float32: {also}."
    return f"{Table('Selection', header, rows).markdown()}\n\n{said} {_origin(main)}"


def cost(root: Path) -> str:
    """Of a training step, in a sentence."""
    record = _whole(root)
    (step,) = (r for r in record["rows"] if r["figure"].startswith("training step"))
    low, middle, high = (
        f"{100 * (step[name] - 1):.0f}" for name in ("min", "median", "max")
    )
    rounds = len(record["measured"]["clipped step"])
    return (
        f"A training step of T5-small takes {middle} % longer with it on CPU "
        f"({low} to {high} % in {rounds} rounds)."
    )


def curvature(root: Path) -> str:
    """What a sharpness costs beside a gradient, and torch's beside ours."""
    (record,) = _read(root / _RESULTS / "diagnostics.json")
    models = list(dict.fromkeys(figure["model"] for figure in record["rows"]))
    found = {(figure["figure"], figure["model"]): figure for figure in record["rows"]}
    names = dict.fromkeys(name for name, _ in found)
    rows = []
    for name in names:
        figures = [found.get((name, model)) for model in models]
        targets = dict.fromkeys(figure["target"] for figure in figures if figure)
        rows.append(
            [name, ", ".join(targets), *(_figure(f) if f else "-" for f in figures)]
        )
    table = Table("Curvature", ["figure", "target", *models], rows)
    return f"{table.markdown()}\n\n{_origin(record)}"


def predicted(root: Path) -> str:
    """The cost model on other devices, with the passes measured on this one."""
    record = _whole(root)
    (figure,) = (r for r in record["rows"] if r["figure"] == "global clip / fixed clip")
    passes = max(round(2 * (figure["median"] - 1)), 1)
    size = 4 * record["coordinates"]
    rows = [
        [
            device,
            f"{bandwidth / 1e12:.3g} TB/s",
            f"{2 * size / bandwidth * 1e3:.2g} ms",
            f"{(2 + passes) * size / bandwidth * 1e3:.2g} ms",
        ]
        for device, bandwidth in _BANDWIDTHS.items()
    ]
    header = ["device", "bandwidth, as sold", "fixed clip", "global clip"]
    said = (
        f"T5-small's {record['coordinates']:,} coordinates in float32 "
        f"({size / 1e6:.0f} MB), with the p = {passes} that the ratio "
        f"{figure['median']:.2g} of {record['date'][:10]} on "
        f"{record['made_with']['device']} amounts to."
    )
    return f"{Table('Predicted', header, rows).markdown()}\n\n{said}"


def accelerators(root: Path) -> str:
    """What `benchmarks.accelerator` found, wherever it ran."""
    path = root / _RESULTS / "accelerator.json"
    if not path.is_file():
        return "Nothing yet: none was at hand."
    return "\n\n".join(map(_accelerator, _read(path)))


def _accelerator(record: Record) -> str:
    rows = [
        [
            name,
            figure["figure"],
            f"{figure['median']:.3g}",
            figure["target"],
            "yes" if figure["met"] else "no",
        ]
        for name, row in record["rows"].items()
        for figure in row.get("figures", ())
        if figure["met"] is not None
    ]
    table = Table("Accelerator", ["row", "figure", "median", "target", "met"], rows)
    ended = [row["status"] for row in record["rows"].values()]
    counts = ", ".join(f"{ended.count(s)} {s}" for s in sorted(set(ended)))
    whys = "".join(f" {why}" for why in _whys(record))
    return f"{table.markdown()}\n\nRows: {counts}.{whys} {_origin(record)}"


def _whys(record: Record) -> Iterator[str]:
    for name, row in record["rows"].items():
        if row["status"] not in ("measured", "failed in part"):
            yield f"{name}: {row['why']}"


def _whole(root: Path) -> Record:
    """The record of T5-small itself in single precision, which has every figure."""
    (record,) = (
        record
        for record in _read(root / _RESULTS / "selection.json")
        if (record["layout"], record["coordinates"]) == ("t5-small", 60_506_624)
        and record["dtype"] == "float32"
    )
    return record


def _read(path: Path) -> list[Record]:
    return list(json.loads(path.read_text()).values())


def _milliseconds(seconds: list[float]) -> str:
    found = statistics.median(seconds) * 1e3
    return f"{found:.3g}" if found < 1000 else f"{found:.0f}"


def _figure(figure: Record) -> str:
    """The median, and a star where the target was missed; a dash if not measured."""
    if figure["met"] is None:
        return "-"
    return f"{figure['median']:.3g}" + ("" if figure["met"] else "\\*")


def _count(coordinates: int) -> str:
    return (
        f"{coordinates / 1e9:.3g} G"
        if coordinates >= 1e9
        else f"{coordinates / 1e6:.3g} M"
    )


def _origin(record: Record) -> str:
    made = record["made_with"]
    return (
        f"`{record['command']}` at commit {record['commit']}; {record['date'][:10]}; "
        f"{made['device']}; Python {made['python']}, jax {made['jax']}."
    )
