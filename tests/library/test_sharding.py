"""Eight devices: the same bits as one, nothing gathered, state types that stay.

On a mesh, automatic or explicit, and shard by shard inside `jax.shard_map`.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_clip
from optax_clip._threshold.counts import total, wide
from optax_clip._threshold.shards import Shards

from ..helpers import (
    assert_close,
    assert_same_bits,
    avals,
    compilations,
    draw_tree,
)
from . import reference, test_threshold
from .factories import CORE, FACTORIES

pytestmark = [
    pytest.mark.optimised,
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


def all_reduces(compiled):
    """What each all-reduce of a compiled program sums up: types and shapes."""
    return re.findall(r"= (.*) all-reduce(?:-start)?\(", compiled.as_text())


def clip_of_shards(tx, mesh, specs, **kwargs):
    """The jitted clip of a tree's shards, each on its own device."""

    def clip(fraction, g):
        return tx(fraction).update(g, tx(fraction).init(g))

    mapped = jax.shard_map(
        clip, mesh=mesh, in_specs=(P(), specs), out_specs=(specs, P()), **kwargs
    )
    return jax.jit(mapped)


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
def test_a_sharded_schedule_has_the_bits_of_one_device(axis_type, rng):
    grads = [draw_tree(rng, jnp.float32, SHAPES) for _ in range(4)]
    tx = optax_clip.clip_top_k_coordinates(lambda count: (1 + count.astype(float)) / 8)

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


# Shards of arrays, each on its own device

F16, F32, F64, BF16 = np.float16, np.float32, np.float64, jnp.bfloat16
BOTH = P(("data", "model"))
SHARDS = {
    "on an explicit mesh": [
        ((8, 4), F32, P("data", "model")),
        ((4,), BF16, P("data")),
        ((), F32, P()),
        ((0, 4), F32, P(None, "data")),
        ((3, 2), F16, P(None, "model")),
    ],
    "in shard_map": [
        ((4, 3), F32, P("data")),
        ((2, 2), F32, P("model")),
        ((5,), BF16, P()),
        ((8,), F32, BOTH),
    ],
    "named": [((8, 2), F32, BOTH), ((16,), BF16, BOTH), ((8, 0), F32, BOTH)],
}
SHARDS["on an automatic mesh"] = SHARDS["on an explicit mesh"]
WIDE_SHARDS = {
    "on an explicit mesh": [((8,), F64, P("data")), ((3,), F32, P())],
    "on an automatic mesh": [((8,), F64, P("data")), ((3,), F32, P())],
    "in shard_map": [((8,), F64, P("model")), ((3,), F32, P())],
}


@functools.cache
def clip_in_shards(where, specs, scope="global", x64=False):
    """A function like those of `test_threshold.compiled`."""
    if where.startswith("on an"):
        kind = "explicit" if where == "on an explicit mesh" else "auto"
        mesh, clip = make_mesh(kind), test_threshold.compiled(scope, x64)
    else:
        named = where == "named"
        axis_name = ("data", "model") if named else None
        tx = functools.partial(
            optax_clip.clip_top_k_coordinates, scope=scope, axis_name=axis_name
        )
        mesh = make_mesh("auto")
        clip = clip_of_shards(tx, mesh, [*specs], check_vma=not named)

    def place_and_clip(fraction, leaves):
        leaves = [
            jax.device_put(leaf, NamedSharding(mesh, spec))
            for leaf, spec in zip(leaves, specs, strict=True)
        ]
        return clip(fraction, leaves)

    return place_and_clip


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("where", SHARDS)
@settings(max_examples=30)
@given(data=st.data(), fraction=test_threshold.fractions)
def test_clipping_in_shards_equals_sorting_to_the_bit(where, scope, data, fraction):
    shapes, dtypes, specs = zip(*SHARDS[where], strict=True)
    leaves = [*map(data.draw, map(test_threshold.arrays, shapes, dtypes))]
    clip = clip_in_shards(where, specs, scope)
    updates, state = clip(np.float32(fraction), leaves)
    test_threshold.check(leaves, fraction, scope, updates, state)


@pytest.mark.parametrize("where", WIDE_SHARDS)
@settings(max_examples=30)
@given(data=st.data(), fraction=test_threshold.fractions)
def test_clipping_doubles_in_shards_equals_sorting_to_the_bit(where, data, fraction):
    shapes, dtypes, specs = zip(*WIDE_SHARDS[where], strict=True)
    leaves = [*map(data.draw, map(test_threshold.arrays, shapes, dtypes))]
    with jax.enable_x64(True):
        clip = clip_in_shards(where, specs, x64=True)
        updates, state = clip(np.float32(fraction), leaves)
    test_threshold.check(leaves, fraction, "global", updates, state)


