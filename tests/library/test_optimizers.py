"""Every optimizer against its NumPy twin, over several steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clip

from ..helpers import assert_close, assert_same_bits, draw_tree, run
from . import reference
from .factories import ADAFACTOR, update_clipped_adam

pytestmark = pytest.mark.usefixtures("strict")

STEPS = 6
SHAPES = {"kernel": (4, 6), "bias": (5,), "column": (7, 1), "row": (1, 3), "scale": ()}


def problem(dtype, seed=0):
    """Parameters and a few gradients whose scale changes from step to step."""
    rng = np.random.default_rng(seed)
    params = draw_tree(rng, dtype, SHAPES, scale=0.3)
    grads = [draw_tree(rng, dtype, SHAPES, scale=2.0**-t) for t in range(STEPS)]
    return params, grads


def wide(tree):
    """The tree in float64 NumPy."""
    return {k: np.asarray(v, np.float64) for k, v in tree.items()}


# name: (factory, reference, roundings allowed). Adam divides by 1 - 0.999^t, which in
# float32 is off by up to eps / 1e-3.
TWINS = {
    "sgd": (optax_clip.clipped_sgd, reference.sgd, 8),
    "normalized sgd": (optax_clip.clipped_normalized_sgd, reference.normalized_sgd, 32),
    "adam, gradient": (optax_clip.clipped_adam, reference.adam, 1000),
    "adam, update": (
        update_clipped_adam,
        functools.partial(reference.adam, clipped="update"),
        1000,
    ),
    "lion": (optax_clip.clipped_lion, reference.lion, 8),
}
every_twin = pytest.mark.parametrize("name", TWINS)


@functools.cache
def stepper(name, dtype, scope="global"):
    """A compiled step at a learning rate of 0.1 whose fraction is an argument."""
    del dtype  # for the cache: x64 changes what is traced
    factory, _, _ = TWINS[name]
    init = factory(0.1, fraction=0.5, scope=scope).init

    @jax.jit
    def step(fraction, g, state, params):
        updates, state = factory(0.1, fraction=fraction, scope=scope).update(
            g, state, params
        )
        return updates, state, optax.apply_updates(params, updates)

    def follow(fraction, grads, params):
        state, history = init(params), []
        for g in grads:
            updates, state, params = step(fraction, g, state, params)
            history.append(updates)
        return history, state

    return follow


@every_twin
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.25, 0.5, 0.9])
def test_the_optimizer_equals_its_numpy_twin(name, fraction, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, grads = problem(dtype)
        history, _ = stepper(name, dtype)(jnp.asarray(fraction), grads, params)
    _, twin, ulps = TWINS[name]
    expected = twin([wide(g) for g in grads], 0.1, fraction)
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other, ulps=ulps)


@every_twin
def test_leaf_scope_equals_its_numpy_twin(name):
    params, grads = problem("float32")
    history, _ = stepper(name, "float32", "leaf")(jnp.float32(0.3), grads, params)
    _, twin, ulps = TWINS[name]
    expected = twin([wide(g) for g in grads], 0.1, 0.3, scope="leaf")
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other, ulps=ulps)


@pytest.mark.parametrize(
    ("learning_rate", "parameter_scale", "dtype", "scope"),
    [
        (None, True, "float32", "global"),
        (None, True, "float64", "global"),
        (0.3, True, "float64", "global"),
        (0.3, False, "float64", "global"),
        (None, False, "float64", "leaf"),
    ],
)
def test_adafactor_equals_its_numpy_twin(learning_rate, parameter_scale, dtype, scope):
    with jax.enable_x64(dtype == "float64"):
        params, grads = problem(dtype)
        tx = optax_clip.clipped_adafactor(
            learning_rate,
            fraction=0.25,
            multiply_by_parameter_scale=parameter_scale,
            scope=scope,
        )
        history, _ = run(tx, grads, params)
    expected = reference.adafactor(
        [wide(g) for g in grads],
        wide(params),
        learning_rate,
        0.25,
        parameter_scale,
        scope,
    )
    # float32 in both: Optax computes the decay 1 - t^-0.8 in it at any precision.
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other, "float32", ulps=32)


@pytest.mark.parametrize("name", ["sgd", "normalized sgd"])
@pytest.mark.parametrize("decay", [None, 0.0, 0.99])
def test_momentum_is_an_average_from_zero_and_can_be_left_out(name, decay, x64):
    factory, twin, ulps = TWINS[name]
    params, grads = problem("float64")
    history, state = run(factory(0.1, fraction=0.25, decay=decay), grads, params)
    expected = twin([wide(g) for g in grads], 0.1, 0.25, decay or 0.0)
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other, ulps=ulps)
    has_buffer = any(x.shape == SHAPES["kernel"] for x in jax.tree.leaves(state))
    assert has_buffer == bool(decay)


def test_the_papers_momentum_is_a_tenth_of_optax_momentum(x64):
    params, grads = problem("float64")
    history, _ = run(optax_clip.clipped_sgd(1.0, fraction=0), grads, params)
    expected, _ = run(optax.sgd(0.1, momentum=0.9), grads, params)
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other)


def test_sgd_is_clipped_before_momentum_and_not_after(x64):
    params, grads = problem("float64")
    history, _ = run(optax_clip.clipped_sgd(1.0, fraction=0.25), grads, params)
    after = optax.chain(
        optax.ema(0.9, debias=False),
        optax_clip.clip_top_k_coordinates(0.25),
        optax.scale(-1.0),
    )
    other, _ = run(after, grads, params)
    assert np.abs(history[-1]["kernel"] - other[-1]["kernel"]).max() > 1e-3


def test_fraction_near_one_turns_sgd_into_sign_sgd(rng, x64):
    g = draw_tree(rng, "float64")
    (update,), state = run(
        optax_clip.clipped_sgd(1.0, fraction=0.999, decay=None), [g], g
    )
    smallest = min(float(jnp.abs(v).min()) for v in g.values())
    (signs,) = reference.sign_sgd([wide(g)], smallest, momentum=0.0)
    assert_close(update, signs)
    assert float(optax_clip.clip_metrics(state)["threshold"]) == smallest


@pytest.mark.optimised  # else the momentum is computed twice, and rounded otherwise
def test_fraction_near_one_turns_lion_into_lion(x64):
    params, grads = problem("float64")
    history, _ = run(optax_clip.clipped_lion(1.0, fraction=0.999), grads, params)
    expected, _ = run(optax.lion(1.0, weight_decay=0.0), grads, params)
    for update, other in zip(history, expected, strict=True):
        magnitudes = [np.ravel(np.abs(v)) for v in update.values()]
        assert np.ptp(np.concatenate(magnitudes)) == 0
        assert_same_bits(jax.tree.map(jnp.sign, update), other)


@every_twin
def test_a_learning_rate_schedule_starts_at_count_zero(name):
    factory, _, _ = TWINS[name]
    params, grads = problem("float32")
    schedule = optax.linear_schedule(0.0, 1.0, STEPS)
    history, _ = run(factory(schedule, fraction=0.25), grads, params)
    constant, _ = stepper(name, "float32")(jnp.float32(0.25), grads, params)
    for t, (update, other) in enumerate(zip(history, constant, strict=True)):
        scale = 10 * t / STEPS
        assert_close(update, jax.tree.map(lambda u, c=scale: u * c, other), ulps=64)
    assert not any(np.any(v) for v in history[0].values())


def test_adafactor_takes_a_schedule_in_place_of_its_relative_step():
    params, grads = problem("float32")
    tx = optax_clip.clipped_adafactor(lambda _: jnp.float32(1e-2), fraction=0.25)
    history, _ = run(tx, grads, params)
    # The relative step is 1e-2 until step 10,000.
    expected = reference.adafactor([wide(g) for g in grads], wide(params), None, 0.25)
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other, ulps=32)


def test_adafactor_keeps_no_momentum_and_factors_every_matrix():
    params = {"kernel": jnp.ones((40, 60)), "thin": jnp.ones((2, 50))}
    state = optax_clip.clipped_adafactor().init(params)
    sizes = sum(x.size for x in jax.tree.leaves(state))
    assert sizes < 40 + 60 + 2 + 50 + 30


@pytest.mark.parametrize("name", [name for name in TWINS if name != "adam, update"])
def test_weight_decay_is_decoupled_and_masked(name):
    factory, _, _ = TWINS[name]
    params, grads = problem("float32")
    mask = {k: k != "bias" for k in params}
    tx = factory(0.1, fraction=0.25, weight_decay=0.5, mask=mask)
    (update,), _ = run(tx, grads[:1], params)
    (bare,), _ = stepper(name, "float32")(jnp.float32(0.25), grads[:1], params)
    decay = {k: 0.1 * 0.5 * mask[k] for k in params}
    expected = {k: wide(bare)[k] - decay[k] * wide(params)[k] for k in params}
    assert_close(update, expected, ulps=64)


def test_adafactor_has_weight_decay_and_a_mask_too(rng):
    params, grads = problem("float32")
    mask = {k: k != "bias" for k in params}
    tx = optax_clip.clipped_adafactor(
        0.1, fraction=0.0, weight_decay_rate=0.5, weight_decay_mask=mask
    )
    plain = optax.adafactor(
        0.1, weight_decay_rate=0.5, weight_decay_mask=mask, **ADAFACTOR
    )
    assert_same_bits(run(tx, grads, params)[0], run(plain, grads, params)[0])


def test_a_callable_mask_is_a_mask():
    params, grads = problem("float32")
    masks = [
        {k: v.ndim == 2 for k, v in params.items()},
        lambda p: jax.tree.map(lambda v: v.ndim == 2, p),
    ]
    options = [{"weight_decay": 0.5, "mask": mask} for mask in masks]
    histories = [
        run(optax_clip.clipped_sgd(0.1, fraction=0.25, **o), grads, params)[0]
        for o in options
    ]
    assert_same_bits(*histories)


@pytest.mark.parametrize("name", ["adam, gradient"])
def test_adams_hyperparameters_reach_the_formula(name, x64):
    factory, twin, ulps = TWINS[name]
    params, grads = problem("float64")
    options = {"b1": 0.5, "b2": 0.8, "eps": 0.1}
    history, _ = run(factory(0.1, fraction=0.25, **options), grads, params)
    expected = twin([wide(g) for g in grads], 0.1, 0.25, **options)
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other, ulps=ulps)


def test_adams_eps_root_is_inside_the_root(x64):
    g = {"a": jnp.array([3.0, -4.0])}
    tx = optax_clip.clipped_adam(1.0, fraction=0.0, eps=0.0, eps_root=16.0)
    (update,), _ = run(tx, [g], g)
    assert_close(update, {"a": np.array([-3 / 5, 4 / np.sqrt(32)])})


def test_lions_hyperparameters_reach_the_formula(x64):
    params, grads = problem("float64")
    history, _ = run(
        optax_clip.clipped_lion(0.1, fraction=0.25, b1=0.5, b2=0.8), grads, params
    )
    expected = reference.lion([wide(g) for g in grads], 0.1, 0.25, b1=0.5, b2=0.8)
    for update, other in zip(history, expected, strict=True):
        assert_close(update, other)


def test_the_second_moment_of_gradient_clipped_adam_is_adams(rng):
    params, grads = problem("float32")
    _, state = run(
        optax_clip.clipped_adam(0.1, fraction=0.5), grads, params, apply=False
    )
    _, plain = run(optax.adam(0.1), grads, params, apply=False)
    assert_same_bits(optax.tree.get(state, "nu"), optax.tree.get(plain, "nu"))
