"""Tables and figures of a run of `examples.heterogeneity`, made from its files.

    summary.json              what the tables are made of, for the verdict
    report.md, report.html    optimizers, blocks, clipped directions
    *.png                     losses, head norms, blocks, clipping

`python -m examples.plots RUN` makes them again.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples import looks, pages, run_folder
from examples.convergence_report import Winners, loss_curves, sweep_table, winners
from examples.data import labelled
from examples.directions import finite_mean
from examples.optimizers import SECOND_PAPER, label
from examples.pages import Table

Run = dict[str, Any]
Moment = Mapping[str, Any]
Summary = dict[str, Any]

METRICS = ("accuracy", "nll", "brier", "ece")
_READINGS = {"l2": "norms", "rms": "norms per parameter", "squared": "squared norms"}


def write(folder: Path) -> list[Path]:
    """Writes everything that the run has data for so far."""
    runs = run_folder.read_lines(folder / "runs.jsonl")
    moments = run_folder.read_lines(folder / "blocks.jsonl")
    best = winners(runs)
    if not best:
        raise FileNotFoundError(f"{folder}: no training has ended there yet.")
    summary = summarise(folder, best, moments)
    run_folder.write_json(folder / "summary.json", summary)
    painters: dict[str, Callable[[Figure], None]] = {
        "loss_curves": functools.partial(_loss_curves, best, summary),
        "head_norm": functools.partial(_head_norms, best, summary),
    }
    tables = [_ranking(summary), sweep_table(runs)]
    if moments:
        painters["blocks"] = functools.partial(_blocks, moments)
        painters["clipping"] = functools.partial(_clipping, moments)
        tables += [
            _heterogeneity(moments),
            _complexities(moments),
            _clipped(moments[-1]),
            _norms(moments),
            _extremes(moments[-1]),
        ]
    pictures = [
        looks.draw(folder / f"{name}.png", paint, (7.2, 4.6))
        for name, paint in painters.items()
    ]
    content = pages.Content(heading(summary), provenance(summary), tables, pictures)
    return [*pages.write(folder, content), *pictures]


def summarise(folder: Path, best: Winners, moments: Sequence[Moment]) -> Summary:
    """The numbers behind the tables."""
    content = json.loads((folder / "settings.json").read_text())
    return {
        **content,
        "date": run_folder.day(folder / "runs.jsonl"),
        "optimizers": [
            {
                "name": name,
                "fraction": fraction,
                "learning_rate": runs[0]["learning_rate"],
                "state_bytes": runs[0]["state_bytes"],
                "step_seconds": float(np.median([r["step_seconds"] for r in runs])),
                "losses": [run["loss"] for run in runs],
                **{m: [run.get(m) for run in runs] for m in METRICS},
                "head_norms": [run["head_norm"] for run in runs],
            }
            for (name, fraction), runs in best.items()
        ],
        "moments": list(moments),
    }


def heading(summary: Summary) -> str:
    return f"Gradient heterogeneity: {name(summary)}"


def name(summary: Summary) -> str:
    """Task and model for people; the user's own texts by the name of their file."""
    settings = summary["settings"]
    own = settings["data"] and settings["task"] in labelled.NAMES
    task = Path(settings["data"]).stem if own else settings["task"]
    return f"{task}, {model_name(summary)}"


def model_name(summary: Summary) -> str:
    """The model for people."""
    settings = summary["settings"]
    return {
        "pretrained": f"pretrained ({settings['init']})",
        "post_ln": "Post-LN encoder from scratch",
        "pre_ln": "Pre-LN encoder from scratch",
        "vit": "ViT (Pre-LN) from scratch",
        "post_ln_vit": "Post-LN ViT from scratch",
        "resnet": "ResNet from scratch",
    }[settings["model"]]


def provenance(summary: Summary) -> str:
    settings = summary["settings"]
    flags = "".join(
        f" --{name.replace('_', '-')} {settings[name]}"
        for name, usual in {"init": "minilm", "schedule": "linear"}.items()
        if settings[name] not in (usual, None)
    )
    names = list(dict.fromkeys(one["name"] for one in summary["optimizers"]))
    flags += "" if set(names) == {*SECOND_PAPER} else f" --optimizer {' '.join(names)}"
    flags += "" if settings["clip_norm"] else " --no-clip-norm"
    flags += " --full-batch" if settings["full_batch"] else ""
    return (
        f"`python -m examples.heterogeneity --task {settings['task']} --model "
        f"{settings['model']} --preset {settings['preset']}{flags}`; batches of "
        f"{settings['batch_size']} rows. {summary['date']}; "
        f"{run_folder.made_with(summary['made_with'])}."
    )


def finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def head_norms(one: Mapping[str, Any]) -> tuple[float, float]:
    """The norm of an optimizer's linear head at the start and at the end."""
    first, last = (finite_mean([x[i][1] for x in one["head_norms"]]) for i in (0, -1))
    return first, last


def _ranking(summary: Summary) -> Table:
    """The lowest training loss first; what diverged is counted, not left out."""
    ranked = sorted(summary["optimizers"], key=lambda one: finite_mean(one["losses"]))
    rows = []
    for one in ranked:
        losses = finite(one["losses"])
        diverged = len(one["losses"]) - len(losses)
        first, last = head_norms(one)
        rows.append(
            [
                label(one["name"], one["fraction"]),
                f"{one['learning_rate']:g}",
                f"**{finite_mean(losses):.3f}**",
                f"{min(losses):.3f} to {max(losses):.3f}"
                + (f", {diverged} diverged" if diverged else ""),
                *(f"{finite_mean(one[metric]):.3f}" for metric in METRICS),
                f"{last / first:.2f}",
            ]
        )
    seeds = max(len(one["losses"]) for one in summary["optimizers"])
    return Table(
        f"Final training loss at the best learning rate, {seeds} seeds, and what is "
        "held out",
        [
            "optimizer",
            "learning rate",
            "training loss",
            "lowest to highest",
            "accuracy",
            "NLL",
            "Brier",
            "ECE",
            "head's norm, end / start",
        ],
        rows,
    )


def _heterogeneity(moments: Sequence[Moment]) -> Table:
    rows = [
        [
            f"step {moment['step']}, {name}",
            *(
                f"{moment['heterogeneity'][reading][column]:.3g}"
                for column in ("gini", "variation", "entropy", "max_over_median")
            ),
        ]
        for moment in moments
        for reading, name in _READINGS.items()
    ]
    return Table(
        f"Gradient heterogeneity of {len(moments[0]['blocks'])} blocks, along Adam's "
        "training",
        ["", "Gini", "variation", "entropy", "max / median"],
        rows,
    )


def _complexities(moments: Sequence[Moment]) -> Table:
    rows = []
    for moment in moments:
        complexity, correlation = moment["complexity"], moment["correlation"]
        low, high = correlation["spearman_interval"]
        directions = moment["directions"]
        rows.append(
            [
                f"step {moment['step']}",
                f"{moment['loss']:.3f}",
                f"{complexity['gradient']:.4g}",
                f"{complexity['sign']:.4g}",
                f"{complexity['gradient'] / complexity['sign']:.3g}",
                f"{directions['gradient']['sharpness']:.4g}",
                f"{directions['sign']['sharpness']:.4g}",
                f"{correlation['spearman']:.2f} ({low:.2f} to {high:.2f})",
                f"{complexity['sign_step']:.2g}",
            ]
        )
    return Table(
        "What the curvature of the blocks means: Lambda_G bounds the sharpness of the "
        "gradient for a block-diagonal Hessian, Lambda_P that of its sign",
        [
            "",
            "loss",
            "Lambda_G",
            "Lambda_P",
            "Lambda_G / Lambda_P",
            "sharpness, gradient",
            "sharpness, sign",
            "Spearman, block norm and curvature (95 %)",
            "sign step",
        ],
        rows,
    )


def clippings(moment: Moment) -> dict[str, dict[float, Mapping[str, Any]]]:
    """What was measured of clipped gradients: scope -> fraction -> numbers."""
    found: dict[str, dict[float, Mapping[str, Any]]] = {}
    for name, numbers in moment["directions"].items():
        if name.startswith("clipped "):
            _, fraction, scope = name.split()
            of_scope = found.setdefault(scope, {0.0: moment["directions"]["gradient"]})
            of_scope[float(fraction)] = numbers
    return found


def _clipped(moment: Moment) -> Table:
    rows = [
        [
            f"{100 * fraction:g} %, {scope} threshold" if fraction else "not clipped",
            f"{numbers['heterogeneity']['l2']['gini']:.3f}",
            f"{numbers['heterogeneity']['rms']['gini']:.3f}",
            f"{numbers['bound']:.4g}",
            f"{numbers['sharpness']:.4g}",
        ]
        for scope, by_fraction in clippings(moment).items()
        for fraction, numbers in by_fraction.items()
        if fraction or scope == "global"
    ]
    sign = moment["directions"]["sign"]
    rows.append(
        [
            "sign",
            f"{sign['heterogeneity']['l2']['gini']:.3f}",
            f"{sign['heterogeneity']['rms']['gini']:.3f}",
            f"{sign['bound']:.4g}",
            f"{sign['sharpness']:.4g}",
        ]
    )
    return Table(
        f"Does clipping undo it? The gradient at step {moment['step']}, clipped",
        ["", "Gini of norms", "Gini per parameter", "bound", "sharpness"],
        rows,
    )


