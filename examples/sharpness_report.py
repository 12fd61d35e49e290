"""Tables, figures and one page of a run of `examples.sharpness`, made from its files.

    summary.json      what the tables are made of, for `examples.verdict`
    report.md         tables 3 to 6, the invariants, the landscapes in numbers
    *.png             figures 1 and 3 (or 5 to 8), the loss reductions, the ratios
    report.html       all of that in one file

`python -m examples.plots RUN` makes them again.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples import looks, pages, paper, run_folder, tasks
from examples.directions import finite_mean, ratio
from examples.optimizers import LONG_VERSION, PAPER, label
from examples.pages import Table

Line = dict[str, Any]
Summary = dict[str, Any]


def write(run: Path) -> list[Path]:
    """Writes everything that the run has data for so far."""
    metrics = run_folder.read_metrics(run)
    lines = [line for line in metrics if "sharpness" in line]
    if not lines:
        raise FileNotFoundError(f"{run}: nothing has been measured there yet.")
    summary = summarise(run, metrics, lines)
    run_folder.write_json(run / "summary.json", summary)
    pictures = [
        looks.draw(run / f"{name}.png", functools.partial(paint, lines, summary), size)
        for name, (paint, size) in _PICTURES.items()
    ]
    tables = make_tables(summary)
    content = pages.Content(heading(summary), provenance(summary), tables, pictures)
    return [*pages.write(run, content), *pictures]


def summarise(run: Path, metrics: Sequence[Line], lines: Sequence[Line]) -> Summary:
    """The numbers behind the tables."""
    content = json.loads((run / "settings.json").read_text())
    losses = [line["loss"] for line in metrics if "loss" in line]
    diverged = [line["step"] for line in metrics if "diverged" in line]
    epochs = {}
    for epoch in dict.fromkeys(line["epoch"] for line in lines):
        own = [line for line in lines if line["epoch"] == epoch]
        pictured = next((line for line in own if line["pictured"]), None)
        epochs[str(epoch)] = {
            "batches": [line["batch"] for line in own],
            "loss": finite_mean(line["sharpness"]["sgd"]["loss"] for line in own),
            "directions": {
                name: _of_direction(name, own, pictured) for name in own[0]["sharpness"]
            },
        }
    return {
        **content,
        "date": run_folder.day(run / "metrics.jsonl"),
        "steps": len(losses),
        "seconds": metrics[-1]["seconds"],
        "diverged": diverged[0] if diverged else None,
        "train_loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        "epochs": epochs,
        "correlation": next(
            (line["correlation"] for line in lines[::-1] if "correlation" in line), None
        ),
    }


def _of_direction(name: str, lines: Sequence[Line], pictured: Line | None) -> Line:
    """One direction in one epoch."""
    measured = [line["sharpness"][name] for line in lines]
    ratios = [
        ratio(
            line["sharpness"][name]["curvature"], line["sharpness"]["sgd"]["curvature"]
        )
        for line in lines
    ]
    known = [r for r in ratios if r is not None]
    row: Line = {
        "sharpness": [m["curvature"] for m in measured],
        "slope": [m["slope"] for m in measured],
        "ratios": ratios,
        "ratio": float(np.mean(known)) if known else None,
    }
    if pictured:
        curve = pictured["landscape"][name]
        best = int(np.argmin(curve["losses"]))
        decrease = curve["losses"][0] - curve["losses"][best]
        predicted = pictured["sharpness"][name]["predicted_decrease"]
        row |= {
            "best_step": curve["steps"][best],
            "decrease": decrease,
            "rho": decrease / predicted if predicted else None,
        }
    return row


def heading(summary: Summary) -> str:
    settings = summary["settings"]
    driver = label(settings["trajectory"], 0)
    task = tasks.TITLES[settings["task"]]
    return f"Directional sharpness: {task}, trajectory of {driver}"


def make_tables(summary: Summary) -> list[Table]:
    """Everything in numbers."""
    settings, epochs = summary["settings"], summary["epochs"]
    theirs = _reported(settings)
    rows = []
    for epoch, cell in epochs.items():
        rows.append(
            [f"epoch {epoch}, ours", *(_mean(cell, name) for name in paper.COLUMNS)]
        )
        rows.append(
            ["lowest to highest", *(_range(cell, name) for name in paper.COLUMNS)]
        )
        if int(epoch) in theirs:
            reported = theirs[int(epoch)]
            rows.append(
                [
                    f"epoch {epoch}, the paper's",
                    *(f"{reported[n]:.3g}" for n in paper.COLUMNS),
                ]
            )
    tables = [
        Table(
            "Ratio to the sharpness of SGD's direction, mean over the measured batches",
            ["", *(label(name, settings["fraction"]) for name in paper.COLUMNS)],
            rows,
        ),
        _invariants(summary),
        Table(
            "The same of the longer version's optimizers",
            ["", *(label(name, _fraction(settings, name)) for name in LONG_VERSION)],
            [
                [f"epoch {epoch}", *(_mean(cell, name) for name in LONG_VERSION)]
                for epoch, cell in epochs.items()
            ],
        ),
        Table(
            "Sharpness itself, mean over the measured batches",
            ["", *(label(name, settings["fraction"]) for name in PAPER), "loss"],
            [
                [
                    f"epoch {epoch}",
                    *(
                        f"{finite_mean(cell['directions'][name]['sharpness']):.4g}"
                        for name in PAPER
                    ),
                    f"{cell['loss']:.3f}",
                ]
                for epoch, cell in epochs.items()
            ],
        ),
        _landscapes(summary),
    ]
    if summary["correlation"]:
        tables.append(_correlation(summary))
    return tables


def _reported(settings: Mapping[str, Any]) -> Mapping[int, paper.Ratios]:
    """The paper's ratios by epoch, where its epochs and ours can be compared."""
    if settings["preset"] == "tiny":
        return {}
    return paper.RATIOS.get((settings["task"], settings["trajectory"]), {})


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


