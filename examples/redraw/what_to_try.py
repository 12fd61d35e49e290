"""The table of the page "What should I try?", made from the runs of the convergence.

Every run below examples/results/convergence is a column, whatever its task and its
optimizers; what is missing of `TRIED`, `RIVALS` or `KINDS` is named below the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from examples.lab.optimizers import is_clipped, label
from examples.lab.statistics import Interval, bootstrap
from examples.lab.tables import Table, rounded
from examples.lab.winners import Run, differences
from examples.tasks import by_name

_RESULTS = "examples/results"
_UP = f"../../{_RESULTS}/convergence"

Key = tuple[str, float]  # an optimizer and its fraction

DEFAULT = 0.05  # of the package
FRACTIONS = 0.01, DEFAULT, 0.2, 0.5, 0.9
_FEWER = 0.01, DEFAULT, 0.2, 0.5

# What the page compares, by family. Others that a run has are rows below these.
TRIED: tuple[Key, ...] = (
    ("sgd", DEFAULT),
    *(("clipped_sgd", fraction) for fraction in FRACTIONS),
    *(("clipped_sgd_per_leaf", fraction) for fraction in (DEFAULT, 0.2)),
    ("norm_clipped_sgd", DEFAULT),
    ("norm_clipped_sgd_0.1", DEFAULT),
    ("nesterov_sgd", DEFAULT),
    *(("clipped_nesterov_sgd", fraction) for fraction in _FEWER),
    ("norm_clipped_nesterov_sgd", DEFAULT),
    ("normalized_sgd", DEFAULT),
    *(("clipped_normalized_sgd", fraction) for fraction in _FEWER),
    ("sign_sgd", DEFAULT),
    ("adam", DEFAULT),
)
# Rivals of others, which are listed where they were not run.
RIVALS: tuple[Key, ...] = tuple(
    (name, DEFAULT)
    for name in ("adafactor", "clipped_adafactor", "adamw", "muon", "lion", "scale")
)
# The tasks that it compares them on: a title, and the settings of its runs.
KINDS: Mapping[str, Mapping[str, str]] = {
    "a small language model from scratch": {"task": "causal_lm", "init": "scratch"},
    "SmolLM2": {"task": "causal_lm", "init": "smollm2"},
    "T5": {"task": "translation"},
    "masked words": {"task": "masked_lm"},
}
_TASKS = {
    "causal_lm": "language model",
    "translation": "translation",
    "masked_lm": "masked words",
}
_SHORT = {"smollm2": "SmolLM2-135M"}
_SGD: Key = ("sgd", DEFAULT)
# Head to head: an optimizer, and what it has to be better than to be worth trying.
PAIRS: tuple[tuple[Key, Key], ...] = (
    *(
        (("clipped_sgd", fraction), ("norm_clipped_sgd", DEFAULT))
        for fraction in FRACTIONS
    ),
    (("clipped_sgd", 0.2), ("norm_clipped_sgd_0.1", DEFAULT)),
    *(
        (("clipped_nesterov_sgd", fraction), ("norm_clipped_nesterov_sgd", DEFAULT))
        for fraction in (0.01, 0.2)
    ),
    *(
        (("clipped_sgd_per_leaf", fraction), ("clipped_sgd", fraction))
        for fraction in (DEFAULT, 0.2)
    ),
    (("nesterov_sgd", DEFAULT), _SGD),
    *(
        (("clipped_nesterov_sgd", fraction), ("clipped_sgd", fraction))
        for fraction in _FEWER
    ),
    *(
        (("clipped_normalized_sgd", fraction), ("normalized_sgd", DEFAULT))
        for fraction in _FEWER
    ),
    (("clipped_sgd", 0.2), ("adam", DEFAULT)),
    (("clipped_nesterov_sgd", 0.2), ("adam", DEFAULT)),
    (("sign_sgd", DEFAULT), ("adam", DEFAULT)),
)


class Column(Run):
    """A task, and what was found on it."""

    @property
    def title(self) -> str:
        model = by_name.name_of(self.settings["init"])
        return f"{_TASKS[self.settings['task']]}, {_SHORT.get(model, model)}"

    @property
    def sizes(self) -> str:
        """How long it trains, and on how many rows it reports."""
        return (
            f"{self.settings['steps']} steps of {self.settings['batch_size']}, "
            f"{self.settings['test_rows']} test rows"
        )

    def minus(self, key: Key, other: Key) -> Interval | None:
        """The difference of two optimizers on the same batches, if both are there."""
        found = self.differences(key, other)
        return bootstrap(found) if found else None

    def differences(self, key: Key, other: Key = _SGD) -> list[float]:
        """Their losses' differences, one for each seed."""
        pair = self.best.get(key, []), self.best.get(other, [])
        return differences(*pair, self.rules.reported)


