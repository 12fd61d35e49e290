"""A SentencePiece vocabulary with the ids that T5 uses.

pad 0, eos 1, unk 2, no bos; 100 sentinels above the pieces, counted down from the
top: <extra_id_0> is the highest id. A user's own `spiece.model`, t5-small's
included, loads the same way, and so does mT5's, which has the sentinels in it.
"""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from examples.data import pointers

PAD, EOS, UNK = 0, 1, 2
SENTINELS = 100
COMMITTED = Path(__file__).parent / "vocabulary" / "spiece.model"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Text to ids that end with eos, and back."""

    processor: sentencepiece.SentencePieceProcessor

    @property
    def pieces(self) -> int:
        """Pieces of text; mT5's model has the sentinels behind them."""
        number = self.processor.get_piece_size()
        last = self.processor.id_to_piece(number - 1)
        return number - SENTINELS if last.endswith("<extra_id_0>") else number

    @property
    def size(self) -> int:
        """Pieces and sentinels: the smallest embedding table that serves them all."""
        return self.pieces + SENTINELS

    def sentinel(self, index: int) -> int:
        """The id of <extra_id_{index}>."""
        return self.size - 1 - index

    def encode(self, texts: Sequence[str], *, add_eos: bool = True) -> list[list[int]]:
        return self.processor.encode(list(texts), add_eos=add_eos)

    def decode(self, rows: Iterable[Iterable[int]]) -> list[str]:
        """Texts up to the first eos; pads and sentinels have no text."""
        return self.processor.decode([self._until_eos(row) for row in rows])

    def _until_eos(self, row: Iterable[int]) -> list[int]:
        pieces, end = [], self.pieces
        for token in map(int, row):
            if token == EOS:
                break
            if token != PAD and token < end:
                pieces.append(token)
        return pieces


def load(path: Path = COMMITTED) -> Vocabulary:
    """Loads a `spiece.model` whose special ids are T5's."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a SentencePiece model, found no such file."
        )
    pointers.refuse(path)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{path}: expected a SentencePiece model.") from error
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD, EOS, UNK):
        raise ValueError(
            f"{path}: expected T5's special ids (pad, eos, unk) = "
            f"{(PAD, EOS, UNK)}, got {ids}; MADLAD's and other vocabularies are not "
            "used here, though `examples.models.huggingface` reads such weights."
        )
    return Vocabulary(processor)


def train(sentences: Iterable[str], size: int = 8192) -> bytes:
    """Trains a unigram model; `size` counts the sentinels too."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=size - SENTINELS,
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        num_threads=1,  # other thread counts give other pieces
        minloglevel=2,
    )
    return model.getvalue()