def _invariants(summary: Summary) -> Table:
    epochs = summary["epochs"]
    found = {epoch: holding(cell) for epoch, cell in epochs.items()}
    return Table(
        "What holds in all of the paper's tables: here, of the means (and of how many "
        "batches)",
        ["", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [
                one.claim,
                *(
                    f"{'yes' if mean else 'NO'} ({sum(batches)}/{len(batches)})"
                    for mean, batches in (found[epoch][i] for epoch in epochs)
                ),
            ]
            for i, one in enumerate(paper.INVARIANTS)
        ],
    )


def _landscapes(summary: Summary) -> Table:
    settings, epochs = summary["settings"], summary["epochs"]
    rows = []
    for name in (*PAPER, *LONG_VERSION):
        row = [label(name, _fraction(settings, name))]
        for cell in epochs.values():
            of = cell["directions"][name]
            rho = "-" if of.get("rho") is None else f"{of['rho']:.2f}"
            row.append(
                f"{of['decrease']:.3g} at {of['best_step']:.3g} ({rho})"
                if "decrease" in of
                else "-"
            )
        rows.append(row)
    return Table(
        "Local loss reduction, best step, and (reduction / parabola's) at one batch",
        ["", *(f"epoch {epoch}" for epoch in epochs)],
        rows,
    )


def _correlation(summary: Summary) -> Table:
    found = summary["correlation"]
    return Table(
        "Do large gradient coordinates have large curvature? |g_i| against |H_ii| of "
        f"{summary['settings']['coordinates']} random coordinates at the end, with "
        "95 % intervals",
        ["", "correlation", "from", "to"],
        [
            [name, *(_number(x) for x in (found[key], *found[f"{key}_interval"]))]
            for name, key in (
                ("Pearson, of the logarithms", "pearson"),
                ("Spearman, of the ranks", "spearman"),
            )
        ],
    )


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def _fraction(settings: Mapping[str, Any], name: str) -> float:
    return settings["fractions"][name]


def _mean(cell: Mapping[str, Any], name: str) -> str:
    mean = cell["directions"][name]["ratio"]
    return "-" if mean is None else f"**{mean:.3g}**"


def _range(cell: Mapping[str, Any], name: str) -> str:
    ratios = [r for r in cell["directions"][name]["ratios"] if r is not None]
    return f"{min(ratios):.2g} to {max(ratios):.2g}" if ratios else "-"


# The pictures: (lines of the measurements, summary, figure).


def _ratios(lines: Sequence[Line], summary: Summary, figure: Figure) -> None:
    """Ours as dots, the paper's as crosses, epoch by epoch."""
    settings, epochs = summary["settings"], summary["epochs"]
    theirs = _reported(settings)
    all_axes = figure.subplots(1, len(epochs), sharey=True, squeeze=False)[0]
    names = paper.COLUMNS[::-1]
    del lines
    for axes, (epoch, cell) in zip(all_axes, epochs.items(), strict=True):
        for height, name in enumerate(names):
            style = looks.dots(name)
            ratios = [r for r in cell["directions"][name]["ratios"] if r is not None]
            signed = [(r, style if r > 0 else style | {"marker": "v"}) for r in ratios]
            for r, how in signed:
                axes.plot(abs(r), height, **how)
            if int(epoch) in theirs:
                reported = theirs[int(epoch)][name]
                axes.plot(reported, height - 0.25, "x", color="0.4", markersize=5)
        axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
        axes.set(xscale="log", title=f"epoch {epoch}")
    all_axes[0].set_yticks(
        range(len(names)), [label(name, settings["fraction"]) for name in names]
    )
    figure.supxlabel(
        "sharpness / that of SGD's direction; dot: one batch (triangle: negative, its "
        "size), cross: the paper's mean",
        fontsize=8,
    )