@pytest.mark.parametrize("where", ["on an explicit mesh", "on an automatic mesh"])
@pytest.mark.parametrize("distribution", test_threshold.DISTRIBUTIONS)
def test_a_million_coordinates_in_shards_clip_as_a_sort_says(distribution, where, rng):
    with np.errstate(over="ignore"):
        g = test_threshold.DISTRIBUTIONS[distribution](rng)[-(2**20) :].astype(F32)
    leaves = np.split(g.reshape(1024, 1024), 2)
    clip = clip_in_shards(where, (P("data", "model"), P("model")))
    for fraction in np.float32([2**-20, 0.05, 0.95]):
        updates, state = clip(fraction, leaves)
        test_threshold.check(leaves, fraction, "global", updates, state)


@pytest.mark.parametrize(
    ("where", "scope"),
    [
        ("on an explicit mesh", "global"),
        ("on an automatic mesh", "global"),
        ("on an automatic mesh", "leaf"),
        ("in shard_map", "leaf"),
    ],
)
def test_many_leaves_in_shards_clip_as_one(where, scope, rng):
    specs = P("data", "model"), P("data", "model"), P(None, "data"), P(), P("data")
    shapes = (512, 256), (512, 256), (205, 640), (300, 256), (40,)
    leaves = [rng.standard_cauchy(shape).astype(F32) for shape in shapes]
    clip = clip_in_shards(where, specs, scope)
    updates, state = clip(np.float32(0.05), leaves)
    test_threshold.check(leaves, np.float32(0.05), scope, updates, state)


def test_what_was_averaged_is_counted_once(rng):
    mesh = make_mesh("auto")
    a, b = (rng.standard_cauchy((4, 8)).astype(F32) for _ in range(2))
    tx = optax_clip.clip_top_k_coordinates(0.25, axis_name="data")

    def clip(g):
        g = {"average": jax.lax.pmax(g["a"], "data"), "part": g["b"]}
        return tx.update(g, tx.init(g))[0]

    specs = {"average": P(), "part": P("data")}
    mapped = jax.shard_map(clip, mesh=mesh, in_specs=P("data"), out_specs=specs)
    updates = jax.jit(mapped)({"a": a, "b": b})
    whole = {"average": a.max(axis=0, keepdims=True), "part": b}
    assert_same_bits(updates, reference.clip(whole, 0.25))


@pytest.mark.parametrize("where", ["on an explicit mesh", "in shard_map"])
def test_a_schedule_in_shards(where, rng):
    grads = {
        k: rng.standard_t(2, (4, *shape)).astype(F32)
        for k, shape in {"a": (16, 8), "b": (8,), "c": ()}.items()
    }
    specs = {"a": P(None, "data", "model"), "b": P(None, "data"), "c": P()}
    tx = optax_clip.clip_top_k_coordinates(lambda count: (1 + count.astype(float)) / 8)

    def follow(grads):
        def step(state, g):
            updates, state = tx.update(g, state)
            return state, (updates, state.threshold)

        return jax.lax.scan(step, tx.init(jax.tree.map(lambda x: x[0], grads)), grads)

    state, expected = jax.jit(follow)(grads)
    mesh = make_mesh("explicit" if where == "on an explicit mesh" else "auto")
    placed = {
        k: jax.device_put(g, NamedSharding(mesh, specs[k])) for k, g in grads.items()
    }
    with jax.set_mesh(mesh):
        if where == "in shard_map":
            follow = jax.shard_map(
                follow, in_specs=(specs,), out_specs=(P(), (specs, P()))
            )
        after, actual = jax.jit(follow)(placed)
    assert_same_bits(actual, expected)
    assert_close(after.clipped_fraction, state.clipped_fraction, ulps=1)


