"""What Optax asks of every transformation, and what this package promises on top.

One table of all public factories (`factories.FACTORIES`), one list of laws. Laws about
types and structures are checked by tracing, laws about numbers by one compiled step
for each factory.
"""

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
    avals,
    compilations,
    draw_tree,
    run,
)
from .factories import (
    ADAFACTOR,
    CLIPPING,
    CORE,
    FACTORIES,
    OPTIMIZERS,
    relative_step,
)

pytestmark = pytest.mark.usefixtures("strict")

every_factory = pytest.mark.parametrize("name", FACTORIES)
core_factories = pytest.mark.parametrize("name", CORE)
every_type = pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64"]
)


class Stepper:
    """One factory's update, compiled once, with arguments that it does not know."""

    def __init__(self, name):
        self.tx, self.traces = FACTORIES[name](), 0
        self.step = jax.jit(self._step)

    def _step(self, g, state, params):
        self.traces += 1
        return self.tx.update(g, state, params, unexpected=1, value=jnp.float32(2))

    def follow(self, grads, params):
        """All updates of fixed parameters, and the last state."""
        state, history = self.tx.init(params), []
        for g in grads:
            updates, state = self.step(g, state, params)
            history.append(updates)
        return history, state


stepper = functools.cache(Stepper)


def test_every_public_factory_is_in_the_table():
    tabled = {row.factory for row in FACTORIES.values()}
    tabled |= {optax_clip.clip_numerator, optax_clip.pseudo_updates}  # inside functions
    prefixes = ("clip_", "clipped_", "normalize_", "pseudo_", "scale_")
    others = {"clip_metrics", "pseudo_updates_at", "pseudo_updates_of"}  # no factories
    public = {n for n in dir(optax_clip) if n.startswith(prefixes)} - others
    assert {n for n in public if getattr(optax_clip, n) not in tabled} == set()


# 1. Extra arguments, and one compilation


@every_factory
def test_unknown_extra_arguments_are_accepted_and_nothing_compiles_twice(name, rng):
    step, g = Stepper(name), draw_tree(rng)
    state = step.tx.init(g)
    for t in range(3):
        with compilations() as compiled:
            updates, state = step.step(g, state, g)
        assert bool(compiled) == (t == 0)
    assert step.traces == 1
    assert jax.tree.structure(updates) == jax.tree.structure(g)


@every_factory
def test_eager_updates_compile_nothing_from_the_second_on(name, rng):
    """As in a notebook: closures made anew would compile with every call."""
    tx, g = FACTORIES[name](), draw_tree(rng)
    _, state = tx.update(g, tx.init(g), g)
    with compilations() as compiled:
        for _ in range(2):
            _, state = tx.update(g, state, g)
    assert not compiled


# 2. optax.tree.map_params


@every_factory
def test_map_params_finds_the_state_of_each_parameter(name, rng):
    tx, params = FACTORIES[name](), draw_tree(rng)
    state = tx.init(params)
    assert_same_bits(optax.tree.map_params(tx, lambda v: v, state), state)
    found = optax.tree.map_params(
        tx, lambda v: v, state, transform_non_params=lambda _: None
    )
    shapes = {p.shape for p in params.values()}
    for leaf in jax.tree.leaves(found):
        factors = {s[:i] + s[i + 1 :] for s in shapes for i in range(len(s))} | {(1,)}
        assert leaf.shape in (shapes | factors if "Adafactor" in name else shapes)
    rest = optax.tree.map_params(
        tx, lambda _: None, state, transform_non_params=lambda v: v
    )
    for leaf in jax.tree.leaves(rest):  # counts, thresholds and fractions
        assert leaf.shape in ((), (len(params),))


# 3. It optimizes


def parabola(x):
    """A vector and a matrix, curvature one everywhere."""
    return jnp.sum((x["v"] - GOAL["v"]) ** 2) + jnp.sum((x["m"] - GOAL["m"]) ** 2)


