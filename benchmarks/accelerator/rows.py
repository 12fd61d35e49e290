"""The rows in the order of their worth: time may run out."""

import functools
from collections.abc import Callable

from benchmarks.accelerator import curvature, kernels, laws, selection, training
from benchmarks.accelerator.notes import Notes
from benchmarks.accelerator.presets import Preset

Row = Callable[[Notes], None]


def every(preset: Preset) -> dict[str, Row]:
    """Every row by its name, the most telling ones first."""
    found: dict[str, Row] = {}

    def add(section: str, run: Callable, what: str, dtype: str = "") -> None:
        words = [what, dtype] if dtype else [what]
        found[" / ".join([section, *words])] = functools.partial(run, preset, *words)

    def clips(section: str, run: Callable, tree: str, dtype: str) -> None:
        if tree in preset.coordinates:
            add(section, run, tree, dtype)

    for name in laws.LAWS:
        add("laws", laws.check, name)
    clips("selection", selection.measure, "t5-small", "float32")
    clips("kernels", kernels.measure, "t5-small", "float32")
    for model in preset.models:
        add("training", training.measure, model)
    add("curvature", curvature.measure, "smollm2-135m")
    for tree in ("1 G", "one leaf"):
        clips("selection", selection.measure, tree, "float32")
    clips("selection", selection.measure, "t5-small", "bfloat16")
    for tree in ("scanned", "100 M", "10 M"):
        clips("selection", selection.measure, tree, "float32")
    clips("kernels", kernels.measure, "1 G", "float32")
    for tree in ("1 G", "one leaf", "scanned", "100 M", "10 M"):
        clips("selection", selection.measure, tree, "bfloat16")
    if "t5-small" in preset.models:
        add("curvature", curvature.measure, "t5-small")
    return found
