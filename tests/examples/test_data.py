"""The laws of the pairs, the vocabulary and span corruption."""

import functools
import re
import sys

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from examples.data import (
    batching,
    bpe,
    span_corruption,
    subwords,
    translation,
    vocabulary,
)
from examples.data.translation import Pair

from .models import make_pointer


@pytest.fixture(scope="module")
def split():
    return translation.committed_split()


@pytest.fixture(scope="module")
def stream(words, split):
    texts = [[pair.english for pair in split.valid], [p.french for p in split.valid]]
    return span_corruption.stream(texts, words)


# Pairs


def test_whole_stories_are_held_out(split):
    assert len(split.train) == 22_087
    assert {pair.origin for pair in split.valid} == set(translation.HELD_OUT)
    assert not {pair.origin for pair in split.train} & set(translation.HELD_OUT)
    assert all(pair.english and pair.french for pair in split.train + split.valid)


def test_a_users_file_is_split_by_the_seed_without_losing_a_pair(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"cat {n}\tchat {n}" for n in range(40)]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\n", encoding="utf-8")
    first, again, other = (translation.file_split(path, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first.valid) == 2
    assert {pair.french for pair in first.train + first.valid} == {
        f"chat {n}" for n in range(40)
    }


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"only English", "1 column"),
        (b"a\tb\tc", "3 columns"),
        (b"a\t ", "an empty column"),
        (b"\t", "an empty column"),
        (b"caf\xe9\tcaf\xe9", "bytes that are not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(tmp_path, line, found):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"a\tb\n" + line + b"\nc\td\ntoo few\n")
    message = (
        f"{path}, line 2: expected English<TAB>French in UTF-8, got {found}; "
        "bad lines in all: 2."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        translation.read_tsv(path)


def test_blank_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"\na\tb\n \r\nc\td\r\n\n")
    assert [pair[:2] for pair in translation.read_tsv(path)] == [("a", "b"), ("c", "d")]
    assert translation.blank_lines(path) == 3
    path.write_bytes(b"a\tb\n\nbad\n")
    with pytest.raises(ValueError, match=r"line 3: .* got 1 column"):
        translation.read_tsv(path)


def test_a_pairs_file_that_is_not_there_or_too_short_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file of English<TAB>"):
        translation.read_tsv(tmp_path / "none.tsv")
    (tmp_path / "one.tsv").write_text("a\tb\n")
    with pytest.raises(ValueError, match="at least 2 pairs"):
        translation.read_tsv(tmp_path / "one.tsv")


def test_opus_books_out_of_reach_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"needs the `datasets` package .*--pairs"):
        translation.opus_books_split(seed=0)


def test_opus_books_is_shuffled_and_its_first_10240_pairs_train(monkeypatch):
    class Books:
        def __init__(self, rows):
            self.rows = rows

        def shuffle(self, seed):
            order = np.random.default_rng(seed).permutation(len(self.rows))
            return Books([self.rows[row] for row in order])

        def select(self, rows):
            return Books([self.rows[row] for row in rows])

        def __getitem__(self, name):
            return [row[name] for row in self.rows]

    class datasets:  # noqa: N801
        @staticmethod
        def load_dataset(*arguments, split):
            assert arguments == ("Helsinki-NLP/opus_books", "en-fr")
            assert split == "train"
            return Books(
                [{"translation": {"en": f"e{n}", "fr": f"f{n}"}} for n in range(12_000)]
            )

    monkeypatch.setitem(sys.modules, "datasets", datasets)
    split = translation.opus_books_split(seed=0)
    assert (len(split.train), len(split.valid)) == (10_240, 1_024)
    assert split == translation.opus_books_split(seed=0)
    assert split != translation.opus_books_split(seed=1)


# Tokens and batches


def test_tokens_end_with_eos_are_padded_and_read_back(words, split):
    pairs = [pair for pair in split.valid if len(pair.french) < 80][:50]
    arrays, dropped = translation.tokenise(pairs, words, max_length=64)
    assert dropped == 0
    for name, array in arrays.items():
        assert array.shape == (50, 64), name
        assert array.dtype == np.int32
        assert ((array == vocabulary.EOS).sum(axis=1) == 1).all()
        ends = (array == vocabulary.EOS).argmax(axis=1)
        assert ((array == vocabulary.PAD).sum(axis=1) == 63 - ends).all()
    assert words.decode(arrays["target"]) == [pair.french for pair in pairs]
    assert words.decode(arrays["source"]) == [
        translation.PREFIX + pair.english for pair in pairs
    ]


