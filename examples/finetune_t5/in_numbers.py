"""The tables of a fine-tuning run, made from its summary."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from examples.finetune_t5 import progress
from examples.lab import statistics, winners
from examples.lab.files import Line
from examples.lab.optimizers import label
from examples.lab.sweep import TAIL
from examples.lab.tables import Table

Summary = Mapping[str, Any]
COVERED = 0.8  # of the way from SGD to Adam, what clipping is hoped to cover


def optimizers(summary: Summary) -> Table:
    """What each optimizer reached, below what the checkpoint is at the start."""
    settings = summary["settings"]
    steps = progress.of_runs(summary["optimizers"])
    rows = [_start(summary)]
    for name, row in summary["optimizers"].items():
        diverged = row["diverged"] is not None
        rows.append(
            [
                label(name, settings["fraction"]),
                _number(row["learning_rate"], ".3g", "relative"),
                "diverged" if diverged else _number(row["train_loss"], ".3f"),
                _number(row.get("valid_loss"), ".3f"),
                _number(row.get("chrf"), ".1f"),
                _number(steps.get(name), ".1f"),
                f"{row['state_bytes'] / 1e6:.1f} MB",
                _number(row["clipped_fraction"], ".1%"),
            ]
        )
    return Table(
        f"{settings['steps']} steps of {settings['batch_size']} pairs; training loss: "
        f"mean of the last {min(TAIL, settings['steps'])} steps",
        [
            "optimizer",
            "learning rate",
            "training loss",
            "held-out loss",
            "chrF",
            "steps to SGD's lowest",
            "state",
            "clipped",
        ],
        rows,
    )


def seeds(summary: Summary) -> Table:
    """The same trainings with several seeds, and how far each covers SGD to Adam."""
    fraction, runs = summary["settings"]["fraction"], summary["seeds"]
    by_seed = progress.by_seed(runs)
    steps = [progress.of_runs(named) for named in by_seed.values()]
    rows = []
    for name in dict.fromkeys(run["optimizer"] for run in runs):
        own = [named[name] for named in by_seed.values() if name in named]
        rows.append(
            [
                label(name, fraction),
                _each(run["loss"] for run in own),
                _each(_last(run) for run in own),
                _each((run["chrf"] for run in own), ".1f"),
                _each((one.get(name) for one in steps), ".1f"),
                _each((progress.covered(one, name) for one in steps), ".0%"),
            ]
        )
    return Table(
        f"Seeds {', '.join(map(str, by_seed))}, one after the other",
        [
            "optimizer",
            "training loss",
            "held-out loss",
            "chrF",
            "steps to SGD's lowest",
            "of the way from SGD to Adam",
        ],
        rows,
    )


def in_one_row(summary: Summary) -> list[str]:
    """Effect, numbers, seeds and what did not hold, for a table of all results."""
    fraction = summary["settings"]["fraction"]
    by_seed = progress.by_seed(summary["seeds"])
    minus_sgd = differences(summary)
    said = [
        f"{label(name, fraction)} {statistics.bootstrap(minus_sgd[name])}"
        for name in ("clipped_sgd", "norm_clipped_sgd", "adam")
        if minus_sgd.get(name)
    ]
    begin = summary["start"]["chrf"]
    after = {
        name: float(np.mean([named[name]["chrf"] for named in by_seed.values()]))
        for name in ("sgd", "norm_clipped_sgd", "clipped_sgd", "adam")
        if all(name in named for named in by_seed.values())
    }
    steps = [progress.of_runs(named) for named in by_seed.values()]
    way = [progress.covered(one, "clipped_sgd") for one in steps]
    failures = []
    if any(one is None or one < COVERED for one in way):
        failures.append(
            "of the way from SGD to Adam in steps clipped SGD covers "
            f"{_each(way, '.0%')}, hoped for were {COVERED:.0%}"
        )
    failures += [
        f"chrF does not rise with {label(name, fraction)}"
        for name, chrf in after.items()
        if chrf <= begin
    ]
    chrfs = ", ".join(f"{label(k, fraction)} {v:.1f}" for k, v in after.items())
    return [
        "held-out loss minus SGD's, a T5 that translates",
        f"{', '.join(said)}; chrF before {begin:.1f}, {chrfs}",
        f"{len(by_seed)} seeds",
        "; ".join(failures) or "-",
    ]


def differences(summary: Summary) -> dict[str, list[float]]:
    """By optimizer: the held-out loss at the end minus SGD's, one for each seed."""
    found = _ends(summary)
    sgd = found.pop("sgd", [])
    return {name: winners.differences(own, sgd) for name, own in found.items()}


def covered(summary: Summary) -> dict[str, winners.Covered | None]:
    """By optimizer: what it has of Adam's lead over SGD in held-out loss."""
    found = _ends(summary)
    sgd, adam = found.get("sgd", []), found.get("adam", [])
    return {name: winners.covered(own, sgd, adam) for name, own in found.items()}


def _ends(summary: Summary) -> dict[str, list[Line]]:
    """By optimizer: seeds and held-out losses at the end, None where one diverged."""
    found: dict[str, list[Line]] = {}
    for run in summary["seeds"]:
        loss = _last(run) if run["diverged"] is None else None
        own = found.setdefault(run["optimizer"], [])
        own.append({"seed": run["seed"], "loss": loss})
    return found


def sharpness(summary: Summary) -> Table:
    fraction, rows = summary["settings"]["fraction"], summary["sharpness"]
    count = len(next(iter(rows.values()))["ratios"])
    columns = {
        "ratio": "ratio to SGD",
        "sharpness": "sharpness",
        "slope": "slope",
        "newton_step": "Newton step",
        "predicted_decrease": "predicted decrease",
        "lowest_step": "lowest step of a scan",
        "scanned_decrease": "decrease there",
    }
    return Table(
        "Directional sharpness along SGD's trajectory: mean ratio to SGD of "
        f"{count} measurement{'s' if count > 1 else ''}; the other columns: at the end",
        ["direction", *columns.values()],
        [
            [label(name, fraction), *(_number(row.get(key), ".3g") for key in columns)]
            for name, row in rows.items()
        ],
    )


def translations(summary: Summary) -> list[Table]:
    """A few held-out sentences, evenly from all, in every optimizer's translation."""
    fraction = summary["settings"]["fraction"]
    texts = {
        label(name, fraction): row["translations"]
        for name, row in summary["optimizers"].items()
        if row["diverged"] is None
    }
    found = []
    for number, source in enumerate(next(iter(texts.values()), [])):
        rows = [["reference", source["reference"]]]
        before = summary["start"]["translations"][number]["translation"]
        rows.append(["before", before])
        rows += [[who, shown[number]["translation"]] for who, shown in texts.items()]
        found.append(Table(f"“{source['english']}”", ["", ""], rows))
    return found


def _start(summary: Summary) -> list[str]:
    """The checkpoint's row."""
    curves = [row["valid_losses"] for row in summary["optimizers"].values()]
    loss = next((curve[0][1] for curve in curves if curve), None)
    chrf = _number(summary["start"]["chrf"], ".1f")
    return ["before", "-", "-", _number(loss, ".3f"), chrf, "-", "-", "-"]


def _last(run: Mapping[str, Any]) -> float:
    """The held-out loss at the end."""
    return run["valid_losses"][-1][1]


def _each(values: Iterable[float | None], spec: str = ".3f") -> str:
    return ", ".join(_number(value, spec) for value in values)


def _number(value: float | None, spec: str, missing: str = "-") -> str:
    return missing if value is None else f"{value:{spec}}"
