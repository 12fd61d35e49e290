"""Summary, tables and figures of a run of `examples.sharpness`, made from its files.

    summary.json      everything that the tables and the figures are made of
    report.md         tables 3 to 6, the invariants, the landscapes in numbers
    *.png             figures 1 and 3 (or 5 to 8), the loss reductions, the ratios

`python -m examples.sharpness.report RUN` makes them again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from examples.lab import (
    command_line,
    files,
    log,
    provenance,
    run_folder,
    tables,
)
from examples.lab.directions import finite_mean, ratio
from examples.lab.optimizers import label
from examples.sharpness import plots, step_curvature
from examples.sharpness.tables import make_tables
from examples.tasks import by_name

Line = dict[str, Any]
Summary = dict[str, Any]


def write(run: Path) -> list[Path]:
    """Writes everything that the summary has data for."""
    summary = run_folder.read_summary(run)
    figures = plots.draw(run, summary)
    report = tables.Report(
        heading(summary),
        introduction(summary),
        figures,
        make_tables(summary),
        provenance.described(summary["sessions"]),
    )
    return [report.write(run / "report.md"), *(figure.path for figure in figures)]


def summarise(run: Path) -> Summary:
    """Writes summary.json, of all that has been measured so far."""
    metrics = log.read_metrics(run)
    lines = [line for line in metrics if "sharpness" in line]
    if not lines:
        raise FileNotFoundError(f"{run}: nothing has been measured there yet.")
    losses = [line["loss"] for line in metrics if "loss" in line]
    diverged = [line["step"] for line in metrics if "diverged" in line]
    epochs = {}
    for epoch in dict.fromkeys(line["epoch"] for line in lines):
        own = [line for line in lines if line["epoch"] == epoch]
        shown = next((line for line in own if line["in_figure"]), None)
        epochs[str(epoch)] = {
            "batches": [line["batch"] for line in own],
            "in_figure": shown and shown["batch"],
            "loss": finite_mean(line["sharpness"]["sgd"]["loss"] for line in own),
            "directions": {
                name: _of_direction(name, own, shown) for name in own[0]["sharpness"]
            },
        }
    summary = {
        **run_folder.read_settings(run),
        "steps": len(losses),
        "seconds": metrics[-1]["seconds"],
        "diverged": diverged[0] if diverged else None,
        "train_loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        "epochs": epochs,
        "momentum": _last(lines, "momentum"),
        "correlation": _last(lines, "correlation"),
    }
    # Runs from before they were measured have neither.
    if within := _last(lines, "correlation_within"):
        summary["correlation_within"] = within
    if split := {str(x["epoch"]): x["split"] for x in lines if "split" in x}:
        summary["split"] = split
    files.write_json(run / "summary.json", summary)
    return summary


def _last(lines: Sequence[Line], name: str) -> Any:
    return next((line[name] for line in lines[::-1] if name in line), None)


def _of_direction(name: str, lines: Sequence[Line], shown: Line | None) -> Line:
    """One direction in one epoch."""
    measured = [line["sharpness"][name] for line in lines]
    ratios = [
        ratio(
            line["sharpness"][name]["sharpness"], line["sharpness"]["sgd"]["sharpness"]
        )
        for line in lines
    ]
    known = [r for r in ratios if r is not None]
    row: Line = {
        "sharpness": [m["sharpness"] for m in measured],
        "slope": [m["slope"] for m in measured],
        "ratios": ratios,
        "ratio": float(np.mean(known)) if known else None,
    }
    if shown:
        curve = shown["landscape"][name]
        lowest = int(np.argmin(curve["losses"]))
        decrease = curve["losses"][0] - curve["losses"][lowest]
        predicted = shown["sharpness"][name]["predicted_decrease"]
        row |= {
            "lowest_step": curve["steps"][lowest],
            "decrease": decrease,
            "rho": decrease / predicted if predicted else None,
            "curve": curve,
            "step_curvature": step_curvature.ratios(curve, shown["sharpness"][name]),
        }
    return row


def heading(summary: Summary) -> str:
    settings = summary["settings"]
    driver = label(settings["trajectory"], 0)
    task = by_name.TITLES[settings["task"]]
    return f"Directional sharpness: {task}, trajectory of {driver}"


def introduction(summary: Summary) -> str:
    """What was run, in a few sentences."""
    settings = summary["settings"]
    end = (
        f" The run diverged at step {summary['diverged']}; what was measured before is "
        "shown."
        if summary["diverged"] is not None
        else ""
    )
    return (
        f"From `{settings['init']}`, dataset "
        f"`{by_name.data_of(settings['task'], settings['dataset'])}`; "
        f"learning rate {settings['learning_rate']:g} ({_rate_from(settings)}), "
        f"{settings['batches_per_epoch']} batches of {settings['batch_size']} an "
        f"epoch, seed {settings['seed']}, measured on {settings['test_size']} fixed "
        f"examples of the {settings['measured_on']}, none of which is trained on; "
        f"{summary['seconds'] / 60:.0f} minutes.{end}"
    )


_EXAMPLES = Path(__file__).parents[1]


def _rate_from(settings: Mapping[str, Any]) -> str:
    """Where the learning rate is from, and the size of the batches there."""
    source = settings["rate_from"]
    swept = _EXAMPLES / source
    if not (swept / "settings.json").is_file():
        return source
    batch = run_folder.read_settings(swept)["settings"]["batch_size"]
    return f"{source}, swept with batches of {batch}"


def remake(run: Path) -> list[Path]:
    """Makes the report and the figures again, the summary too where its log is."""
    made = []
    if files.exist(run / "metrics.jsonl"):
        summarise(run)
        made.append(run / "summary.json")
    return [*made, *write(run)]


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the summary, the report and the figures of a run again."""
    print("\n".join(map(str, remake(run))))


if __name__ == "__main__":
    command_line.report("sharpness.report", main)
