"""What a sweep found: the winners, and the table of all learning rates.

A run is a line of a sweep's log: name, fraction, learning_rate, seed, loss, losses, and
under the rules of `examples.lab.contest` a validation_loss or a test_loss.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from examples.lab import files, run_folder
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.tables import Table

Winners = dict[tuple[str, float], list[Line]]  # by optimizer and fraction: one per seed


class Rules(NamedTuple):
    """By which runs and numbers a rate was chosen, and which are reported."""

    selection_seed: int
    apart: bool  # whether what chose is not reported
    chosen_by: str
    reported: str
    seeds: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rules":
        """What the settings of a run record.

        Those from before `examples.lab.contest` have no selection seed: their rates
        were chosen by the training loss with seed 0, which is in the reported means.
        """
        seed, seeds = settings.get("selection_seed"), settings.get("seeds", 1)
        if seed is None:
            return cls(0, False, "loss", "loss", seeds)
        return cls(seed, True, "validation_loss", "test_loss", seeds)

    def choosing(self, runs: Sequence[Line]) -> list[Line]:
        """The runs that chose."""
        return [run for run in runs if run["seed"] == self.selection_seed]

    def said(self) -> str:
        """How the rates were chosen, in a sentence."""
        if not self.apart:
            return (
                "The rate was chosen by the final training loss with seed 0, which is "
                "one of the seeds in the means."
            )
        return (
            "The rate was chosen by the final loss on validation rows, in trainings "
            f"with a seed of their own ({self.selection_seed}) that are in no mean, "
            "and has a worse one on both sides."
        )


class Run(NamedTuple):
    """A folder of `examples.convergence`, read.

    Attributes:
        folder: where it is.
        settings: what it was claimed for, and
        sessions: by whom.
        lines: every training.
        best: the reported ones.
    """

    folder: Path
    settings: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]
    lines: list[Line]
    best: Winners

    @classmethod
    def read(cls, folder: Path) -> Self:
        content = run_folder.read_settings(folder)
        settings, lines = content["settings"], files.read_lines(folder / "runs.jsonl")
        return cls(
            folder, settings, content["sessions"], lines, winners(lines, settings)
        )

    @classmethod
    def below(cls, folder: Path) -> list[Self]:
        """Every run in a folder of runs, by name."""
        return [
            cls.read(path.parent) for path in sorted(folder.glob("*/settings.json"))
        ]

    @property
    def rules(self) -> Rules:
        return Rules.of(self.settings)

    @property
    def sgd(self) -> list[Line]:
        """The reported trainings of SGD, if there are any."""
        return of(self.best, "sgd")

    @property
    def start(self) -> float | None:
        """The reported loss of what every training begins with, if it is known."""
        path = self.folder / "before.jsonl"
        return files.read_lines(path)[0][self.rules.reported] if path.exists() else None

    def minus_sgd(self, key: tuple[str, float]) -> list[float]:
        """The reported losses of an optimizer minus SGD's, seed by seed."""
        return differences(self.best.get(key, []), self.sgd, self.rules.reported)

    def covered(self, key: tuple[str, float]) -> "Covered | None":
        """The part of Adam's lead over SGD that an optimizer has."""
        own, adam = self.best.get(key, []), of(self.best, "adam")
        return covered(own, self.sgd, adam, self.rules.reported)


def winners(runs: Sequence[Line], settings: Mapping[str, Any]) -> Winners:
    """The reported runs at the learning rate that was chosen, in the order run.

    Where choosing and reporting are apart, an optimizer is there when all of its seeds
    are, and its rate has others on both sides.
    """
    rules, best = Rules.of(settings), Winners()
    for key, own in _by_optimizer(runs).items():
        finite = [r for r in rules.choosing(own) if r[rules.chosen_by] is not None]
        if not finite:
            continue
        rate = min(finite, key=lambda run: run[rules.chosen_by])["learning_rate"]
        at_best = [run for run in own if run["learning_rate"] == rate]
        if rules.apart:
            tried = [run["learning_rate"] for run in rules.choosing(own)]
            at_best = [r for r in at_best if r["seed"] != rules.selection_seed]
            if len(at_best) < rules.seeds or not min(tried) < rate < max(tried):
                continue
        best[key] = at_best
    return best


