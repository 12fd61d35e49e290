"""Modes that cannot differentiate a loss name those that can, and these do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from . import problems
from .everything import WITH_HESSIAN, WITH_LOSS, close
from .problems import waves

pytestmark = pytest.mark.usefixtures("strict")


@jax.custom_vjp
def opaque(y):
    """The sine of y, whose derivative is computed outside of jax."""
    return jnp.sin(y)


def forward(y):
    return opaque(y), y


def backward(y, cotangent):
    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    slope = jax.pure_callback(np.cos, shape, y, vmap_method="sequential")
    return (cotangent * slope,)


opaque.defvjp(forward, backward)


def loss(x, batch):
    return waves({"w": opaque(x["w"]), "b": x["b"]}, batch)


def transparent(x, batch):
    return waves({"w": jnp.sin(x["w"]), "b": x["b"]}, batch)


def named_modes(message):
    return re.findall(r"'(\w+)'", message.split("these modes work:")[1])


@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
@pytest.mark.parametrize("name", WITH_HESSIAN)
def test_what_can_be_differentiated_once_is_told_to_take_differences(rng, name, mode):
    problem = problems.draw_waves(rng)
    with pytest.raises(TypeError, match=rf"mode '{mode}'") as raised:
        WITH_HESSIAN[name](loss, *problem, mode=mode)
    assert named_modes(str(raised.value)) == ["finite_difference"]
    got = WITH_HESSIAN[name](loss, *problem, mode="finite_difference")
    close(got, WITH_HESSIAN[name](transparent, *problem), 0.05)


def test_the_table_says_so_too(rng):
    problem = problems.draw_waves(rng)
    with pytest.raises(TypeError, match=r"jax.jvp.*custom_vjp of opaque") as raised:
        WITH_LOSS["table"](loss, *problem)
    (mode,) = named_modes(str(raised.value))
    got = WITH_LOSS["table"](loss, *problem, mode=mode)["u"]
    wanted = WITH_LOSS["table"](transparent, *problem)["u"]
    np.testing.assert_allclose(got.sharpness, wanted.sharpness, rtol=1e-2)


def test_the_same_is_said_inside_of_jit(rng):
    problem = problems.draw_waves(rng)
    measure = jax.jit(lambda *problem: WITH_HESSIAN["sharpness"](loss, *problem))
    # There, jax finds out only when the whole program is lowered.
    with pytest.raises(TypeError, match="custom_vjp"):
        measure(*problem)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_mistakes_in_the_loss_are_reported_as_they_are(rng, name):
    def wrong(x, batch):
        return waves(x, batch) + x["missing"]

    with pytest.raises(KeyError, match="missing"):
        WITH_LOSS[name](wrong, *problems.draw_waves(rng))
