"""
Clip before momentum
====================

Clipping costs SGD nothing but a threshold, and it goes where the gradient comes in.
This page trains one model at several learning rates: without a clip, with a clip before
momentum, and with a clip after it.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tiny_model import batch_at, init_params, loss

import optax_clip

STEPS = 25
RATES = [0.3, 1.0, 3.0]

# %%
# Three optimizers, one program
# -----------------------------
# A fraction of 0 clips nothing. Numbers like the fraction and the learning rate may be
# traced, so one compiled program, with room for a clip on either side of the momentum,
# serves every optimizer at every rate.

FRACTIONS = {  # before momentum, after it
    "SGD": (0.0, 0.0),
    "clip, then momentum": (0.05, 0.0),
    "momentum, then clip": (0.0, 0.05),
}


def final_loss(before, after, rate):
    optimizer = optax.chain(
        optax_clip.clip_top_k_coordinates(before),
        optax.trace(decay=0.9),
        optax_clip.clip_top_k_coordinates(after),
        optax.scale(-rate),
    )

    def step(carry, i):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch_at(i))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = init_params()
    start = params, optimizer.init(params)
    _, losses = jax.lax.scan(step, start, jnp.arange(STEPS))
    return losses[-10:].mean()


# %%
# Nine runs: every optimizer at every rate.

runs = jnp.array([(*f, rate) for f in FRACTIONS.values() for rate in RATES])
losses = jax.jit(lambda runs: jax.lax.map(lambda run: final_loss(*run), runs))(runs)
results = dict(zip(FRACTIONS, np.reshape(losses, (-1, len(RATES))), strict=True))
for name, of_rates in results.items():
    print(
        name.ljust(20),
        *(f"{rate:g}: {x:.3f} " for rate, x in zip(RATES, of_rates, strict=True)),
    )

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
styles = zip(("o-", "s-", "^--"), ("0.4", "C0", "C1"), strict=True)
for (name, of_rates), (style, color) in zip(results.items(), styles, strict=True):
    ax.plot(RATES, of_rates, style, label=name, color=color)
ax.set(xscale="log", xlabel="learning rate", ylabel="loss of the last 10 steps")
ax.set_title("With a clip, a larger learning rate still trains")
ax.legend()

# %%
# SGD's curve ends where its loss is not a number any more. At small rates the clip
# costs a little. It helps because it allows larger rates: *raise the learning rate when
# you clip*. This is one small model with one seed; with another momentum, model or
# fraction the best rate is another one, so sweep it.
#
# The place of the clip hardly matters here. The paper clips the gradient, and so does
# this package: what is large in one batch never gets into the momentum, and the clip's
# fraction keeps its meaning whatever the momentum is.
#
# The two in one line
# -------------------
# ``clipped_sgd`` is the clip, a moving average and the learning rate. Its ``decay`` is
# that of a moving average, as in :func:`optax.ema`. The heavy ball of :func:`optax.sgd`
# makes the same steps with :math:`1 - \beta` times the learning rate:

params = init_params()
gradient = jax.jit(jax.grad(loss))(params, batch_at(0))
ours = optax_clip.clipped_sgd(1.0, fraction=0.05, decay=0.9)
heavy_ball = optax.chain(
    optax_clip.clip_top_k_coordinates(0.05), optax.sgd(0.1, momentum=0.9)
)
for optimizer in (ours, heavy_ball):
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params))
    print([f"{x:.6f}" for x in updates["head"][0, :3]])
