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
import optax
from tiny_model import batch_at, init_params, loss

import optax_clip
from optax_clip import diagnostics

# %%
# Train for a moment
# ------------------
# At random weights a loss is not yet typical, so we take 50 steps of SGD.


def train(params, optimizer, steps):
    def step(carry, i):
        params, state = carry
        gradient = jax.grad(loss)(params, batch_at(i))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, start, jax.numpy.arange(steps))
    return params


params = jax.jit(lambda p: train(p, optax.sgd(0.3), 50))(init_params())

# %%
# Three directions
# ----------------
# Any tree like the parameters is a direction. Ours come from one batch; the loss is
# that of another, larger one, since a batch is flatter along its own gradient's noise.

gradient = jax.grad(loss)(params, batch_at(1000))
clip = optax_clip.clip_top_k_coordinates(fraction=0.05)
clipped, _ = clip.update(gradient, clip.init(params))
updates = {
    "gradient": gradient,
    "gradient, 5 % clipped": clipped,
    "its signs": jax.tree.map(jax.numpy.sign, gradient),
}
updates = jax.tree.map(lambda u: -u, updates)  # downhill

# %%
# One call measures all of them. It compiles one loop over the directions, so jit it as
# a whole if you call it often.

batch = batch_at(2000, size=128)
measured = jax.jit(lambda p, u, b: diagnostics.directional_derivatives(loss, p, u, b))(
    params, updates, batch
)

for name, d in measured.items():
    print(
        f"{name:22} slope {d.slope:6.2f}  sharpness {d.sharpness:7.3f}  "
        f"predicted decrease {d.predicted_decrease:.3f} after {d.newton_step:5.2f}"
    )

# %%
# Read it from left to right. The gradient is the steepest direction of its own batch
# and remains the steepest here, but it is also by far the sharpest. Clipping gives away
# some of the slope and more of the sharpness, so the parabola's minimum lies further
# away *and* lower. ``predicted_decrease`` is :math:`\mathrm{slope}^2 /
# (2\,\mathrm{sharpness})`, and ``newton_step`` the distance to the minimum.
#
# What can go wrong
# -----------------
# - With dropout, every evaluation has another loss.
#   :func:`~optax_clip.diagnostics.check_deterministic` raises an error in that case:

diagnostics.check_deterministic(jax.jit(loss), params, batch)

# %%
# - A batch that does not fit into memory is cut with ``microbatches=8``; a data set
#   that comes in batches is averaged by
#   :func:`~optax_clip.diagnostics.mean_over_batches`.
# - A derivative describes an infinitely small step. Whether it says something about a
#   step of the size that you take is the subject of the tutorial on landscapes.