def _norms(moments: Sequence[Moment]) -> Table:
    return Table(
        "Layer norms, in the order of the model: mean spectral norm of the Jacobian",
        ["", *(f"step {moment['step']}" for moment in moments)],
        [
            [f"`{name}`", *(f"{moment['norms'][name]:.3g}" for moment in moments)]
            for name in moments[0]["norms"]
        ],
    )


def _extremes(moment: Moment, count: int = 8) -> Table:
    """The blocks with the largest gradients per parameter."""
    blocks = sorted(moment["blocks"].items(), key=lambda item: -item[1]["rms"])
    return Table(
        f"The blocks with the largest gradient per parameter at step {moment['step']}",
        ["", "entries", "norm", "per parameter", "largest, smallest eigenvalue"],
        [
            [
                f"`{name}`",
                f"{block['size']:,.0f}",
                f"{block['l2']:.3g}",
                f"{block['rms']:.3g}",
                ", ".join(f"{x:.3g}" for x in finite([block["top"], block["bottom"]])),
            ]
            for name, block in blocks[:count]
        ],
    )


def _main(best: Winners, summary: Summary) -> Winners:
    """Without the other fractions."""
    return {k: r for k, r in best.items() if k[1] == summary["settings"]["fraction"]}


def _loss_curves(best: Winners, summary: Summary, figure: Figure) -> None:
    loss_curves(_main(best, summary), figure)
    figure.axes[0].set(xlabel="step", ylabel="training loss (nats per row)")


def _head_norms(best: Winners, summary: Summary, figure: Figure) -> None:
    axes = figure.subplots()
    for (name, fraction), runs in _main(best, summary).items():
        look = looks.look(name, fraction)
        for seed, run in enumerate(runs):
            once = look if not seed else {**look, "label": None, "alpha": 0.3}
            axes.plot(*zip(*run["head_norm"], strict=True), **once)
    axes.set(xlabel="step", ylabel="norm of the linear head", yscale="log")
    axes.legend(fontsize=7, ncols=2)


_KINDS = {"embed": "#D55E00", "norm": "#009E73", "bias": "#56B4E9", "head": "#000000"}
_OTHERS = "#0072B2"


def _blocks(moments: Sequence[Moment], figure: Figure) -> None:
    """Gradient norm against curvature, at the first moment and at the last."""
    chosen = [moments[0], moments[-1]][: len(moments)]
    all_axes = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)
    for axes, moment in zip(all_axes[0], chosen, strict=True):
        largest = max(block["l2"] for block in moment["blocks"].values())
        for name, block in moment["blocks"].items():
            curvature = max(map(abs, finite([block["top"], block["bottom"]])))
            if block["l2"] > 1e-6 * largest and curvature:
                axes.plot(curvature, block["l2"], "o", color=_kind(name)[1], ms=4)
        correlation = moment["correlation"]["spearman"]
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("spectral norm of the block's Hessian")
        axes.set_title(f"step {moment['step']}: Spearman {correlation:.2f}")
    all_axes[0, 0].set_ylabel("gradient norm of the block")
    for name, colour in {**_KINDS, "matrix": _OTHERS}.items():
        all_axes[0, 0].plot([], [], "o", color=colour, ms=4, label=name)
    all_axes[0, 0].legend(fontsize=7)


def _kind(block: str) -> tuple[str, str]:
    for kind, colour in _KINDS.items():
        if kind in block:
            return kind, colour
    return "matrix", _OTHERS


def _clipping(moments: Sequence[Moment], figure: Figure) -> None:
    """Gini coefficient and bound of the clipped gradient, against the fraction."""
    last = moments[-1]
    left, right = figure.subplots(1, 2)
    for scope, by_fraction in clippings(last).items():
        fractions = sorted(f for f in by_fraction if f)
        style = {"marker": "o", "markersize": 4, "label": f"{scope} threshold"}
        style["linestyle"] = "-" if scope == "global" else "--"
        numbers = [by_fraction[f] for f in fractions]
        gini = [n["heterogeneity"]["l2"]["gini"] for n in numbers]
        left.plot(fractions, gini, color="#0072B2", **style)
        right.plot(fractions, [n["bound"] for n in numbers], color="#0072B2", **style)
    for axes, value, name in (
        (left, lambda d: d["heterogeneity"]["l2"]["gini"], "Gini of the block norms"),
        (right, lambda d: d["bound"], "bound of the sharpness"),
    ):
        for direction, colour in (("gradient", "#D55E00"), ("sign", "#555555")):
            level = value(last["directions"][direction])
            axes.axhline(level, color=colour, linewidth=1, label=direction)
        axes.set(xscale="log", xlabel="share of the coordinates clipped", ylabel=name)
    left.legend(fontsize=7)
    figure.suptitle(f"The gradient, clipped, at step {last['step']}", fontsize=9)
