"""What the paper says, put to runs: in each cell of its tables, and over all of them.

A cell is one epoch of one run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from examples.lab import paper
from examples.lab.directions import finite_mean
from examples.lab.optimizers import label
from examples.lab.tables import Table, span
from examples.sharpness import step_curvature
from examples.tasks import by_name

Summary = Mapping[str, Any]
Directions = Mapping[str, Any]

_CLIPPED = ("sgd", "normalized_sgd", "adafactor")
_CORRELATIONS = {
    "correlation": "tensors pooled, whose scales alone could produce it",
    "correlation_within": "within tensors",
}


def name(run: Summary) -> str:
    """Task, trajectory and seed of a run, for people."""
    seed = run["settings"]["seed"]
    return f"{experiment(run)}, seed {seed}" if seed else experiment(run)


def experiment(run: Summary) -> str:
    """Task and trajectory, which runs with several seeds have in common."""
    settings = run["settings"]
    trajectory = f"{label(settings['trajectory'], 0)}'s trajectory"
    model = by_name.name_of(settings["init"])
    return f"{by_name.TITLES[settings['task']]}, {model}, {trajectory}"


def holding(cell: Mapping[str, Any]) -> list[tuple[bool, list[bool]]]:
    """Of each of the paper's invariants: does it hold of the means, of each batch?"""
    directions = cell["directions"]
    means = {name: directions[name]["ratio"] for name in paper.COLUMNS}
    batches = [
        {name: directions[name]["ratios"][i] for name in paper.COLUMNS}
        for i in range(len(cell["batches"]))
    ]
    return [
        (_holds(one, means), [_holds(one, batch) for batch in batches])
        for one in paper.INVARIANTS
    ]


def _holds(invariant: paper.Invariant, ratios: Mapping[str, float | None]) -> bool:
    """What is not finite never holds."""
    known = {name: r for name, r in ratios.items() if r is not None}
    return len(known) == len(ratios) and invariant.holds(known)


def quotients(
    run: Summary, theirs: Mapping[int, paper.Ratios], column: str
) -> list[float]:
    """Our ratios over the paper's, epoch by epoch."""
    ours = {int(epoch): _on(run, epoch, column) for epoch in run["epochs"]}
    found = [ours[epoch] / theirs[epoch][column] for epoch in ours if epoch in theirs]
    return [q for q in found if math.isfinite(q)]


def claims(runs: Sequence[Summary]) -> Table:
    """The paper's other claims."""
    rows = []
    for text, theirs, held, total in counted(runs):
        rows.append([text, theirs, f"{held} of {total} cells"])
    for one in _CLIPPED:
        pairs = [
            (cell["directions"][f"clipped_{one}"], cell["directions"][one])
            for run in runs
            for cell in _cells(run)
        ]
        quotients = [
            clipped["ratio"] / plain["ratio"]
            for clipped, plain in pairs
            if clipped["ratio"] is not None and plain["ratio"]
        ]
        theirs = [
            ratios[f"clipped_{one}"] / ratios.get(one, 1.0)
            for table in paper.RATIOS.values()
            for ratios in table.values()
        ]
        rows.append(
            [
                f"sharpness of {label(f'clipped_{one}', None)} / unclipped",
                span(theirs),
                span(quotients),
            ]
        )
    rows += _trajectories(runs)
    rows += step_curvature.agreement(runs)
    rows += [_stability(run) for run in runs]
    for run in runs:
        for key, kind in _CORRELATIONS.items():
            if found := run.get(key):
                low, high = found["spearman_interval"]
                rows.append(
                    [
                        "coordinates with large gradients have large curvature "
                        f"(Spearman, 95 % interval, {kind}): {name(run)}",
                        "conjectured, not measured",
                        f"{found['spearman']:.2f} ({low:.2f} to {high:.2f})",
                    ]
                )
    return Table("Its other claims", ["", "the paper", "here"], rows)


def counted(runs: Sequence[Summary]) -> list[tuple[str, str, int, int]]:
    """Claim, what the paper has, in how many cells it holds here, of how many."""
    found = []
    for text, where, count, theirs in _COUNTED:
        chosen = [run for run in runs if where(run)]
        every = [cell["directions"] for run in chosen for cell in _cells(run)]
        if every:
            held = [h for h in map(count, every) if h is not None]
            found.append((text, theirs, sum(held), len(held)))
    return found


def _trajectories(runs: Sequence[Summary]) -> list[list[str]]:
    """Whether the ratios are smaller on Adam's trajectory, of each pair of runs."""
    return [
        [
            "translation: ratios are smaller on Adam's trajectory than on SGD's, at "
            "the same epoch",
            "22 of 24, most by a factor of 4 to 300",
            f"{sum(q > 1 for q in found)} of {len(found)}; SGD's / Adam's "
            f"{span(found)}",
        ]
        for found in between_trajectories(runs)
    ]


