"""What XLA for TPU makes of the clip, compiled for four chips that are elsewhere.

Nothing runs: libtpu compiles without a TPU. It comes with the `dev` extra on Linux.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import optax_clip

from .factories import CORE, FACTORIES
from .test_sharding import AXIS_TYPES, SUMS_OF_LARGE, all_reduces, collectives

pytest.importorskip("libtpu")
pytestmark = pytest.mark.optimised

# Enough for the search of large trees, and of two layouts.
SHAPES = [(256, 512), (512, 256), (512,)]
LAYOUTS = {
    "FSDP": (P("data"), P(None, "data"), P("data")),
    "tensor parallel": (P(None, "model"), P("model"), P()),
}


@pytest.fixture(scope="module")
def chips():
    """Four chips of a TPU v5e."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # do not look for them
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return np.array(topology.devices).reshape(2, 2)


def compiled(tx, gradient, everywhere):
    """The update of a gradient of avals, with a state that is everywhere."""
    state = jax.tree.map(
        lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=everywhere),
        jax.eval_shape(tx.init, gradient),
    )
    return jax.jit(tx.update).lower(gradient, state, gradient).compile()


@pytest.mark.parametrize("name", CORE)
def test_one_chip_compiles_every_factory(name, chips):
    one = SingleDeviceSharding(chips[0, 0])
    gradient = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=one) for s in SHAPES]
    program = compiled(FACTORIES[name](), gradient, one)
    assert collectives(program) == set()


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_crosses_between_chips_does_not_grow_with_the_leaves(
    layout, axis_type, chips
):
    mesh = Mesh(chips, ("data", "model"), axis_types=(AXIS_TYPES[axis_type],) * 2)
    everywhere = NamedSharding(mesh, P())

    def sums(leaves):
        with jax.set_mesh(mesh):
            gradient = [
                jax.ShapeDtypeStruct(
                    SHAPES[i % 3],
                    jnp.float32,
                    sharding=NamedSharding(mesh, LAYOUTS[layout][i % 3]),
                )
                for i in range(leaves)
            ]
            tx = optax_clip.clip_top_k_coordinates()
            program = compiled(tx, gradient, everywhere)
        assert collectives(program) == {"all-reduce"}
        return sorted(re.sub("{[^}]*}", "", summed) for summed in all_reduces(program))

    few, many = sums(3), sums(12)
    assert few == many
    if AXIS_TYPES[axis_type] == AxisType.Auto:
        assert len(few) == 1
        assert few[0].count("u32") == 7  # one count at each probe
    else:
        assert len(few) == len(SUMS_OF_LARGE)