def page(root: Path) -> str:
    """Everything between the comments of the page."""
    found = columns(root / _RESULTS / "convergence")
    if not found:
        return "Nothing has been run yet."
    parts = [
        _introduction(found),
        _losses(found).markdown(),
        _counts(found),
        "\n".join(f"- {sentence}" for sentence in _facts(found)),
        "## Head to head",
        "The first minus the second, seed by seed on the same batches, in the columns "
        "of the table above; below zero the first is better. It is lower, or higher, "
        "where all of Student's 95 % interval of the seeds is.",
        _head_to_head(found).markdown(),
        "## How much larger the learning rate becomes",
        "The chosen learning rate divided by that of SGD, or of Nesterov SGD, in "
        "half-decades:",
        _rates(found).markdown(),
        "## What is missing",
        "\n".join(f"- {sentence}" for sentence in _missing(found)) or "Nothing.",
    ]
    return "\n\n".join(parts)


def columns(folder: Path) -> list[Column]:
    """The runs below a folder that have SGD's."""
    return [column for column in Column.below(folder) if column.sgd]


def _introduction(columns: Sequence[Column]) -> str:
    seeds = sorted({column.rules.seeds for column in columns})
    return (
        "Test loss minus SGD's, each optimizer at its own best learning rate; below "
        f"zero is better than SGD. Every cell is the mean over {_words(seeds)} seeds "
        "of the difference on the same batches, with its 95 % bootstrap interval, "
        "which of so few seeds is about their range and too narrow; the column *than "
        "SGD* counts the tasks where all of Student's interval is below zero, or above "
        "it. SGD's own cell is its loss, lowest to highest seed. The lowest mean of a "
        "column is bold. State is what the optimizer keeps, in copies of the "
        "parameters."
    )


def _losses(columns: Sequence[Column]) -> Table:
    lowest = [
        min(
            (key for key in column.best if _mean(column, key) is not None),
            key=lambda key: _mean(column, key) or 0.0,
        )
        for column in columns
    ]
    rows = []
    for key in _keys(columns):
        cells = [
            f"**{cell}**" if key == best and cell != "-" else cell
            for column, best in zip(columns, lowest, strict=True)
            for cell in [_cell(column, key)]
        ]
        against = _verdict(columns, key, _SGD) if key != _SGD else "-"
        rows.append([label(*key), *cells, against, _state(columns, key)])
    heads = [
        f"[{c.title}]({_UP}/{c.folder.name}/report.md): {c.sizes}" for c in columns
    ]
    return Table("", ["optimizer", *heads, "than SGD", "state"], rows)


def _keys(columns: Sequence[Column]) -> list[Key]:
    """Those that any column has: first as in `TRIED`, then the others as run."""
    there = list(dict.fromkeys(key for column in columns for key in column.best))
    others = [key for key in there if key not in TRIED]
    return [key for key in TRIED if key in there] + others


def _mean(column: Column, key: Key) -> float | None:
    found = column.minus(key, _SGD)
    return found.mean if found else None


def _cell(column: Column, key: Key) -> str:
    runs, what = column.best.get(key, []), column.rules.reported
    losses = [run[what] for run in runs if run[what] is not None]
    if not runs:
        return "-"
    diverged = len(runs) - len(losses)
    failed = f"{diverged} of {len(runs)} diverged" if diverged else ""
    found = column.minus(key, _SGD)
    if key == _SGD:
        said = f"{np.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
    else:
        said = str(found) if found else ""
    return "; ".join(part for part in (said, failed) if part)


def _state(columns: Sequence[Column], key: Key) -> str:
    """In copies of the parameters, which SGD's momentum is one of."""
    column = next(column for column in columns if key in column.best)
    return f"{column.best[key][0]['state_bytes'] / _sgd_state(column):.1f}"


def _sgd_state(column: Column) -> int:
    return column.sgd[0]["state_bytes"]


