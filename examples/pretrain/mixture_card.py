"""The model card of the T5 that was pretrained on a mixture."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sacrebleu
from flax import nnx

from examples.data import mixture, translation, vocabulary
from examples.lab import log, paper
from examples.lab.tables import Table, span
from examples.models import t5
from examples.pretrain import geometry, model_card

CARD = """\
# {name}

A small T5 (v1.0 layout: ReLU, tied output layer) of {parameters:,} parameters, pretrained
**from scratch** on a mixture of span corruption and English-French translation, as T5
was. It is not t5-small and shares no weights with it. Fine-tuning experiments of this
repository start from it: it translates, and its weights have grown, though less than a
released T5's.

| | |
|---|---|
| made by | {made_by}; {date} |
| spans to fill in | both languages of the training stories in `examples/data/en_fr` and of the training pages of `examples/data/libreoffice`, each language as one text, {text_tokens:,} tokens; 15 % noise, mean span 3, {windows} windows of {source_length} source tokens a batch |
| sentences to translate | {pairs:,} pairs of two thirds of the training pages of LibreOffice's help, with T5's prefix "{prefix}"; {target_tokens} target tokens, padding included, a batch |
| never seen | stories `wesnoth-tsg` and `wesnoth-sota`, one page of the help in sixteen; never translated: the other third of the training pages |
| vocabulary | `examples/data/vocabulary/spiece.model`, {vocab_size:,} ids |
| training | {steps:,} steps, Adafactor relative to the RMS of each weight, {warmup_steps} warm-up steps to {learning_rate:g}, held for {held_fraction:.0%} of the steps, then linearly to {final_learning_rate:g}; updates of queries and keys times {queries_and_keys:g}; dropout {dropout_rate:g} |
| time | {minutes:.0f} minutes on {device}, shared with other work |
| software | Python {python}, JAX {jax}, Flax {flax}, Optax {optax} |
| training loss | {train_loss:.3f} (both objectives, mean of the last {tail} steps) |
| held-out loss | {held_out_loss:.3f} translating ({first_held_out_loss:.2f} at step 0), {held_out_span_loss:.3f} filling in spans |
| chrF before any fine-tuning | **{chrf:.1f}** on {chrf_pairs:,} pairs of held-out pages, greedy |
| weights | `model.safetensors`, float16, names as in Hugging Face `transformers` |

![Loss during pretraining](loss.png)

The curve's numbers are in `loss.csv`.

<!-- t5_loss: python -m examples.redraw -->
{lowest}
<!-- end of t5_loss -->

## How far the weights have grown

Root mean square of every kind of weight, how many times as large as at the
initialisation that is, and the same of the released t5-v1_1-small (against the
initialisation of Mesh TensorFlow, from the standard deviations in pull request 26441 of
`transformers`). Predicted is exp(sum r^2 / 2): what updates of the size r of the schedule,
relative to a weight and orthogonal to it, make of it.

<!-- t5_growth: python -m examples.redraw -->
{growth}
<!-- end of t5_growth -->

Relative updates of queries and keys are {queries_and_keys:g} of the others': the scores
of attention are products of both, softmax is no scale-invariant function, and at equal
updates the first layer's attention saturates.

## How the loss bends along SGD's direction

Sharpness of the direction of one batch of {geometry_pairs} pairs, on another, at a point
(forward over reverse) and over distances (central differences of gradients), without
momentum. Where the columns agree, the second derivative tells what a step of that length
meets. The shrunk weights are the same function: embedding, values and feed-forward inputs
as large as at the initialisation, the factors behind them larger by as much. What differs
between them and these weights is due to scale alone.

<!-- t5_curvature: python -m examples.redraw -->
{curvature}
<!-- end of t5_curvature -->

