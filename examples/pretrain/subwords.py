"""Trains the committed subwords: `python -m examples.pretrain subwords` (10 seconds).

Lower-case WordPiece on the reviews to pretrain on; those to fine-tune on and the
held-out ones play no part. The same input gives the same bytes.
"""

from pathlib import Path

from examples.data import reviews, subwords
from examples.lab import command_line


def main(
    out: Path = subwords.COMMITTED, size: int = 8192, documents: Path | None = None
) -> None:
    """Trains a subword vocabulary on the reviews.

    Args:
        out: where the tokenizer.json is written.
        size: number of ids, the 5 special ones included.
        documents: a file of one document per line, instead of the reviews.
    """
    with command_line.refusals("pretrain.subwords"):
        trained = subwords.train(reviews.load(documents, seed=0).pretraining, size)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(trained, encoding="utf-8")
    print(f"{out}: {out.stat().st_size:,} bytes, {size} ids")
