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

STEPS = 60
RATES = [0.3, 1.0, 3.0]

# %%
# Three optimizers
# ----------------
# A transformation of this package takes its place in an :func:`optax.chain` like any
# other. The learning rate stands alone at the end, so that one compiled program serves
# them all.

clip = optax_clip.clip_top_k_coordinates(fraction=0.05)
momentum = optax.trace(decay=0.9)
directions = {
    "SGD": momentum,
    "clip, then momentum": optax.chain(clip, momentum),
    "momentum, then clip": optax.chain(momentum, clip),
}

# %%
# Three learning rates, one program
# ---------------------------------
# A training run is a pure function of its learning rate, so a sweep is a map over it.


def final_loss(rate, direction):
    optimizer = optax.chain(direction, optax.scale(-rate))

    def step(carry, i):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch_at(i))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = init_params()
    start = params, optimizer.init(params)
    _, losses = jax.lax.scan(step, start, jnp.arange(STEPS))
    return losses[-20:].mean()


results = {}
for name, direction in directions.items():
    sweep = jax.jit(
        lambda rates, d=direction: jax.lax.map(lambda r: final_loss(r, d), rates)
    )
    results[name] = np.asarray(sweep(jnp.array(RATES)))
    best = np.nanargmin(results[name])
    print(f"{name:20} best loss {results[name][best]:.3f} at rate {RATES[best]}")

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
styles = zip(("o-", "s-", "^--"), ("0.4", "C0", "C1"), strict=True)
for (name, losses), (style, color) in zip(results.items(), styles, strict=True):
    ax.plot(RATES, losses, style, label=name, color=color)
ax.set(xscale="log", xlabel="learning rate", ylabel="loss of the last 20 steps")
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
heavy_ball = optax.chain(clip, optax.sgd(0.1, momentum=0.9))
for optimizer in (ours, heavy_ball):
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params))
    print([f"{x:.6f}" for x in updates["head"][0, :3]])
