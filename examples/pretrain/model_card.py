"""The model card and loss curve of a pretraining run, made from the run's own files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

from examples.lab import log, looks, provenance, run_folder
from examples.lab.steps import Params

MASKED = "masked tokens: 15 %, of which 80 % masked, 10 % replaced, 10 % kept"
NEXT = "the next token"

ENCODER = """\
# {name}

A small {kind} of {parameters:,} parameters in BERT's layout, pretrained **from scratch**
on English movie reviews, to start fine-tuning from. It shares no weights with any
published model.

| | |
|---|---|
| made by | {made_by}; {date} |
| data | {data}, one after the other |
| vocabulary | `tokenizer.json`: lower-case WordPiece, {vocab_size:,} ids, trained on such reviews |
| objective | {objective}; windows of {length} tokens |
| training | {steps:,} steps of {batch_size} windows, AdamW with weight decay {weight_decay:g}, peak rate {learning_rate:g}, {warmup_steps} warm-up steps, cosine to 0, no dropout |
| time | {minutes:.0f} minutes on {device}, shared with other work |
| software | Python {python}, JAX {jax}, Flax {flax}, Optax {optax} |
| training loss | {train_loss:.3f} (mean of the last {tail} steps) |
| held-out loss | {held_out_loss:.3f} (same objective, fixed windows of held-out documents; {first_held_out_loss:.2f} at step 0) |
| weights | `model.safetensors`, float16, names as in Hugging Face `transformers` |

![Loss during pretraining](loss.png)

The curve's numbers are in `loss.csv`. The text that it learned from is not part of this
repository.
"""  # noqa: E501

HEAD = """\
# {name}

A masked-language-model head of {parameters:,} parameters for the encoder
all-MiniLM-L6-v2, which is published without one. The head's output layer is the
encoder's embedding; dense layer, norm and bias are here, and the encoder is not.

| | |
|---|---|
| made by | {made_by}; {date} |
| encoder | that of the PyPI package `{package}`, frozen |
| data | {data}, one after the other |
| objective | {objective}; windows of {length} tokens |
| training | {steps:,} steps of {batch_size} windows, Adam, peak rate {learning_rate:g}, {warmup_steps} warm-up steps, cosine to 0, no dropout |
| time | {minutes:.0f} minutes on {device}, shared with other work |
| software | Python {python}, JAX {jax}, Flax {flax}, Optax {optax} |
| training loss | {train_loss:.3f} (mean of the last {tail} steps) |
| held-out loss | {held_out_loss:.3f} (same objective, fixed windows of held-out documents; {first_held_out_loss:.2f} at step 0) |
| weights | `model.safetensors`, float16, names as in this repository's `params["head"]` |

![Loss during training](loss.png)

The curve's numbers are in `loss.csv`. The text that it learned from is not part of this
repository.
"""  # noqa: E501


def write(folder: Path, run: Path, params: Params, card: str, **facts: Any) -> None:
    """Writes README.md, loss.csv and loss.png of the finished run into `folder`."""
    made = run_folder.read_settings(run)
    session = made["sessions"][-1]
    metrics = log.read_metrics(run)
    train = [line["loss"] for line in metrics if "loss" in line]
    held_out = [line for line in metrics if "held_out_loss" in line]
    tail = min(100, len(train))
    text = card.format(
        **made["settings"],
        **session["made_with"],
        made_by=provenance.commands(made["sessions"]),
        date=session["date"],
        parameters=optax.tree.size(params),
        minutes=metrics[-1]["seconds"] / 60,
        tail=tail,
        train_loss=np.mean(train[-tail:]),
        **{name: held_out[-1][name] for name in _held_out(held_out)},
        first_held_out_loss=held_out[0]["held_out_loss"],
        **facts,
    )
    rows = _curve(train, held_out)
    (folder / "README.md").write_text(text)
    with (folder / "loss.csv").open("w", newline="") as file:
        heads = ("step", "train_loss", *_held_out(held_out))
        csv.writer(file).writerows([heads, *rows])
    draw(folder)


def _held_out(lines: list[dict[str, Any]]) -> list[str]:
    """The names of the held-out losses; some runs have several."""
    return [name for name in lines[-1] if name in _LABELS]


# With the spans' beside it, the other loss is that of translation.
_LABELS = {"held_out_loss": "held-out text", "held_out_span_loss": "held-out spans"}
_BESIDE_SPANS = {**_LABELS, "held_out_loss": "held-out sentences, translated"}


def _curve(train: list[float], held_out: list[dict[str, Any]]) -> list[tuple]:
    """Held-out losses, each beside the mean training loss since the one before."""
    rows, before = [], 0
    for line in held_out:
        step = line["step"]
        since = train[before:step] or train[:1]
        losses = [float(np.mean(since)), *(line[name] for name in _held_out(held_out))]
        rows.append((step, *(round(loss, 4) for loss in losses)))
        before = step
    return rows


def draw(folder: Path) -> list[Path]:
    """Draws loss.png from loss.csv."""
    with (folder / "loss.csv").open(newline="") as file:
        heads, *rows = csv.reader(file)
    steps, train, *held_out = np.array(rows, float).T
    labels = _LABELS if len(held_out) == 1 else _BESIDE_SPANS

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(steps, train, label="training text")
        for name, losses, style in zip(heads[2:], held_out, ("--", ":"), strict=False):
            axes.plot(steps, losses, style, label=labels[name])
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=folder.name)
        axes.legend()

    return [looks.draw(folder / "loss.png", paint, (5.6, 3.4))]
