"""The shapes of a T5's parameters, of any number of coordinates."""

import math
from collections.abc import Sequence

import jax

from examples.models import t5

Shapes = Sequence[tuple[int, ...]]


def t5_shapes(
    config: t5.T5Config, coordinates: int, *, stacked: bool = False
) -> Shapes:
    """Scales the rows of every matrix until there are about that many coordinates.

    Stacked, one array holds a matrix of all layers, as a scan over them wants.
    """
    params = jax.eval_shape(lambda: t5.init(config, 0)[1])
    by_path = jax.tree_util.tree_leaves_with_path(params)
    found = [leaf.shape for _, leaf in by_path]
    if stacked:
        places = ["/".join(str(k.key) for k in path) for path, _ in by_path]
        kinds = ["".join(c for c in place if not c.isdigit()) for place in places]
        number = {kind: kinds.count(kind) for kind in kinds}
        shape = dict(zip(kinds, found, strict=True))
        found = [
            (n, *shape[kind]) if n > 1 else shape[kind] for kind, n in number.items()
        ]
    scale = coordinates / sum(map(math.prod, found))
    return [_scaled(shape, scale, stacked=stacked) for shape in found]


def _scaled(shape: tuple[int, ...], scale: float, *, stacked: bool) -> tuple[int, ...]:
    i = 1 if stacked and len(shape) == 3 else 0  # rows, not layers
    rows = max(1, round(shape[i] * scale))
    return (*shape[:i], rows, *shape[i + 1 :])