def ill_conditioned(x):
    """Curvatures that differ fifty times."""
    scale = {"v": jnp.array([50.0, 1.0, 5.0]), "m": jnp.array([[1.0, 20], [3, 1]])}
    return sum(jnp.sum(scale[k] * (x[k] - GOAL[k]) ** 2) for k in GOAL)


def rosenbrock(x):
    """The valley of Rosenbrock, beside a parabola."""
    a, b, c = x["v"]
    valley = (1 - a) ** 2 + 10 * (b - a**2) ** 2 + (c - 2) ** 2
    return valley + jnp.sum((x["m"] - GOAL["m"]) ** 2)


GOAL = {"v": np.array([1.0, 1.0, 2.0]), "m": np.array([[3.0, -2.0], [1.0, 4.0]])}
GOAL = {k: v.astype(np.float32) for k, v in GOAL.items()}
PROBLEMS = [parabola, ill_conditioned, rosenbrock]


# With a fixed fraction the coordinates that are slowest would in the end be clipped to
# the tiny gradients of those that have arrived: the fraction falls to zero on the way.
FALLING = optax.linear_schedule(0.3, 0.0, 1000)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reaches_the_minimum_of_every_problem(name):
    tx = FACTORIES[name](fraction=FALLING, **FACTORIES[name].converging)

    @jax.jit
    @jax.vmap
    def train(which):
        def loss(x):
            return jnp.stack([problem(x) for problem in PROBLEMS])[which]

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jax.tree.map(jnp.zeros_like, GOAL)
        return jax.lax.scan(step, (params, tx.init(params)), length=3000)[0][0]

    ends = train(jnp.arange(len(PROBLEMS)))
    for i, problem in enumerate(PROBLEMS):
        for k, goal in GOAL.items():
            np.testing.assert_allclose(ends[k][i], goal, atol=3e-2, err_msg=problem)


# 4. optax.inject_hyperparams, with every number traced


@every_factory
def test_every_number_may_be_injected_and_the_init_jitted(name, rng):
    row, grads = FACTORIES[name], [draw_tree(rng) for _ in range(3)]
    injected = optax.inject_hyperparams(row.factory)(**row.kwargs)
    state, update = jax.jit(injected.init)(grads[0]), jax.jit(injected.update)
    types = avals(state)
    expected, _ = stepper(name).follow(grads, grads[0])
    for g, other in zip(grads, expected, strict=True):
        updates, state = update(g, state, grads[0])
        assert avals(state) == types
        assert_close(updates, other, ulps=1000)


# 5. and 7. Types: updates like parameters, a state that stays what it was


@every_factory
@every_type
def test_updates_have_the_parameters_type_and_the_state_keeps_its_own(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = FACTORIES[name]()
        params = draw_tree(np.random.default_rng(0), dtype)
        before = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, before, params)
        assert {u.dtype for u in updates.values()} == {jnp.dtype(dtype)}
        assert jax.tree.structure(after) == jax.tree.structure(before)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, False)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((updates, before)))


@every_factory
@every_type
def test_the_state_can_be_carried_through_scan_and_cond(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = FACTORIES[name]()
        g = draw_tree(np.random.default_rng(0), dtype)

        def train(g, flags):
            def step(carry, flag):
                params, state = carry
                updates, state = jax.lax.cond(
                    flag,
                    lambda: tx.update(g, state, params),
                    lambda: (jax.tree.map(jnp.zeros_like, g), state),
                )
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (g, tx.init(g)), flags)[0]

        params, state = jax.eval_shape(train, g, jnp.array([True, False]))
        assert avals(params) == avals(jax.eval_shape(lambda x: x, g))
        assert avals(state) == avals(jax.eval_shape(tx.init, g))


@core_factories
def test_a_scan_takes_the_same_steps_as_a_loop(name, rng):
    tx, grads = FACTORIES[name](), [draw_tree(rng) for _ in range(3)]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)

    def step(state, g):
        updates, state = tx.update(g, state, grads[0])
        return state, updates

    _, history = jax.jit(lambda s: jax.lax.scan(step, s, stacked))(tx.init(grads[0]))
    expected, _ = stepper(name).follow(grads, grads[0])
    for t, other in enumerate(expected):
        assert_close({k: v[t] for k, v in history.items()}, other, ulps=100)