def between_trajectories(runs: Sequence[Summary]) -> list[list[float]]:
    """SGD's ratios over Adam's, of each pair of translation's runs with one seed."""
    pairs = []
    for one in filter(_of("translation"), runs):
        for other in filter(_of("translation"), runs):
            drivers = [run["settings"]["trajectory"] for run in (one, other)]
            seeds = {run["settings"]["seed"] for run in (one, other)}
            if drivers != ["sgd", "adam"] or len(seeds) > 1:
                continue
            quotients = [
                _on(one, epoch, name) / _on(other, epoch, name)
                for epoch in one["epochs"]
                for name in paper.COLUMNS
                if epoch in other["epochs"] and _on(other, epoch, name)
            ]
            if finite := [q for q in quotients if math.isfinite(q)]:
                pairs.append(finite)
    return pairs


def _on(run: Summary, epoch: str, name: str) -> float:
    """A ratio; nan where it was not finite."""
    ratio = run["epochs"][epoch]["directions"][name]["ratio"]
    return math.nan if ratio is None else ratio


def _stability(run: Summary) -> list[str]:
    found = changes(run)
    return [
        f"directional sharpness is stable over the iterations: {name(run)}",
        f"said; its own ratios change up to {_paper_changes():.0f}-fold in a table",
        f"SGD's largest / smallest: {found:.0f}" if math.isfinite(found) else "-",
    ]


def changes(run: Summary) -> float:
    """The largest sharpness of SGD's direction over the smallest, by their size."""
    found = [
        abs(x)
        for cell in _cells(run)
        for x in cell["directions"]["sgd"]["sharpness"]
        if x
    ]
    return max(found) / min(found) if found else math.nan


def _paper_changes() -> float:
    """The largest ratio over the smallest, of one optimizer in one of its tables."""
    return max(
        max(column) / min(column)
        for table in paper.RATIOS.values()
        for name in paper.COLUMNS
        for column in [[ratios[name] for ratios in table.values()]]
    )


def _below(a: str, b: str) -> Callable[[Directions], bool]:
    def below(directions: Directions) -> bool:
        ours, theirs = directions[a]["ratio"], directions[b]["ratio"]
        return None not in (ours, theirs) and ours < theirs

    return below


def _any(run: Summary) -> bool:
    return bool(run)


def _of(task: str) -> Callable[[Summary], bool]:
    return lambda run: run["settings"]["task"] == task


def _steepest(directions: Directions) -> bool:
    """SGD's slope is the lowest, in the mean over the batches."""
    slopes = {name: finite_mean(row["slope"]) for name, row in directions.items()}
    return min(slopes, key=lambda name: slopes[name]) == "sgd"


def _clipping_flattens(directions: Directions) -> bool:
    slopes = {name: finite_mean(row["slope"]) for name, row in directions.items()}
    return all(slopes[f"clipped_{name}"] > slopes[name] for name in _CLIPPED)


FALLS = 1e-5  # nats: less than that is rounding


def _farther(name: str) -> Callable[[Directions], bool | None]:
    """None where the loss falls along neither direction."""

    def farther(directions: Directions) -> bool | None:
        names = f"clipped_{name}", name
        clipped, plain = (directions[one]["decrease"] for one in names)
        return None if max(clipped, plain) < FALLS else clipped > plain

    return farther


# Claim, the runs it is about, when it holds of a cell, what the paper has.
_COUNTED: Sequence[
    tuple[str, Callable[[Summary], bool], Callable[[Directions], bool | None], str]
] = (
    (
        "Adafactor is below Adam (almost always)",
        _any,
        _below("adafactor", "adam"),
        "14 of 16 cells",
    ),
    (
        "translation: clipped SGD is above normalized SGD",
        _of("translation"),
        _below("normalized_sgd", "clipped_sgd"),
        "8 of 8 cells",
    ),
    (
        "masked language model: clipped SGD is below normalized SGD",
        _of("masked_lm"),
        _below("clipped_sgd", "normalized_sgd"),
        "8 of 8 cells",
    ),
    (
        "SGD's direction goes down most steeply (gradient correlation)",
        _any,
        _steepest,
        "said, no numbers",
    ),
    (
        "clipping makes directions less steep",
        _any,
        _clipping_flattens,
        "said, no numbers",
    ),
    *(
        (
            f"clipping lets {label(name, 0)} reduce the loss further on its line",
            _any,
            _farther(name),
            "figures 3, 5 to 8",
        )
        for name in _CLIPPED
    ),
)


def _cells(run: Summary) -> Sequence[Mapping[str, Any]]:
    return list(run["epochs"].values())
