"""Classification: texts and their tasks, calibration, layer norms."""

import csv
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from examples.data import labelled, subwords
from examples.heterogeneity import calibration, norms
from examples.models import classifier, encoder, huggingface_encoder
from examples.tasks import texts as text_classification
from examples.tasks.classification import IGNORED

from . import models

LENGTH = 8
SMALL = encoder.EncoderConfig(
    vocab_size=8192,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=LENGTH,
)


@pytest.fixture
def reviews_file(tmp_path):
    """A few reviews of both sources, all negative ones first, as in the package."""
    path = tmp_path / "reviews.csv"
    rows = [
        (f"{source} {label} {n}", label, source)
        for source in ("imdb", "rotten_tomatoes")
        for label in (0, 1)
        for n in range(20)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows, rows[0]])
    return path


@pytest.fixture
def texts(tmp_path):
    """A user's file of three classes."""
    path = tmp_path / "texts.tsv"
    lines = [f"{label}\t{label} text {n}\n" for n in range(20) for label in "abc"]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny encoder with the committed vocabulary."""
    folder = tmp_path / "checkpoint"
    huggingface_encoder.save(folder, SMALL, encoder.init(SMALL, 0)[1])
    (folder / "tokenizer.json").write_bytes(subwords.COMMITTED.read_bytes())
    return folder


def load(texts, **options):
    arguments = {
        "model": "post_ln",
        "init": "none",
        "max_length": LENGTH,
        "batch_size": 4,
        "held_out": 5,
        "seed": 0,
        "file": texts,
    }
    return text_classification.load("rotten_tomatoes", **arguments | options)


# Texts


def test_sentiments_are_shuffled_and_split_without_a_leak(reviews_file):
    split = labelled.sentiment_split("rotten_tomatoes", 0, reviews_file)
    assert split.classes == ("negative", "positive")
    assert (len(split.train), len(split.valid)) == (36, 4)
    rows = [*split.train, *split.valid]
    assert len({row.text for row in rows}) == 40
    assert all(row.text.startswith(f"rotten_tomatoes {row.label}") for row in rows)
    assert len({row.label for row in split.train[:10]}) == 2
    assert split == labelled.sentiment_split("rotten_tomatoes", 0, reviews_file)
    assert split != labelled.sentiment_split("rotten_tomatoes", 1, reviews_file)


def test_a_file_without_the_source_is_refused(reviews_file):
    with pytest.raises(ValueError, match=r"expected labels 0 and 1 from x, got \[\]"):
        labelled.sentiment_split("x", 0, reviews_file)


def test_both_languages_of_a_sentence_are_on_one_side():
    split = labelled.catalogues_split(0)
    assert len(split.classes) > 20
    assert len(split.train) + len(split.valid) == 2 * 23_885
    assert {row.label for row in split.train} == set(range(len(split.classes)))
    pairs = zip(split.valid[::2], split.valid[1::2], strict=True)
    assert all(english.label == french.label for english, french in pairs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tx\nb\n", r"line 2: expected label<TAB>text, got 'b'"),
        (b"a\tx\na\ty\n", "expected at least 2 labels, got a"),
        (b"\xff\xfe", "expected UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "texts.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        labelled.file_split(path, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.tsv: expected a file of label"):
        labelled.file_split(tmp_path / "none.tsv", 0)


class Rows(list):
    @property
    def features(self):
        return {"label": types.SimpleNamespace(names=["no", "yes"])}


def test_sets_of_the_hub_have_their_official_validation_part(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        row = {"word": "bank", "sentence1": "a", "sentence2": "b", "label": 1}
        return {"train": Rows([row] * 3), "validation": Rows([row])}

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    split = labelled.load("wic", 0)
    assert asked == [("aps/super_glue", "wic")]
    assert split.valid == [labelled.Labelled(1, "bank a", "b")]
    assert (len(split.train), split.classes) == (3, ("no", "yes"))


def test_the_hub_out_of_reach_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"cb needs the `datasets` package"):
        labelled.load("cb", 0)


def test_pairs_of_texts_are_joined_and_the_longer_one_is_cut():
    words = subwords.load()
    (a, b), both = words.encode(["a a a a a a", "b b"]), ("a a a a a a", "b b")
    (row,) = words.encode_pairs([both], 9)
    assert row == [words.cls, *a[1:5], words.sep, *b[1:3], words.sep]
    rows = words.encode_pairs([("a a a a a a", None), ("b", "b")], 5)
    assert rows[0] == words.encode(["a a a a a a"], 5)[0]
    assert rows[1] == [words.cls, b[1], words.sep, b[1], words.sep]


# Tasks


def test_a_fresh_classifier_knows_nothing_and_everything_learns(texts):
    task = load(texts)
    assert task.classes == ("a", "b", "c")
    assert task.counts() == {"train": 54, "held_out": 5, "classes": 3}
    batch = task.batch_at(0)
    assert batch["ids"].shape == (4, LENGTH)
    derive = models.jit(jax.value_and_grad(task.eval_loss))
    loss, gradient = derive(task.params, batch)
    assert abs(float(loss) - np.log(3)) < 0.5
    norms_ = {
        "/".join(str(key.key) for key in path): float(jnp.linalg.norm(leaf))
        for path, leaf in jax.tree.leaves_with_path(gradient)
    }
    # A bias of the keys changes no attention.
    still = {name for name, norm in norms_.items() if norm < 1e-7}
    assert all(name.endswith("key/bias") for name in still)


def test_rows_of_padding_do_not_count(texts):
    task = load(texts)
    first, last = task.held_out_batches()
    assert last["labels"].tolist()[1:] == [IGNORED] * 3
    assert int(task.weight(last)) == 1
    alone = {name: array[:1] for name, array in last.items()}
    loss = models.jit(task.eval_loss)
    np.testing.assert_allclose(
        loss(task.params, last), loss(task.params, alone), rtol=1e-5
    )
    assert int(task.weight(first)) == 4


def test_pre_ln_has_one_norm_more(texts):
    post, pre = (load(texts, model=f"{where}_ln").params for where in ("post", "pre"))
    assert optax.tree.size(pre) - optax.tree.size(post) == 2 * 96
    assert pre.keys() - post.keys() == {"norm"}


def test_a_pretrained_encoder_gets_a_linear_head(texts, checkpoint):
    task = load(texts, model="pretrained", init=str(checkpoint))
    assert task.params["head"]["kernel"].shape == (8, 3)
    _, graphdef, params = huggingface_encoder.load(checkpoint)
    ids = task.batch_at(0)["ids"]
    states = nnx.merge(graphdef, params).encode(ids)
    head = task.params["head"]
    expected = states[:, 0] @ head["kernel"] + head["bias"]
    found = task.logits(task.params, {"ids": ids})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert task.dropout
    dropped = task.logits(task.params, {"ids": ids}, jax.random.key(0))
    assert not np.allclose(found, dropped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit"}, "for texts expected one of pretrained, post_ln, pre_ln"),
        ({"max_length": 2}, "--max-length must be from 3"),
        (
            {"rows": 3},
            "expected at least 4 training texts, which are used at a time, got 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(texts, options, message):
    with pytest.raises(ValueError, match=message):
        load(texts, **options)


def test_a_causal_encoder_is_refused(texts, tmp_path):
    config = encoder.EncoderConfig(**{**vars(SMALL), "causal": True})
    huggingface_encoder.save(tmp_path / "c", config, encoder.init(config, 0)[1])
    (tmp_path / "c/tokenizer.json").write_bytes(subwords.COMMITTED.read_bytes())
    with pytest.raises(ValueError, match="got a causal one"):
        load(texts, model="pretrained", init=str(tmp_path / "c"))


# Calibration


def test_calibration_of_a_classifier_that_is_always_sure_and_half_right():
    logits = np.array([[100.0, 0.0]] * 4)
    found = calibration.assess(logits, np.array([0, 0, 1, 1]))
    assert found["accuracy"] == 0.5
    assert found["ece"] == pytest.approx(0.5)
    assert found["brier"] == pytest.approx(0.5)  # half of the entries are off by 1
    assert found["nll"] == pytest.approx(50)
    assert found["matthews"] == 0  # it only ever says one thing
    # F1 of the class that it says is 2/3, of the other one 0.
    assert found["f1"] == pytest.approx(1 / 3)


def test_calibration_of_the_truth():
    found = calibration.assess(np.array([[50.0, 0], [0, 50.0]]), np.array([0, 1]))
    assert (found["accuracy"], found["matthews"], found["f1"]) == (1, 1, 1)
    assert found["ece"] == pytest.approx(0, abs=1e-12)


def test_a_bin_has_its_upper_edge():
    gaps, weights = calibration.calibration_gaps(
        np.array([1 / 15, 1 / 15 + 1e-9, 1.0]), np.array([False, True, True])
    )
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(gaps, [1 / 15, 14 / 15, 0], atol=1e-6)


# Layer norms


def test_the_jacobian_of_a_layer_norm_is_its_scale_over_the_deviation():
    config = encoder.EncoderConfig(**{**vars(SMALL), "layer_norm_eps": 1e-12})
    graphdef, params = classifier.init(config, 2, 0)
    ids = np.full((2, LENGTH), 7)
    found = norms.jacobian_norms(graphdef, params, lambda model: model(ids))
    assert list(found) == [
        "embed_norm",
        "layers/0/attention_norm",
        "layers/0/feed_forward_norm",
    ]
    model = nnx.merge(graphdef, params)
    x = model.embed(ids) + model.position_embed(np.arange(LENGTH)[None])
    x = x + model.type_embed(np.zeros_like(ids))
    # With a scale of 1 it projects and divides: the largest singular value is 1 / std.
    expected = np.mean(1 / np.std(np.asarray(x[0]), axis=-1))
    assert float(found["embed_norm"]) == pytest.approx(expected, rel=1e-3)
    tripled = jax.tree.map(lambda x: 3 * x, params["embed_norm"])
    params = params | {"embed_norm": tripled}
    threefold = norms.jacobian_norms(graphdef, params, lambda model: model(ids))
    assert float(threefold["embed_norm"]) == pytest.approx(3 * expected, rel=1e-3)
