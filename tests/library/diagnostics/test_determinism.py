"""The check that a loss is the same twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics

from . import problems
from .problems import waves

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.usefixtures("makes_nan")
def test_a_deterministic_loss_passes_even_where_it_is_not_a_number(rng):
    x, _, batch = problems.draw_waves(rng)
    diagnostics.check_deterministic(waves, x, batch)
    diagnostics.check_deterministic(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(3))


def test_dropout_left_on_is_found_in_loss_or_gradient(rng):
    def noisy(x):
        return jnp.sum(x["w"] * rng.binomial(1, 0.5, 64).astype(np.float32)) + jnp.sum(
            x["b"]
        )

    def noisy_gradient(x):
        noise = rng.normal()
        return jnp.sum(noise * (x["w"] - jax.lax.stop_gradient(x["w"]))) + 1.0

    x = {"w": jnp.ones(64), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"two evaluations the loss differs.*dropout"):
        diagnostics.check_deterministic(noisy, x)
    with pytest.raises(ValueError, match="its gradient at w differs"):
        diagnostics.check_deterministic(noisy_gradient, x)
    diagnostics.check_deterministic(noisy_gradient, x, tolerance=1e6)
    steps = {**x, "steps": jnp.arange(2)}
    diagnostics.check_deterministic(noisy_gradient, steps, where=lambda p: p == "b")
    with pytest.raises(ValueError, match="its gradient at w differs"):
        diagnostics.check_deterministic(noisy_gradient, steps, where=lambda p: p == "w")


def test_dropout_and_batch_statistics_of_flax_nnx_are_explained():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.norm(self.linear(x)))

    net, x = Net(nnx.Rngs(0)), jnp.eye(3)
    still = nnx.view(net, deterministic=True, use_running_average=True)
    graph, params, rest = nnx.split(still, nnx.Param, ...)

    def loss(params):
        return (nnx.merge(graph, params, rest)(x) ** 2).sum()

    diagnostics.check_deterministic(loss, params)
    drawn = iter(range(100))

    def with_dropout(params):
        key = jax.random.fold_in(jax.random.key(0), next(drawn))
        y = nnx.merge(graph, params, rest).linear(x)
        return (net.dropout(y, rngs=nnx.Rngs(dropout=key)) ** 2).sum()

    with pytest.raises(ValueError, match=r"Is dropout on.* nnx\.view\(model, determin"):
        diagnostics.check_deterministic(with_dropout, params)
