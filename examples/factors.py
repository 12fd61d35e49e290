"""When does clipping lower SGD's sharpness much? `python -m examples.factors`.

One factor at a time is changed of one small experiment: a T5 is trained by Adam, then
SGD drives it for some updates, and the sharpness of SGD's direction is compared with
that of SGD with clipped coordinates. Every variant is a line of variants.jsonl in the
run folder, --resume repeats none of them, and the table goes to factors.md.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

from examples import run_folder, training
from examples.data import batching, translation, vocabulary
from examples.directions import (
    before_last_step,
    finite_mean,
    numbers,
    pseudo_directions,
    ratio,
    with_pseudo_updates,
)
from examples.models import huggingface, t5
from examples.optimizers import label
from examples.pages import Table, as_markdown
from examples.pretraining import without_dropout
from optax_clip import diagnostics

_COMPARED = (
    "sgd",
    "clipped_sgd",
    "adam",
    "normalized_sgd",
    "clipped_normalized_sgd",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One experiment; the defaults are what all others differ from in one thing."""

    start: Literal["pretrained", "random"] = "pretrained"
    adam_steps: int = 200  # of 16 pairs, before SGD takes over
    source_length: int = 40  # tokens that sources are padded to
    mask_source: bool = True  # False: the padding is attended to
    vocabulary: int = 8192
    embedding_scale: float = 1.0  # the function stays the same
    batch_size: int = 64
    rate: float = 0.1  # SGD's
    fraction: float = 0.05
    momentum_updates: int = 20  # SGD's, measured after the second half


