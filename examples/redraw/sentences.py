"""What the pages about the papers say of results, made from result files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.lab import paper, run_folder
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.tables import Table, span
from examples.lab.winners import Run
from examples.sharpness import step_curvature
from examples.sharpness.claims import (
    FALLS,
    between_trajectories,
    changes,
    counted,
    holding,
    quotients,
)
from examples.tasks import by_name

RESULTS = "examples/results"
_CLIPPING_LETS, _ON_ITS_LINE = "clipping lets ", " reduce the loss further on its line"


def first_paper(root: Path) -> str:
    """What came out of the first paper's claims, as a list."""
    runs = run_folder.read_summaries(root / RESULTS / "sharpness")
    cells = [cell for run in runs for cell in run["epochs"].values()]
    held = {one.claim: _held(runs, i) for i, one in enumerate(paper.INVARIANTS)}
    always = [claim for claim, (of, _) in held.items() if of == len(runs)]
    partly = [
        f"{claim}: in all cells of {of} of {len(runs)} runs, {in_cells} of "
        f"{len(cells)} cells"
        for claim, (of, in_cells) in held.items()
        if of < len(runs)
    ]
    counts = {text: (theirs, n, of) for text, theirs, n, of in counted(runs)}
    below = "Adafactor is below Adam (almost always)"
    theirs, n, of = counts[below]
    partly.append(f"Adafactor is below Adam: {n} of {of} cells (the paper {theirs})")
    lines = [
        f"{text.removeprefix(_CLIPPING_LETS).removesuffix(_ON_ITS_LINE)} in {n} of {of}"
        for text, (_, n, of) in counts.items()
        if text.startswith(_CLIPPING_LETS)
    ]
    if ratios := [q for pair in between_trajectories(runs) for q in pair]:
        partly.append(
            "translation's ratios are smaller on Adam's trajectory than on SGD's: "
            f"{sum(q > 1 for q in ratios)} of {len(ratios)}, SGD's are "
            f"{min(ratios):.1f} to {max(ratios):.1f} times Adam's (the paper 22 of 24, "
            "most of them 4 to 300 times)"
        )
    spread = [changes(run) for run in runs]
    pooled = [run["correlation"]["spearman"] for run in runs if run["correlation"]]
    return "\n".join(
        [
            f"- **Holds**, in every cell of all {len(runs)} runs: {'; '.join(always)}.",
            f"- **Holds in part**: {'; '.join(partly)}.",
            "- **How far the loss falls along a direction**: clipping lets it fall "
            f"farther for {', '.join(lines)} cells where the held-out loss falls "
            f"by {FALLS:g} nats along either, at one batch each.",
            *_distances(runs),
            "- **Fails here**: that sharpness is stable along a run (SGD's largest is "
            f"{min(spread):.0f} to {max(spread):.0f} times its smallest).",
            "- **Conjectured there, measured here**: $|g_i|$ and $|H_{ii}|$ go "
            f"together, Spearman's correlation {min(pooled):.2f} to {max(pooled):.2f}."
            f"{_within(runs)}",
        ]
    )


def _held(runs: Sequence[dict[str, Any]], i: int) -> tuple[int, int]:
    """In every cell of how many runs, and in how many cells, an invariant holds."""
    found = [[holding(cell)[i][0] for cell in run["epochs"].values()] for run in runs]
    return sum(map(all, found)), sum(map(sum, found))


def _distances(runs: Sequence[dict[str, Any]]) -> list[str]:
    """How far the ratios are from the paper's, by trajectory."""
    lines = []
    for task, trajectory in paper.RATIOS:
        own = [
            run
            for run in runs
            if (run["settings"]["task"], run["settings"]["trajectory"])
            == (task, trajectory)
        ]
        found = {
            column: [
                q
                for run in own
                for q in quotients(run, paper.reported(run["settings"]), column)
            ]
            for column in ("clipped_sgd", "adafactor")
        }
        if all(found.values()):
            where = f"{task.replace('_lm', ' words')}, {_DRIVERS[trajectory]}"
            lines.append(
                f"{where} {span(found['clipped_sgd'])} (Adafactor's "
                f"{span(found['adafactor'])})"
            )
    if not lines:
        return []
    return [
        "- **Other sizes than the paper's**: clipped SGD's ratio is so many times the "
        f"paper's at the same epoch: {'; '.join(lines)}."
    ]


_DRIVERS = {"sgd": "SGD's trajectory", "adam": "Adam's trajectory"}


def _within(runs: Sequence[dict[str, Any]]) -> str:
    """What is known of the correlation within tensors."""
    found = [run["correlation_within"] for run in runs if "correlation_within" in run]
    if not found:
        return (
            " Coordinates of all tensors are pooled in it, so the scales of the "
            "tensors alone may produce a part of it; within tensors these runs did not "
            "measure it."
        )
    values = ", ".join(sorted(f"{one['spearman']:.2f}" for one in found))
    return (
        " Coordinates of all tensors are pooled in it; where it was measured within "
        f"tensors, run by run: {values}."
    )


def curvature_of_steps(root: Path) -> str:
    """Whether the curvature at a point was that of the step, in the runs of here."""
    runs = run_folder.read_summaries(root / RESULTS / "sharpness")
    measured = [run for run in runs if step_curvature.has(run)]
    if not measured:
        return "Not measured here yet."
    return (
        f"Here, in {len(measured)} runs of `python -m examples.sharpness` "
        f"([verdict]({_UP}/sharpness/verdict.md)): {step_curvature.said(measured)}"
    )


def training_loss(root: Path) -> str:
    """How clipped SGD and Adam end on every task, relative to SGD."""
    lines = []
    for run in _convergences(root):
        fraction = run.settings["fraction"]
        found = {
            name: run.minus_sgd((name, fraction)) for name in ("clipped_sgd", "adam")
        }
        said = [
            f"{label(name, fraction)} {bootstrap(values)}"
            for name, values in found.items()
            if values
        ]
        lines.append(
            f"- **Test loss minus SGD's**, {_subject(run.settings)}: "
            f"{', '.join(said) or 'not there yet'} (seed by seed, {run.rules.seeds} "
            f"seeds; [report]({_UP}/convergence/{run.folder.name}/report.md))."
        )
    return "\n".join(lines)


def fractions(root: Path) -> str:
    """Which fraction to clip, and what else one could do: a table of differences."""
    runs = _convergences(root)
    clipped = sorted({f for run in runs for n, f in run.best if n == "clipped_sgd"})
    rows = []
    for run in runs:
        wanted = [("clipped_sgd", f) for f in clipped]
        wanted += [(n, run.settings["fraction"]) for n in ("norm_clipped_sgd", "adam")]
        cells = []
        for key in wanted:
            found = run.minus_sgd(key)
            cells.append(str(bootstrap(found)) if found else "-")
        report = f"{_UP}/convergence/{run.folder.name}/report.md"
        rows.append([f"[{_subject(run.settings)}]({report})", *cells])
    heads = [f"{100 * f:g} %" for f in clipped]
    table = Table("", ["test loss minus SGD's", *heads, "norm clipped", "Adam"], rows)
    return table.markdown()


_UP = f"../../{RESULTS}"


def _convergences(root: Path) -> list[Run]:
    """Every committed run that has SGD."""
    return [run for run in Run.below(root / RESULTS / "convergence") if run.sgd]


def _subject(settings: Mapping[str, Any]) -> str:
    task, model = by_name.TITLES[settings["task"]], by_name.name_of(settings["init"])
    return f"{task}, {model}"
