"""At which batch size does SGD fall behind, and with weights of which scale?

Reads runs of `examples.convergence` that differ in one setting, and writes report.md
and lead.png into the folder that holds them: how far each optimizer ends below SGD, at
rates swept with every value of the setting, after as many steps.
`python -m examples.convergence.by_setting FOLDER` makes them again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from examples.lab import command_line, looks, provenance, tables
from examples.lab.curves import Key, minus_sgd
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.winners import Run, mean
from examples.models import t5_scales
from examples.tasks import by_name

Settings = Mapping[str, Any]


class Setting(NamedTuple):
    """What the runs in a folder of results differ in.

    Attributes:
        title: of the report.
        question: above the figure.
        header: above the values of the setting.
        names: of the settings that differ; each clip is a training of its own.
        value: settings -> what is written for them.
        place: settings -> where they are drawn, and in which order; None for the order
            of their names.
        remark: what else the report says.
    """

    title: str
    question: str
    header: str
    names: frozenset[str]
    value: Callable[[Settings], str]
    place: Callable[[Settings], float] | None
    remark: str


def _scale(settings: Settings) -> str:
    return t5_scales.of(settings) or "as it is"


# Folder below the results -> what the runs in it differ in.
DIFFERING: Mapping[str, Setting] = {
    "batch_size": Setting(
        "Batch size",
        "Where SGD falls behind",
        "examples in a batch",
        frozenset({"batch_size", "fractions"}),
        lambda settings: str(settings["batch_size"]),
        lambda settings: settings["batch_size"],
        "A larger batch sees more examples in them.",
    ),
    "scale_of_weights": Setting(
        "Scale of weights",
        "The same function, with weights of other scales",
        "weights",
        frozenset({"scaled", "scale", "fractions"}),
        _scale,
        None,
        "Whatever is scaled, other weights take the factor back, so that the model "
        "computes the same before training but for the epsilon of its norms "
        "(`examples.models.t5_scales`).",
    ),
}


def main(folder: tyro.conf.Positional[Path]) -> list[Path]:
    """Writes the report about the runs below a folder.

    The run of convergence/ beside it that differs in the same setting alone is among
    them.
    """
    what, runs = _setting(folder), read(folder)
    settings = runs[0].settings
    keys = in_common(runs)
    figure = tables.Figure(
        looks.draw(folder / "lead.png", functools.partial(_draw, what, runs, keys)),
        _caption(runs),
    )
    report = tables.Report(
        f"{what.title}: {by_name.TITLES[settings['task']]}",
        _introduction(what, runs),
        [figure],
        [table(what, runs, keys) for table in (_losses, _leads, _rates)],
        provenance.described([one for run in runs for one in run.sessions]),
    )
    return [report.write(folder / "report.md"), figure.path]


def figure(root: Path, *, name: str) -> str:
    """The figure and what it is drawn from, for a page of the documentation."""
    folder = root / "examples/results" / name
    what, runs = DIFFERING[name], read(folder)
    place = f"../../examples/results/{name}"
    shown = tables.captioned(
        f"{place}/lead.png", _caption(runs), f"[Report]({place}/report.md)."
    )
    found = [table(what, runs, in_common(runs)) for table in (_losses, _leads)]
    return "\n\n".join([shown, *(table.titled() for table in found)])


def _caption(runs: Sequence[Run]) -> str:
    return (
        f"Test loss minus SGD's after {runs[0].settings['steps']} steps. Bars: lowest "
        f"to highest of {runs[0].rules.seeds} seeds."
    )


def read(folder: Path) -> list[Run]:
    """The runs in the order of the setting."""
    what, own = _setting(folder), Run.below(folder)
    if not own:
        raise FileNotFoundError(f"{folder}: no run of examples.convergence is there.")

    def others(run: Run) -> Settings:
        return {k: x for k, x in run.settings.items() if k not in what.names}

    wanted = others(own[0])
    for run in own:
        if others(run) != wanted:
            raise ValueError(
                f"{run.folder}: expected the settings of {own[0].folder} but for "
                f"{', '.join(sorted(what.names))}."
            )
    # Beside them are those with the default.
    default = Run.below(folder.parent / "convergence")
    found = [*(run for run in default if others(run) == wanted), *own]
    if not (found := [run for run in found if run.sgd]):
        raise ValueError(f"{folder}: SGD has finished in none of its runs.")
    place = what.place
    return sorted(found, key=lambda run: place(run.settings)) if place else found


def _setting(folder: Path) -> Setting:
    if folder.name not in DIFFERING:
        raise ValueError(
            f"{folder}: expected a folder called {' or '.join(DIFFERING)}, which says "
            "what its runs differ in."
        )
    return DIFFERING[folder.name]


def in_common(runs: Sequence[Run]) -> list[Key]:
    """What ran with two values or more, in the order of the first."""
    keys = dict.fromkeys(key for run in runs for key in run.best if key[0] != "sgd")
    return [key for key in keys if sum(key in run.best for run in runs) > 1]


def _lead(run: Run) -> float:
    """How far Adam ends below SGD in the mean; 0 where it does not."""
    found = _adams(run)
    return max(0.0, -float(np.mean(found))) if found else 0.0


def _adams(run: Run) -> list[float]:
    """Adam's losses minus SGD's."""
    return next((run.minus_sgd(key) for key in run.best if key[0] == "adam"), [])


def _of_sgds_fall(run: Run) -> str:
    """Adam's lead over how far SGD itself has come."""
    if run.start is None:
        return "-"
    fall = run.start - mean(run.sgd, run.rules.reported)
    return f"{_lead(run) / fall:.2g}" if fall > 0 else "-"


