"""Documents as a task for a Llama, and the documents that have names."""

import functools
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from examples.data import documents, reviews, subwords
from examples.data.batching import IGNORED
from examples.lab import sweep, token_frequency
from examples.models import huggingface_llama, llama, pretrained_llama, scratch_llama
from examples.tasks import by_name
from examples.tasks.llama import LlamaTask, make_task, rows_of
from optax_clip import diagnostics

from . import models


@pytest.fixture(scope="module")
def words():
    return subwords.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with subwords that are not BERT's by name."""
    folder = tmp_path_factory.mktemp("llama")
    config = llama.LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=16,
    )
    _, _, params = models.random_model(llama.init, config)
    huggingface_llama.save(folder, config, params)
    models.byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "documents.txt"
    path.write_text("\n".join(f"Film {n} is {'so ' * (n % 9)}good!" for n in range(80)))
    return path


def choice(folder, **fields):
    return by_name.Choice("causal_lm", init=str(folder), **fields)


def load(chosen, max_length=12, batch_size=4):
    return by_name.load(chosen, max_length=max_length, batch_size=batch_size, seed=0)


def test_a_llama_is_known_by_its_config_and_gets_a_task_of_its_own(folder, file):
    task = load(choice(folder, documents=file))
    assert isinstance(task, LlamaTask)
    assert task.counts()["labels"] == 12 * task.rows
    names = ["model.safetensors", "tokenizer.json", "documents.txt"]
    assert [path.name for path in task.files] == names


def test_rows_are_the_documents_one_after_the_other(words):
    texts = ["A good film.", "A dull one, with songs!"]
    rows = rows_of(words, texts, length=3)
    stream = [words.cls, *(id_ for row in words.encode(texts) for id_ in row[1:])]
    n = rows["ids"].size
    assert n == 3 * ((len(stream) - 1) // 3)
    assert rows["ids"].ravel().tolist() == stream[:n]
    assert rows["labels"].ravel().tolist() == stream[1 : n + 1]


def test_the_loss_is_that_of_the_model_and_needs_no_key(folder, file):
    task = load(choice(folder, documents=file))
    batch = task.batch_at(0)
    key = jax.random.key(0)
    losses = [
        models.jit(task.train_loss)(task.params, batch, key),
        models.jit(task.eval_loss)(task.params, batch),
        models.jit(llama.make_loss(task.graphdef, task.config))(task.params, batch),
    ]
    assert losses[0] == losses[1] == losses[2]
    assert abs(losses[0] - np.log(300)) < 2


def test_the_weighted_mean_over_held_out_batches_is_the_loss_of_the_whole(folder, file):
    loaded = pretrained_llama.load(str(folder))
    task = make_task(
        loaded,
        documents.load("reviews", file),
        max_length=12,
        batch_size=4,
        least_rows=1,
        held_out=6,
        seed=0,
    )
    batches = task.held_out_batches()
    assert task.counts()["held_out"] == 6
    assert [int(task.weight(batch)) for batch in batches] == [48, 24]
    found = diagnostics.mean_over_batches(
        lambda batch: models.jit(task.eval_loss)(task.params, batch),
        batches,
        weight=task.weight,
    )
    whole = models.jit(task.eval_loss)(task.params, task.held_out)
    np.testing.assert_allclose(found.mean, whole, rtol=1e-6)


def size(params):
    return sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(params))


def test_tokens_are_grouped_by_how_often_they_are_labels():
    labels = np.array([[0, 0, 0, 0, 1], [1, 2, 3, IGNORED, IGNORED]])
    # The middles of 4, 2, 1 and 1 labels of 8 are at 2, 5, 6.5 and 7.5.
    assert token_frequency.groups_of(labels, 2).tolist() == [0, 1, 1, 1]
    assert token_frequency.groups_of(labels[:, ::-1], 8).tolist() == [2, 5, 6, 7]


def test_the_loss_is_the_mean_of_the_groups_weighted_by_their_labels(folder, file):
    task = load(choice(folder, documents=file))
    groups = token_frequency.groups_of(task.train["labels"], 4)
    batches = [task.batch_at(0), task.batch_at(1)]
    losses = token_frequency.assessor(task, groups, 4)(task.params, batches)
    labels = np.concatenate([batch["labels"].ravel() for batch in batches])
    counts = np.bincount(groups[labels], minlength=4)
    assert (counts > 0).all()
    whole = np.mean([float(task.eval_loss(task.params, batch)) for batch in batches])
    np.testing.assert_allclose(losses @ counts / counts.sum(), whole, rtol=1e-5)


