"""The clip, its numerator-only form, the block normalization and the metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clip

from ..helpers import (
    assert_close,
    assert_finite,
    assert_same_bits,
    compilations,
    draw_tree,
    run,
)
from . import reference
from .factories import update_clipped_adam

pytestmark = pytest.mark.usefixtures("strict")

SCOPES = ["global", "leaf"]


def wide(tree):
    """The tree in float64 NumPy, as the reference takes it."""
    return {k: np.asarray(v, np.float64) for k, v in tree.items()}


@functools.cache
def jitted_clip(fraction, scope):
    """A compiled init and update, one program per tree."""
    tx = optax_clip.clip_top_k_coordinates(fraction, scope=scope)
    return jax.jit(lambda g: tx.update(g, tx.init(g)))


def clip_once(g, fraction, scope="global"):
    """One clip of one tree, with its state."""
    return jitted_clip(fraction, scope)(g)


# Bad input


@pytest.mark.parametrize("scope", ["layer", "Global", "", None])
@pytest.mark.parametrize(
    "factory",
    [
        optax_clip.clip_top_k_coordinates,
        lambda **kw: optax_clip.clip_numerator(optax.identity(), **kw),
        lambda **kw: optax_clip.clipped_sgd(0.1, **kw),
        lambda **kw: optax_clip.clipped_adam(0.1, **kw),
        optax_clip.scale_by_clipped_adam,
        lambda **kw: optax_clip.clipped_lion(0.1, **kw),
    ],
)
def test_an_unknown_scope_is_refused_with_the_known_ones(factory, scope):
    with pytest.raises(ValueError, match=r"(?s)scope.*global.*leaf"):
        factory(scope=scope)


@pytest.mark.parametrize("name", ["refresh_every", "tolerance", "momentum", "clip"])
def test_arguments_that_are_gone_are_refused(name):
    for factory in (optax_clip.clipped_sgd, optax_clip.clipped_adam):
        with pytest.raises(TypeError, match=name):
            factory(0.1, **{name: 0.5})
    with pytest.raises(TypeError, match=name):
        optax_clip.clip_top_k_coordinates(0.1, **{name: 0.5})


@pytest.mark.parametrize(
    "factory",
    [
        optax_clip.clipped_sgd,
        optax_clip.clipped_normalized_sgd,
        optax_clip.clipped_adafactor,
        optax_clip.clipped_adam,
        optax_clip.clipped_lion,
    ],
)
def test_nothing_but_the_learning_rate_is_positional(factory):
    with pytest.raises(TypeError, match="positional"):
        factory(0.1, 0.05)


@pytest.mark.parametrize("decay", [1.0, -1.0, 9.0, -0.1, float("nan")])
@pytest.mark.parametrize(
    "factory", [optax_clip.clipped_sgd, optax_clip.clipped_normalized_sgd]
)
def test_a_decay_outside_zero_to_one_is_refused(factory, decay):
    with pytest.raises(ValueError, match=r"decay.*\[0, 1\)"):
        factory(0.1, decay=decay)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize(
    "factory",
    [
        optax_clip.clip_top_k_coordinates,
        lambda: optax_clip.clip_top_k_coordinates(scope="leaf"),
        lambda: optax_clip.clip_numerator(optax.identity()),
        optax_clip.normalize_by_block_rms,
        lambda: optax_clip.clipped_sgd(0.1),
        lambda: optax_clip.clipped_adam(0.1),
        optax_clip.scale_by_clipped_adam,
        lambda: optax_clip.clipped_lion(0.1),
    ],
    ids=[
        "clip",
        "clip leaf",
        "numerator",
        "normalize",
        "sgd",
        "adam",
        "scale by adam",
        "lion",
    ],
)
def test_gradients_that_are_not_floats_are_refused_by_path_and_dtype(factory, dtype):
    g = {"encoder": {"table": jnp.ones(3, dtype), "weight": jnp.ones(3)}}
    tx = factory()
    state = tx.init(jax.tree.map(jnp.ones_like, {"encoder": {"weight": 1.0}}))
    with pytest.raises(TypeError, match=r"table") as error:
        tx.update(g, state)
    assert jnp.dtype(dtype).name in str(error.value)


# State


@pytest.mark.parametrize("scope", SCOPES)
def test_the_state_holds_last_threshold_and_fraction_as_arrays(scope, rng):
    g = draw_tree(rng)
    tx = optax_clip.clip_top_k_coordinates(0.25, scope=scope)
    before = tx.init(g)
    _, after = jax.jit(tx.update)(g, before)
    shape = () if scope == "global" else (len(g),)
    for state in (before, after):
        assert isinstance(state, tuple)
        assert state.count.dtype == jnp.int32
        assert state.count.shape == ()
        assert state.threshold.shape == state.clipped_fraction.shape == shape
        assert state.threshold.dtype == state.clipped_fraction.dtype == jnp.float32
        assert not any(jax.typeof(x).weak_type for x in jax.tree.leaves(state))
    assert before.count == 0
    assert after.count == 1
    clipped = reference.clip(wide(g), 0.25, scope)
    changed = np.array([np.mean(clipped[k] != wide(g)[k]) for k in g])
    sizes = np.array([v.size for v in g.values()])
    share = changed if scope == "leaf" else np.sum(changed * sizes) / sizes.sum()
    assert_close(after.clipped_fraction, share)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float16",), "float32"),
        (("bfloat16",), "float32"),
        (("bfloat16", "float16"), "float32"),
        (("float32", "bfloat16"), "float32"),
        (("float64", "float32"), "float64"),
        (("bfloat16", "float64"), "float64"),
        (("complex64",), "float32"),
        (("complex128", "float16"), "float64"),
    ],
    ids=str,
)
def test_the_threshold_is_single_unless_a_leaf_is_double(dtypes, expected, scope, x64):
    g = {str(i): jnp.ones(3, dtype) for i, dtype in enumerate(dtypes)}
    tx = optax_clip.clip_top_k_coordinates(0.3, scope=scope)
    before = tx.init(g)
    _, after = jax.eval_shape(tx.update, g, before)
    assert before.threshold.dtype == after.threshold.dtype == expected
    assert before.clipped_fraction.dtype == after.clipped_fraction.dtype == "float32"


# Trees


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "tree",
    [
        {},
        (),
        {"a": None},
        {"a": optax.MaskedNode()},
        {"a": jnp.zeros((0, 3))},
        [jnp.zeros(0), None, jnp.zeros((2, 0))],
    ],
    ids=["dict", "tuple", "None", "MaskedNode", "size 0", "all kinds of nothing"],
)
def test_a_tree_without_coordinates_passes_through(tree, scope):
    tx = optax_clip.clip_top_k_coordinates(0.05, scope=scope)
    updates, state = tx.update(tree, tx.init(tree))
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    assert_same_bits(updates, tree)
    assert_finite(state)
    assert not np.any(state.clipped_fraction)
    assert_finite(optax_clip.clip_metrics(state))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("nothing", [None, optax.MaskedNode()], ids=["None", "masked"])
def test_leaves_that_are_not_there_are_not_counted(nothing, scope, rng):
    g = {
        k: jnp.asarray(rng.standard_t(2, n), jnp.float32)
        for k, n in (("a", 9), ("b", 4))
    }
    updates, state = clip_once({**g, "hole": nothing}, 0.3, scope)
    assert updates.pop("hole") == nothing
    expected = reference.clip(wide(g), 0.3, scope)
    assert_same_bits(updates, {k: np.float32(v) for k, v in expected.items()})
    assert state.threshold.shape == (() if scope == "global" else (2,))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.usefixtures("makes_nan")
def test_a_nan_stays_where_it_is_and_never_becomes_the_threshold(scope):
    g = {"a": jnp.array([1.0, -2.0, np.nan, 4.0]), "b": jnp.array([8.0, 0.5])}
    updates, state = clip_once(g, 0.5, scope=scope)
    expected = reference.clip(wide(g), 0.5, scope)
    same_types = {k: np.asarray(v, g[k].dtype) for k, v in expected.items()}
    assert_same_bits(updates, same_types)
    assert np.isnan(updates["a"]).sum() == 1
    assert_finite(state)


@pytest.mark.parametrize("scope", SCOPES)
def test_an_infinity_is_clipped_like_any_large_number(scope):
    g = {"a": jnp.array([1.0, -jnp.inf, 3.0, 4.0]), "b": jnp.array([2.0, jnp.inf])}
    updates, state = clip_once(g, 0.5, scope=scope)
    expected = reference.clip(wide(g), 0.5, scope)
    same_types = {k: np.asarray(v, g[k].dtype) for k, v in expected.items()}
    assert_same_bits(updates, same_types)
    assert_finite((updates, state))


def test_more_infinities_than_the_fraction_leave_them_all(rng):
    g = jnp.array([jnp.inf, -jnp.inf, 1.0, 2.0])
    updates, state = clip_once(g, 0.25)
    assert_same_bits(updates, g)
    assert state.threshold == jnp.inf
    assert state.clipped_fraction == 0


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_all_zero_gradients_stay_zero_with_threshold_zero(fraction):
    g = {"a": jnp.zeros((3, 4)), "b": -jnp.zeros(5)}
    updates, state = clip_once(g, fraction)
    assert_same_bits(updates, g)
    assert state.threshold == 0
    assert state.clipped_fraction == 0


def test_zeros_do_not_count_where_they_would_be_the_threshold():
    alone, state = clip_once(jnp.array([0.0, -3.0, 0.0, 0.0]), 0.25)
    assert_same_bits(alone, jnp.array([0.0, -3.0, 0.0, 0.0]))
    assert state.threshold == 3
    # Half of four non-zero coordinates, where half of all would have been a zero.
    g = jnp.array([0.0, -4.0, 0.0, 1.0, 3.0, 0.0, 2.0, 0.0])
    updates, state = clip_once(g, 0.5)
    assert_same_bits(updates, jnp.array([0.0, -2.0, 0.0, 1.0, 2.0, 0.0, 2.0, 0.0]))
    assert (state.threshold, state.clipped_fraction) == (2, 0.25)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("zeros", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("size", [1000, 100_003])
def test_a_gradient_of_mostly_zeros_never_stops_training(zeros, size, scope, rng):
    values = np.where(rng.random(size) < zeros, 0, rng.standard_t(2, size))
    g = {"a": values.astype(np.float32), "b": np.zeros(50, np.float32)}
    for fraction in (0.5, jnp.float32(0.5)):
        tx = optax_clip.clip_top_k_coordinates(fraction, scope=scope)
        updates, state = jax.jit(tx.update)(g, tx.init(g))
        expected = reference.clip(wide(g), 0.5, scope)
        assert_same_bits(updates, {k: np.float32(v) for k, v in expected.items()})
        assert np.count_nonzero(updates["a"]) == np.count_nonzero(g["a"])
        assert np.max(state.threshold) > 0


def test_lora_trains_from_its_start_at_default_settings(rng):
    """B = 0 makes the gradient of A, half of all coordinates, exactly 0."""
    x = rng.normal(size=(64, 16))
    y = jnp.asarray(x @ rng.normal(size=(16, 16)), jnp.float32)
    x = jnp.asarray(x, jnp.float32)
    start = {"A": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)}
    start["B"] = jnp.zeros((4, 16))

    def loss(params):
        return jnp.mean((x @ params["A"] @ params["B"] - y) ** 2)

    tx = optax_clip.clipped_lion(0.1)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    for _ in range(200):
        params, state = step(params, state)
    assert loss(params) < 0.9 * loss(start)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_tree_of_empty_leaves_passes_through(scope):
    g = {"a": jnp.zeros(0), "b": jnp.zeros((3, 0))}
    tx = optax_clip.clip_top_k_coordinates(0.25, scope=scope)
    updates, state = tx.update(g, tx.init(g))
    assert_same_bits(updates, g)
    assert jnp.all(state.threshold == 0)


def test_python_numbers_are_leaves_too():
    updates, _ = clip_once({"a": 3.0, "b": -8.0}, 0.5)
    assert updates == {"a": 3.0, "b": -3.0}


def test_gradients_wider_than_the_parameters_are_refused(x64):
    tx = optax_clip.clip_top_k_coordinates(0.3)
    state = tx.init(jnp.ones(3, jnp.float32))
    with pytest.raises(TypeError, match=r"precision .* single; got double"):
        tx.update(jnp.ones(3, jnp.float64), state)


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ([1e-4, 2e-4, 3e4, 1e-4], 4e-4, jnp.float16),
        ([1e-20, 2e-20, 3e30, 1e-20], 4e-20, jnp.float32),
    ],
)
def test_a_numerator_is_clipped_by_any_factor(values, expected, dtype):
    g = jnp.asarray(values, dtype)
    tx = optax_clip.clip_numerator(optax.scale(2.0), 0.3)
    updates, _ = tx.update(g, tx.init(g))
    assert updates.dtype == dtype
    assert_close(updates[2], np.asarray(expected), ulps=2)


@pytest.mark.usefixtures("makes_nan")
def test_a_complex_number_of_infinite_modulus_keeps_its_phase():
    g = jnp.array([3e38 + 3e38j, 2.0, 1.0, complex(np.inf, -np.inf)], jnp.complex64)
    updates, _ = clip_once(g, 0.5)
    side = np.float32(2 / np.sqrt(2))
    assert_close(jnp.real(updates), np.array([side, 2, 1, side]))
    assert_close(jnp.imag(updates), np.array([side, 0, 0, -side]))


def test_the_derivative_of_a_clipped_numerator_is_finite_at_zero():
    tx = optax_clip.clip_numerator(optax.scale(0.5), 0.3)

    def total(g):
        return jnp.sum(tx.update(g, tx.init(g))[0])

    slopes = jax.grad(total)(jnp.array([0.0, 2.0, -8.0, 3.0]))
    # -8 follows 3, the threshold: its update -1.5 takes back what that of 3 adds.
    assert_close(slopes, np.array([0.5, 0.5, 0.0, 0.0]))


# Fractions that move, thresholds that stay


@pytest.mark.parametrize("fraction", [-0.5, 1.0, 2.0])
def test_the_value_of_an_array_is_clamped_as_a_traced_one(fraction):
    g = jnp.array([4.0, -1.0, 2.0])
    tx = optax_clip.clip_top_k_coordinates(jnp.float32(fraction))
    updates, _ = tx.update(g, tx.init(g))
    expected = jnp.sign(g) if fraction > 0 else g
    assert_same_bits(updates, expected)


def test_a_fraction_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match=r"number.*schedule; got '0.1'"):
        optax_clip.clip_top_k_coordinates("0.1")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_fraction_schedule_is_read_at_the_count_of_updates(scope, rng):
    grads = [draw_tree(rng) for _ in range(4)]
    table = jnp.array([0.0, 0.5, 0.25, 0.125])
    tx = optax_clip.clip_top_k_coordinates(lambda count: table[count], scope=scope)
    history, state = run(tx, grads, grads[0], apply=False)
    for g, update, fraction in zip(grads, history, table, strict=True):
        expected = reference.clip(wide(g), float(fraction), scope)
        assert_same_bits(update, {k: np.float32(v) for k, v in expected.items()})
    assert state.count == 4


@pytest.mark.skipif(jax.config.jax_disable_jit, reason="eager: everything compiles")
def test_an_injected_fraction_schedule_compiles_once(rng):
    schedule = optax.linear_schedule(0.5, 0.0, 4)
    tx = optax.inject_hyperparams(optax_clip.clip_top_k_coordinates)(schedule)
    grads = [draw_tree(rng) for _ in range(5)]
    state, update = jax.jit(tx.init)(grads[0]), jax.jit(tx.update)
    _, state = update(grads[0], state)
    with compilations() as compiled:
        for g in grads[1:]:
            updates, state = update(g, state)
    assert not compiled
    assert_same_bits(updates, grads[-1])  # the schedule has reached zero


# Inside optax.partition and optax.masked


def test_inside_partition_global_means_each_group_by_itself(rng):
    g = draw_tree(rng, shapes={"a": (7,), "b": (9,), "c": (11,)})
    labels = {"a": "one", "b": "two", "c": "one"}
    clips = {
        "one": optax_clip.clip_top_k_coordinates(0.25),
        "two": optax_clip.clip_top_k_coordinates(0.5),
    }
    tx = optax.partition(clips, labels)
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    w = wide(g)
    expected = reference.clip({k: w[k] for k in "ac"}, 0.25)
    expected |= reference.clip({"b": w["b"]}, 0.5)
    assert_same_bits(updates, {k: np.float32(v) for k, v in expected.items()})


def test_masked_leaves_are_neither_clipped_nor_counted(rng):
    g = draw_tree(rng, shapes={"a": (7,), "b": (9,)})
    tx = optax.masked(optax_clip.clip_top_k_coordinates(0.25), {"a": True, "b": False})
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    expected = reference.clip({"a": wide(g)["a"]}, 0.25)["a"]
    assert_same_bits(updates, {"a": np.float32(expected), "b": g["b"]})


# Metrics


def clip_025():
    """The clip that the metrics tests look for."""
    return optax_clip.clip_top_k_coordinates(0.25)


WRAPPERS = {
    "alone": clip_025,
    "chain": lambda: optax.chain(optax.identity(), clip_025(), optax.scale(-1.0)),
    "MultiSteps": lambda: optax.MultiSteps(clip_025(), every_k_schedule=1),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        optax_clip.clip_top_k_coordinates
    )(0.25),
    "masked": lambda: optax.masked(clip_025(), {"a": True, "b": True}),
    "partition": lambda: optax.partition({"all": clip_025()}, {"a": "all", "b": "all"}),
    "apply_if_finite": lambda: optax.apply_if_finite(clip_025(), 3),
    "clipped_adam": lambda: optax_clip.clipped_adam(0.1, fraction=0.25),
    "clipped_adafactor": lambda: optax_clip.clipped_adafactor(0.1, fraction=0.25),
    "clip_numerator": lambda: optax_clip.clip_numerator(optax.scale_by_rms(), 0.25),
}


def metric(metrics, name):
    """The one metric whose name ends in the given word."""
    (value,) = [v for k, v in metrics.items() if k.endswith(name)]
    return value


@pytest.fixture
def promotion():
    """Lets optax.MultiSteps divide int32 by float32, where jax promotes nothing."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_metrics_are_found_under_every_wrapper(wrapper, rng):
    g = draw_tree(rng, shapes={"a": (8,), "b": (4, 5)})
    tx = WRAPPERS[wrapper]()
    _, state = jax.jit(tx.update)(g, tx.init(g), g)
    for metrics in (
        optax_clip.clip_metrics(state),
        jax.jit(optax_clip.clip_metrics)(state),
    ):
        assert all(isinstance(k, str) for k in metrics)
        assert all(np.shape(v) == () for v in metrics.values())
        tau = reference.threshold(list(wide(g).values()), 0.25)
        assert_same_bits(metric(metrics, "threshold"), np.float32(tau))
        assert_close(metric(metrics, "clipped_fraction"), np.float32(7 / 28), ulps=1)


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        (
            "update-clipped Adam",
            lambda: update_clipped_adam(0.1, 0.25),
        ),
        ("Lion", lambda: optax_clip.clipped_lion(0.1, fraction=0.25)),
    ],
    ids=["adam", "lion"],
)
def test_metrics_of_an_update_clip_describe_the_update(name, factory, rng):
    g = draw_tree(rng, shapes={"a": (8,), "b": (4, 5)})
    tx = factory()
    updates, state = jax.jit(tx.update)(g, tx.init(g), g)
    metrics = optax_clip.clip_metrics(state)
    largest = max(float(jnp.abs(u).max()) for u in updates.values())
    assert_close(0.1 * metric(metrics, "threshold"), np.float32(largest))


