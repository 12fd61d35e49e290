"""Trains the committed vocabulary: `python -m examples.pretrain vocabulary` (4 s).

SentencePiece unigram on both languages of the training stories; the held-out stories
play no part. The same input gives the same bytes.
"""

from pathlib import Path

from examples.data import translation, vocabulary


def main(out: Path = vocabulary.COMMITTED, size: int = 8192) -> None:
    """Trains a vocabulary on the committed pairs.

    Args:
        out: where the SentencePiece model is written.
        size: number of ids, the 100 sentinels included.
    """
    train = translation.committed_split().train
    model = vocabulary.train(
        (text for pair in train for text in (pair.english, pair.french)), size
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model)
    print(f"{out}: {len(model):,} bytes, {size} ids, from {len(train):,} pairs")