def test_a_group_without_labels_has_no_loss(folder, file):
    task = load(choice(folder, documents=file))
    batch = task.batch_at(0)
    groups = np.zeros(1 + batch["labels"].max(), int)
    found = token_frequency.assessor(task, groups, 2)(task.params, [batch])
    whole = float(task.eval_loss(task.params, batch))
    np.testing.assert_allclose(found[0], whole, rtol=1e-6)
    assert found[1] is None


def test_every_training_from_scratch_begins_with_weights_of_its_own(file, monkeypatch):
    monkeypatch.setattr(scratch_llama.load, "__defaults__", (50,))
    task = load(choice("scratch", documents=file))
    assert task.words.size == task.config.vocab_size == 50
    assert [path.name for path in task.files] == ["documents.txt"]
    starts = [task.params, *map(task.start, (0, 0, 1))]
    norms = [size(params) for params in starts]
    assert norms[0] == norms[1] == norms[2] != norms[3]
    begun = []
    train = sweep.trainer(
        task,
        lambda rate: optax.sgd(rate),
        1,
        watch=lambda _, state: begun.append(size(state.params)),
    )
    assert [train(0.0, seed).losses[0] > 0 for seed in (0, 1)] == [True, True]
    assert begun[::2] == pytest.approx(norms[2:], rel=1e-5)


def test_the_small_llama_has_no_fewer_subwords_than_it_says():
    with pytest.raises(ValueError, match="expected 2,048 pieces, found"):
        scratch_llama.load(["A text that is short."])


@pytest.mark.parametrize("init", ["scratch", "smollm2"])
@pytest.mark.parametrize("task", ["masked_lm", "translation"])
def test_a_named_llama_is_for_the_causal_language_model(init, task):
    with pytest.raises(ValueError, match=f"--init {init} is for --task causal_lm"):
        load(by_name.Choice(task, init=init))


def test_smollm2_reads_french_unless_it_is_told_otherwise():
    smollm2 = functools.partial(by_name.Choice, "causal_lm", "smollm2")
    assert smollm2().data() == "help_french"
    assert smollm2("python").data() == "python"
    documents = smollm2(documents=Path("texts.txt"))
    assert by_name.data_of("causal_lm", documents.data()) == "reviews"


@pytest.mark.parametrize(
    ("fields", "sizes", "message"),
    [
        ({}, {"max_length": 17}, "from 2 to the 16 positions of this Llama; got 17"),
        ({}, {"batch_size": 4000}, "4,000 training rows of 12 tokens, which are used"),
        ({"dataset": "python"}, {}, "--documents and --dataset exclude each other"),
        ({"dataset": "libreoffice"}, {}, "--dataset with pairs are for translation"),
    ],
)
def test_what_does_not_fit_is_refused(folder, file, fields, sizes, message):
    with pytest.raises(ValueError, match=message):
        load(choice(folder, documents=file, **fields), **sizes)


def test_a_dataset_of_documents_is_for_a_llama():
    with pytest.raises(ValueError, match="python is for a Llama, such as smollm2"):
        load(by_name.Choice("masked_lm", dataset="python"))
    with pytest.raises(ValueError, match="--init, such as smollm2, which is fetched"):
        load(by_name.Choice("causal_lm"))


# Documents


def test_the_standard_library_holds_whole_modules_out_and_no_tests(tmp_path):
    for n in range(64):
        (tmp_path / f"module_{n}.py").write_text(f"MODULE = {n}\n")
    for left_out in ("test", "site-packages"):
        (tmp_path / left_out).mkdir()
        (tmp_path / left_out / "x.py").write_text("LEFT_OUT = 1\n")
    found = documents.python_library(tmp_path)
    assert len(found.train) + len(found.valid) == len(found.files) == 64
    assert 0 < len(found.valid) < 16
    assert not any("LEFT_OUT" in text for text in found.train + found.valid)
    assert documents.python_library(tmp_path) == found
    with pytest.raises(ValueError, match="expected the modules of Python's standard"):
        documents.python_library(tmp_path / "site-packages")


def test_this_pythons_library_is_found():
    found = documents.load("python")
    assert any(text.startswith('"""Text wrapping and filling') for text in found.train)
    assert len(found.train) > 400
    assert len(found.valid) > 20


def test_the_help_is_the_same_pages_in_both_languages():
    english, french = (documents.load(f"help_{x}") for x in ("english", "french"))
    assert len(english.train) == len(french.train)
    assert len(english.train) + len(english.valid) == 2_284
    assert any("Save your spreadsheet.\n" in page for page in english.train)
    assert any("Enregistrez le classeur.\n" in page for page in french.train)


def test_reviews_are_the_default(monkeypatch, tmp_path):
    split = reviews.Split(["a"], ["b"], ["c"])
    monkeypatch.setattr(reviews, "load", lambda *_: split)
    monkeypatch.setattr(reviews, "package_file", lambda: tmp_path)
    assert documents.load("reviews") == (["a"], ["b"], [tmp_path])
