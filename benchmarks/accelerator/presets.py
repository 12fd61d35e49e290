"""The sizes of what is measured."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
      rounds: how often everybody has a turn.
      turn: seconds of calls in a turn; a single call, where that takes longer.
      coordinates: of the trees by name; a tree of T5-small's shapes is scaled.
      exact: coordinates of the trees whose clips are compared with a sort.
      models: which ones take whole steps and are measured along directions.
      t5, llama: what differs from T5-small and from SmolLM2-135M.
      batches: rows of a batch, tried from the first on until one fits.
      length: tokens of a row.
      traced: seconds of a profile.
    """

    rounds: int = 5
    turn: float = 0.1
    coordinates: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "t5-small": 60_506_624,
            "10 M": 10_000_000,
            "100 M": 100_000_000,
            "1 G": 1_000_000_000,
            "one leaf": 60_506_624,
            "scanned": 60_506_624,
        }
    )
    exact: int = 3_000_000
    models: tuple[str, ...] = ("t5-small", "smollm2-135m")
    t5: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    llama: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batches: tuple[int, ...] = (16, 4, 1)
    length: int = 512
    traced: float = 1.0


TINY_T5: dict[str, Any] = {
    "vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 32,
    "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
}  # fmt: skip
TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "head_dim": 4,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
PRESETS = {
    "full": Preset(),
    "tiny": Preset(
        rounds=2,
        turn=0.0,
        coordinates={"t5-small": 20_000, "scanned": 20_000},
        exact=20_000,
        models=("smollm2-135m",),
        t5=TINY_T5,
        llama=TINY_LLAMA,
        batches=(2,),
        length=8,
        traced=0.1,
    ),
}
