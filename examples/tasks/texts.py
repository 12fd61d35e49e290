"""Sorting texts into classes as a task: an encoder with one linear head.

task = load("rotten_tomatoes", model="pretrained", init="minilm", max_length=32,
            batch_size=16, held_out=256, seed=0)
"""

from pathlib import Path
from typing import Literal

import numpy as np

from examples.data import labelled, reviews, subwords
from examples.data.batching import Arrays, padded
from examples.models import classifier, encoder, functional
from examples.models.functional import Params
from examples.tasks.classification import ClassificationTask, check_model
from examples.tasks.language import check_length, load_encoder
from examples.tasks.task import check_rows

TASKS = labelled.NAMES
MODELS = ("pretrained", "post_ln", "pre_ln")


def load(
    task: str,
    *,
    model: str,
    init: str,
    max_length: int,
    batch_size: int,
    held_out: int,
    seed: int,
    file: Path | None = None,
    rows: int | None = None,
) -> ClassificationTask:
    """Loads and tokenises everything; texts are cut to one length.

    A pretrained model is the checkpoint `init` with a fresh head; post_ln and pre_ln
    are small encoders from scratch that differ in where the layer norms are.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something is missing or does not
            fit, said in one sentence.
    """
    check_model("texts", model, MODELS)
    files: list[Path] = []
    pretrained: Params | None = None
    if model == "pretrained":
        loaded = load_encoder(init, head=False)
        config, pretrained, words = loaded.config, loaded.params, loaded.words
        files += loaded.files
        if config.causal:
            raise ValueError(
                f"{init}: expected an encoder that looks both ways, got a causal one."
            )
    else:
        words = subwords.load()
        config = _small(words, max_length, "pre" if model == "pre_ln" else "post")
        files.append(subwords.COMMITTED)
    check_length(max_length, config, init)
    split = labelled.load(task, seed, file)
    graphdef, params = classifier.init(config, len(split.classes), seed)
    if pretrained is not None:
        params = {**pretrained, "head": params["head"]}
    train, valid = split.train[:rows], split.valid[:held_out]
    check_rows("training texts", len(train), batch_size)
    drops = config.hidden_dropout_prob or config.attention_probs_dropout_prob
    return ClassificationTask(
        config=config,
        graphdef=graphdef,
        params=params,
        logits=functional.logits(graphdef, "ids"),
        classes=split.classes,
        dropout=drops > 0,
        files=[*files, *data_files(task, file)],
        train=_arrays(train, words, max_length),
        held_out=_arrays(valid, words, max_length),
        batch_size=batch_size,
        seed=seed,
    )


def data_files(task: str, file: Path | None) -> list[Path]:
    """What a set depends on; those of the hub are not in files of ours."""
    if file:
        return [file]
    if task in ("rotten_tomatoes", "imdb"):
        return [reviews.package_file()]
    return []


def _small(
    words: subwords.Subwords, max_length: int, norm_placement: Literal["pre", "post"]
) -> encoder.EncoderConfig:
    """Half as wide as the encoder that this project pretrains, 1.2 M parameters."""
    return encoder.EncoderConfig(
        vocab_size=words.size,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=words.pad,
        norm_placement=norm_placement,
    )


def _arrays(
    rows: list[labelled.Labelled], words: subwords.Subwords, max_length: int
) -> Arrays:
    ids = words.encode_pairs([(row.text, row.second) for row in rows], max_length)
    labels = np.array([row.label for row in rows], np.int32)
    return {"ids": padded(ids, max_length, words.pad), "labels": labels}
