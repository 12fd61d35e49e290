"""At which batch size does SGD fall behind?

Reads runs of `examples.convergence` that differ in their batch size alone, and writes
report.md and lead.png into the folder that holds them: how far each optimizer ends
below SGD, at rates swept at every batch size, after as many steps.
`python -m examples.convergence.batch_sizes` makes them again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from examples.lab import (
    command_line,
    files,
    looks,
    provenance,
    run_folder,
    tables,
)
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.statistics import bootstrap
from examples.lab.winners import Rules, Winners, differences, mean, of, winners
from examples.tasks import by_name

RESULTS = Path(__file__).parents[1] / "results" / "batch_size"


class Run(NamedTuple):
    """What was found at one batch size."""

    settings: Mapping[str, Any]
    best: Winners
    sessions: Sequence[Mapping[str, Any]]

    @property
    def batch_size(self) -> int:
        return self.settings["batch_size"]

    def below_sgd(self, key: tuple[str, float]) -> list[float]:
        """The test losses minus SGD's, seed by seed."""
        return differences(self.best.get(key, []), self.plain, self._reported)

    @property
    def plain(self) -> list[Line]:
        return of(self.best, "sgd")

    @property
    def loss_of_sgd(self) -> float:
        return mean(self.plain, self._reported)

    @property
    def lead_of_adam(self) -> float:
        """How far Adam ends below SGD in the mean; 0 where it does not."""
        found = [self.below_sgd(key) for key in self.best if key[0] == "adam"]
        return max(0.0, -float(np.mean(found[0]))) if found else 0.0

    def of_the_lead(self, key: tuple[str, float]) -> str:
        """How much of Adam's lead another one has, where there is one."""
        found, lead = self.below_sgd(key), self.lead_of_adam
        if not found or not lead:
            return "-"
        return f"{round(-np.mean(found) / lead, 2) + 0:.0%}"  # no -0%

    @property
    def _reported(self) -> str:
        return Rules.of(self.settings).reported


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
    return f"![{text}]({place}/lead.png)\n\n*{text} [Report]({place}/report.md).*"


def read(folder: Path) -> list[Run]:
    """The runs by batch size, the smallest first."""
    own = [path.parent for path in sorted(folder.glob("*/settings.json"))]
    if not own:
        raise FileNotFoundError(f"{folder}: no run of examples.convergence is there.")
    wanted = _but_for_the_batch(run_folder.read_settings(own[0])["settings"])
    found: dict[int, Run] = {}
    for path in [*own, *sorted(folder.parent.glob("convergence/*/settings.json"))]:
        place = path if path.is_dir() else path.parent
        content = run_folder.read_settings(place)
        settings = content["settings"]
        if _but_for_the_batch(settings) == wanted:
            best = winners(files.read_lines(place / "runs.jsonl"), settings)
            run = Run(settings, best, content["sessions"])
            if of(best, "sgd"):
                found[run.batch_size] = run
        elif place in own:
            raise ValueError(
                f"{place}: expected the settings of {own[0]} but for the batch size."
            )
    return [found[size] for size in sorted(found)]


