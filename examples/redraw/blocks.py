"""What the README and the documentation say of results, made from result files.

It stands between two comments, which are invisible there:

    <!-- NAME: python -m examples.redraw -->
    <!-- end of NAME -->
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.finetune_t5 import in_numbers
from examples.finetune_t5 import report as finetune_t5
from examples.heterogeneity.claims import apart, gap
from examples.heterogeneity.reading import name
from examples.lab import files, paper, run_folder
from examples.lab.tables import Table
from examples.lab.winners import of, winners
from examples.sharpness import hero
from examples.sharpness.claims import holding
from examples.tasks import by_name

_RESULTS = "examples/results"


def write(root: Path) -> list[Path]:
    """Puts every block between its comments; a file without them stays as it is."""
    written = []
    for title, (file, make) in BLOCKS.items():
        path = root / file
        begin, end = (
            f"<!-- {title}: python -m examples.redraw -->",
            f"<!-- end of {title} -->",
        )
        text = path.read_text() if path.is_file() else ""
        if begin not in text:
            continue
        before, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"{path}: expected {end} behind {begin}.")
        after = rest.split(end, 1)[1]
        files.write_text(path, f"{before}{begin}\n{make(root)}\n{end}{after}")
        written.append(path)
    return written


def hero_figure(root: Path) -> str:
    """The first figure, and what it says."""
    folder = f"{_RESULTS}/concentration"
    content = json.loads((root / folder / "concentration.json").read_text())
    said = hero.caption(content["settings"], content["seeds"])
    report = f"[How it was measured]({folder}/report.md)."
    return f"![{said}]({folder}/hero.png)\n\n*{said} {report}*"


def zeros_table(root: Path) -> str:
    """Both readings of a fraction, on real gradients."""
    records = json.loads((root / "benchmarks/results/zeros.json").read_text())
    (record,) = records.values()
    heads = ("threshold, of all", "threshold, of non-zero")
    heads += ("sharpness, of all", "sharpness, of non-zero")
    rows = [
        [
            row["gradient"],
            f"{row['zeros']:.1%}",
            f"{row['fraction']:g}",
            *("-" if row[head] is None else f"{row[head]:.3g}" for head in heads),
            row["taken"],
        ]
        for row in record["rows"]
    ]
    made = record["made_with"]
    origin = (
        f"`{record['command']}` at commit {record['commit']}; {record['date'][:10]}; "
        f"{made['device']}; Python {made['python']}, jax {made['jax']}."
    )
    table = Table("Zeros", ["gradient", "zeros", "fraction", *heads, "taken"], rows)
    return f"{table.markdown()}\n\n{origin}"


def table(results: Path) -> Table:
    """What was measured, on how many seeds, and what did not hold."""
    rows = [
        *_sharpness(run_folder.read_summaries(results / "sharpness")),
        *(_convergence(folder) for folder in sorted(results.glob("convergence/*"))),
        *_finetuning(results / "finetune_t5"),
        _heterogeneity(run_folder.read_summaries(results / "heterogeneity")),
    ]
    return Table(
        "Results", ["effect", "measured here", "runs", "what did not hold"], rows
    )


def _sharpness(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    cells = [cell for run in runs for cell in run["epochs"].values()]
    quotients = [c["directions"]["clipped_sgd"]["ratio"] for c in cells]
    found = [one for cell in cells for one in holding(cell)]
    held = sum(mean for mean, _ in found)
    failing = [
        one.claim
        for i, one in enumerate(paper.INVARIANTS)
        if not all(holding(cell)[i][0] for cell in cells)
    ]
    count = f"{len(runs)} runs, {len(cells)} epochs"
    link = f"[verdict]({_RESULTS}/sharpness/verdict.md)"
    above = sum(q >= 1 for q in quotients)
    return [
        [
            "5 % clipped lowers the sharpness of SGD's direction",
            f"to {min(quotients):.2g} to {max(quotients):.2g} of it",
            count,
            (f"not on {above} epochs" if above else "-") + f" ({link})",
        ],
        [
            "the first paper's orderings of seven optimizers",
            f"{held} of {len(found)} hold",
            count,
            "; ".join(failing) or "-",
        ],
    ]


def _convergence(folder: Path) -> list[str]:
    settings = run_folder.read_settings(folder)["settings"]
    best = winners(files.read_lines(folder / "runs.jsonl"))
    plain = {run["seed"]: run["loss"] for run in of(best, "sgd")}

    def minus(name: str, fraction: float) -> list[float]:
        runs = best.get((name, fraction), [])
        return [
            run["loss"] - plain[run["seed"]] for run in runs if run["loss"] is not None
        ]

    clipped, adam = (
        minus(name, settings["fraction"]) for name in ("clipped_sgd", "adam")
    )
    worse = sum(x >= 0 for x in clipped)
    return [
        f"training loss minus SGD's, {by_name.TITLES[settings['task']]}",
        f"{100 * settings['fraction']:g} % clipped {np.mean(clipped):+.3f}, "
        f"Adam {np.mean(adam):+.3f}",
        f"{len(clipped)} seeds",
        (
            f"clipped SGD is not lower on {worse} of {len(clipped)} seeds"
            if worse
            else "-"
        )
        + f" ([report]({_RESULTS}/convergence/{folder.name}/report.md))",
    ]


def _finetuning(folder: Path) -> list[list[str]]:
    """The main job's row, where several seeds were trained."""
    summary = finetune_t5.read(folder)
    if not summary["seeds"]:
        return []
    *row, failing = in_numbers.in_one_row(summary)
    return [[*row, f"{failing} ([report]({_RESULTS}/finetune_t5/report.md))"]]


def _heterogeneity(runs: Sequence[dict[str, Any]]) -> list[str]:
    gaps = {name(run): gap(run) for run in runs}
    failing = ", ".join(who for who, found in gaps.items() if found <= 0) or "-"
    seeds = max(len(one["losses"]) for run in runs for one in run["optimizers"])
    return [
        "sign SGD ends below SGD (the second paper's)",
        f"on {sum(found > 0 for found in gaps.values())} of {len(gaps)} tasks and "
        f"models, by {min(gaps.values()):.3f} to {max(gaps.values()):.3f}; with all "
        f"its seeds below all of SGD's on {sum(map(apart, runs))}",
        f"up to {seeds} seeds each",
        f"{failing} ([verdict]({_RESULTS}/heterogeneity/verdict.md))",
    ]


# Name -> the file it stands in, and what makes it.
BLOCKS: Mapping[str, tuple[str, Callable[[Path], str]]] = {
    "hero": ("README.md", hero_figure),
    "results": ("README.md", lambda root: table(root / _RESULTS).markdown()),
    "zeros": ("docs/concepts/fraction.md", zeros_table),
}