def test_two_groups_have_metrics_of_their_own(rng):
    g = draw_tree(rng, shapes={"a": (8,), "b": (12,)})
    labels = {"a": "encoder", "b": "decoder"}
    clips = {label: clip_025() for label in labels.values()}
    tx = optax.partition(clips, labels)
    _, state = jax.jit(tx.update)(g, tx.init(g), g)
    metrics = optax_clip.clip_metrics(state)
    for leaf, label in labels.items():
        (tau,) = [v for k, v in metrics.items() if label in k and "threshold" in k]
        assert float(tau) == reference.threshold([wide(g)[leaf]], 0.25)


def test_per_leaf_metrics_carry_every_threshold_by_the_name_of_its_leaf(rng):
    g = {"encoder": draw_tree(rng)}
    _, state = clip_once(g, 0.25, scope="leaf")
    (vector, _) = optax_clip.clip_metrics(state).values()
    named = optax_clip.clip_metrics(state, g)
    for i, (k, leaf) in enumerate(wide(g["encoder"]).items()):
        tau = np.float32(reference.threshold([leaf], 0.25))
        assert named[f"threshold/encoder/{k}"] == vector[i] == tau
    assert set(named) == {
        f"{field}/encoder/{k}"
        for field in ("threshold", "clipped_fraction")
        for k in g["encoder"]
    }
    with pytest.raises(ValueError, match=r"3 leaves of 'threshold'; got 1"):
        optax_clip.clip_metrics(state, {"a": 1.0})


