"""Subword vocabularies of encoders: a `tokenizer.json`, of BERT's or RoBERTa's family.

BERT's WordPiece and RoBERTa's byte-level BPE name their special tokens differently and
use them alike: a document is <cls> pieces <sep>, with <mask> in place of some pieces.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from examples.data import pointers

COMMITTED = (
    Path(__file__).parents[1] / "checkpoints" / "bert-reviews-small" / "tokenizer.json"
)
_SPARE_ROWS = 127  # embedding tables may be padded
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


@dataclasses.dataclass(frozen=True)
class Subwords:
    """Text to ids between cls and sep, and back."""

    tokenizer: tokenizers.Tokenizer
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @property
    def size(self) -> int:
        """The smallest embedding table that serves every id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def special(self) -> tuple[int, ...]:
        return self.pad, self.unk, self.cls, self.sep, self.mask

    def encode(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> list[list[int]]:
        """Ids of each text, cut to `max_length` tokens, cls and sep included."""
        end = None
        if max_length is not None:
            end = max_length - 2
            texts = [_beginning(text, words=max_length) for text in texts]
        rows = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[self.cls, *row.ids[:end], self.sep] for row in rows]

    def encode_pairs(
        self, pairs: Iterable[tuple[str, str | None]], max_length: int
    ) -> list[list[int]]:
        """Ids of texts, or of two texts that the family's separators join.

        cls a sep b sep for BERT, cls a sep sep b sep for RoBERTa; the longer of the two
        is cut first.
        """
        firsts, seconds = zip(*pairs, strict=True)
        roberta = self.tokenizer.id_to_token(self.cls) == _ROBERTA[2]
        between = [self.sep] * (1 + roberta)
        room = max_length - 2 - len(between)
        rows = []
        for first, second in zip(
            self.encode(firsts, max_length),
            self.encode([text or "" for text in seconds], max_length),
            strict=True,
        ):
            if seconds[len(rows)] is None:
                rows.append(first)
                continue
            a, b = first[1:-1], second[1:-1]
            of_a = max(room - len(b), room // 2)
            a = a[:of_a]
            b = b[: room - len(a)]
            rows.append([self.cls, *a, *between, *b, self.sep])
        return rows

    def decode(self, rows: Iterable[Iterable[int]]) -> list[str]:
        """Texts without special tokens."""
        return self.tokenizer.decode_batch([list(map(int, row)) for row in rows])


def load(path: Path = COMMITTED) -> Subwords:
    """Loads a `tokenizer.json` that has the special tokens of BERT or of RoBERTa."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a tokenizer.json, found no such file."
        )
    pointers.refuse(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path}: expected a tokenizer.json ({error}).") from error
    return of(tokenizer, path)


def of(tokenizer: tokenizers.Tokenizer, where: str | Path) -> Subwords:
    """Finds the special tokens of a tokenizer, which is from there."""
    for family in (_BERT, _ROBERTA):
        ids = [tokenizer.token_to_id(name) for name in family]
        known = [id_ for id_ in ids if id_ is not None]
        if len(known) == len(family):
            tokenizer.no_truncation()  # that of a sentence encoder, say
            tokenizer.no_padding()
            return Subwords(tokenizer, *known)
    raise ValueError(
        f"{where}: expected the special tokens {', '.join(_BERT)} or "
        f"{', '.join(_ROBERTA)}; it has neither all of the former nor of the latter."
    )


def for_checkpoint(folder: Path, rows: int, pad: int) -> Subwords:
    """A checkpoint's own subwords, which fit its embedding and its padding."""
    path = folder / "tokenizer.json"
    words = load(path)
    if not words.size <= rows <= words.size + _SPARE_ROWS:
        raise ValueError(
            f"{path}: its {words.size:,} ids do not fit the embedding of {rows:,} rows "
            "beside it: put the checkpoint's own tokenizer.json there."
        )
    if words.pad != pad:
        raise ValueError(
            f"{path}: its id of padding is {words.pad}, but the checkpoint's is {pad}: "
            "put the checkpoint's own tokenizer.json there."
        )
    return words


def train(texts: Sequence[str], size: int = 8192) -> str:
    """Trains a lower-case WordPiece vocabulary: the text of a `tokenizer.json`.

    The trainer meets the characters in the order of a hash table that differs from run
    to run, and breaks ties by ids. It is given them in a fixed order, therefore, as if
    they were special tokens; then the same texts give the same bytes.
    """
    tokenizer = _bert(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*_BERT, *_characters(texts, tokenizer)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) != size:
        raise ValueError(
            f"expected {size:,} pieces, found {len(vocabulary):,} in the texts: give "
            "more text, or ask for another number."
        )
    plain = _bert(models.WordPiece(vocabulary, unk_token="[UNK]"))
    plain.add_special_tokens(list(_BERT))
    ends = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    plain.post_processor = processors.BertProcessing(*ends)
    return json.dumps(json.loads(plain.to_str()), ensure_ascii=False, indent=0) + "\n"


def _beginning(text: str, words: int) -> str:
    """So many words are at least as many tokens, and a review is mostly longer."""
    more = next(itertools.islice(re.finditer(r"\S+", text), words, None), None)
    return text[: more.start()] if more else text


def _bert(model: models.WordPiece) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _characters(texts: Iterable[str], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """All characters, and those that can follow another within a word."""
    normalize, split = (
        tokenizer.normalizer.normalize_str,
        tokenizer.pre_tokenizer.pre_tokenize_str,
    )
    characters = sorted({c for text in texts for c in set(normalize(text))})
    first = [c for c in characters if split(c)]
    return first + [f"##{c}" for c in first if len(split(f"a{c}")) == 1]
