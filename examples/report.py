"""The summary and the tables of a fine-tuning run, made from its files.

`python -m examples.report runs/finetune_t5` prints them again.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from examples import run_folder
from examples.directions import ratio
from examples.optimizers import PAPER, label

TAIL = 25  # the training loss of a run is the mean over so many last steps
Row = dict[str, Any]


def summarise(run: Path, names: Sequence[str], facts: Mapping[str, Any]) -> Row:
    """Writes sharpness.jsonl and summary.json of a finished run."""
    lines = _sharpness_lines(run)
    run_folder.write_lines(run / "sharpness.jsonl", lines)
    summary = {
        **facts,
        "made_with": run_folder.provenance(),
        "date": datetime.date.today().isoformat(),
        "optimizers": {name: _row(run / name) for name in names},
        "sharpness": _sharpness_table(lines, _landscape(run)),
    }
    run_folder.write_json(run / "summary.json", summary)
    return summary


def train_loss(losses: Sequence[float]) -> float:
    """One number for a run: the mean loss of its last steps."""
    return float(np.mean(losses[-TAIL:]))


def show(run: tyro.conf.Positional[Path]) -> None:
    """Prints a run's tables and a few of its translations."""
    summary = run_folder.read_summary(run)
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    console.print(_optimizer_table(summary))
    for name, row in summary["optimizers"].items():
        if row["diverged"] is not None:
            who = label(name, summary["settings"]["fraction"])
            console.print(
                f"{who} diverged: its loss was not finite at step {row['diverged']}."
            )
        elif name == "sgd":
            console.print("A step of SGD includes seven optimizers' pseudo-updates.")
    if summary["sharpness"]:
        console.print(_table_of_sharpness(summary))
    for table in _translations(run, summary):
        console.print(table)
    console.print(f"{run}: summary.json, *.png, weights in */model", soft_wrap=True)


def _row(folder: Path) -> Row:
    """One optimizer's row: what it was, and what came of it."""
    row = json.loads((folder / "facts.json").read_text())
    metrics = run_folder.read_metrics(folder)
    steps = [line for line in metrics if "loss" in line]
    clipped = [line["clipped_fraction"] for line in steps if "clipped_fraction" in line]
    row |= {
        "steps": len(steps),
        "clipped_fraction": float(np.mean(clipped)) if clipped else None,
        "step_seconds": _median_seconds(steps),
    }
    if row["diverged"] is not None:
        return row
    translations = json.loads((folder / "translations.json").read_text())
    validations = [line for line in metrics if "valid_loss" in line]
    return row | {
        "train_loss": train_loss([line["loss"] for line in steps]),
        "valid_loss": validations[-1]["valid_loss"],
        "chrf": translations["chrf"],
    }


def _median_seconds(steps: Sequence[Row]) -> float | None:
    """Between successive steps, so that compiling and measuring hardly count."""
    times = np.diff([line["seconds"] for line in steps])
    return float(np.median(times)) if len(times) else None


def _sharpness_lines(run: Path) -> list[Row]:
    """One line per measurement and optimizer, with the ratio to SGD's sharpness."""
    lines = []
    for line in run_folder.read_metrics(run / "sgd"):
        measured = line.get("sharpness", {})
        for name in [name for name in PAPER if name in measured]:
            ids = {"step": line["step"], "optimizer": name}
            ours, of_sgd = (measured[n]["curvature"] for n in (name, "sgd"))
            lines.append(ids | measured[name] | {"ratio": ratio(ours, of_sgd)})
    return lines


def _sharpness_table(lines: Sequence[Row], landscape: Row | None) -> dict[str, Row]:
    """The paper's number, the mean ratio over the measurements; the rest at the end."""
    table = {}
    for name in dict.fromkeys(line["optimizer"] for line in lines):
        own = [line for line in lines if line["optimizer"] == name]
        ratios = [line["ratio"] for line in own if line["ratio"] is not None]
        mean = float(np.mean(ratios)) if ratios else None
        table[name] = own[-1] | {"ratio": mean, "ratios": ratios}
        if landscape:
            losses = np.asarray(landscape["losses"][name], float)
            best = int(np.nanargmin(losses))
            table[name] |= {
                "scanned_step": landscape["steps"][best],
                "scanned_decrease": float(losses[0] - losses[best]),
            }
    return table


def _landscape(run: Path) -> Row | None:
    path = run / "landscape.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _optimizer_table(summary: Row) -> Table:
    settings = summary["settings"]
    table = Table(
        title=f"{settings['steps']} steps of {settings['batch_size']} pairs; training "
        f"loss: mean of the last {min(TAIL, settings['steps'])} steps"
    )
    table.add_column("optimizer", no_wrap=True)
    for column in (
        "learning rate",
        "training loss",
        "validation loss",
        "chrF",
        "state",
        "clipped",
        "step",
    ):
        table.add_column(column, justify="right")
    for name, row in summary["optimizers"].items():
        diverged = row["diverged"] is not None
        table.add_row(
            label(name, settings["fraction"]),
            _number(row["learning_rate"], ".3g", "relative"),
            "diverged" if diverged else _number(row["train_loss"], ".3f"),
            _number(row.get("valid_loss"), ".3f"),
            _number(row.get("chrf"), ".1f"),
            f"{row['state_bytes'] / 1e6:.1f} MB",
            _number(row["clipped_fraction"], ".1%"),
            _number(row["step_seconds"], ".2f", unit=" s"),
        )
    return table


def _table_of_sharpness(summary: Row) -> Table:
    fraction = summary["settings"]["fraction"]
    rows = summary["sharpness"]
    count = len(next(iter(rows.values()))["ratios"])
    table = Table(
        title="Directional sharpness along SGD's trajectory: mean ratio to SGD of "
        f"{count} measurement{'s' if count > 1 else ''}; the other columns: at the end"
    )
    columns = {
        "ratio": "ratio to SGD",
        "curvature": "sharpness",
        "slope": "slope",
        "best_step": "best step",
        "predicted_decrease": "predicted decrease",
        "scanned_decrease": "scanned decrease",
    }
    table.add_column("direction", no_wrap=True)
    for column in columns.values():
        table.add_column(column, justify="right")
    for name, row in rows.items():
        numbers = (_number(row.get(key), ".3g") for key in columns)
        table.add_row(label(name, fraction), *numbers)
    return table


def _translations(run: Path, summary: Row, count: int = 3) -> list[Table]:
    """A few held-out sentences, evenly from all, in every optimizer's translation."""
    fraction, texts = summary["settings"]["fraction"], {}
    for name, row in summary["optimizers"].items():
        if row["diverged"] is None:
            path = run / name / "translations.json"
            texts[name] = json.loads(path.read_text())["examples"]
    tables = []
    for number in range(count if texts else 0):
        table = Table(show_header=False)
        for name, examples in texts.items():
            example = examples[(2 * number + 1) * len(examples) // (2 * count)]
            if not table.row_count:
                table.add_row("English", example["english"])
                table.add_row("reference", example["reference"], end_section=True)
            table.add_row(label(name, fraction), example["translation"])
        tables.append(table)
    return tables


def _number(
    value: float | None, spec: str, missing: str = "-", *, unit: str = ""
) -> str:
    return missing if value is None else f"{value:{spec}}{unit}"


if __name__ == "__main__":
    run_folder.cli(show)