Licence of the data: derived from the English and French message catalogues of Battle for
Wesnoth 1.16.9 (GPL-2.0-or-later) and FreedroidRPG 1.0 (GPL-2.0), see
`examples/data/en_fr/README.md`, and from LibreOffice's help (MPL-2.0), see
`examples/data/libreoffice/README.md`; these weights, learned from that text, are offered
under GPL-2.0, and are not part of the wheel. Expect nothing outside those genres.
"""  # noqa: E501


def write(
    out: Path,
    run: Path,
    config: t5.T5Config,
    graphdef: nnx.GraphDef,
    params: t5.Params,
    words: vocabulary.Vocabulary,
    predicted: Mapping[str, float],
    **facts: Any,
) -> None:
    """Measures the checkpoint in `out` and writes its card."""
    parts = translation.libreoffice_parts()
    measured = geometry.measure(config, graphdef, params) | {"predicted": predicted}
    geometry.write(out, measured)
    pairs, translations = translate(graphdef, params, words, parts.valid)
    chrf = sacrebleu.corpus_chrf(translations, [[pair.french for pair in pairs]])
    model_card.write(
        out,
        run,
        params,
        CARD,
        name=out.name,
        vocab_size=words.size,
        prefix=translation.PREFIX.strip(),
        chrf=chrf.score,
        chrf_pairs=len(pairs),
        growth=growth(measured),
        curvature=curvature(measured),
        lowest=lowest([x for x in log.read_metrics(run) if "held_out_loss" in x]),
        geometry_pairs=measured["pairs"],
        **facts,
    )


def translate(
    graphdef: nnx.GraphDef,
    params: t5.Params,
    words: vocabulary.Vocabulary,
    pairs: list[translation.Pair],
) -> tuple[list[translation.Pair], list[str]]:
    """Those pairs that fit the longest shape of the mixture, and a T5's French."""
    source_length, target_length = mixture.SHAPES[-1]
    source = words.encode([translation.PREFIX + pair.english for pair in pairs])
    target = words.encode([pair.french for pair in pairs])
    fits = [
        len(s) <= source_length and len(t) <= target_length
        for s, t in zip(source, target, strict=True)
    ]
    kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    rows = translation.tokenise(kept, words, source_length).arrays["source"]
    found: list[str] = []
    for begin in range(0, len(rows), _ROWS):
        batch = rows[begin : begin + _ROWS]
        batch = np.pad(batch, ((0, _ROWS - len(batch)), (0, 0)))
        ids = _decode(graphdef, params, batch, target_length)
        found += words.decode(np.asarray(ids).tolist())[: len(rows) - begin]
    return kept, found


_ROWS = 256  # in a batch that is translated at once
_decode = jax.jit(t5.greedy_decode, static_argnums=(0, 3))


def growth(measured: Mapping[str, Any]) -> str:
    """The growth of every kind of weight beside that of a released T5: a table."""
    predicted = measured["predicted"]
    rows = [
        [
            name,
            f"{row['rms']:.3g}",
            f"{row['growth']:.2f}",
            f"{predicted[name]:.2f}" if name in predicted else "-",
            geometry.RELEASED.get(name, "-"),
        ]
        for name, row in measured["growth"].items()
    ]
    heads = [
        "weights",
        "root mean square",
        "times as large",
        "predicted",
        "t5-v1_1-small",
    ]
    return Table("Growth", heads, rows).markdown()


_WEIGHTS = {"moments": "these weights", "shrunk": "shrunk ones"}


def curvature(measured: Mapping[str, Any]) -> str:
    """The sharpness of every direction at a point, and over distances: a table.

    Below it, what clipping leaves of SGD's with both weights.
    """
    distances = list(measured["moments"][0]["distances"])
    rows = [
        [
            who,
            geometry.LABELS[row["direction"]],
            str(row["moment"]),
            f"{row['direction_norm']:.3g}",
            f"{row['point']:.4g}",
            *(f"{row['distances'][h]:.4g}" for h in distances),
        ]
        for weights, who in _WEIGHTS.items()
        for row in measured[weights]
    ]
    heads = ["weights", "direction", "batches", "its norm", "at a point"]
    table = Table("Curvature", [*heads, *(f"over {h}" for h in distances)], rows)
    over = [
        found / row["point"]
        for weights in _WEIGHTS
        for row in measured[weights]
        for found in row["distances"].values()
    ]
    left = [f"{_left(measured[name])} ({who})" for name, who in _WEIGHTS.items()]
    theirs = [x["clipped_sgd"] for x in paper.RATIOS["translation", "sgd"].values()]
    return (
        f"{table.markdown()}\n\nOver a distance the sharpness is {span(over)} "
        f"times that at the point. With 5 % clipped "
        f"{' and '.join(left)} of the sharpness of SGD's direction at a point is left, "
        "batch by batch; what differs is due to the scale of weights alone. The paper "
        f"has {span(theirs)} along a fine-tuning of t5-small."
    )


def _left(rows: Sequence[Mapping[str, Any]]) -> str:
    """What 5 % clipped leaves of the sharpness of SGD's direction, by batch."""
    points = {(row["direction"], row["moment"]): row["point"] for row in rows}
    moments = sorted({row["moment"] for row in rows})
    return ", ".join(
        f"{points['clipped_sgd', m] / points['sgd', m]:.2f}" for m in moments
    )


def lowest(curve: Sequence[Mapping[str, Any]]) -> str:
    """Where the held-out loss was the lowest, and that it ended elsewhere."""
    best, end = min(curve, key=lambda row: float(row["held_out_loss"])), curve[-1]
    return (
        f"The held-out loss of translating was lowest at step {int(best['step']):,}, "
        f"{float(best['held_out_loss']):.3f}; the weights are those of step "
        f"{int(end['step']):,}, with {float(end['held_out_loss']):.3f}."
    )


def blocks(folder: Path) -> Mapping[str, str]:
    """What the card of a committed checkpoint says of its files, by name."""
    measured = json.loads((folder / "geometry.json").read_text())
    with (folder / "loss.csv").open() as opened:
        curve = list(csv.DictReader(opened))
    return {
        "t5_loss": lowest(curve),
        "t5_growth": growth(measured),
        "t5_curvature": curvature(measured),
    }
