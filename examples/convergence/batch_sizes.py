"""At which batch size does SGD fall behind?

Reads runs of `examples.convergence` that differ in their batch size alone, and writes
report.md and lead.png into the folder that holds them: how far each optimizer ends
below SGD, at rates swept at every batch size, after as many steps.
`python -m examples.convergence.batch_sizes` makes them again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from examples.lab import command_line, looks, provenance, tables
from examples.lab.curves import Key, minus_sgd
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.winners import Run, mean
from examples.tasks import by_name

RESULTS = Path(__file__).parents[1] / "results" / "batch_size"


def _size(run: Run) -> int:
    return run.settings["batch_size"]


def _lead(run: Run) -> float:
    """How far Adam ends below SGD in the mean; 0 where it does not."""
    found = [run.minus_sgd(key) for key in run.best if key[0] == "adam"]
    return max(0.0, -float(np.mean(found[0]))) if found else 0.0


def _of_the_lead(run: Run, key: Key) -> str:
    """How much of Adam's lead another one has, where there is one."""
    found, lead = run.minus_sgd(key), _lead(run)
    if not found or not lead:
        return "-"
    return f"{round(-np.mean(found) / lead, 2) + 0:.0%}"  # no -0%


def main(folder: tyro.conf.Positional[Path] = RESULTS) -> list[Path]:
    """Writes the report about the runs below a folder.

    The run of convergence/ beside it that differs in its batch size alone is among
    them.
    """
    runs = read(folder)
    settings = runs[0].settings
    keys = compared(runs)
    figure = tables.Figure(
        looks.draw(folder / "lead.png", lambda figure: _draw(runs, keys, figure)),
        f"Test loss minus SGD's after {settings['steps']} steps, against the batch "
        "size; bars: lowest to highest seed.",
    )
    report = tables.Report(
        f"Batch size: {by_name.TITLES[settings['task']]}",
        _introduction(runs),
        [figure],
        [_table(runs, keys), _leads(runs, keys), _rates(runs, keys)],
        " ".join(provenance.described(run.sessions) for run in runs),
    )
    return [report.write(folder / "report.md"), figure.path]


def figure(root: Path) -> str:
    """The figure with what it says, for a page of the documentation."""
    folder = root / "examples/results/batch_size"
    text = said(read(folder))
    place = f"../../examples/results/{folder.name}"
    return tables.captioned(f"{place}/lead.png", text, f"[Report]({place}/report.md).")


def read(folder: Path) -> list[Run]:
    """The runs by batch size, the smallest first."""
    own = Run.below(folder)
    if not own:
        raise FileNotFoundError(f"{folder}: no run of examples.convergence is there.")
    wanted = _but_for_the_batch(own[0])
    for run in own:
        if _but_for_the_batch(run) != wanted:
            raise ValueError(
                f"{run.folder}: expected the settings of {own[0].folder} but for the "
                "batch size."
            )
    beside = Run.below(folder.parent / "convergence")
    found = [*own, *(run for run in beside if _but_for_the_batch(run) == wanted)]
    return sorted((run for run in found if run.sgd), key=_size)


def _but_for_the_batch(run: Run) -> dict[str, Any]:
    """What decides a training at a batch size; each clip is a training of its own."""
    ignored = "batch_size", "fractions"
    return {name: x for name, x in run.settings.items() if name not in ignored}


def compared(runs: Sequence[Run]) -> list[Key]:
    """What ran at two batch sizes or more, in the order of the first."""
    keys = dict.fromkeys(key for run in runs for key in run.best if key[0] != "sgd")
    return [key for key in keys if sum(key in run.best for run in runs) > 1]


def _introduction(runs: Sequence[Run]) -> str:
    settings = runs[0].settings
    rules = runs[0].rules
    return (
        f"From `{settings['init']}`, dataset `{settings['dataset']}`: "
        f"{settings['steps']} steps at every batch size, so that a larger batch sees "
        f"more examples. {rules.said()} Each optimizer was swept at every batch size "
        "that it has a number for. "
        f"Reported is the loss on {settings['test_rows']} test rows, on {rules.seeds} "
        "other seeds. Intervals are 95 % bootstrap over the seeds, of the difference "
        f"from SGD on the same batches, and too narrow for {rules.seeds} of them."
    )


def _by_size(
    title: str, header: Sequence[str], runs: Sequence[Run], cells: Callable[[Run], list]
) -> tables.Table:
    """A row for each batch size."""
    rows = [[str(_size(run)), *cells(run)] for run in runs]
    return tables.Table(title, ["examples in a batch", *header], rows)


def _table(runs: Sequence[Run], keys: Sequence[Key]) -> tables.Table:
    def cells(run: Run) -> list[str]:
        found = [run.minus_sgd(key) for key in keys]
        return [
            f"{mean(run.sgd, run.rules.reported):.3f}",
            *(str(bootstrap(own)) if own else "-" for own in found),
        ]

    header = ["SGD's loss", *(label(*key) for key in keys)]
    return _by_size("Test loss minus SGD's, by batch size", header, runs, cells)


def _leads(runs: Sequence[Run], keys: Sequence[Key]) -> tables.Table:
    others = [key for key in keys if key[0] != "adam"]

    def cells(run: Run) -> list[str]:
        return [f"{_lead(run):.3f}", *(_of_the_lead(run, key) for key in others)]

    header = ["Adam's lead", *(label(*key) for key in others)]
    return _by_size("Of Adam's lead over SGD, in the mean", header, runs, cells)


def _rates(runs: Sequence[Run], keys: Sequence[Key]) -> tables.Table:
    def cells(run: Run) -> list[str]:
        found = [run.sgd, *(run.best.get(key) for key in keys)]
        return [f"{own[0]['learning_rate']:g}" if own else "-" for own in found]

    header = ["SGD", *(label(*key) for key in keys)]
    return _by_size("The learning rates that were chosen", header, runs, cells)


def said(runs: Sequence[Run]) -> str:
    """The same in a sentence, for a page of the documentation."""
    leads = ", ".join(f"{_lead(run):.3f} ({_size(run)})" for run in runs)
    parts = [
        f"{label(*key)} covers "
        f"{', '.join(_of_the_lead(run, key) for run in runs)} of it"
        for key in compared(runs)
        if key[0] in ("clipped_sgd", "sign_sgd")
    ]
    return (
        f"Adam's lead over SGD after {runs[0].settings['steps']} steps, in nats (in "
        f"brackets the examples in a batch): {leads}; {', '.join(parts)}."
    )


def _draw(runs: Sequence[Run], keys: Sequence[Key], figure: Figure) -> None:
    axes = figure.subplots()
    minus_sgd(
        axes,
        {
            key: {_size(run): own for run in runs if (own := run.minus_sgd(key))}
            for key in keys
        },
    )
    axes.set_xscale("log", base=2)
    sizes = [_size(run) for run in runs]
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(
        xlabel="examples in a batch",
        ylabel="test loss minus SGD's",
        title="Where SGD falls behind",
    )


def cli() -> None:
    command_line.report("convergence.batch_sizes", main)


if __name__ == "__main__":
    cli()