@pytest.mark.parametrize(
    ("fraction", "check_vma"), [(0.0, True), (0.25, True), (0.25, False)]
)
def test_a_numerator_in_shards_is_clipped_as_the_whole_one(fraction, check_vma, rng):
    mesh = make_mesh("auto")
    g = rng.standard_t(2, (8, 4)).astype(F32)
    inner = optax.scale_by_rms(0.9)

    def clip(g, axis_name=None):
        tx = optax_clip.clip_numerator(inner, fraction, axis_name=axis_name)
        updates, state = tx.update(g, tx.init(g))
        return updates, optax_clip.clip_metrics(state)

    expected, expected_metrics = jax.jit(clip)(g)
    mapped = jax.shard_map(
        functools.partial(clip, axis_name=None if check_vma else "data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P("data"), P()),
        check_vma=check_vma,
    )
    updates, metrics = jax.jit(mapped)(g)
    assert_close(updates, expected)
    assert_same_bits(metrics["threshold"], expected_metrics["threshold"])


def test_complex_leaves_in_shards_clip_the_modulus(rng):
    z = rng.standard_t(2, (8, 8)).astype(F32).view(np.complex64)
    clip = clip_in_shards("in shard_map", (P("data", "model"),))
    (update,), _ = clip(np.float32(0.25), [z])
    expected = reference.clip({"": z.astype(complex)}, 0.25)[""]
    assert_close(np.real(update), expected.real, F32)
    assert_close(np.imag(update), expected.imag, F32)


def test_pmap_and_vmap_clip_over_a_named_axis(rng):
    g = rng.standard_cauchy((8, 16)).astype(F32)
    tx = optax_clip.clip_top_k_coordinates(0.25, axis_name="shards")
    expected = reference.clip({"": g}, 0.25)[""]
    for transform in (jax.pmap, jax.vmap):
        clip = transform(lambda g: tx.update(g, tx.init(g))[0], axis_name="shards")
        assert_same_bits(clip(g), jnp.asarray(expected))


def test_an_empty_tree_in_shards_has_no_coordinates():
    mesh = make_mesh("auto")
    clip = clip_of_shards(optax_clip.clip_top_k_coordinates, mesh, P("data"))
    for tree in ({}, {"a": jnp.zeros((4, 0))}):
        assert clip(0.5, tree)[1].clipped_fraction == 0


def test_counts_of_several_devices_add_up_exactly_beyond_32_bits():
    numbers = np.uint32([2**32 - 1 - i for i in range(8)])

    def add(n):
        with wide():
            return Shards.of([n], None).sum(total(n, [0], 1))

    mesh = make_mesh("auto")
    mapped = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=BOTH, out_specs=P()))
    assert int(mapped(numbers)[0]) == sum(map(int, numbers))


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_shards_past_two_to_the_31_can_be_traced(scope):
    mesh = make_mesh("explicit")
    sharding = NamedSharding(mesh, P("data"))
    g = [jax.ShapeDtypeStruct((2**34,), jnp.float32, sharding=sharding)] * 2
    tx = optax_clip.clip_top_k_coordinates(0.05, scope=scope)
    with jax.set_mesh(mesh):
        updates, _ = jax.eval_shape(lambda g: tx.update(g, tx.init(g)), g)
    assert updates[0].shape == (2**34,)


def test_an_axis_name_that_is_not_bound_is_refused():
    tx = optax_clip.clip_top_k_coordinates(axis_name=("data",))
    g = jnp.ones(4)
    with pytest.raises(ValueError, match=r"axis_name; got 'data', which is not bound"):
        jax.jit(tx.update)(g, tx.init(g))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_leaves_on_different_meshes_are_refused(fraction):
    one = jax.make_mesh((8,), ("all",), axis_types=(AxisType.Explicit,))
    g = [
        jax.device_put(jnp.ones(8), NamedSharding(one, P("all"))),
        jax.device_put(jnp.ones(8), NamedSharding(make_mesh("explicit"), P("data"))),
    ]
    tx = optax_clip.clip_top_k_coordinates(fraction)
    with pytest.raises(ValueError, match=r"one mesh; got .*'all': 8.* and .*'data': 4"):
        tx.update(g, tx.init(g))


def test_a_donated_sharded_training_step_compiles_once(rng):
    mesh = make_mesh("explicit")
    tx = optax_clip.clipped_sgd(0.1, fraction=0.1)
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


SUMS_OF_SMALL = ["s64[7]"]  # seven probes
SUMS_OF_LARGE = ["f32[1]", "s64[14]", "s64[5]", "s64[7]"]  # with sample and finish


@pytest.mark.parametrize(
    ("shape", "many", "expected"),
    [((8, 4), 30, SUMS_OF_SMALL), ((256, 256), 9, SUMS_OF_LARGE)],
)
@meshes
def test_a_pass_sums_as_much_for_few_leaves_as_for_many(
    axis_type, shape, many, expected
):
    mesh = make_mesh(axis_type)
    tx = optax_clip.clip_top_k_coordinates(0.1)
    specs = P("data", "model"), P("model")

    def sums(leaves):
        with jax.set_mesh(mesh):
            shardings = [NamedSharding(mesh, specs[i % 2]) for i in range(leaves)]
            g = [
                jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
                for sharding in shardings
            ]
            compiled = jax.jit(tx.update).lower(g, tx.init(g)).compile()
        assert collectives(compiled) == {"all-reduce"}
        return sorted(re.sub("{.*", "", summed) for summed in all_reduces(compiled))

    assert sums(3) == sums(many) == expected


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