@every_factory
def test_a_tree_of_mixed_types_keeps_each_leafs_type(name):
    tx = FACTORIES[name]()
    params = {k: jnp.ones((3, 2), k) for k in ("bfloat16", "float16", "float32")}
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert {k: v.dtype.name for k, v in updates.items()} == {k: k for k in params}
    assert avals(after) == avals(state)


ACCUMULATORS = {
    "clipped_sgd": "accumulator_dtype",
    "clipped_normalized_sgd": "accumulator_dtype",
    "clipped_adam": "mu_dtype",
    "clipped_lion": "mu_dtype",
}


@pytest.mark.parametrize("factory", ACCUMULATORS)
@pytest.mark.parametrize("accumulator", [jnp.float32, "bfloat16"], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_accumulator_type_changes_the_state_and_not_the_updates(
    factory, accumulator, dtype, rng
):
    option = {ACCUMULATORS[factory]: accumulator}
    tx = getattr(optax_clip, factory)(0.1, fraction=0.3, **option)
    params = draw_tree(rng, dtype)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert {u.dtype.name for u in updates.values()} == {dtype}
    assert avals(after) == avals(state)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (4, 6)]
    assert moments[0].dtype == jnp.dtype(accumulator)


# 6. optax.MultiSteps


@every_factory
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_multi_steps_can_wrap_it_in_every_type(name, dtype, rng):
    g = draw_tree(rng, dtype)
    tx = optax.MultiSteps(FACTORIES[name](), every_k_schedule=4)
    state = jax.eval_shape(tx.init, g)
    updates, after = jax.eval_shape(tx.update, g, state, g)
    assert {u.dtype.name for u in updates.values()} == {dtype}
    assert avals(after) == avals(state)


@core_factories
def test_in_multi_steps_every_second_update_is_that_of_the_mean(name, rng):
    grads, params = [draw_tree(rng) for _ in range(2)], draw_tree(rng)
    tx = optax.MultiSteps(FACTORIES[name](), every_k_schedule=2)
    history, _ = run(tx, grads, params, apply=False)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    (expected,), _ = stepper(name).follow([mean], params)
    assert not any(np.any(leaf) for leaf in history[0].values())
    assert_close(history[1], expected, ulps=100)


# 8. Abstract parameters (9, the explicit mesh, is in test_sharding.py)


@every_factory
def test_init_takes_shapes_instead_of_arrays(name, rng):
    tx, params = FACTORIES[name](), draw_tree(rng)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert avals(tx.init(shapes)) == avals(tx.init(params))


# Fraction zero is the plain Optax chain


def check_plain_law(name, dtype, rng):
    row = FACTORIES[name]
    with jax.enable_x64(dtype == "float64"):
        grads = [draw_tree(rng, dtype, scale=10.0**t) for t in range(-1, 2)]
        history, _ = run(row(fraction=0), grads, grads[0])
        expected, _ = run(row.plain(), grads, grads[0])
        for update, other in zip(history, expected, strict=True):
            assert_same_bits(update, jax.tree.map(lambda x: x.astype(dtype), other))


@pytest.mark.parametrize("name", CLIPPING)
def test_fraction_zero_is_plain_optax_bit_for_bit(name, rng):
    check_plain_law(name, "float32", rng)


@pytest.mark.parametrize("name", [name for name in CORE if name in CLIPPING])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_fraction_zero_is_plain_optax_in_other_types(name, dtype, rng):
    check_plain_law(name, dtype, rng)


