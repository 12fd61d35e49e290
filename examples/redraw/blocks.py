"""What the README and the documentation say of results, made from result files.

It stands between two comments, which are invisible there:

    <!-- NAME: python -m examples.redraw -->
    <!-- end of NAME -->
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.convergence import by_frequency, by_setting, wall_time
from examples.factors import report as factors
from examples.finetune_t5 import in_numbers
from examples.finetune_t5 import report as finetune_t5
from examples.heterogeneity import findings
from examples.heterogeneity.claims import clear, gap
from examples.heterogeneity.reading import name
from examples.lab import files, paper, run_folder
from examples.lab.statistics import bootstrap
from examples.lab.tables import Table, captioned, span
from examples.lab.winners import Rules, Run
from examples.models import t5_scales
from examples.pretrain import mixture_card
from examples.redraw import benchmarks, lead, sentences, what_to_try
from examples.sharpness import carriers, hero
from examples.sharpness.claims import holding
from examples.sharpness.claims import quotients as quotients_to
from examples.stability import report as stability
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
    return captioned(f"{folder}/hero.png", said, report)


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
        *map(_convergence, _compared(results)),
        *_finetuning(results / "finetune_t5"),
        _heterogeneity(run_folder.read_summaries(results / "heterogeneity")),
    ]
    return Table(
        "Results", ["effect", "measured here", "runs", "what did not hold"], rows
    )


def _compared(results: Path) -> list[Run]:
    """Runs of the convergence, those that train longer or with other weights last."""
    folders = "convergence", "long_training", "scale_of_weights"
    return [run for name in folders for run in Run.below(results / name)]


def _sharpness(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    cells = [cell for run in runs for cell in run["epochs"].values()]
    quotients: dict[str, list[float]] = {}
    for run in runs:
        own = quotients.setdefault(by_name.name_of(run["settings"]["init"]), [])
        own += [c["directions"]["clipped_sgd"]["ratio"] for c in run["epochs"].values()]
    left = [f"{span(q)} ({who})" for who, q in quotients.items()]
    in_runs = {
        one.claim: sum(
            all(holding(cell)[i][0] for cell in run["epochs"].values()) for run in runs
        )
        for i, one in enumerate(paper.INVARIANTS)
    }
    always = sum(count == len(runs) for count in in_runs.values())
    failing = [
        f"{claim} ({count} of {len(runs)} runs)"
        for claim, count in in_runs.items()
        if count < len(runs)
    ]
    count = f"{len(runs)} runs, {len(cells)} epochs"
    link = f"[verdict]({_RESULTS}/sharpness/verdict.md)"
    above = sum(q >= 1 for own in quotients.values() for q in own)
    caveats = [f"not on {above} epochs" if above else "", _far(runs)]
    return [
        [
            "5 % clipped lowers the sharpness of SGD's direction",
            f"what is left of it: {', '.join(left)}",
            count,
            ("; ".join(filter(None, caveats)) or "-") + f" ({link})",
        ],
        [
            "the first paper's orderings of seven optimizers",
            f"{always} of {len(in_runs)} hold in every cell of every run",
            count,
            "; ".join(failing) or "-",
        ],
    ]


def _far(runs: Sequence[Mapping[str, Any]]) -> str:
    """How far these ratios are from the paper's at the same epoch."""
    found = [
        quotient
        for run in runs
        if (theirs := paper.reported(run["settings"]))
        for quotient in quotients_to(run, theirs, "clipped_sgd")
    ]
    if not found:
        return ""
    return f"{span(found)} times what the paper has"


def _convergence(run: Run) -> list[str]:
    fraction = run.settings["fraction"]

    def said(found: Sequence[float]) -> str:
        return str(bootstrap(found)) if found else "not run"

    clipped = run.minus_sgd(("clipped_sgd", fraction))
    adam = run.minus_sgd(("adam", fraction))
    place = f"{_RESULTS}/{run.folder.parent.name}/{run.folder.name}"
    return [
        f"test loss minus SGD's, {_subject(run)}",
        f"{100 * fraction:g} % clipped {said(clipped)}, Adam {said(adam)}",
        f"{len(clipped)} seeds",
        ("; ".join(_failures(clipped)) or "-") + f" ([report]({place}/report.md))",
    ]


def _subject(run: Run) -> str:
    """Task, model and steps."""
    settings = run.settings
    parts = [by_name.TITLES[settings["task"]], by_name.name_of(settings["init"])]
    parts.append(t5_scales.of(settings))
    return f"{', '.join(filter(None, parts))}; {settings['steps']:,} steps"


