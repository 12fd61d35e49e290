"""What is no clip, under every layout: as on one device, and no parameter is gathered.

`test_sharding` has the clip itself.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..helpers import assert_close, draw_tree
from .diagnostics import everything
from .factories import FACTORIES
from .test_sharding import LAYOUTS, SHAPES, make_mesh, meshes, shard

pytestmark = [
    pytest.mark.usefixtures("strict"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]

MOVING = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"


def moved(compiled):
    """How many numbers the largest of each kind of collective operation yields."""
    found = {}
    for types, kind in re.findall(
        rf"= (.*?) ({MOVING})(?:-start)?\(", compiled.as_text()
    ):
        for dimensions in re.findall(r"\[([\d,]*)\]", types):
            size = math.prod(map(int, filter(None, dimensions.split(","))))
            found[kind] = max(found.get(kind, 0), size)
    return found


def test_what_crosses_is_measured():
    sharding = NamedSharding(make_mesh("auto"), P("data"))
    x = jax.device_put(jnp.ones((8, 3)), sharding)
    assert moved(jax.jit(jnp.sum).lower(x).compile()) == {"all-reduce": 1}
    assert (
        moved(jax.jit(lambda x: jnp.sort(x, 0)).lower(x).compile())["all-gather"] >= 24
    )


# The longest row or column: a factor of Adafactor's second moment.
LONGEST = max(max(shape, default=1) for shape in SHAPES.values())


@functools.cache
def on_one_device(name):
    grads = draw_tree(np.random.default_rng(4), jnp.float32, SHAPES)
    tx = FACTORIES[name]()
    return grads, jax.jit(tx.update)(grads, tx.init(grads), grads)[0]


@meshes
@pytest.mark.parametrize("layout", ["replicated", "fsdp", "tensor parallel", "mixed"])
@pytest.mark.parametrize("name", ["normalize", "clipped Adafactor"])
def test_norms_and_factors_are_those_of_whole_arrays_and_gather_none(
    name, layout, axis_type
):
    grads, expected = on_one_device(name)
    mesh, tx = make_mesh(axis_type), FACTORIES[name]()
    with jax.set_mesh(mesh):
        placed = shard(grads, layout, mesh)
        state = tx.init(placed)
        compiled = jax.jit(tx.update).lower(placed, state, placed).compile()
        updates, _ = compiled(placed, state, placed)
    assert_close(updates, expected, ulps=32)
    crossing = moved(compiled)
    if name == "normalize":
        assert crossing.keys() <= {"all-reduce"}
        assert max(crossing.values(), default=0) <= 1
    assert max(crossing.values(), default=0) <= LONGEST
    if not LAYOUTS[layout]:
        assert crossing == {}


# Diagnostics of a loss that itself moves nothing but sums


def ripples(x, batch):
    """Mixes all parameters through one number, and the batch through another."""
    y = {k: jnp.sin(v * jnp.mean(batch["mask"])) for k, v in x.items()}
    square = sum(jnp.sum(v * v) for v in y.values()) / 100
    return jnp.tanh(square) + sum(jnp.mean(jnp.cos(v)) for v in y.values())


# Without "magnitudes", which sorts what it is given, and the slow searches and spectra.
DIAGNOSTICS = [
    "sharpness", "several", "table", "masked", "diagonal", "chosen diagonal", "along",
    "norms", "histogram", "quantiles", "persistence", "complexity", "drawn",
]  # fmt: skip
PLACES = {
    "fsdp": {"w": P("data"), "b": P("data")},
    "tensor parallel": {"w": P(None, "model"), "b": P()},
    "mixed": {"w": P("data", "model"), "b": P("model")},
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "mixed") for name in DIAGNOSTICS]
    + [("sharpness", "fsdp"), ("sharpness", "tensor parallel")],
)
def test_a_diagnostic_on_an_automatic_mesh_gathers_no_parameter(rng, name, layout):
    x, u = (draw_tree(rng, jnp.float32, {"w": (8, 128), "b": (64,)}) for _ in range(2))
    batch, mesh = {"mask": jnp.ones(8)}, make_mesh("auto")

    def place(tree, specs):
        return {
            k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in tree.items()
        }

    placed = [place(tree, PLACES[layout]) for tree in (x, u)]
    placed.append(place(batch, {"mask": P("data")}))
    measure = jax.jit(functools.partial(everything.ALL[name], ripples))
    compiled = measure.lower(*placed).compile()
    everything.close(compiled(*placed), measure(x, u, batch), 1e-4)
    assert max(moved(compiled).values(), default=0) < x["b"].size