def _but_for_the_batch(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a training at a batch size; each clip is a training of its own."""
    ignored = "batch_size", "fractions"
    return {name: x for name, x in settings.items() if name not in ignored}


def compared(runs: Sequence[Run]) -> list[tuple[str, float]]:
    """What ran at two batch sizes or more, in the order of the first."""
    keys = dict.fromkeys(key for run in runs for key in run.best if key[0] != "sgd")
    return [key for key in keys if sum(key in run.best for run in runs) > 1]


def _introduction(runs: Sequence[Run]) -> str:
    settings = runs[0].settings
    rules = Rules.of(settings)
    return (
        f"From `{settings['init']}`, dataset `{settings['dataset']}`: "
        f"{settings['steps']} steps at every batch size, so that a larger batch sees "
        f"more examples. {rules.said()} Every optimizer was swept at every batch size. "
        f"Reported is the loss on {settings['test_rows']} test rows, on {rules.seeds} "
        "other seeds. Intervals are 95 % bootstrap over the seeds, of the difference "
        f"from SGD on the same batches, and too narrow for {rules.seeds} of them."
    )


def _table(runs: Sequence[Run], keys: Sequence[tuple[str, float]]) -> tables.Table:
    def cell(run: Run, key: tuple[str, float]) -> str:
        found = run.below_sgd(key)
        return str(bootstrap(found)) if found else "-"

    return tables.Table(
        "Test loss minus SGD's, by batch size",
        ["examples in a batch", "SGD's loss", *(label(*key) for key in keys)],
        [
            [
                str(run.batch_size),
                f"{run.loss_of_sgd:.3f}",
                *(cell(run, key) for key in keys),
            ]
            for run in runs
        ],
    )


def _leads(runs: Sequence[Run], keys: Sequence[tuple[str, float]]) -> tables.Table:
    others = [key for key in keys if key[0] != "adam"]
    return tables.Table(
        "Of Adam's lead over SGD, in the mean",
        ["examples in a batch", "Adam's lead", *(label(*key) for key in others)],
        [
            [
                str(run.batch_size),
                f"{run.lead_of_adam:.3f}",
                *(run.of_the_lead(key) for key in others),
            ]
            for run in runs
        ],
    )


def said(runs: Sequence[Run]) -> str:
    """The same in a sentence, for a page of the documentation."""
    leads = ", ".join(f"{run.lead_of_adam:.3f} ({run.batch_size})" for run in runs)
    parts = [
        f"{label(*key)} covers {', '.join(run.of_the_lead(key) for run in runs)} of it"
        for key in compared(runs)
        if key[0] in ("clipped_sgd", "sign_sgd")
    ]
    return (
        f"Adam's lead over SGD after {runs[0].settings['steps']} steps, in nats (in "
        f"brackets the examples in a batch): {leads}; {', '.join(parts)}."
    )


def _rates(runs: Sequence[Run], keys: Sequence[tuple[str, float]]) -> tables.Table:
    def rate(run: Run, name: str, fraction: float | None = None) -> str:
        found = [
            own[0]["learning_rate"]
            for key, own in run.best.items()
            if key[0] == name and fraction in (None, key[1])
        ]
        return f"{found[0]:g}" if found else "-"

    return tables.Table(
        "The learning rates that were chosen",
        ["examples in a batch", "SGD", *(label(*key) for key in keys)],
        [
            [str(run.batch_size), rate(run, "sgd"), *(rate(run, *key) for key in keys)]
            for run in runs
        ],
    )


def _draw(
    runs: Sequence[Run], keys: Sequence[tuple[str, float]], figure: Figure
) -> None:
    axes = figure.subplots()
    names = [name for name, _ in keys]
    for i, key in enumerate(keys):
        found = {run.batch_size: run.below_sgd(key) for run in runs}
        found = {size: own for size, own in found.items() if own}
        means = np.asarray([np.mean(own) for own in found.values()])
        ends = [[min(own), max(own)] for own in found.values()]
        bars = np.abs(np.asarray(ends).T - means)
        marks = looks.dots(key[0]) | looks.look(*key)
        if key[0] in names[:i]:  # at another fraction
            marks["linestyle"] = ":"
        axes.errorbar([*found], means, bars, capsize=3, **marks)
    axes.axhline(0, color=looks.COLOURS["sgd"], linewidth=1, label="SGD")
    axes.set_xscale("log", base=2)
    sizes = [run.batch_size for run in runs]
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(
        xlabel="examples in a batch",
        ylabel="test loss minus SGD's",
        title="Where SGD falls behind",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def cli() -> None:
    command_line.report("convergence.batch_sizes", main)


if __name__ == "__main__":
    cli()
