"""Which of what the paper says holds in a cell of its tables: one epoch of one run."""

from collections.abc import Mapping
from typing import Any

from examples.lab import paper


def holding(cell: Mapping[str, Any]) -> list[tuple[bool, list[bool]]]:
    """Of each of the paper's invariants: does it hold of the means, of each batch?"""
    directions = cell["directions"]
    means = {name: directions[name]["ratio"] for name in paper.COLUMNS}
    batches = [
        {name: directions[name]["ratios"][i] for name in paper.COLUMNS}
        for i in range(len(cell["batches"]))
    ]
    return [
        (_holds(one, means), [_holds(one, batch) for batch in batches])
        for one in paper.INVARIANTS
    ]


def _holds(invariant: paper.Invariant, ratios: Mapping[str, float | None]) -> bool:
    """What is not finite never holds."""
    known = {name: r for name, r in ratios.items() if r is not None}
    return len(known) == len(ratios) and invariant.holds(known)
