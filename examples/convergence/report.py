"""Tables and figures of a run of `examples.convergence`, made from its files.

    report.md    the best learning rates, losses and state; the sweep
    *.png        figure 4, the same relative to SGD on the same batches, and the loss
                 against learning rate and fraction

`python -m examples.convergence.report RUN` makes them again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from examples.convergence import by_frequency, plots
from examples.lab import command_line, files, provenance, run_folder, tables
from examples.lab.files import Line
from examples.lab.optimizers import PAPER, TODAYS, label
from examples.lab.statistics import bootstrap
from examples.lab.tables import Table
from examples.lab.winners import (
    Rules,
    Winners,
    covered,
    differences,
    mean,
    of,
    sweep_table,
    unfinished,
    winners,
)
from examples.models import t5_scales
from examples.models.scratch_llama import NAME as SCRATCH
from examples.tasks import by_name


def write(folder: Path) -> list[Path]:
    """Writes everything that the run has data for so far."""
    runs = files.read_lines(folder / "runs.jsonl")
    content = run_folder.read_settings(folder)
    settings = content["settings"]
    rules, best = Rules.of(settings), winners(runs, settings)
    if not best:
        raise FileNotFoundError(f"{folder}: no training has ended there yet.")
    figures = plots.draw(folder, best, runs, settings)
    report = tables.Report(
        f"Convergence: {by_name.TITLES[settings['task']]}",
        _introduction(settings, runs, best, files.read_lines(folder / "before.jsonl")),
        figures,
        [
            _ranking(best, settings),
            _training_loss(best, settings),
            *_by_frequency(best, settings),
            sweep_table(rules.choosing(runs), rules),
        ],
        provenance.described(content["sessions"]),
    )
    return [report.write(folder / "report.md"), *(figure.path for figure in figures)]


def _introduction(
    settings: Mapping[str, Any],
    runs: Sequence[Line],
    best: Winners,
    before: Sequence[Line],
) -> str:
    sentences = [
        f"Every optimizer at its own best learning rate, from `{settings['init']}`"
        f"{_scaled(settings)}, dataset "
        f"`{by_name.data_of(settings['task'], settings['dataset'])}`; "
        f"{settings['steps']} steps of {settings['batch_size']} examples.",
        _first_losses(best),
        Rules.of(settings).said(),
        *_comparisons(settings, runs, best, before),
    ]
    clipped = {run["fraction"] for run in runs if run["name"] == "clipped_sgd"}
    missing = [f"{f:g}" for f in settings["fractions"] if clipped and f not in clipped]
    if missing:
        sentences.append(f"Not run: clipped SGD at {', '.join(missing)}.")
    return " ".join(sentences)


def _scaled(settings: Mapping[str, Any]) -> str:
    """Which weights the run has multiplied, where it has."""
    scaled = t5_scales.of(settings)
    return f" ({scaled}, the same function)" if scaled else ""


def _first_losses(best: Winners) -> str:
    """How good the model is before it learns: on the first batch of each seed."""
    first = [run["first_loss"] for runs in best.values() for run in runs]
    return f"The first batch has a loss of {min(first):.1f} to {max(first):.1f}."


def _comparisons(
    settings: Mapping[str, Any],
    runs: Sequence[Line],
    best: Winners,
    before: Sequence[Line],
) -> list[str]:
    """What the numbers are of, how many were compared, and what is not there."""
    rules = Rules.of(settings)
    others = len(best) - (1 if of(best, "sgd") else 0)
    all_runs = [run for own in best.values() for run in own]
    diverged = sum(run["loss"] is None for run in all_runs)
    chosen = rules.choosing(runs)
    failed = sum(run["loss"] is None for run in chosen)
    known = {name for name, _ in best}
    absent = [name for name in (*PAPER, *TODAYS) if name not in known]
    started = {name for name, _ in unfinished(runs, best)}
    weights = " and weights to begin with" if settings["init"] == SCRATCH else ""
    sentences = [
        f"Reported are {rules.seeds} other seeds, each an order of the batches"
        f"{weights}, by the "
        f"loss after the last step on {settings['test_rows']} test rows; no row of "
        f"them is among the {settings['validation_rows']} validation rows or the "
        f"training rows. Of {len(all_runs)} reported trainings {diverged} diverged, of "
        f"{len(chosen)} that chose a rate {failed}.",
        f"Intervals are 95 % bootstrap over the seeds of the difference on the same "
        f"batches. The number of comparisons with SGD is {others}, and none is "
        f"corrected for it; of {rules.seeds} seeds such an interval is about their "
        "range, and too narrow.",
    ]
    if before:
        sentences.append(f"Before training the test loss is {_before(before)}.")
    if absent:
        named = [
            label(name, settings["fraction"]) + (" (begun)" if name in started else "")
            for name in absent
        ]
        sentences.append(f"Not there: {', '.join(named)}.")
    return sentences


def _before(lines: Sequence[Line]) -> str:
    return f"{lines[0]['test_loss']:.3f}"


def _ranking(best: Winners, settings: Mapping[str, Any]) -> Table:
    """The best first; what diverged with a later seed is counted, not left out."""
    rules = Rules.of(settings)
    what = rules.reported
    plain, adam = of(best, "sgd"), of(best, "adam")
    rows = []
    for (name, fraction), runs in sorted(best.items(), key=lambda x: mean(x[1], what)):
        finite = [run[what] for run in runs if run[what] is not None]
        diverged = len(runs) - len(finite)
        rows.append(
            [
                label(name, fraction),
                f"{runs[0]['learning_rate']:g}",
                f"**{np.mean(finite):.3f}**" if finite else "-",
                (f"{min(finite):.3f} to {max(finite):.3f}" if finite else "-")
                + (f", {diverged} diverged" if diverged else ""),
                _difference(runs, plain, rules) if name != "sgd" else "-",
                _of_lead(runs, plain, adam, rules),
                f"{runs[0]['state_bytes'] / 1e6:.1f} MB",
            ]
        )
    title = f"Test loss after {settings['steps']} steps, at the chosen learning rate"
    return Table(
        f"{title}; {settings['seeds']} seeds",
        [
            "optimizer",
            "learning rate",
            "test loss",
            "lowest to highest",
            "minus SGD's, seed by seed",
            "of Adam's lead, by seed",
            "state",
        ],
        rows,
    )


def _training_loss(best: Winners, settings: Mapping[str, Any]) -> Table:
    """What the same trainings say of the rows that they train on."""
    plain = of(best, "sgd")
    rows = [
        [
            label(*key),
            f"{mean(runs):.3f}",
            str(bootstrap(found))
            if key[0] != "sgd" and (found := differences(runs, plain))
            else "-",
        ]
        for key, runs in sorted(best.items(), key=lambda x: mean(x[1]))
    ]
    return Table(
        f"Mean training loss of the last {settings['tail']} of {settings['steps']} "
        f"steps of the same trainings; {settings['seeds']} seeds",
        ["optimizer", "training loss", "minus SGD's, seed by seed"],
        rows,
    )


def _by_frequency(best: Winners, settings: Mapping[str, Any]) -> list[Table]:
    """The test loss of frequent and of rare tokens, where it was kept."""
    found = by_frequency.differences_from_sgd(best)
    if not found:
        return []
    losses = by_frequency.losses(of(best, "sgd"))
    rows = [[label("sgd", 0), *(f"{np.mean(own):.3f}" for own in losses)]]
    for key, groups in found.items():
        rows.append([label(*key), *(str(bootstrap(own)) for own in groups)])
    return [
        Table(
            "Test loss by how frequent the token is: that of SGD, and the others' "
            f"minus SGD's, seed by seed; {settings['seeds']} seeds. Each group has "
            "about a tenth of the training labels, 1 the most frequent tokens",
            ["", *(str(1 + group) for group in range(by_frequency.GROUPS))],
            rows,
        )
    ]


def _of_lead(
    runs: Sequence[Line], plain: Sequence[Line], adam: Sequence[Line], rules: Rules
) -> str:
    """How much of the way from SGD's test loss to Adam's: in the mean, by seed."""
    found = covered(runs, plain, adam, rules.reported)
    if found is None or runs is plain:
        return "-"
    by_seed = found.of_own_lead
    if runs is adam or by_seed is None:
        return found.percent
    return f"{found.percent} ({min(by_seed):.0%} to {max(by_seed):.0%})"


def _difference(runs: Sequence[Line], others: Sequence[Line], rules: Rules) -> str:
    found = differences(runs, others, rules.reported)
    return str(bootstrap(found)) if found else "-"


def main(run: tyro.conf.Positional[Path]) -> None:
    """Makes the report and the figures of a run again."""
    print("\n".join(map(str, write(run))))


if __name__ == "__main__":
    command_line.report("convergence.report", main)