def _of_the_lead(run: Run, key: Key) -> str:
    """How much of Adam's lead another one has, where there is one."""
    found = run.covered(key)
    return found.percent if found else "-"


def _introduction(what: Setting, runs: Sequence[Run]) -> str:
    settings, rules = runs[0].settings, runs[0].rules
    return (
        f"From `{settings['init']}`, dataset `{settings['dataset']}`: "
        f"{settings['steps']} steps in every run. {what.remark} {rules.said()} Each "
        "optimizer was swept in every run that it has a number for. "
        f"Reported is the loss on {settings['test_rows']} test rows, on {rules.seeds} "
        "other seeds. Intervals are 95 % bootstrap over the seeds, of the difference "
        f"from SGD on the same batches, and too narrow for {rules.seeds} of them."
    )


def _rows(
    title: str,
    what: Setting,
    header: Sequence[str],
    runs: Sequence[Run],
    cells: Callable[[Run], list],
) -> tables.Table:
    """A row for each run."""
    rows = [[what.value(run.settings), *cells(run)] for run in runs]
    return tables.Table(title, [what.header, *header], rows)


def _losses(what: Setting, runs: Sequence[Run], keys: Sequence[Key]) -> tables.Table:
    def cells(run: Run) -> list[str]:
        found = [run.minus_sgd(key) for key in keys]
        return [
            f"{mean(run.sgd, run.rules.reported):.3f}",
            *(str(bootstrap(own)) if own else "-" for own in found),
        ]

    header = ["SGD's loss", *map(_label, keys)]
    return _rows(
        "Test loss minus SGD's, with 95 % bootstrap intervals over the seeds",
        what,
        header,
        runs,
        cells,
    )


def _leads(what: Setting, runs: Sequence[Run], keys: Sequence[Key]) -> tables.Table:
    others = [key for key in keys if key[0] != "adam"]

    def cells(run: Run) -> list[str]:
        return [
            "-" if run.start is None else f"{run.start:.3f}",
            f"{_lead(run):.3f}",
            _of_sgds_fall(run),
            *(_of_the_lead(run, key) for key in others),
        ]

    header = ["loss before", "Adam's lead", "lead / SGD's fall"]
    title = "Adam's lead over SGD, and what others have of it, in the mean"
    return _rows(title, what, [*header, *map(_label, others)], runs, cells)


def _label(key: Key) -> str:
    return label(*key)


def _rates(what: Setting, runs: Sequence[Run], keys: Sequence[Key]) -> tables.Table:
    def cells(run: Run) -> list[str]:
        found = [run.sgd, *(run.best.get(key) for key in keys)]
        return [f"{own[0]['learning_rate']:g}" if own else "-" for own in found]

    header = ["SGD", *map(_label, keys)]
    return _rows("The learning rates that were chosen", what, header, runs, cells)


def _draw(
    what: Setting, runs: Sequence[Run], keys: Sequence[Key], figure: Figure
) -> None:
    axes = figure.subplots()
    places = [
        what.place(run.settings) if what.place else i for i, run in enumerate(runs)
    ]
    minus_sgd(
        axes,
        {
            key: {
                place: own
                for place, run in zip(places, runs, strict=True)
                if (own := run.minus_sgd(key))
            }
            for key in keys
        },
        joined=what.place is not None,
    )
    if what.place:
        axes.set_xscale("log", base=2)
    names = [what.value(run.settings).replace(" x ", "\nx ") for run in runs]
    axes.set_xticks(places, names)
    axes.set(xlabel=what.header, ylabel="test loss minus SGD's", title=what.question)


if __name__ == "__main__":
    command_line.report("convergence.by_setting", main)