def test_a_clip_keeps_its_name_when_others_join_behind_it(rng):
    g = draw_tree(rng)
    tau = np.float32(reference.threshold(list(wide(g).values()), 0.25))

    def metrics(*others):
        tx = optax.chain(clip_025(), *others)
        return optax_clip.clip_metrics(jax.jit(tx.update)(g, tx.init(g))[1])

    second = optax_clip.clip_top_k_coordinates(0.5)
    named = optax.named_chain(("late", second))
    assert metrics()["threshold"] == tau
    found = metrics(optax.ema(0.9), second, named)
    assert [*found] == [
        "threshold",
        "clipped_fraction",
        "threshold_2",
        "clipped_fraction_2",
        "late/threshold",
        "late/clipped_fraction",
    ]
    assert found["threshold"] == tau


def test_a_state_without_a_clip_says_so(rng):
    g = draw_tree(rng)
    with pytest.raises(ValueError, match="there is none"):
        optax_clip.clip_metrics(optax.adam(0.1).init(g))


def test_metrics_of_flax_nnx_are_values_and_not_variables():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax_clip.clipped_sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        gradient = nnx.grad(lambda m: (m(x) ** 2).sum())(model)
        optimizer.update(model, gradient)
        return optax_clip.clip_metrics(optimizer.opt_state)

    log = [step(model, optimizer, jnp.full((2, 4), 1.0 + i)) for i in range(3)]
    seen = [float(metrics["threshold"]) for metrics in log]
    assert len(set(seen)) == 3
    for state in (nnx.state(optimizer), nnx.to_pure_dict(nnx.state(optimizer))):
        assert optax_clip.clip_metrics(state) == log[-1]