def _counts(columns: Sequence[Column]) -> str:
    """How many comparisons that were, and how many failures."""
    cells = sum(len(column.best) - 1 for column in columns)
    runs = [run for column in columns for run in column.lines]
    failed = [run["seed"] for run in runs if run["loss"] is None]
    risen = sum(
        loss > column.start
        for column in columns
        for own in column.best.values()
        for run in own
        if column.start and (loss := run[column.rules.reported])
    )
    searching = sum(seed == columns[0].rules.selection_seed for seed in failed)
    return (
        f"These are {cells} comparisons with SGD, none of them corrected for their "
        f"number. Of {len(runs)} trainings {len(failed)} diverged, {searching} of them "
        f"in the search for a learning rate; {risen} of those that are reported ended "
        "above their start. The reports, to which the heads of the columns lead, have "
        "every one."
    )


def _facts(columns: Sequence[Column]) -> Iterator[str]:
    """What a reader would look for first."""
    lowest = []
    for column in columns:
        small = [
            key
            for key in column.best
            if column.best[key][0]["state_bytes"] < 1.5 * _sgd_state(column)
            and _mean(column, key) is not None
        ]
        best = min(small, key=lambda key: _mean(column, key) or 0.0)
        lowest.append(f"{label(*best)} ({column.title})")
    yield f"**Lowest with no more state than SGD**: {'; '.join(lowest)}."
    yield _best_fractions(columns)


def _head_to_head(columns: Sequence[Column]) -> Table:
    rows = []
    for key, other in PAIRS:
        found = [column.minus(key, other) for column in columns]
        if any(found):
            cells = [str(one or "-") for one in found]
            pair = f"{label(*key)} / {label(*other)}"
            rows.append([pair, *cells, _verdict(columns, key, other)])
    heads = ["first / second", *(column.title for column in columns), "the first is"]
    return Table("", heads, rows)


def _verdict(columns: Sequence[Column], key: Key, other: Key) -> str:
    """On how many tasks an optimizer is lower, higher, or neither for sure."""
    found = [one for column in columns if (one := column.minus(key, other))]
    lower = sum(one.is_below_zero for one in found)
    higher = sum(one.is_above_zero for one in found)
    unsure = len(found) - lower - higher
    counts = ((lower, "lower"), (unsure, "either"), (higher, "higher"))
    return ", ".join(f"{word} {n} of {len(found)}" for n, word in counts if n)


def _best_fractions(columns: Sequence[Column]) -> str:
    """Of clipped SGD, by task; and whether a default should change."""
    best = {}
    for column in columns:
        means = {
            key[1]: mean
            for key in column.best
            if key[0] == "clipped_sgd" and (mean := _mean(column, key)) is not None
        }
        if len(means) > 1:
            best[column.title] = min(means, key=lambda fraction: means[fraction])
    if not best:
        return "**The best fraction for clipped SGD** is not known yet."
    listed = "; ".join(f"{100 * f:g} % ({title})" for title, f in best.items())
    agreed = "they agree"
    if len(set(best.values())) > 1:
        agreed = "they do not agree"
    elif len(best) < len(KINDS):
        agreed = f"only {len(best)} of the {len(KINDS)} tasks are there"
    return (
        f"**The best fraction for clipped SGD**: {listed}; {agreed}. The default is "
        f"{100 * DEFAULT:g} %."
    )


def _rates(columns: Sequence[Column]) -> Table:
    """The rates of what clips coordinates or norms, in multiples."""
    rows = []
    for key in _keys(columns):
        plain = "nesterov_sgd" if "nesterov" in key[0] else "sgd"
        family = is_clipped(key[0]) and "normalized" not in key[0]
        if key[0] == plain or not (family or key[0].startswith("norm_clipped")):
            continue
        cells = []
        for column in columns:
            own, other = column.best.get(key), column.best.get((plain, DEFAULT))
            times = (
                own and other and own[0]["learning_rate"] / other[0]["learning_rate"]
            )
            cells.append(rounded(times) if times else "-")
        rows.append([label(*key), *cells])
    return Table("", ["optimizer", *(column.title for column in columns)], rows)


def _missing(columns: Sequence[Column]) -> Iterator[str]:
    for title, settings in KINDS.items():
        own = [
            column for column in columns if settings.items() <= column.settings.items()
        ]
        if not own:
            yield f"{title}: the whole task."
        for column in own:
            absent = [
                label(*key) for key in (*TRIED, *RIVALS) if key not in column.best
            ]
            if absent:
                yield f"{column.title}: {'; '.join(absent)}."


def _words(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
