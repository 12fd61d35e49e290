"""Which coordinates carry slope and curvature, against dense Hessians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_clip import diagnostics
from optax_clip.diagnostics._problem import Problem

from . import problems
from .problems import tokens, transformer_loss, waves

pytestmark = pytest.mark.usefixtures("strict")


def test_block_splits_of_a_transformer_are_those_of_the_dense_hessian(rng, x64):
    x = problems.transformer_params(rng, jnp.float64)
    u, batch = problems.like(rng, x), problems.text(rng, dtype=jnp.float64)

    def block(path):
        return path.split("/")[0]

    split = functools.partial(
        diagnostics.split_sharpness, transformer_loss, blocks=block
    )
    parts = jax.jit(split)(x, u, batch)
    _, g, h = problems.dense(transformer_loss, x, batch)
    v = problems.flat(u) / np.linalg.norm(problems.flat(u))
    names = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.full(a.shape, sorted(x).index(path[0].key)), x
    )
    ids = np.asarray(ravel_pytree(names)[0])
    for b, name in enumerate(sorted(x)):
        vb = np.where(ids == b, v, 0)
        np.testing.assert_allclose(parts[name].norm, vb @ vb, rtol=1e-10)
        np.testing.assert_allclose(parts[name].slope, g @ vb, rtol=1e-9)
        np.testing.assert_allclose(parts[name].within, vb @ h @ vb, rtol=1e-9)
        for c, other in enumerate(sorted(x)):
            if other != name:
                vc = np.where(ids == c, v, 0)
                np.testing.assert_allclose(
                    parts[name].cross[other], vb @ h @ vc, rtol=1e-7, atol=1e-12
                )
    total = sum(p.within + sum(p.cross.values()) for p in parts.values())
    np.testing.assert_allclose(total, v @ h @ v, rtol=1e-9)


@pytest.mark.parametrize("mode", ["reverse_over_reverse", "finite_difference"])
@pytest.mark.parametrize("microbatches", [None, 4])
def test_other_modes_and_streams_split_alike(rng, x64, mode, microbatches):
    x, u, batch = problems.draw_waves(rng, jnp.float64)
    wanted = diagnostics.split_sharpness(waves, x, u, batch)
    got = diagnostics.split_sharpness(
        waves, x, u, batch, mode=mode, microbatches=microbatches, weight=tokens
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got, wanted)


def stacked(path):
    return diagnostics.Stacked(path) if path == "w" else path


def test_stacked_layers_are_blocks_of_their_own(rng):
    x, u, batch = problems.draw_waves(rng)

    parts = diagnostics.split_sharpness(waves, x, u, batch, blocks=stacked)
    assert set(parts) == {"b", "w/0", "w/1", "w/2", "w/3"}
    wanted = diagnostics.directional_derivatives(waves, x, u, batch)
    total = sum(p.within + sum(p.cross.values()) for p in parts.values())
    np.testing.assert_allclose(total, wanted.sharpness, rtol=1e-5)
    np.testing.assert_allclose(sum(p.norm for p in parts.values()), 1, rtol=1e-5)
    slope = sum(p.slope for p in parts.values())
    np.testing.assert_allclose(slope, wanted.slope, rtol=1e-5)


def test_the_program_of_a_split_does_not_grow_with_the_layers(monkeypatch):
    """A result for each pair of 64 layers took minutes to compile."""
    programs = []

    def spy(problem, measure, *inputs, **static):
        run = functools.partial(measure, **static)
        programs.append(jax.make_jaxpr(run)(problem, *inputs).jaxpr)
        return run(problem, *inputs)[1]

    monkeypatch.setattr(Problem, "run", spy)
    for layers in (4, 64):
        x = {"w": jnp.ones((layers, 3)), "b": jnp.ones(2)}
        parts = diagnostics.split_sharpness(
            lambda x: jnp.sum(x["w"] ** 3) * jnp.sum(x["b"]), x, x, blocks=stacked
        )
        assert len(parts) == layers + 1
        assert {len(part.cross) for part in parts.values()} == {layers}
    few, many = programs
    assert len(few.outvars) == len(many.outvars) == 4
    assert len(few.eqns) == len(many.eqns)


def test_masked_shares_are_those_of_the_dense_hessian(rng, x64):
    x, u, batch = problems.draw_waves(rng, jnp.float64)
    mask = diagnostics.top_coordinates(u, 0.2)
    m = diagnostics.masked_sharpness(waves, x, u, batch, mask=mask)
    _, g, h = problems.dense(waves, x, batch)
    v = problems.flat(u) / np.linalg.norm(problems.flat(u))
    t = np.where(problems.flat(mask), v, 0)
    r = v - t
    np.testing.assert_allclose(m.coordinates, 8 / 40)
    np.testing.assert_allclose(m.norm, t @ t)
    np.testing.assert_allclose(m.slope, [g @ t, g @ r])
    np.testing.assert_allclose(m.sharpness, [t @ h @ t, 2 * t @ h @ r, r @ h @ r])
    np.testing.assert_allclose(m.slope_fraction, g @ t / (g @ v))
    np.testing.assert_allclose(m.sharpness_fraction, 1 - r @ h @ r / (v @ h @ v))
    np.testing.assert_allclose(m.rest_sharpness, r @ h @ r / (r @ r))


def test_bad_input_is_named(rng):
    x, u, batch = problems.draw_waves(rng)

    def refuses(match, f, *args, error=ValueError, **options):
        with pytest.raises(error, match=match):
            f(waves, x, *args, **options)

    split, masked = diagnostics.split_sharpness, diagnostics.masked_sharpness
    refuses("hashable; got list for 'b'", split, u, batch, blocks=list, error=TypeError)
    refuses("mode must be one of", split, u, batch, mode="forward_over_forward")
    refuses("expected one direction", split, {"a": u, "b": u}, batch)
    refuses("mask must have the tree", masked, u, batch, mask=[jnp.array(True)])
    boolean = r"mask\['b'\] must be boolean.*got float32"
    refuses(boolean, masked, u, batch, mask=u, error=TypeError)
    small = {"w": jnp.ones(2, bool), "b": jnp.ones(8, bool)}
    refuses(r"mask\['w'\] must be .* shape \(4, 8\)", masked, u, batch, mask=small)