def _landscape(lines: Sequence[Line], summary: Summary, figure: Figure) -> None:
    """Figures 3 and 5 to 8: above without Adafactor, below with it."""
    settings = summary["settings"]
    pictured = [line for line in lines if line["pictured"]]
    grid = figure.subplots(2, len(pictured), squeeze=False)
    for column, line in zip(grid.T, pictured, strict=True):
        for axes, names in zip(column, (_without_adafactor(), PAPER), strict=True):
            lowest = 0.0
            for name in names:
                curve = line["landscape"][name]
                change = np.array(curve["losses"]) - curve["losses"][0]
                style = looks.look(name, settings["fraction"])
                # Below the axis is logarithmic, and has no place for the start.
                first = int(names is PAPER)
                axes.plot(curve["steps"][first:], change[first:], **style)
                best = int(np.argmin(change))
                axes.plot(curve["steps"][best], change[best], **looks.dots(name))
                lowest = min(lowest, float(change[best]))
            axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
            if lowest < 0:  # what rises far above the start would hide the valleys
                axes.set_ylim(1.15 * lowest, -0.4 * lowest)
        column[0].set_title(f"epoch {line['epoch']}, batch {line['batch']}")
        column[1].set_xscale("log")
    drawn = grid[1][0].get_lines()
    named = [line for line in drawn if not line.get_label().startswith("_")]
    figure.legend(handles=named, loc="outside upper center", ncols=4, fontsize=8)
    figure.supylabel("change of the loss (nats per token)", fontsize=9)
    figure.supxlabel("distance along the normalised update direction", fontsize=9)


def _without_adafactor() -> list[str]:
    return [name for name in PAPER if "adafactor" not in name]


def _reductions(lines: Sequence[Line], summary: Summary, figure: Figure) -> None:
    """The local loss reduction of every direction."""
    settings, names = summary["settings"], (*PAPER, *LONG_VERSION)
    pictured = [line for line in lines if line["pictured"]]
    del lines
    all_axes = figure.subplots(1, len(pictured), sharey=True, squeeze=False)[0]
    for axes, line in zip(all_axes, pictured, strict=True):
        for height, name in enumerate(names[::-1]):
            curve = line["landscape"][name]
            style = looks.look(name, _fraction(settings, name))
            axes.barh(
                height,
                curve["losses"][0] - min(curve["losses"]),
                color=style["color"] if style["linestyle"] == "-" else "white",
                edgecolor=style["color"],
                hatch=None if style["linestyle"] == "-" else "////",
            )
        axes.set_title(f"epoch {line['epoch']}, batch {line['batch']}")
    all_axes[0].set_yticks(
        range(len(names)),
        [label(name, _fraction(settings, name)) for name in names[::-1]],
    )
    figure.supxlabel("local loss reduction (nats per token)", fontsize=9)


def _momentum(lines: Sequence[Line], summary: Summary, figure: Figure) -> None:
    """Figure 1, at the end."""
    del summary
    last = [line for line in lines if line["pictured"]][-1]
    axes = figure.subplots()
    of = looks.histogram(axes, last["momentum"], looks.COLOURS["sgd"])
    axes.set_title(f"SGD's momentum in epoch {last['epoch']}; {of}")


_PICTURES: Mapping[str, tuple[Callable, tuple[float, float]]] = {
    "ratios": (_ratios, (9.6, 3.4)),
    "landscape": (_landscape, (9.6, 5.4)),
    "reductions": (_reductions, (9.6, 3.8)),
    "momentum": (_momentum, (6.4, 3.6)),
}


def provenance(summary: Summary) -> str:
    """How the numbers were made, in a few sentences."""
    settings = summary["settings"]
    seed = f" --seed {settings['seed']}" if settings["seed"] else ""
    end = (
        f" The run diverged at step {summary['diverged']}; what was measured before is "
        "shown."
        if summary["diverged"] is not None
        else ""
    )
    return (
        f"`python -m examples.sharpness --task {settings['task']} --trajectory "
        f"{settings['trajectory']} --preset {settings['preset']}{seed}`, from "
        f"`{settings['init']}`; after {settings['adapting_steps']} steps of Adam, "
        f"learning rate {settings['learning_rate']:g}, "
        f"{settings['batches_per_epoch']} batches of {settings['batch_size']} an "
        f"epoch, measured on {settings['test_size']} fixed examples. "
        f"{summary['date']}; {run_folder.made_with(summary['made_with'])}; "
        f"{summary['seconds'] / 60:.0f} minutes.{end}"
    )
