r"""
Sharpness of your own model
===========================

How far can an optimizer go before the loss rises again? Along an update :math:`u`, a
loss first falls by its slope and then bends upwards by its *directional sharpness*
:math:`u^\top H u / \|u\|^2`, where :math:`H` is the Hessian. This page measures both
for three updates of a small transformer. To measure your own model, you need a function
``loss(params, batch)`` and the batch, and nothing else.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tiny_model import batch_at, init_params, loss

import optax_clip
from optax_clip import diagnostics

# %%
# Train for a moment
# ------------------
# At random weights a loss is not yet typical, so we take 50 steps of SGD. (In a
# notebook, compile whatever you call: operation by operation, JAX is slow.)


@jax.jit
def train(params):
    def step(i, params):
        gradient = jax.grad(loss)(params, batch_at(i))
        return optax.apply_updates(params, optax.tree.scale(-0.3, gradient))

    return jax.lax.fori_loop(0, 50, step, params)


params = train(init_params())

# %%
# Three directions
# ----------------
# Any tree like the parameters is a direction. Ours come from one batch; the loss will
# be that of another, larger one, since a gradient looks better on its own batch.

clip = optax_clip.clip_top_k_coordinates(fraction=0.05)


@jax.jit
def directions(params, batch):
    downhill = optax.tree.scale(-1, jax.grad(loss)(params, batch))
    clipped, _ = clip.update(downhill, clip.init(params))
    return {
        "gradient": downhill,
        "gradient, 5 % clipped": clipped,
        "its signs": jax.tree.map(jnp.sign, downhill),
    }


updates = directions(params, batch_at(1000))

# %%
# One call measures all of them, in one compiled loop.


@jax.jit
def measure(params, updates, batch):
    return diagnostics.directional_derivatives(loss, params, updates, batch)


batch = batch_at(2000, size=128)
measured = measure(params, updates, batch)

for name, d in measured.items():
    print(
        f"{name:22} slope {d.slope:5.2f}, sharpness {d.sharpness:4.2f}: "
        f"falls by {d.predicted_decrease:.3f} at {d.newton_step:.2f}"
    )

# %%
# The parabolas that these numbers describe:

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
s = np.linspace(0, 1.2, 100)
for (name, d), style in zip(measured.items(), ("-", "--", ":"), strict=True):
    ax.plot(s, d.loss + d.slope * s + d.sharpness * s**2 / 2, style, label=name)
ax.set(xlabel="distance along the update", ylabel="loss", ylim=(None, d.loss + 0.02))
ax.set_title("To second order, clipped SGD goes further and lower")
ax.legend()

# %%
# Read the numbers from left to right. The gradient is the steepest of the three, and by
# far the sharpest. Clipping gives away some of the slope and more of the sharpness, so
# that the parabola's minimum lies further away *and* lower. ``predicted_decrease`` is
# :math:`\mathrm{slope}^2 / (2\,\mathrm{sharpness})`, and ``newton_step`` the distance
# to the minimum. Signs go furthest in both: this is the direction that a clip of nearly
# all coordinates ends in.
#
# What can go wrong
# -----------------
# - With dropout, every evaluation has another loss.
#   :func:`~optax_clip.diagnostics.check_deterministic` raises an error in that case.
# - A batch that does not fit into memory is cut with ``microbatches=8``; a data set
#   that comes in batches is averaged by
#   :func:`~optax_clip.diagnostics.mean_over_batches`.
# - A derivative describes an infinitely small step. Whether it says something about a
#   step of the size that you take is the subject of the tutorial on landscapes.
