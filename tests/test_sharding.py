"""Eight devices: the same bits as one, nothing gathered, state types that stay."""

import functools
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_clip

from . import reference
from .helpers import (
    CORE,
    FACTORIES,
    assert_close,
    assert_same_bits,
    avals,
    compilations,
    draw_tree,
)

pytestmark = [
    pytest.mark.usefixtures("strict"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]

SHAPES = {"attention": (16, 8), "embedding": (64, 16), "bias": (16,), "scale": ()}
LAYOUTS = {
    "replicated": {},
    "fsdp": {"attention": P("data"), "embedding": P("data"), "bias": P("data")},
    "tensor parallel": {
        "attention": P(None, "model"),
        "embedding": P("model", None),
        "bias": P("model"),
    },
    "two axes": {"attention": P("data", "model"), "embedding": P(("data", "model"))},
    "mixed": {"attention": P("model", "data"), "embedding": P(None, "data")},
}
AXIS_TYPES = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
meshes = pytest.mark.parametrize("axis_type", AXIS_TYPES)


def make_mesh(axis_type):
    """Four by two devices."""
    types = (AXIS_TYPES[axis_type],) * 2
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=types)


def shard(tree, layout, mesh):
    """Lay each leaf out as the layout says, replicated if it does not say."""
    return {
        k: jax.device_put(v, NamedSharding(mesh, LAYOUTS[layout].get(k, P())))
        for k, v in tree.items()
    }


def collectives(compiled):
    """The names of the collective operations of a compiled program."""
    names = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    return set(re.findall(rf"\b({names})(?:-start)?\(", compiled.as_text()))


def laid_out(aval):
    """What must not change of a type on an explicit mesh."""
    spec = tuple(aval.sharding.spec)
    return (
        aval.shape,
        aval.dtype,
        aval.weak_type,
        spec + (None,) * (aval.ndim - len(spec)),
    )


@functools.cache
def on_one_device(scope, dtype):
    """The gradient, and its clip and state without any mesh."""
    g = draw_tree(np.random.default_rng(3), dtype, SHAPES)
    tx = optax_clip.clip_top_k_coordinates(0.1, scope=scope)
    return tx, g, *jax.jit(tx.update)(g, tx.init(g))


@meshes
@pytest.mark.parametrize(
    ("layout", "scope", "dtype"),
    [(layout, "global", "float32") for layout in LAYOUTS]
    + [("two axes", "leaf", "float32"), ("mixed", "leaf", "bfloat16")],
)
def test_a_sharded_clip_has_the_bits_of_one_device_and_gathers_nothing(
    layout, axis_type, scope, dtype
):
    tx, g, expected, expected_state = on_one_device(scope, dtype)
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        sharded = shard(g, layout, mesh)
        state = tx.init(sharded)
        compiled = jax.jit(tx.update).lower(sharded, state).compile()
        updates, state = compiled(sharded, state)
    assert_same_bits(updates, expected)
    assert_same_bits(state.threshold, expected_state.threshold)
    assert_close(state.clipped_fraction, expected_state.clipped_fraction, ulps=1)
    for k, v in updates.items():
        assert v.sharding.is_equivalent_to(sharded[k].sharding, v.ndim), k
    if axis_type == "explicit":
        assert avals(updates) == avals(sharded)
    assert collectives(compiled) == ({"all-reduce"} if LAYOUTS[layout] else set())
    for leaf in jax.tree.leaves(state):  # one and the same number everywhere
        assert len({np.asarray(s.data).tobytes() for s in leaf.addressable_shards}) == 1


def test_the_search_for_collectives_finds_an_all_gather(rng):
    mesh = make_mesh("auto")
    with jax.set_mesh(mesh):
        sharded = shard(draw_tree(rng, jnp.float32, SHAPES), "fsdp", mesh)
        gathered = jax.jit(jnp.sort).lower(sharded["bias"]).compile()
    assert "all-gather" in collectives(gathered)


@meshes
def test_a_sharded_schedule_with_rare_refreshes_has_the_bits_of_one_device(
    axis_type, rng
):
    grads = [draw_tree(rng, jnp.float32, SHAPES) for _ in range(4)]
    tx = optax_clip.clip_top_k_coordinates(
        lambda count: 0.125 + 0.125 * count, refresh_every=2
    )

    def follow(grads):
        state, history, update = tx.init(grads[0]), [], jax.jit(tx.update)
        for g in grads:
            updates, state = update(g, state)
            history.append(updates)
        return history

    expected = follow(grads)
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        actual = follow([shard(g, "two axes", mesh) for g in grads])
    assert_same_bits(actual, expected)


@functools.cache
def two_steps_on_one_device(name):
    """Two gradients and the second update."""
    rng = np.random.default_rng(5)
    grads = [draw_tree(rng, jnp.float32, SHAPES) for _ in range(2)]
    return grads, second_update(FACTORIES[name](), grads)


def second_update(tx, grads):
    """The update after two steps of fixed parameters."""
    state, update = tx.init(grads[0]), jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, grads[0])
    return updates


@meshes
@pytest.mark.parametrize("name", CORE)
def test_every_factory_updates_on_a_mesh_as_on_one_device(name, axis_type):
    grads, expected = two_steps_on_one_device(name)
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        sharded = [shard(g, "mixed", mesh) for g in grads]
        updates = second_update(FACTORIES[name](), sharded)
    if name in ("clip", "clip per leaf", "pseudo-updates"):
        assert_same_bits(updates, expected)
    else:  # sums, were it only b1 m + (1 - b1) g, round as the compiler arranges them
        assert_close(updates, expected, ulps=32)


