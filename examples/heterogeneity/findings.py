"""What the pages say of gradient heterogeneity, made from the committed runs."""

from collections.abc import Sequence
from pathlib import Path

from examples.heterogeneity.claims import (
    KINDS,
    READINGS,
    SGD,
    clear,
    comparisons,
    correlations,
    equal_rates,
    gap,
    interval,
    losses_of_best,
    of_the_bound,
    prediction,
)
from examples.heterogeneity.reading import (
    Summary,
    clippings,
    has_many_classes,
    is_transformer,
    name,
    paired,
)
from examples.heterogeneity.report import share_of_epoch
from examples.lab import run_folder
from examples.lab.statistics import bootstrap
from examples.lab.tables import span
from examples.lab.winners import Rules

RUNS = "examples/results/heterogeneity"


def of_the_paper(root: Path) -> str:
    """What came out of the second paper's claims, as a list."""
    runs = run_folder.read_summaries(root / RUNS)
    kinds = []
    for claim in KINDS:
        said = []
        for reading, words in READINGS.items():
            found = [c for c in comparisons(runs, claim) if c.reading == reading]
            held, count = sum(c.held for c in found), sum(len(c.ginis) for c in found)
            said.append(f"by {words} at {held} of {count} measured moments")
        kinds.append(f"- {claim[0].upper()}{claim[1:]}: {', '.join(said)}.")
    correlation, answer = prediction(runs)
    return "\n".join(
        [
            _sign(runs),
            *kinds,
            "- $\\Lambda_G / \\Lambda_P$ predicts SGD's gap across models: "
            f"{correlation}: {answer}.",
            "- With many classes momentum keeps sign descent's linear head from "
            f"growing: {_heads(runs)}.",
        ]
    )


def _sign(runs: Sequence[Summary]) -> str:
    """How sign descent ended, on transformers and elsewhere."""
    transformers = [run for run in runs if is_transformer(run)]
    below = sum(gap(run) > 0 for run in transformers)
    certain = sum(map(clear, transformers))
    chosen = sum(not Rules.of(run["settings"]).apart for run in transformers)
    shares = [share_of_epoch(run["settings"]) for run in transformers]
    others = [
        f"{name(run)} {interval(run) or '-'}" for run in runs if not is_transformer(run)
    ]
    return (
        f"- Sign descent ends below SGD: on {below} of {len(transformers)} "
        f"transformers; on {certain} of them all of Student's 95 % interval of the "
        "difference, seed by seed, is above 0 (the better of two kinds of each; "
        f"trained on {min(shares):.1%} to {max(shares):.0%} of an epoch; the rates of "
        f"{chosen} runs were chosen on one of the seeds in the mean). SGD minus sign "
        f"descent elsewhere: {', '.join(others) or '-'}."
    )


def _heads(runs: Sequence[Summary]) -> str:
    """Of the rates that sign descent tried with and without momentum."""
    found = [
        (plain > averaged)
        for run in runs
        if has_many_classes(run)
        for plain, averaged in equal_rates(run).values()
    ]
    return (
        f"the head grew less with it at {sum(found)} of {len(found)} rates that both "
        "kinds tried"
    )


def of_the_blocks(root: Path) -> str:
    """What a practitioner may take from the runs, as a list."""
    runs = run_folder.read_summaries(root / RUNS)
    above = sum(clearly for _, clearly in correlations(runs))
    quotients = of_the_bound(runs, "gradient")
    exceeding = sum(q > 1 for q in quotients)
    return "\n".join(
        [
            "- **Blocks with large gradients have large curvature**: the 95 % interval "
            f"of Spearman's correlation is above 0 at {above} of {len(quotients)} "
            "measured moments.",
            "- **One threshold or one for each leaf?** Of the bound is left, at the "
            f"end of Adam's training, with {_left(runs, 0.05)}; with "
            f"{_left(runs, 0.01)}. Measure yours.",
            "- **A lower bound is not yet a lower loss.** Training loss of SGD with "
            f"5 % clipped minus that of the better SGD without: {_losses(runs)}.",
            "- **Blocks are not everything.** The sharpness along the gradient exceeds "
            f"$\\Lambda_G$ at {exceeding} of {len(quotients)} moments, up to "
            f"{max(quotients):.1f}-fold: blocks act together, and the bound assumes "
            "that they do not.",
        ]
    )


def _left(runs: Sequence[Summary], fraction: float) -> str:
    """What clipping a fraction leaves of the bound, by kind of threshold."""
    said = []
    for scope, words in (("global", "one threshold"), ("leaf", "one for each leaf")):
        found = []
        for run in runs:
            clipped = clippings(run["moments"][-1]).get(scope, {})
            if fraction in clipped:
                found.append(clipped[fraction]["bound"] / clipped[0.0]["bound"])
        said.append(f"{span(found)} ({words})")
    return f"{100 * fraction:g} % clipped {', '.join(said)}"


def _losses(runs: Sequence[Summary]) -> str:
    """Clipped SGD's losses minus those of the better SGD, seed by seed."""
    found = {}
    for run in runs:
        pairs = paired(losses_of_best(run, ["clipped_sgd"]), losses_of_best(run, SGD))
        if len(pairs) > 1:
            found[name(run)] = bootstrap(pairs)
    return ", ".join(f"{who} {said}" for who, said in found.items()) or "-"