def test_pairs_that_are_too_long_are_dropped_and_counted(words):
    pairs = [Pair("a cat", "un chat", ""), Pair("a cat", "chat " * 99, "")]
    arrays, dropped = translation.tokenise(pairs, words, max_length=32)
    assert dropped == 1
    assert len(arrays["source"]) == len(arrays["target"]) == 1
    with pytest.raises(ValueError, match="at most 3 tokens, got none among 2"):
        translation.tokenise(pairs, words, max_length=3)


def test_an_epoch_is_a_permutation_and_a_step_needs_only_its_number():
    arrays = {"source": np.arange(10), "target": -np.arange(10)}
    batches = [batching.batch_at(arrays, 3, seed=7, step=n) for n in range(6)]
    for epoch in (batches[:3], batches[3:]):
        rows = np.concatenate([batch["source"] for batch in epoch])
        assert len(set(rows)) == 9
    for batch in batches:
        np.testing.assert_array_equal(batch["source"], -batch["target"])
    again = batching.batch_at(arrays, 3, seed=7, step=4)
    np.testing.assert_array_equal(again["source"], batches[4]["source"])
    assert (batches[0]["source"] != batches[3]["source"]).any()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="at least one batch of 11 rows, got 10"):
        batching.rows_at(10, 11, seed=0, step=0)


# Vocabulary


def test_the_vocabulary_has_the_ids_of_t5(words):
    assert words.size == 8192
    assert words.sentinel(0) == 8191
    assert words.sentinel(99) == words.processor.get_piece_size()
    pieces = [words.processor.id_to_piece(n) for n in range(3)]
    assert pieces == ["<pad>", "</s>", "<unk>"]
    assert words.processor.bos_id() == -1


def test_the_training_text_has_no_unknown_piece(words, split):
    rows = words.encode([text for pair in split.train for text in pair[:2]])
    assert not any(vocabulary.UNK in row for row in rows)


def test_decoding_stops_at_eos_and_leaves_out_pads_and_sentinels(words):
    (row,) = words.encode(["un chat"])
    noisy = [vocabulary.PAD, words.sentinel(0), *row, *row, vocabulary.PAD]
    assert words.decode([np.array(noisy)]) == ["un chat"]


@pytest.mark.skipif(
    not sentencepiece.__version__.startswith("0.2."),
    reason="another trainer may find other pieces",
)
def test_training_again_gives_the_committed_vocabulary_to_the_byte(tmp_path):
    from examples.pretrain import vocabulary as train_vocabulary

    train_vocabulary.main(out=tmp_path / "spiece.model")
    trained = (tmp_path / "spiece.model").read_bytes()
    assert trained == vocabulary.COMMITTED.read_bytes()


def test_the_sentinels_may_be_among_the_pieces_as_in_mt5(words, tmp_path):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(vocabulary.COMMITTED.read_bytes())
    for i in reversed(range(vocabulary.SENTINELS)):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=-100.0)
    path = tmp_path / "spiece.model"
    path.write_bytes(model.SerializeToString())
    like_mt5 = vocabulary.load(path)
    assert (like_mt5.size, like_mt5.pieces) == (words.size, words.pieces)
    (row,) = words.encode(["un chat"])
    assert like_mt5.encode(["un chat"]) == [row]
    assert like_mt5.decode([[like_mt5.sentinel(0), *row]]) == ["un chat"]


@pytest.mark.parametrize(
    "load", [vocabulary.load, subwords.load, functools.partial(bpe.from_json, rows=1)]
)
def test_a_pointer_of_git_lfs_is_no_vocabulary(load, tmp_path):
    path = tmp_path / "tokenizer"
    path.touch()
    make_pointer(path)
    with pytest.raises(ValueError, match=r"a Git LFS pointer.*`git lfs pull`"):
        load(path)


def test_a_file_that_is_no_t5_vocabulary_is_refused(tmp_path, split):
    with pytest.raises(FileNotFoundError, match="found no such file"):
        vocabulary.load(tmp_path / "none.model")
    path = tmp_path / "bad.model"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="expected a SentencePiece model"):
        vocabulary.load(path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([pair.english for pair in split.valid]),
        model_prefix=str(tmp_path / "default"),
        vocab_size=500,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match=r"T5's special ids .* got \(-1, 2, 0\)"):
        vocabulary.load(tmp_path / "default.model")


# Span corruption