@pytest.mark.parametrize("where", [where for where in SHARDS if where != "named"])
def test_a_sharded_step_lowers_for_every_platform(where):
    explicit = where == "on an explicit mesh"
    mesh = make_mesh("explicit" if explicit else "auto")
    specs = {k: LAYOUTS["mixed"].get(k, P()) for k in SHAPES}
    tx = optax_clip.clip_top_k_coordinates(0.1)

    def clip(g):
        return tx.update(g, tx.init(g))

    with jax.set_mesh(mesh):
        g = shard({k: jnp.ones(s) for k, s in SHAPES.items()}, "mixed", mesh)
        if where == "in shard_map":
            clip = jax.shard_map(clip, in_specs=(specs,), out_specs=(specs, P()))
        platforms = ("cpu", "cuda", "tpu")
        exported = jax.export.export(jax.jit(clip), platforms=platforms)(g)
        assert exported.platforms == platforms
        assert_same_bits(jax.jit(exported.call)(g), jax.jit(clip)(g))


def test_axes_of_a_mesh_may_be_explicit_and_automatic(rng):
    types = (AxisType.Explicit, AxisType.Auto)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=types)
    _, g, expected, _ = on_one_device("global", "float32")
    tx = optax_clip.clip_top_k_coordinates(0.1)
    with jax.set_mesh(mesh):
        sharded = shard(g, "fsdp", mesh)
        compiled = jax.jit(tx.update).lower(sharded, tx.init(sharded)).compile()
        updates, _ = compiled(sharded, tx.init(sharded))
    assert_same_bits(updates, expected)
    assert collectives(compiled) == {"all-reduce"}


def test_a_shard_map_may_leave_axes_to_the_compiler(rng):
    mesh = make_mesh("auto")
    g = rng.standard_cauchy((8, 6)).astype(F32)
    tx = optax_clip.clip_top_k_coordinates(0.25)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        axis_names={"data"},
    )
    def clip(g):
        return tx.update(g, tx.init(g))[0]

    placed = jax.device_put(g, NamedSharding(mesh, P("data", "model")))
    assert_same_bits(clip(placed), reference.clip({"": g}, 0.25)[""].astype(F32))


def test_leaves_that_the_mesh_does_not_divide_clip_right(rng):
    """As intermediate results can be split; arguments cannot."""
    mesh = make_mesh("auto")
    g = rng.standard_cauchy((6, 5)).astype(F32)
    tx = optax_clip.clip_top_k_coordinates(0.25)
    split = NamedSharding(mesh, P("data", "model"))

    @jax.jit
    def clip(g):
        g = jax.lax.with_sharding_constraint(g * 1, split)
        return tx.update(g, tx.init(g))[0]

    assert_same_bits(clip(g), reference.clip({"": g}, 0.25)[""].astype(F32))


def test_a_vmapped_clip_of_sharded_rows_clips_each_by_itself(rng):
    mesh = make_mesh("auto")
    batch = rng.standard_t(2, (3, 8, 4)).astype(F32)
    tx = optax_clip.clip_top_k_coordinates(0.25)
    placed = jax.device_put(batch, NamedSharding(mesh, P(None, "data", "model")))
    together = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))[0]))(placed)
    apart = [reference.clip({"": row}, 0.25)[""] for row in batch]
    assert_same_bits(together, np.float32(apart))


def test_the_derivative_of_a_sharded_clip_is_that_of_one_device(rng):
    mesh = make_mesh("auto")
    g = rng.standard_t(2, (8, 4)).astype(F32)
    tx = optax_clip.clip_top_k_coordinates(0.25)

    @jax.jit
    @jax.grad
    def slope(g):
        return jnp.sum(jnp.sin(tx.update(g, tx.init(g))[0]))

    expected = slope(g)
    placed = jax.device_put(g, NamedSharding(mesh, P("data", "model")))
    assert_close(slope(placed), expected, ulps=4)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    def in_shards(g):
        return jax.grad(lambda g: jnp.sum(jnp.sin(tx.update(g, tx.init(g))[0])))(g)

    assert_close(in_shards(placed), expected, ulps=4)
