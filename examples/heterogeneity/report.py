"""Summary, tables and figures of a run of `examples.heterogeneity`, from its files.

    summary.json    everything that the tables and the figures are made of
    report.md       optimizers, blocks, clipped directions
    *.png           losses, head norms, blocks, clipping

`python -m examples.heterogeneity.report RUN` makes them again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from examples.heterogeneity import plots
from examples.heterogeneity.reading import METRICS, Summary, head_growth, name
from examples.heterogeneity.tables import make_tables
from examples.lab import command_line, files, provenance, run_folder, tables
from examples.lab.winners import Rules, winners


def write(folder: Path) -> list[Path]:
    """Writes everything that the summary has data for."""
    summary = run_folder.read_summary(folder)
    figures = plots.draw(folder, summary)
    report = tables.Report(
        f"Gradient heterogeneity: {name(summary)}",
        introduction(summary),
        figures,
        make_tables(summary),
        provenance.described(summary["sessions"]),
    )
    return [report.write(folder / "report.md"), *(figure.path for figure in figures)]


def summarise(folder: Path) -> Summary:
    """Writes summary.json, of all trainings that have ended so far."""
    runs, content = (
        files.read_lines(folder / "runs.jsonl"),
        run_folder.read_settings(folder),
    )
    best = winners(runs, content["settings"])
    if not best:
        raise FileNotFoundError(f"{folder}: no training has ended there yet.")
    rules = Rules.of(content["settings"])
    sweep = ("name", "fraction", "learning_rate", rules.chosen_by)
    summary = {
        **content,
        "optimizers": [
            {
                "name": optimizer,
                "fraction": fraction,
                "learning_rate": runs[0]["learning_rate"],
                "state_bytes": runs[0]["state_bytes"],
                "losses": [run["loss"] for run in runs],
                **(
                    {"test_losses": [run["test_loss"] for run in runs]}
                    if rules.apart
                    else {}
                ),
                **{m: [run.get(m) for run in runs] for m in METRICS},
                "head_norms": [run["head_norm"] for run in runs],
                "curves": [run["losses"] for run in runs],
            }
            for (optimizer, fraction), runs in best.items()
        ],
        "sweep": [
            {**{k: run[k] for k in sweep}, "head_growth": head_growth(run)}
            for run in rules.choosing(runs)
        ],
        "moments": files.read_lines(folder / "blocks.jsonl"),
    }
    files.write_json(folder / "summary.json", summary)
    return summary


def introduction(summary: Summary) -> str:
    """What was run, in a sentence or two."""
    settings = summary["settings"]
    clip = "clipped to a global norm of 1" if settings["clip_norm"] else "not clipped"
    batch = "all rows" if settings["full_batch"] else f"{settings['batch_size']} rows"
    return (
        f"{settings['counts']['train']:,} rows of {settings['counts']['classes']} "
        f"classes, seen {share_of_epoch(settings):.3g} times in steps of {batch}; "
        f"gradients {clip}, a "
        f"{settings['schedule']} schedule. {Rules.of(settings).said()}"
    )


def share_of_epoch(settings: Mapping[str, Any]) -> float:
    """How often a training has seen every row."""
    rows = settings["counts"]["train"]
    batch = rows if settings["full_batch"] else settings["batch_size"]
    return settings["epochs"] or settings["steps"] * batch / rows


def remake(run: Path) -> list[Path]:
    """Makes the report and the figures again, the summary too where its log is."""
    made = []
    if files.exist(run / "runs.jsonl"):
        summarise(run)
        made.append(run / "summary.json")
    return [*made, *write(run)]


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the summary, the report and the figures of a run again."""
    print("\n".join(map(str, remake(run))))


if __name__ == "__main__":
    command_line.report("heterogeneity.report", main)