def unfinished(runs: Sequence[Line], best: Winners) -> list[tuple[str, float]]:
    """The optimizers that have runs, and not yet all of them."""
    return [key for key in _by_optimizer(runs) if key not in best]


def _by_optimizer(runs: Sequence[Line]) -> dict[tuple[str, float], list[Line]]:
    found: dict[tuple[str, float], list[Line]] = {}
    for run in runs:
        found.setdefault((run["name"], run["fraction"]), []).append(run)
    return found


def at_fraction(best: Winners, fraction: float) -> Winners:
    """Without clipped SGD at other fractions."""
    return {key: runs for key, runs in best.items() if key[1] == fraction}


def mean(runs: Sequence[Line], what: str = "loss") -> float:
    """Over the seeds that did not diverge; inf if all did."""
    finite = [run[what] for run in runs if run[what] is not None]
    return float(np.mean(finite)) if finite else float("inf")


def differences(
    runs: Sequence[Line], others: Sequence[Line], what: str = "loss"
) -> list[float]:
    """What the same batches came to: seeds differ more than optimizers do."""
    losses = {run["seed"]: run[what] for run in others if run[what] is not None}
    return [
        run[what] - losses[run["seed"]]
        for run in runs
        if run[what] is not None and run["seed"] in losses
    ]


class Covered(NamedTuple):
    """The part of Adam's lead over SGD that another optimizer has.

    Attributes:
        ways: how far the other ends below SGD, and
        leads: how far Adam does, one for each seed.
    """

    ways: list[float]
    leads: list[float]

    @property
    def lead(self) -> float:
        return float(np.mean(self.leads))

    @property
    def mean(self) -> float:
        """That of the means."""
        return float(np.mean(self.ways)) / self.lead

    @property
    def percent(self) -> str:
        """The mean for a table, where it is no -0%."""
        return f"{round(self.mean, 2) + 0:.0%}"

    @property
    def of_mean_lead(self) -> list[float]:
        """Each seed's way: where its own lead is small, its own part says little."""
        return [way / self.lead for way in self.ways]

    @property
    def of_own_lead(self) -> list[float] | None:
        """Each seed's part, if Adam leads with all of them."""
        if min(self.leads) <= 0:
            return None
        return [way / lead for way, lead in zip(self.ways, self.leads, strict=True)]


def covered(
    runs: Sequence[Line],
    sgd: Sequence[Line],
    adam: Sequence[Line],
    what: str = "loss",
) -> Covered | None:
    """On the seeds that came to an end with all three; None where Adam has no lead."""
    ended = ({r["seed"] for r in own if r[what] is not None} for own in (runs, adam))
    both = set.intersection(*ended)
    found = Covered(
        *(
            differences(sgd, [run for run in own if run["seed"] in both], what)
            for own in (runs, adam)
        )
    )
    return found if found.leads and found.lead > 0 else None


def sweep_table(runs: Sequence[Line], rules: Rules) -> Table:
    """Every learning rate that was tried, of the runs that chose."""
    what = rules.chosen_by
    rates = sorted({run["learning_rate"] for run in runs})
    rows = []
    for (name, fraction), own in _by_optimizer(runs).items():
        losses = {run["learning_rate"]: run[what] for run in own}
        row = [label(name, fraction)]
        for rate in rates:
            loss = losses.get(rate, "")
            row.append("diverged" if loss is None else loss and f"{loss:.3f}")
        rows.append(row)
    kind = "validation loss, " if rules.apart else ""
    return Table(
        f"Every learning rate that was tried, {kind}seed {rules.selection_seed}",
        ["", *(f"{rate:g}" for rate in rates)],
        rows,
    )


def of(best: Winners, optimizer: str) -> list[Line]:
    """The runs of an optimizer, if it is among the winners."""
    return next((runs for (name, _), runs in best.items() if name == optimizer), [])