@pytest.mark.parametrize("layout", ["fsdp", "tensor parallel", "mixed"])
@pytest.mark.parametrize("name", FACTORIES)
def test_on_an_explicit_mesh_state_types_stay(name, layout):
    mesh = make_mesh("explicit")
    tx = FACTORIES[name]()
    with jax.set_mesh(mesh):
        zeros = {k: jnp.zeros(shape, jnp.float16) for k, shape in SHAPES.items()}
        params = shard(zeros, layout, mesh)
        state = tx.init(params)
        assert avals(jax.jit(tx.init)(params)) == avals(state)
        traced = jax.jit(tx.update).trace(params, state, params)
        after = [laid_out(aval) for aval in traced.jaxpr.out_avals]
        before = [laid_out(aval) for aval in jax.tree.leaves(avals((params, state)))]
        assert after == before


@pytest.mark.parametrize("name", ["clip", "clip per leaf", "clipped SGD"])
def test_on_an_explicit_mesh_eager_updates_work_too(name):
    mesh = make_mesh("explicit")
    tx = FACTORIES[name]()
    with jax.set_mesh(mesh):
        params = shard({k: jnp.ones(s) for k, s in SHAPES.items()}, "mixed", mesh)
        state = tx.init(params)
        updates, after = tx.update(params, state, params)
        assert avals(after) == avals(state)
        assert avals(updates) == avals(params)


@pytest.mark.parametrize("name", FACTORIES)
def test_on_an_explicit_mesh_the_state_can_be_scanned(name, rng):
    mesh = make_mesh("explicit")
    tx = FACTORIES[name]()
    with jax.set_mesh(mesh):
        g = shard(draw_tree(rng, jnp.float32, SHAPES), "fsdp", mesh)

        def train(g):
            def step(state, _):
                _, state = tx.update(g, state, g)
                return state, None

            return jax.lax.scan(step, tx.init(g), length=2)[0]

        after = jax.jit(train).trace(g).jaxpr.out_avals
        before = jax.tree.leaves(avals(tx.init(g)))
        assert [laid_out(aval) for aval in after] == [laid_out(aval) for aval in before]


def test_data_parallel_gradients_inside_shard_map_clip_each_shard_alone(rng):
    mesh = make_mesh("auto")
    g = jnp.asarray(rng.standard_t(2, (4, 32)), jnp.float32)
    tx = optax_clip.clip_top_k_coordinates(0.25)

    def clip(g):
        return tx.update(g, tx.init(g))[0]

    mapped = jax.shard_map(
        clip, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    with jax.set_mesh(mesh):
        updates = jax.jit(mapped)(g)
    expected = [reference.clip({"": row}, 0.25)[""] for row in np.asarray(g)]
    assert_same_bits(updates, np.stack(expected))


def test_a_donated_sharded_training_step_compiles_once(rng):
    mesh = make_mesh("explicit")
    tx = optax_clip.clipped_sgd(0.1, 0.1)
    with jax.set_mesh(mesh):
        params = shard(draw_tree(rng, jnp.float32, SHAPES), "mixed", mesh)
        grads = shard(draw_tree(rng, jnp.float32, SHAPES), "mixed", mesh)

        def step(params, state):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        params, state = jitted(params, tx.init(params))
        for _ in range(2):
            with compilations() as compiled:
                params, state = jitted(params, state)
            assert not compiled


@meshes
@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_a_pass_has_the_same_collectives_for_few_leaves_and_for_many(scope, axis_type):
    mesh = make_mesh(axis_type)
    tx = optax_clip.clip_top_k_coordinates(0.1, scope=scope)

    def count(leaves):
        with jax.set_mesh(mesh):
            sharding = NamedSharding(mesh, P("data", "model"))
            g = [jax.device_put(jnp.ones((8, 4)), sharding)] * leaves
            program = jax.jit(tx.update).lower(g, tx.init(g)).compile().as_text()
        return len(re.findall(r"\ball-reduce(?:-start)?\(", program))

    assert count(2) == count(20) <= len(mesh.axis_names)


@pytest.mark.parametrize("name", CORE)
def test_a_whole_step_lowers_for_every_platform(name):
    tx, params = FACTORIES[name](), {k: jnp.ones(s) for k, s in SHAPES.items()}

    def step(params, state):
        gradient = jax.grad(lambda p: optax.tree.norm(p, squared=True))(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(step), platforms=platforms)(
        params, tx.init(params)
    )
    assert exported.platforms == platforms


TWO_PROCESSES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import optax_clip

number, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
assert jax.device_count() == 4 and jax.local_device_count() == 2
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole = np.random.default_rng(7).standard_cauchy((64, 32)).astype(np.float32)
g = jax.make_array_from_callback(
    whole.shape, NamedSharding(mesh, P("data")), lambda i: whole[i]
)
tx = optax_clip.clip_top_k_coordinates(0.05)
with jax.set_mesh(mesh):
    _, state = jax.jit(tx.update)(g, tx.init(whole))
expected = np.sort(np.abs(whole), axis=None)[::-1][int(0.05 * whole.size)]
assert float(state.threshold) == expected, (state.threshold, expected)
print("same threshold", float(state.threshold).hex())
"""


def test_two_processes_find_the_same_threshold(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "process.py"
    script.write_text(TWO_PROCESSES)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(i), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [re.findall(r"same threshold (\S+)", output) for output in outputs]
    assert found[0] == found[1] != [], outputs
