"""Summary, tables and figures of a fine-tuning run, made from its files.

    summary.json    what the tables and the figures are made of
    seeds/          and the losses of other seeds, where they were trained
    report.md       optimizers, directions, translations
    *.png           losses, sharpness, landscape, momentum

`python -m examples.finetune_t5.report RUN` makes and prints them again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from examples.finetune_t5 import in_numbers, plots
from examples.lab import command_line, files, log, provenance, run_folder, tables
from examples.lab.directions import ratio
from examples.lab.optimizers import PAPER, label
from examples.lab.sweep import train_loss
from examples.lab.tables import Table

Row = dict[str, Any]
_TRANSLATIONS = 6  # held-out sentences in the report


def summarise(run: Path, names: Sequence[str], pairs: Mapping[str, int]) -> Row:
    """Writes sharpness.jsonl and summary.json of a finished run."""
    lines = _sharpness_lines(run)
    files.write_lines(run / "sharpness.jsonl", lines)
    landscape = _read(run / "landscape.json")
    start = json.loads((run / "start.json").read_text())
    summary = {
        **run_folder.read_settings(run),
        "pairs": dict(pairs),
        "start": {"chrf": start["chrf"], "translations": _some(start["examples"])},
        "optimizers": {name: _row(run / name) for name in names},
        "sharpness": _sharpness_table(lines, landscape),
        "landscape": landscape,
        "momentum": _read(run / "histogram.json"),
    }
    files.write_json(run / "summary.json", summary)
    return summary


def read(run: Path) -> Row:
    """The summary of a run, with the run folder of `examples.finetune_t5.seeds`.

    Where that lies in it as seeds/.
    """
    summary, folder = run_folder.read_summary(run), run / "seeds"
    seeds = files.read_lines(folder / "seeds.jsonl")
    sessions = run_folder.read_settings(folder)["sessions"] if seeds else []
    sessions = [*summary["sessions"], *sessions]
    return {**summary, "sessions": sessions, "seeds": seeds}


def write(run: Path) -> list[Path]:
    """Writes report.md and the figures."""
    summary = read(run)
    figures = plots.draw(run, summary)
    report = tables.Report(
        "Fine-tuning a T5 on English-French",
        _introduction(summary),
        figures,
        make_tables(summary),
        provenance.described(summary["sessions"]),
    )
    return [report.write(run / "report.md"), *(figure.path for figure in figures)]


def show(run: tyro.conf.Positional[Path]) -> None:
    """Prints a run's tables and a few of its translations."""
    summary = read(run)
    print(_introduction(summary))
    for table in make_tables(summary):
        print(f"\n{table.text()}")
    print(f"\n{run}: summary.json, report.md, *.png, weights in */model")


def make_tables(summary: Row) -> list[Table]:
    """Everything in numbers."""
    found = [in_numbers.optimizers(summary)]
    if summary["seeds"]:
        found.append(in_numbers.seeds(summary))
    if summary["sharpness"]:
        found.append(in_numbers.sharpness(summary))
    return [*found, *in_numbers.translations(summary)]


def _introduction(summary: Row) -> str:
    settings, pairs = summary["settings"], summary["pairs"]
    fraction = settings["fraction"]
    seen = min(pairs["train"], settings["steps"] * settings["batch_size"])
    sentences = [
        f"{pairs['train']:,} pairs to train on, of which the steps see {seen:,}, and "
        f"{pairs['held_out']:,} held out, of at most {settings['max_length']} tokens, "
        f"from `{settings['init']}`.",
        f"Before, its translations have chrF {summary['start']['chrf']:.1f}; they end "
        f"after {settings['max_length']} tokens.",
        "`examples.finetune_t5.sweep` chose the learning rates, with another seed and "
        "by other held-out pairs.",
    ]
    if blank := pairs.get("blank"):
        sentences.append(f"{blank:,} blank lines were skipped.")
    sentences += [
        f"{label(name, fraction)} diverged: its loss was not finite at step "
        f"{row['diverged']}."
        for name, row in summary["optimizers"].items()
        if row["diverged"] is not None
    ]
    return " ".join(sentences)


def _row(folder: Path) -> Row:
    """One optimizer's row: what it was, and what came of it."""
    row = json.loads((folder / "facts.json").read_text())
    metrics = log.read_metrics(folder)
    steps = [line for line in metrics if "loss" in line]
    clipped = [line["clipped_fraction"] for line in steps if "clipped_fraction" in line]
    losses = [line["loss"] for line in steps]
    valid = [(x["step"], x["valid_loss"]) for x in metrics if "valid_loss" in x]
    row |= {
        "clipped_fraction": float(np.mean(clipped)) if clipped else None,
        "losses": [round(loss, 4) for loss in losses],
        "valid_losses": valid,
    }
    if row["diverged"] is not None:
        return row
    translated = json.loads((folder / "translations.json").read_text())
    return row | {
        "train_loss": train_loss(losses),
        "valid_loss": valid[-1][1],
        "chrf": translated["chrf"],
        "translations": _some(translated["examples"]),
    }


def _some(examples: Sequence[Row]) -> list[Row]:
    """A few, evenly from all."""
    count = min(_TRANSLATIONS, len(examples))
    return [examples[(2 * i + 1) * len(examples) // (2 * count)] for i in range(count)]


def _sharpness_lines(run: Path) -> list[Row]:
    """One line per measurement and optimizer, with the ratio to SGD's sharpness."""
    lines = []
    for line in log.read_metrics(run / "sgd"):
        measured = line.get("sharpness", {})
        for name in [name for name in PAPER if name in measured]:
            ids = {"step": line["step"], "optimizer": name}
            ours, of_sgd = (measured[n]["sharpness"] for n in (name, "sgd"))
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
            lowest = int(np.nanargmin(losses))
            table[name] |= {
                "lowest_step": landscape["steps"][lowest],
                "scanned_decrease": float(losses[0] - losses[lowest]),
            }
    return table


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the report and the figures of a run again, and prints the tables."""
    write(run)
    show(run)


if __name__ == "__main__":
    command_line.report("finetune_t5.report", main)