@pytest.mark.parametrize("length", [2, 3, 7, 20, 70, 568])
def test_noise_is_15_percent_in_spans_of_3_that_kept_text_separates(length, rng):
    mask = span_corruption.noise_mask(rng, rows=200, length=length)
    tokens, spans = span_corruption.noise_counts(length)
    assert mask.shape == (200, length)
    assert (mask.sum(axis=1) == tokens).all()
    assert abs(tokens - 0.15 * length) <= 0.5 or length < 7
    assert not mask[:, 0].any()
    assert mask[:, -1].all()
    starts = mask[:, 1:] & ~mask[:, :-1]
    assert (starts.sum(axis=1) == spans).all()


def test_every_position_but_the_first_is_noise_at_times(rng):
    mask = span_corruption.noise_mask(rng, rows=3000, length=40)
    assert mask[:, 1:].any(axis=0).all()


def test_ways_to_cut_a_row_are_equally_likely(rng):
    lengths = span_corruption._segment_lengths(rng, rows=6000, items=5, segments=3)
    assert (lengths.sum(axis=1) == 5).all()
    _, counts = np.unique(lengths, axis=0, return_counts=True)
    assert len(counts) == 6  # 4 choose 2
    assert abs(counts - 1000).max() < 150


def test_corruption_of_a_sentence_that_can_be_checked_by_eye():
    text = np.array([[10, 11, 12, 13, 14, 15, 16]])
    mask = np.array([[False, True, True, False, False, False, True]])
    batch = span_corruption.corrupt(text, mask, sentinel=99)
    assert batch["source"].tolist() == [[10, 99, 13, 14, 15, 98, 1]]
    assert batch["target"].tolist() == [[99, 11, 12, 98, 16, 1]]


def test_source_and_target_reassemble_to_the_text(rng):
    text = rng.integers(3, 1000, size=(50, 70))
    mask = span_corruption.noise_mask(rng, 50, 70)
    batch = span_corruption.corrupt(text, mask, sentinel=2000)
    for original, source, target in zip(
        text, batch["source"], batch["target"], strict=True
    ):
        assert reassemble(source, target, first=2000) == original.tolist()


def reassemble(source, target, first):
    """Puts each span of the target where its sentinel stands in the source."""
    spans, sentinels = {}, []
    for token in target[:-1].tolist():
        if token >= 1000:
            sentinels.append(token)
            spans[token] = []
        else:
            spans[sentinels[-1]].append(token)
    assert sentinels == [first - n for n in range(len(sentinels))]
    assert (source[-1], target[-1]) == (vocabulary.EOS, vocabulary.EOS)
    text = []
    for token in source[:-1].tolist():
        text += spans.pop(token) if token >= 1000 else [token]
    assert not spans
    return text


@pytest.mark.parametrize("source_length", [8, 64, 512])
def test_windows_fill_the_source_without_padding(source_length, words, stream):
    batch = span_corruption.batch_at(stream, words, 4, source_length, seed=0, step=0)
    length = span_corruption.window_length(source_length)
    tokens, spans = span_corruption.noise_counts(length)
    assert batch["source"].shape == (4, length - tokens + spans + 1)
    assert source_length - 1 <= batch["source"].shape[1] <= source_length
    assert batch["target"].shape == (4, tokens + spans + 1)
    assert (batch["source"] != vocabulary.PAD).all()
    assert (batch["target"] != vocabulary.PAD).all()


def test_batches_follow_from_seed_and_step_alone(words, stream):
    def batch(seed, step):
        return span_corruption.batch_at(stream, words, 8, 64, seed, step)["source"]

    np.testing.assert_array_equal(batch(0, 5), batch(0, 5))
    assert (batch(0, 5) != batch(0, 6)).any()
    assert (batch(0, 5) != batch(1, 5)).any()


def test_an_epoch_shows_every_token_at_most_once_and_nearly_all():
    class Words:
        def sentinel(self, index):
            return 10**6 - index

    stream = np.arange(3, 5003, dtype=np.int32)
    per_epoch = len(stream) // span_corruption.window_length(32) // 4
    for epoch in range(2):
        seen = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = span_corruption.batch_at(stream, Words(), 4, 32, seed=0, step=step)
            tokens = np.concatenate([batch["source"], batch["target"]], axis=None)
            seen += [token for token in tokens.tolist() if 1 < token < 10**5]
        assert len(seen) == len(set(seen)) > 0.9 * len(stream)


def test_a_text_shorter_than_a_batch_of_windows_is_refused(words, stream):
    with pytest.raises(ValueError, match="at least one batch of 4 rows, got 0 rows"):
        span_corruption.batch_at(stream[:50], words, 4, 64, seed=0, step=0)