# Numerator-only clipping


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_numerator_clip_scales_updates_by_tau_over_gradient(fraction, scope, rng):
    grads = [draw_tree(rng) for _ in range(3)]
    tx = optax_clip.clip_numerator(optax.scale_by_rms(), fraction, scope=scope)
    history, _ = run(tx, grads, grads[0], apply=False)
    raw, _ = run(optax.scale_by_rms(), grads, grads[0], apply=False)
    for g, u, update in zip(grads, raw, history, strict=True):
        groups = [[k] for k in g] if scope == "leaf" else [list(g)]
        scales = {}
        for keys in groups:
            scales |= reference.clip_scale({k: wide(g)[k] for k in keys}, fraction)
        assert_close(update, {k: scales[k] * wide(u)[k] for k in u})


@pytest.mark.parametrize("scope", SCOPES)
def test_numerator_clip_of_the_identity_is_the_clip(scope, rng):
    g = draw_tree(rng)
    tx = optax_clip.clip_numerator(optax.identity(), 0.25, scope=scope)
    updates, _ = jax.jit(tx.update)(g, tx.init(g))
    expected = reference.clip(wide(g), 0.25, scope)
    assert_close(updates, expected, ulps=2)


def test_the_inner_state_sees_the_raw_gradient(rng):
    grads = [draw_tree(rng) for _ in range(3)]
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=0)
    _, state = run(optax_clip.clip_numerator(inner, 0.5), grads, grads[0], apply=False)
    _, raw = run(inner, grads, grads[0], apply=False)
    leaves = {leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(state))}
    assert {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(raw)} <= leaves