@pytest.mark.parametrize(
    ("factory", "plain"),
    [
        (optax_clip.clipped_adam, optax.adam),
        (
            lambda lr, **kw: optax_clip.clipped_adafactor(lr, **kw),
            lambda lr: optax.adafactor(lr, **ADAFACTOR),
        ),
    ],
    ids=["adam", "adafactor"],
)
def test_the_plain_law_holds_under_a_learning_rate_schedule(factory, plain, rng):
    schedule = optax.exponential_decay(0.1, 2, 0.5)
    grads = [draw_tree(rng) for _ in range(4)]
    history, _ = run(factory(schedule, fraction=0), grads, grads[0])
    expected, _ = run(plain(schedule), grads, grads[0])
    assert_same_bits(history, expected)


def test_the_relative_step_is_that_of_the_paper():
    options = {"multiply_by_parameter_scale": False}
    tx = optax_clip.clipped_adafactor(fraction=0, **options)
    plain = optax.adafactor(relative_step, **options, **ADAFACTOR)
    params = {"a": jnp.full(3, 0.5)}

    def first_update(tx, count):
        state = tx.init(params)
        counted = jax.tree.map(
            lambda x: count if x.dtype == jnp.int32 else x + 0.1, state
        )
        return tx.update(params, counted, params)[0]["a"]

    counts = jnp.array([0, 1, 9, 99, 9_998, 9_999, 10_000, 40_000, 10**6])
    ours = jax.jit(jax.vmap(functools.partial(first_update, tx)))(counts)
    theirs = jax.jit(jax.vmap(functools.partial(first_update, plain)))(counts)
    assert_close(ours, theirs, ulps=4)


# Zeros, NaNs, infinities, holes


@every_factory
def test_zero_gradients_give_zero_updates_and_later_ones_stay_finite(name, rng):
    g = draw_tree(rng)
    zeros = jax.tree.map(jnp.zeros_like, g)
    history, state = stepper(name).follow([zeros, zeros, g, zeros, zeros], g)
    assert_finite((history, state))
    if "weight_decay" not in FACTORIES[name].kwargs:
        for update in history[:2]:
            assert not any(np.any(leaf) for leaf in update.values())


@core_factories
def test_zero_gradients_give_zero_updates_in_bfloat16(name, rng):
    params = draw_tree(rng, "bfloat16")
    zeros = jax.tree.map(jnp.zeros_like, params)
    (update,), state = stepper(name).follow([zeros], params)
    assert_finite(state)
    assert not any(np.any(leaf) for leaf in update.values())


@every_factory
@pytest.mark.usefixtures("makes_nan")
def test_a_nan_never_leaves_its_own_leaf(name, rng):
    g = draw_tree(rng)
    bad = {**g, "kernel": g["kernel"].at[1, 2].set(jnp.nan)}
    history, _ = stepper(name).follow([bad, g], g)
    for update in history:
        assert_finite({k: v for k, v in update.items() if k != "kernel"})
    assert np.isnan(history[0]["kernel"][1, 2])
    if FACTORIES[name].elementwise:
        assert np.isnan(history[0]["kernel"]).sum() == 1


@pytest.mark.parametrize("name", [n for n, r in FACTORIES.items() if r.survives_inf])
def test_an_infinite_coordinate_is_clipped_to_a_finite_update(name, rng):
    g = draw_tree(rng)
    bad = {**g, "kernel": g["kernel"].at[1, 2].set(-jnp.inf)}
    (update,), _ = stepper(name).follow([bad], g)
    assert_finite(update)


@every_factory
@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=["None", "masked"])
def test_holes_in_the_tree_stay_holes(name, hole, rng):
    tx, g = FACTORIES[name](), {**draw_tree(rng), "hole": hole}
    state = jax.eval_shape(tx.init, g)
    updates, after = jax.eval_shape(tx.update, g, state, g)
    assert jax.tree.structure(updates) == jax.tree.structure(g)
    assert avals(after) == avals(state)


@every_factory
@pytest.mark.parametrize("tree", [{}, {"a": None}], ids=["empty", "only None"])
def test_an_empty_tree_is_no_reason_to_fail(name, tree):
    tx = FACTORIES[name]()
    updates, state = tx.update(tree, tx.init(tree), tree)
    assert updates == tree
    assert_finite(state)


