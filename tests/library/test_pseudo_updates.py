"""Shadow optimizers on one gradient stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clip

from ..helpers import (
    assert_close,
    assert_same_bits,
    avals,
    compilations,
    draw_tree,
    run,
)
from . import reference
from .factories import update_clipped_adam

pytestmark = pytest.mark.usefixtures("strict")

SHADOWS = {
    "SGD, 5 % clipped": optax_clip.clipped_sgd(1.0, fraction=0.05),
    "NSGD": optax_clip.clipped_normalized_sgd(1.0, fraction=0),
    "Adam, update clipped": update_clipped_adam(1.0, fraction=0.5),
    "Adafactor": optax_clip.clipped_adafactor(None, fraction=0.05),
    "SignSGD": optax.chain(
        optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale(-1.0)
    ),
}
PLAIN = {  # quick to compile
    "Adam": optax.adam(1.0),
    "SGD": optax.sgd(1.0, momentum=0.9),
    "Adafactor": optax.adafactor(1.0),
}


def stream(rng, steps=4):
    """Parameters that move along a path of their own, and the gradients there."""
    params = [draw_tree(rng, scale=0.3) for _ in range(steps)]
    return params, [draw_tree(rng) for _ in range(steps)]


def follow(tx, params, grads, jit=True):
    """The output and the state after each update on a given path."""
    update = jax.jit(tx.update) if jit else tx.update
    state, states, outputs = tx.init(params[0]), [], []
    for p, g in zip(params, grads, strict=True):
        output, state = update(g, state, p)
        states.append(state)
        outputs.append(output)
    return outputs, states


@pytest.fixture(scope="module")
def watched():
    """A path, its gradients, and what the observer of all shadows put out and kept."""
    params, grads = stream(np.random.default_rng(7))
    outputs, states = follow(optax_clip.pseudo_updates(SHADOWS), params, grads)
    return params, grads, outputs, states


@pytest.mark.parametrize("name", SHADOWS)
def test_each_direction_is_that_of_the_optimizer_run_alone(name, watched):
    params, grads, _, states = watched
    alone, _ = follow(SHADOWS[name], params, grads)
    for state, update in zip(states, alone, strict=True):
        assert_close(state.updates[name], update, ulps=16)


def test_without_jit_the_directions_agree_to_the_bit(rng):
    params, grads = stream(rng, steps=3)
    _, states = follow(optax_clip.pseudo_updates(PLAIN), params, grads, jit=False)
    for name, tx in PLAIN.items():
        alone, _ = follow(tx, params, grads, jit=False)
        for state, update in zip(states, alone, strict=True):
            assert_same_bits(state.updates[name], update)


def test_the_incoming_updates_pass_through_unchanged(watched):
    _, grads, outputs, _ = watched
    assert_same_bits(outputs, grads)


def test_the_real_trajectory_does_not_notice_the_observer(rng):
    _, grads = stream(rng)
    real = optax.adam(0.1)
    history, _ = run(
        optax.chain(optax_clip.pseudo_updates(PLAIN), real), grads, grads[0]
    )
    expected, _ = run(real, grads, grads[0])
    assert_close(history, expected, ulps=16)


def test_shadows_see_the_parameters_of_the_real_trajectory(rng):
    _, grads = stream(rng)
    decay = optax.add_decayed_weights(1.0)
    tx = optax.chain(
        optax_clip.pseudo_updates({"decay": decay}), optax.scale_by_learning_rate(0.1)
    )
    history, state = run(tx, grads, grads[0])
    before_last = jax.tree.map(lambda p, *u: p + sum(u), grads[0], *history[:-1])
    expected = jax.tree.map(lambda g, p: g + p, grads[-1], before_last)
    assert_close(state[0].updates["decay"], expected)


def test_the_directions_are_those_of_the_papers_protocol(watched):
    _, grads, _, states = watched
    wide = [{k: np.asarray(v, np.float64) for k, v in g.items()} for g in grads]
    twins = {
        "SGD, 5 % clipped": (reference.sgd(wide, 1.0, 0.05), 8),
        "NSGD": (reference.normalized_sgd(wide, 1.0, 0), 32),
        "Adam, update clipped": (
            reference.adam(wide, 1.0, 0.5, clipped="update"),
            1000,
        ),
        "SignSGD": (reference.sign_sgd(wide, 1.0), 0),
    }
    for name, (twin, ulps) in twins.items():
        for state, update in zip(states, twin, strict=True):
            assert_close(state.updates[name], update, ulps=ulps)


def test_labels_may_be_any_text_and_keep_their_meaning(rng):
    params, grads = stream(rng, steps=1)
    shadows = {
        "b/1.x [%]": optax.scale(2.0),
        "": optax.scale(3.0),
        "é 5 %": optax.scale(4.0),
        "A": optax.scale(5.0),
    }
    _, (state,) = follow(optax_clip.pseudo_updates(shadows), params, grads)
    assert set(state.updates) == set(shadows)
    for factor, name in zip((2.0, 3.0, 4.0, 5.0), shadows, strict=True):
        expected = jax.tree.map(lambda g, f=factor: f * g, grads[0])
        assert_same_bits(state.updates[name], expected)


def test_before_the_first_update_every_direction_is_zero(rng):
    params, _ = stream(rng, steps=1)
    state = optax_clip.pseudo_updates(SHADOWS).init(params[0])
    assert set(state.updates) == set(state.states) == set(SHADOWS)
    for updates in state.updates.values():
        assert_same_bits(updates, jax.tree.map(jnp.zeros_like, params[0]))


def test_the_state_is_constant_under_scan_and_compiles_once(rng):
    params, grads = stream(rng)
    tx = optax_clip.pseudo_updates(PLAIN)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)

    @jax.jit
    def scan(stacked, params):
        def step(state, g):
            _, state = tx.update(g, state, params)
            return state, state.updates

        return jax.lax.scan(step, tx.init(params), stacked)

    state, history = scan(stacked, params[0])
    assert avals(state) == avals(tx.init(params[0]))
    with compilations() as compiled:
        scan(stacked, params[0])
    assert not compiled
    _, states = follow(tx, [params[0]] * len(grads), grads)
    for t, expected in enumerate(states):
        got = jax.tree.map(lambda x, t=t: x[t], history)
        for name in PLAIN:
            assert_close(got[name], expected.updates[name], ulps=32)


def moving(rng, shadows, steps=3):
    """A chain that trains, its state after some steps, the gradient and parameters."""
    params, grads = stream(rng, steps=steps)
    optimizer = optax.chain(optax_clip.pseudo_updates(shadows), optax.sgd(0.1))
    _, states = follow(optimizer, params[:-1], grads[:-1])
    return optimizer, grads[-1], states[-1], params[-1]


def test_pseudo_updates_at_the_parameters_are_those_of_the_step_from_there(rng):
    optimizer, gradient, state, params = moving(rng, PLAIN)
    found = jax.jit(functools.partial(optax_clip.pseudo_updates_at, optimizer))(
        gradient, state, params
    )
    _, after = jax.jit(optimizer.update)(gradient, state, params)
    assert_close(found, after[0].updates)
    assert_same_bits(optax_clip.pseudo_updates_of(after), after[0].updates)


def test_pseudo_updates_start_from_the_states_of_a_checkpoint(rng):
    params, grads = stream(rng)
    pseudo = optax_clip.pseudo_updates(PLAIN)
    trained = {}
    for name, tx in PLAIN.items():
        _, (*_, trained[name]) = follow(tx, params[:-1], grads[:-1])
    state = pseudo.init(params[-1])._replace(states=trained)
    found = optax_clip.pseudo_updates_at(pseudo, grads[-1], state, params[-1])
    _, (*_, alone) = follow(pseudo, params, grads)
    assert_close(found, alone.updates)


@pytest.mark.usefixtures("makes_nan")  # the flag keeps what is donated
def test_donated_steps_leave_the_pseudo_updates_alone(rng):
    twins = PLAIN | {"twin": PLAIN["SGD"], "gradient": optax.identity()}
    optimizer, gradient, state, params = moving(rng, twins)
    at = jax.jit(functools.partial(optax_clip.pseudo_updates_at, optimizer))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        inside = optax.tree.norm(optax_clip.pseudo_updates_of(state))
        return optax.apply_updates(params, updates), state, inside

    for _ in range(3):
        before = at(gradient, state, params)
        given = params
        params, state, inside = train_step(params, state, gradient)
        assert all(x.is_deleted() for x in jax.tree.leaves(given))
        assert_close(optax.tree.norm(before), inside)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
        lambda tx: optax.named_chain(("optimizer", tx)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(optax.identity(), tx),
    ],
)
def test_pseudo_updates_are_found_under_wrappers(rng, wrap):
    optimizer, gradient, _, params = moving(rng, {"SGD": optax.sgd(2.0)}, steps=2)
    optimizer = wrap(optimizer)
    at = jax.jit(functools.partial(optax_clip.pseudo_updates_at, optimizer))
    found = at(gradient, optimizer.init(params), params)
    assert_close(found, {"SGD": jax.tree.map(lambda g: -2 * g, gradient)})


def test_pseudo_updates_of_a_flax_nnx_optimizer_are_values_at_its_parameters():
    nnx = pytest.importorskip("flax.nnx")
    model, x = nnx.Linear(4, 1, rngs=nnx.Rngs(0)), jnp.ones((2, 4))
    pseudo = optax_clip.pseudo_updates({"SGD": optax.sgd(3.0)})
    optimizer = nnx.Optimizer(model, optax.chain(pseudo, optax.sgd(0.1)), wrt=nnx.Param)
    graph, params = nnx.split(model)

    def loss(params):
        return (nnx.merge(graph, params)(x) ** 2).sum()

    gradient = jax.grad(loss)(params)
    ahead = optax_clip.pseudo_updates_at(
        optimizer.tx, gradient, optimizer.opt_state, nnx.state(model)
    )
    measured = optax_clip.diagnostics.directional_derivatives(loss, params, ahead)
    assert measured["SGD"].slope < 0
    optimizer.update(model, gradient)  # which moves `params`, too
    expected = jax.tree.map(lambda g: -3.0 * g, nnx.to_pure_dict(gradient))
    state = nnx.state(optimizer)
    states = [optimizer.opt_state, state, nnx.to_pure_dict(state)]
    for found in (ahead, *map(optax_clip.pseudo_updates_of, states)):
        assert_close(jax.tree.leaves(found["SGD"]), jax.tree.leaves(expected))


def test_a_state_without_pseudo_updates_is_said_so():
    with pytest.raises(ValueError, match="pseudo_updates in it; there are none"):
        optax_clip.pseudo_updates_of(optax.adam(1.0).init(jnp.ones(3)))


def test_two_pseudo_updates_of_one_name_are_refused():
    pseudo = optax_clip.pseudo_updates({"SGD": optax.sgd(1.0)})
    state = optax.chain(pseudo, pseudo).init(jnp.ones(3))
    with pytest.raises(ValueError, match=r"every name once .* \{'SGD'\} are there"):
        optax_clip.pseudo_updates_of(state)


def test_no_shadows_are_refused():
    with pytest.raises(ValueError, match="optimizers"):
        optax_clip.pseudo_updates({})


def test_extra_arguments_reach_the_shadows_that_take_them(rng):
    params, grads = stream(rng, steps=1)

    def update(updates, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda u: value * u, updates), state

    by_value = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = optax_clip.pseudo_updates({"value": by_value, "sgd": optax.sgd(1.0)})
    _, state = tx.update(grads[0], tx.init(params[0]), params[0], value=3.0)
    expected = jax.tree.map(lambda g: 3.0 * g, grads[0])
    assert_same_bits(state.updates["value"], expected)


def test_something_that_is_no_transformation_is_refused_by_name():
    with pytest.raises(TypeError, match="Adam"):
        optax_clip.pseudo_updates({"Adam": optax.adam})


def test_a_missing_parameter_tree_is_refused_when_a_shadow_needs_it(rng):
    _, grads = stream(rng, steps=1)
    tx = optax_clip.pseudo_updates({"Adafactor": optax_clip.clipped_adafactor()})
    with pytest.raises(ValueError, match="params"):
        tx.update(grads[0], tx.init(grads[0]))


def test_what_has_no_gradient_has_no_update():
    """Integers have gradients of float0, which masked optimizers hand through."""
    params = {"base": jnp.ones(3, jnp.int8), "w": jnp.ones(3)}

    def loss(p):
        return jnp.sum(p["base"].astype(float) * p["w"] ** 2)

    g = jax.grad(loss, allow_int=True)(params)
    masked = optax.masked(optax.sgd(1.0), {"base": False, "w": True})
    tx = optax_clip.pseudo_updates({"SGD": masked})
    _, state = tx.update(g, tx.init(params), params)
    expected = {"base": jnp.zeros(3, jnp.int8), "w": jnp.full(3, -2.0)}
    assert_same_bits(state.updates["SGD"], expected)