def _failures(clipped: Sequence[float]) -> Iterator[str]:
    """Where clipped SGD is not below SGD."""
    if worse := sum(x >= 0 for x in clipped):
        yield f"clipped SGD is not lower on {worse} of {len(clipped)} seeds"
    if clipped and worse < len(clipped) and not bootstrap(clipped).is_below_zero:
        yield "Student's 95 % interval of clipped SGD includes 0"


def _finetuning(folder: Path) -> list[list[str]]:
    """The main job's row, where several seeds were trained."""
    if not (folder / "seeds").is_dir():
        return []
    summary = finetune_t5.read(folder)
    *row, failing = in_numbers.in_one_row(summary)
    return [[*row, f"{failing} ([report]({_RESULTS}/finetune_t5/report.md))"]]


def _heterogeneity(runs: Sequence[dict[str, Any]]) -> list[str]:
    gaps = {name(run): gap(run) for run in runs}
    failing = [who for who, found in gaps.items() if found <= 0]
    chosen = sum(not Rules.of(run["settings"]).apart for run in runs)
    if chosen:
        failing.append(
            f"rates were chosen on a seed that is in the mean ({chosen} runs)"
        )
    seeds = max(len(one["losses"]) for run in runs for one in run["optimizers"])
    return [
        "sign SGD ends below SGD (the second paper's)",
        f"on {sum(found > 0 for found in gaps.values())} of {len(gaps)} tasks and "
        f"models, by {min(gaps.values()):.3f} to {max(gaps.values()):.3f}; "
        f"Student's 95 % interval is above 0 on {sum(map(clear, runs))}",
        f"up to {seeds} seeds each",
        f"{'; '.join(failing) or '-'} ([verdict]({_RESULTS}/heterogeneity/verdict.md))",
    ]


_T5 = "examples/checkpoints/t5-enfr-mixture"


def _of_the_t5(root: Path, *, name: str) -> str:
    """What the model card says of its files."""
    return mixture_card.blocks(root / _T5)[name]


# Name -> the file it stands in, and what makes it.
BLOCKS: Mapping[str, tuple[str, Callable[[Path], str]]] = {
    "hero": ("README.md", hero_figure),
    "results": ("README.md", lambda root: table(root / _RESULTS).markdown()),
    "first_paper": ("docs/papers/pan-li.md", sentences.first_paper),
    "carriers": ("docs/papers/pan-li.md", carriers.figure),
    "step_curvature": ("docs/concepts/sharpness.md", sentences.curvature_of_steps),
    "training_loss": ("docs/papers/pan-li.md", sentences.training_loss),
    "stability": ("docs/how-to/learning-rate.md", stability.said),
    "factors": ("docs/how-to/when-does-it-help.md", factors.said),
    "adams_lead": ("docs/how-to/when-does-it-help.md", lead.figure),
    **{
        name: (
            "docs/how-to/when-does-it-help.md",
            functools.partial(by_setting.figure, name=name),
        )
        for name in by_setting.DIFFERING
    },
    "wall_time": ("docs/how-to/when-does-it-help.md", wall_time.figure),
    "long_training": ("docs/how-to/when-does-it-help.md", by_frequency.figure),
    "fractions": ("docs/how-to/when-does-it-help.md", sentences.fractions),
    "what_to_try": ("docs/how-to/what-should-i-try.md", what_to_try.page),
    "second_paper": ("docs/papers/tomihari-sato.md", findings.of_the_paper),
    "blocks": ("docs/concepts/heterogeneity.md", findings.of_the_blocks),
    "zeros": ("docs/concepts/fraction.md", zeros_table),
    "placement": ("docs/concepts/scaling.md", benchmarks.placement),
    "accelerators": ("docs/concepts/scaling.md", benchmarks.accelerators),
    "cost": ("README.md", benchmarks.cost),
    "step": ("docs/start/which-one.md", benchmarks.cost),
    "selection": ("benchmarks/README.md", benchmarks.selection),
    "curvature": ("benchmarks/README.md", benchmarks.curvature),
    **{
        name: (f"{_T5}/README.md", functools.partial(_of_the_t5, name=name))
        for name in ("t5_loss", "t5_growth", "t5_curvature")
    },
    "predicted": ("docs/concepts/scaling.md", benchmarks.predicted),
}
