"""Makes what is committed to start from: `python -m examples.pretrain NAME`."""

import tyro

from examples.pretrain import (
    encoder,
    geometry,
    mlm_head,
    subwords,
    t5_mixture,
    vocabulary,
)

PROGRAMS = {
    "t5-mixture": t5_mixture.main,
    "geometry": geometry.main,
    "encoder": encoder.main,
    "mlm-head": mlm_head.main,
    "subwords": subwords.main,
    "vocabulary": vocabulary.main,
}


def cli() -> None:
    tyro.extras.subcommand_cli_from_dict(PROGRAMS, prog="python -m examples.pretrain")