def test_numerator_clipping_is_not_clipping_before_the_inner_transformation(rng):
    g = draw_tree(rng)
    inner = optax.scale_by_rms()
    after = optax_clip.clip_numerator(inner, 0.25)
    before = optax.chain(optax_clip.clip_top_k_coordinates(0.25), inner)
    u = jax.jit(after.update)(g, after.init(g))[0]
    v = jax.jit(before.update)(g, before.init(g))[0]
    assert np.abs(u["kernel"] - v["kernel"]).max() > 0.1


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_numerator_clip_of_zeros_is_finite(fraction):
    g = jnp.array([0.0, -0.0, 3.0, 0.0])
    tx = optax_clip.clip_numerator(optax.identity(), fraction)
    updates, _ = jax.jit(tx.update)(g, tx.init(g))
    assert_same_bits(updates, g)  # one non-zero coordinate: none to clip


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "factory",
    [
        lambda scope: optax_clip.clip_top_k_coordinates(0.25, scope=scope),
        lambda scope: optax_clip.clip_numerator(optax.identity(), 0.25, scope=scope),
        lambda scope: optax_clip.clipped_normalized_sgd(
            0.5, fraction=0.25, scope=scope
        ),
    ],
    ids=["clip", "numerator", "normalized"],
)
def test_no_type_is_promoted_where_jax_promotes_none(factory, scope, dtype):
    tx, g = factory(scope), {"a": jnp.ones((4, 3), dtype), "b": jnp.ones(3)}
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.eval_shape(tx.update, g, tx.init(g), g)
    for x, y in zip(updates.values(), g.values(), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_a_numerator_of_eight_bits_is_clipped_as_the_clip_does():
    g = jnp.array([1.0, -8.0, 3.0, 2.0], "float8_e4m3fn")
    clip = optax_clip.clip_top_k_coordinates(0.25)
    numerator = optax_clip.clip_numerator(optax.identity(), 0.25)
    expected, _ = clip.update(g, clip.init(g))
    assert_same_bits(numerator.update(g, numerator.init(g))[0], expected)


def shampoo_like():
    """Multiplies the gradient of a matrix with one of its statistics."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda g: jnp.linalg.inv(g @ g.T) @ g, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (lambda: optax.contrib.muon(0.1), "as Muon and Shampoo do"),
        (shampoo_like, r"multiplies matrices \(dot_general\)"),
        (lambda: optax.chain(optax.scale_by_rms(), shampoo_like()), "multiplies matr"),
        (optax.scale_by_adam, r"keeps a momentum \(ScaleByAdamState\)"),
        (lambda: optax.sgd(0.1, 0.9), r"keeps a momentum \(TraceState\)"),
        (lambda: optax.adafactor(0.1, momentum=0.9), "keeps a momentum .EmaState"),
        (optax.scale_by_lion, r"momentum .ScaleByLionState\). Put clip_top_k_coord"),
    ],
)
def test_a_numerator_of_what_is_no_division_is_refused(inner, message):
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=message):
        optax_clip.clip_numerator(inner(), 0.25).init(params)
    optax_clip.clip_numerator(inner(), 0.0).init(params)  # the plain transformation


def test_what_cannot_be_known_to_divide_is_not_refused():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(3)}
    labels = {"a": "rms", "b": "none"}
    made_for_this = optax.partition(
        {"rms": optax.scale_by_rms(), "none": optax.identity()}, labels
    )
    for inner in (made_for_this, optax.clip_by_global_norm(1.0), optax.adafactor(0.1)):
        optax_clip.clip_numerator(inner, 0.25).init(params)


def test_numerator_clip_hands_params_and_extra_arguments_inwards(rng):
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(params=params, **extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    g = draw_tree(rng)
    tx = optax_clip.clip_numerator(inner, 0.25)
    tx.update(g, tx.init(g), {"p": 1}, value=7)
    assert seen == {"params": {"p": 1}, "value": 7}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "factory",
    [
        lambda: optax_clip.clipped_adam(0.1),
        lambda: optax_clip.clipped_adafactor(0.1),
        lambda: optax_clip.scale_by_clipped_adam(),
        lambda: optax_clip.clip_numerator(optax.scale_by_rms()),
        lambda: optax_clip.clip_numerator(optax.scale_by_factored_rms()),
    ],
    ids=["adam", "adafactor", "scale", "rms", "factored"],
)
@pytest.mark.usefixtures("makes_nan")
def test_a_coordinate_without_gradient_stays_in_half_precision(factory, dtype):
    """Epsilons of 1e-8 and 1e-30 are 0 there, and so are second moments."""
    params = {"embedding": jnp.ones((6, 4), dtype)}
    g = {"embedding": jnp.zeros((6, 4), dtype).at[2].set(1e-2)}  # one word
    tx = factory()
    updates, _ = tx.update(g, tx.init(params), params)
    update = np.asarray(updates["embedding"], np.float32)
    assert np.isfinite(update).all()
    np.testing.assert_array_equal(update == 0, np.asarray(g["embedding"]) == 0)


# Derivatives


def test_a_clipped_coordinate_moves_with_the_threshold():
    def clip(a):  # [a, 2 a, -2 a]
        tx = optax_clip.clip_top_k_coordinates(0.34)
        g = a * jnp.array([1.0, 2.0, -8.0])
        return tx.update(g, tx.init(g))[0]

    for derivative in (jax.jacfwd, jax.jacrev):
        assert_same_bits(derivative(clip)(1.0), jnp.array([1.0, 2.0, -2.0]))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: jax.jit(jax.checkpoint(f))])
def test_the_derivative_of_the_clip_is_that_of_finite_differences(scope, wrap, x64):
    rng = np.random.default_rng(0)
    g = {"a": rng.normal(size=5), "b": rng.normal(size=(2, 3))}
    move = {"a": rng.normal(size=5), "b": rng.normal(size=(2, 3))}
    tx = optax_clip.clip_top_k_coordinates(0.4, scope=scope)

    @wrap
    def clip(s):
        moved = jax.tree.map(lambda x, u: jnp.asarray(x) + s * u, g, move)
        return tx.update(moved, tx.init(moved))[0]

    h = 1e-6
    numeric = jax.tree.map(lambda p, m: (p - m) / (2 * h), clip(h), clip(-h))
    for derivative in (jax.jacfwd, jax.jacrev):
        found = derivative(clip)(0.0)
        for k, value in numeric.items():
            np.testing.assert_allclose(found[k], value, atol=1e-7)


def test_the_derivative_of_a_normalized_block_of_zeros_is_zero():
    def total(a):
        tx = optax_clip.normalize_by_block_rms()
        g = {"w": a * jnp.ones(2), "dead": a * jnp.zeros(3)}
        return sum(jnp.sum(u**2) for u in tx.update(g, tx.init(g))[0].values())

    assert abs(jax.grad(total)(1.0)) < 1e-6


# Small floats


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e4m3b11fnuz"]
)
@pytest.mark.usefixtures("makes_nan")
def test_floats_of_eight_bits_clip_right(dtype):
    g = jnp.array([240.0, -240.0, 30.0, -28.0, 1.0, 2.0, 3.0, 0.0]).astype(dtype)
    g = jnp.where(jnp.isfinite(g.astype(jnp.float32)), g, jnp.asarray(28.0, dtype))
    for fraction, m in ((0.1, 0), (0.25, 2)):
        updates, state = clip_once(g, fraction)
        wide = np.asarray(g, np.float32)
        tau = np.sort(np.abs(wide))[::-1][m]
        assert state.threshold == tau
        assert updates.dtype == g.dtype
        np.testing.assert_array_equal(
            np.asarray(updates, np.float32), np.clip(wide, -tau, tau)
        )


# Block normalization


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_every_leaf_gets_rms_one(dtype, rng):
    shapes = {"matrix": (8, 6), "vector": (5,), "scalar": (), "large": (300, 300)}
    g = draw_tree(rng, dtype, shapes)
    tx = optax_clip.normalize_by_block_rms()
    updates, _ = tx.update(g, tx.init(g))
    for k, u in wide(updates).items():
        assert updates[k].dtype == dtype
        assert_close(reference.rms(u), 1.0, dtype, ulps=2 if dtype != "float32" else 16)
        assert_close(u, reference.block_normalize({"": wide(g)[k]})[""], dtype, ulps=16)


@pytest.mark.parametrize("exponent", [-37, -30, -20, -10, 10, 19, 30, 37])
def test_the_rms_is_one_at_every_scale_of_the_gradient(exponent, rng):
    values = rng.uniform(1, 2, (6, 5)) * rng.choice([-1, 1], (6, 5))
    g = {"a": jnp.asarray(values * 10.0**exponent, jnp.float32)}
    tx = optax_clip.normalize_by_block_rms()
    updates, _ = tx.update(g, tx.init(g))
    assert_close(updates, {"a": values / reference.rms(values)})


def test_a_zero_leaf_stays_zero_and_an_empty_leaf_empty():
    g = {"zero": jnp.zeros((3, 2)), "none": None, "empty": jnp.zeros((0, 4))}
    tx = optax_clip.normalize_by_block_rms()
    updates, _ = tx.update(g, tx.init(g))
    assert_same_bits(updates, g)


def test_an_eps_weakens_the_normalization_of_small_leaves():
    g = jnp.full((4,), 1e-3)
    tx = optax_clip.normalize_by_block_rms(eps=1.0)
    updates, _ = tx.update(g, tx.init(g))
    assert np.all(np.abs(updates) < 0.1)