# Factor -> variants, each of which differs from another one in that factor.
FACTORS: Mapping[str, tuple[Variant, ...]] = {
    "as it is": (Variant(),),
    "training by Adam": tuple(Variant(adam_steps=n) for n in (0, 50, 800)),
    "training by Adam, from random weights": tuple(
        Variant("random", adam_steps=n) for n in (0, 200, 800)
    ),
    "fraction": tuple(Variant(fraction=f) for f in (0.001, 0.01, 0.2, 0.5)),
    "batch size": tuple(Variant(batch_size=n) for n in (16, 256, 1024)),
    "SGD's learning rate": tuple(Variant(rate=r) for r in (0.001, 0.01, 0.3)),
    "padding": (
        Variant(source_length=160),
        Variant(source_length=160, mask_source=False),
    ),
    "embedding scale": tuple(Variant(embedding_scale=c) for c in (0.1, 10.0)),
    "vocabulary, from random weights": tuple(
        Variant("random", vocabulary=n) for n in (2048, 16384)
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Changes one factor at a time, and measures what clipping does to SGD."""

    factor: tuple[str, ...] = tuple(FACTORS)
    """Which of the factors."""
    init: str = "examples/checkpoints/t5-enfr-small"
    """A folder with a T5 of the committed vocabulary in the Hugging Face layout."""
    test_size: int = 64
    """Pairs in the fixed batch."""
    max_length: int = 40
    """Longest source and target in tokens; longer pairs are dropped."""
    part: int = 16
    """Pairs in memory at a time."""
    seed: int = 0
    run: Path = Path("runs/factors")
    """The run folder."""
    resume: bool = False
    """Continue the run in that folder."""
    smallest: bool = False
    """Two variants, a few pairs: a trial."""

    def check(self) -> None:
        """Refuses what no run can mean, in one sentence."""
        run_folder.check_counts(self)
        unknown = [name for name in self.factor if name not in FACTORS]
        if unknown or not self.factor:
            raise ValueError(
                f"--factor: expected some of {', '.join(map(repr, FACTORS))}; got "
                f"{', '.join(unknown) or 'none'}."
            )

    def variants(self) -> list[tuple[str, Variant]]:
        if self.smallest:
            small = Variant(adam_steps=1, batch_size=2, momentum_updates=2)
            return [
                ("as it is", small),
                ("padding", dataclasses.replace(small, mask_source=False)),
            ]
        return [(name, variant) for name in self.factor for variant in FACTORS[name]]

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers."""
        names = ("init", "test_size", "max_length", "part", "seed", "smallest")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model and its data, as a variant has them."""

    loss: Callable[..., jax.Array]
    params: t5.Params
    arrays: batching.Arrays

    def batch_at(self, size: int, seed: int, step: int) -> batching.Arrays:
        return batching.batch_at(self.arrays, size, seed, step)


def main(settings: Settings) -> Path:
    """Runs what is missing, writes the table after each variant."""
    out = settings.run / "factors.md"
    done = run_folder.Ledger(
        settings.run / "variants.jsonl",
        lambda line: print(*_row(line), sep=" | ", flush=True),
    )
    for factor, variant in settings.variants():
        wanted = {"factor": factor, "variant": dataclasses.asdict(variant)}
        done.once(wanted, functools.partial(measure, settings, variant))
        run_folder.write_text(out, _markdown(settings, done.lines))
    return out


def measure(settings: Settings, variant: Variant) -> dict[str, Any]:
    """Trains one variant and measures it, after several updates."""
    problem = set_up(settings, variant)
    params = _trained(settings, variant, problem)
    params = rescale(params, variant.embedding_scale)
    fractions = dict.fromkeys(_COMPARED, variant.fraction)
    optimizer = with_pseudo_updates("sgd", variant.rate, fractions)
    parts = training.Parts(-(-variant.batch_size // settings.part), t5.token_count)
    step_function = training.train_step(
        problem.loss, optimizer, parts=parts if parts.count > 1 else None
    )
    derivatives = jax.jit(
        functools.partial(
            diagnostics.directional_derivatives,
            problem.loss,
            mode="forward_over_forward",
            microbatches=-(-settings.test_size // settings.part),
            weight=t5.token_count,
        )
    )
    test = problem.batch_at(settings.test_size, settings.seed + 1, 0)
    state = training.TrainState(params, optimizer.init(params))
    key, measured = jax.random.key(settings.seed), []
    updates = variant.momentum_updates
    moments = {updates, updates - updates // 4, updates // 2}
    for step in range(updates):
        batch = problem.batch_at(variant.batch_size, settings.seed + 2, step)
        state, metrics = step_function(state, batch, key)
        if not np.isfinite(metrics["loss"]):
            return {"diverged": step}
        if step + 1 in moments:
            derived = derivatives(
                before_last_step(state, "sgd"), pseudo_directions(state), test
            )
            measured.append({name: numbers(d) for name, d in derived.items()})
    return {
        "diverged": None,
        "loss": measured[-1]["sgd"]["loss"],
        "sharpness": {
            name: [m[name]["curvature"] for m in measured] for name in _COMPARED
        },
        "ratios": {
            name: [ratio(m[name]["curvature"], m["sgd"]["curvature"]) for m in measured]
            for name in _COMPARED
        },
    }


def set_up(settings: Settings, variant: Variant) -> Problem:
    """The model and the pairs of a variant."""
    pairs = translation.committed_split().train
    config, graphdef, params = huggingface.load(settings.init)
    words = vocabulary.load()
    if variant.vocabulary != words.size:
        words = _vocabulary(settings, pairs, variant.vocabulary)
        config = dataclasses.replace(config, vocab_size=words.size)
    if variant.start == "random":
        graphdef, params = t5.init(config, settings.seed)
    arrays = translation.tokenise(pairs, words, settings.max_length).arrays
    extra = variant.source_length - arrays["source"].shape[1]
    arrays["source"] = np.pad(arrays["source"], ((0, 0), (0, max(extra, 0))))
    loss = t5.make_loss(graphdef, config, mask_source=variant.mask_source)
    return Problem(without_dropout(loss), params, arrays)


def rescale(params: t5.Params, scale: float) -> t5.Params:
    """The same function of the tokens, with an embedding `scale` times as large.

    What the layers add to the embedding grows with it; the norm before the output
    layer, which is the embedding once more, takes the factor back.
    """
    if scale == 1:
        return params

    def scaled(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if name == "['embed']['embedding']" or "['output']['kernel']" in name:
            return x * scale
        return x / scale if name == "['decoder']['norm']['scale']" else x

    return jax.tree_util.tree_map_with_path(scaled, params)


def _trained(settings: Settings, variant: Variant, problem: Problem) -> t5.Params:
    """After Adam's steps, kept in the run folder for the variants that share them."""
    if not variant.adam_steps:
        return problem.params
    shared = (
        variant.start,
        variant.adam_steps,
        variant.source_length,
        "masked" if variant.mask_source else "unmasked",
        variant.vocabulary,
    )
    name = "-".join(map(str, shared))
    state = training.train(
        settings.run / "trained" / name,
        problem.loss,
        problem.params,
        optax.adam(3.16e-4 if variant.start == "pretrained" else 1e-3),
        functools.partial(
            problem.batch_at, 2 if settings.smallest else 16, settings.seed
        ),
        steps=variant.adam_steps,
        seed=settings.seed,
        save_every=200,
        label=name,
    )
    return state.params


def _vocabulary(
    settings: Settings, pairs: list[translation.Pair], size: int
) -> vocabulary.Vocabulary:
    """A vocabulary of another size, trained on the same pairs."""
    path = settings.run / f"spiece-{size}.model"
    if not path.is_file():
        sentences = [text for pair in pairs for text in (pair.english, pair.french)]
        path.write_bytes(vocabulary.train(sentences, size))
    return vocabulary.load(path)


def table(done: list[dict[str, Any]]) -> Table:
    """One row for each variant, factor by factor."""
    factors = [*FACTORS]
    return Table(
        "What clipping does to the sharpness of SGD's direction, one factor at a time",
        [
            "factor",
            "value",
            "loss",
            "SGD's sharpness",
            *(f"{label(name, None)} / SGD" for name in _COMPARED[1:]),
        ],
        [_row(line) for line in sorted(done, key=lambda x: factors.index(x["factor"]))],
    )


def _row(line: Mapping[str, Any]) -> list[str]:
    first = [line["factor"], _value(line["variant"])]
    if line["diverged"] is not None:
        return [*first, f"diverged at update {line['diverged']}", "-", *["-"] * 4]
    return [
        *first,
        f"{line['loss']:.2f}",
        f"{finite_mean(line['sharpness']['sgd']):.3g}",
        *(_summary(line["ratios"][name]) for name in _COMPARED[1:]),
    ]


def _summary(ratios: list[float | None]) -> str:
    known = [r for r in ratios if r is not None]
    if not known:
        return "-"
    return f"{finite_mean(known):.2g} ({min(known):.2g} to {max(known):.2g})"


def _value(variant: Mapping[str, Any]) -> str:
    """What differs from the defaults."""
    base = dataclasses.asdict(Variant())
    changed = {k: v for k, v in variant.items() if v != base[k]}
    return ", ".join(f"{k} {v}" for k, v in changed.items()) or "defaults"


def _markdown(settings: Settings, done: list[dict[str, Any]]) -> str:
    content = json.loads((settings.run / "settings.json").read_text())
    found, date = table(done), run_folder.day(settings.run / "variants.jsonl")
    base = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(Variant()).items())
    known = [(line["factor"], line["variant"]) for line in done]
    every = [(factor, dataclasses.asdict(v)) for factor, v in settings.variants()]
    missing = [f"{f} ({_value(v)})" for f, v in every if (f, v) not in known]
    return (
        f"# {found.title}\n\nDefaults: {base}. Ratios: mean, and range over three "
        f"moments, on {settings.test_size} fixed pairs.\n\n{as_markdown(found)}\n\n"
        f"`python -m examples.factors`; {date}; "
        f"{run_folder.made_with(content['made_with'])}.\n"
        + (f"\nNot run: {', '.join(missing)}.\n" if missing else "")
    )


def cli() -> None:
    settings = tyro.cli(Settings, prog="python -m examples.factors")
    try:
        settings.check()
        run_folder.open_run(settings.run, settings.decisive(), resume=settings.resume)
    except (ValueError, OSError) as error:
        raise SystemExit(f"factors: {error}") from None
    print(main(settings))


if __name__ == "__main__":
    cli()