@core_factories
@pytest.mark.usefixtures("makes_nan")
def test_an_empty_leaf_changes_nothing_else(name, rng):
    tx, g = FACTORIES[name](), draw_tree(rng)
    holed = {**g, "empty": jnp.zeros((0, 3))}
    updates, state = jax.jit(tx.update)(holed, tx.init(holed), holed)
    assert updates.pop("empty").shape == (0, 3)
    (expected,), _ = stepper(name).follow([g], g)
    assert_close(updates, expected, ulps=32)
    if name in CLIPPING:
        assert_finite(optax_clip.clip_metrics(state))


# Other wrappers and containers


def wrapped(tx, kind, params):
    """The transformation under one of Optax's wrappers, for a tree of that kind."""
    if kind == "masked":
        return optax.masked(tx, {k: k != "bias" for k in params})
    if kind == "partition":
        labels = {k: "left" if k == "bias" else "right" for k in params}
        return optax.partition({"left": tx, "right": tx}, labels)
    if kind == "apply_if_finite":
        return optax.apply_if_finite(tx, 3)
    if kind == "conditionally_transform":
        return optax.conditionally_transform(tx, lambda count, **_: count % 2 == 0)
    return optax.chain(optax.clip_by_global_norm(1.0), tx, optax.ema(0.9))


@every_factory
@pytest.mark.parametrize(
    "kind",
    ["masked", "partition", "apply_if_finite", "conditionally_transform", "chain"],
)
def test_the_state_is_stable_under_optax_wrappers(name, kind, rng):
    params = draw_tree(rng)
    tx = wrapped(FACTORIES[name](), kind, params)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert avals(updates) == avals(jax.eval_shape(lambda x: x, params))
    assert avals(after) == avals(state)


@every_factory
def test_nested_containers_as_linen_has_them_work(name, rng):
    flat = draw_tree(rng)
    dense = {"kernel": flat["kernel"], "bias": flat["bias"]}
    nested = ({"params": {"Dense_0": dense}}, [flat["scale"]])
    tx = FACTORIES[name]()
    state = jax.eval_shape(tx.init, nested)
    updates, after = jax.eval_shape(tx.update, nested, state, nested)
    assert avals(updates) == avals(jax.eval_shape(lambda x: x, nested))
    assert avals(after) == avals(state)


@core_factories
def test_flax_nnx_states_work(name):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    tx = FACTORIES[name]()
    grads = jax.tree.map(
        lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert avals(state) == avals(tx.init(params))
    plain = {"bias": grads["bias"].get_value(), "kernel": grads["kernel"].get_value()}
    old = {"bias": params["bias"].get_value(), "kernel": params["kernel"].get_value()}
    expected, _ = jax.jit(tx.update)(plain, tx.init(old), old)
    for k, update in expected.items():
        assert_close(updates[k].get_value(), update, ulps=32)


# Refusals common to all


BAD_FRACTIONS = [-0.1, 1.0, 1, 1.5, float("nan"), float("inf"), np.float32(1)]


@pytest.mark.parametrize("fraction", BAD_FRACTIONS, ids=str)
@pytest.mark.parametrize("name", CLIPPING)
def test_a_fraction_outside_zero_to_one_is_refused_with_a_way_out(name, fraction):
    with pytest.raises(ValueError, match=r"optax\.scale_by_sign") as error:
        FACTORIES[name](fraction=fraction)
    assert str(fraction) in str(error.value)


@pytest.mark.parametrize("name", [n for n, r in FACTORIES.items() if r.needs_params])
def test_missing_params_are_refused_where_they_are_needed(name, rng):
    tx, g = FACTORIES[name](), draw_tree(rng)
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(tx.update, g, jax.eval_shape(tx.init, g))


@pytest.mark.parametrize(
    "name", [n for n, r in FACTORIES.items() if not r.needs_params]
)
def test_params_are_not_asked_for_where_they_are_not_needed(name, rng):
    tx, g = FACTORIES[name](), draw_tree(rng)
    state = jax.eval_shape(tx.init, g)
    assert jax.eval_shape(tx.update, g, state)[1] == state
