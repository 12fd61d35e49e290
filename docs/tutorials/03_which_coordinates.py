"""
Which coordinates carry it
==========================

Clipping works if a few coordinates of the update carry much of its sharpness and little
of its slope. This page measures how many carry how much, where they are, and whether
they are the same ones a few steps later.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tiny_model import batch_at, init_params, loss

from optax_clip import diagnostics


@jax.jit
def train(params, steps):
    def step(i, params):
        gradient = jax.grad(loss)(params, batch_at(i))
        return optax.apply_updates(params, optax.tree.scale(-0.3, gradient))

    return jax.lax.fori_loop(0, steps, step, params)


gradient_of = jax.jit(jax.grad(loss))
params = train(init_params(), 50)
gradient = gradient_of(params, batch_at(1000))
batch = batch_at(2000, size=32)

# %%
# How much the largest ones carry
# -------------------------------
# :func:`~optax_clip.diagnostics.top_coordinates` selects the coordinates that a clip
# with the same fraction would change, and
# :func:`~optax_clip.diagnostics.masked_sharpness` splits slope and sharpness into
# theirs and the rest's. A traced fraction compiles once.


@jax.jit
def carried(fraction):
    top = diagnostics.top_coordinates(gradient, fraction)
    split = diagnostics.masked_sharpness(loss, params, gradient, batch, mask=top)
    return split.slope_fraction, split.sharpness_fraction


fractions = np.array([0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5])
slope, sharpness = np.array([carried(f) for f in fractions]).T
for f, s, h in zip(fractions, slope, sharpness, strict=True):
    print(f"top {f:6.1%}: {s:4.0%} of the slope, {h:4.0%} of the sharpness")

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.plot(100 * fractions, 100 * sharpness, "o-", label="of the sharpness")
ax.plot(100 * fractions, 100 * slope, "s--", label="of the slope")
ax.set(xscale="log", xlabel="largest coordinates, %", ylabel="carried by them, %")
ax.set_title("What the largest coordinates of SGD's update carry")
ax.legend()

# %%
# The distance between the two lines is what clipping lives on. Where they lie on top of
# each other, it cannot help.
#
# Where they are
# --------------
# A mask is a tree of booleans, so every question about it is a line of JAX.

top_coordinates = jax.jit(diagnostics.top_coordinates)
top = jax.device_get(top_coordinates(gradient, 0.05))
for path, mask in jax.tree.leaves_with_path(top):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    print(f"{name:18} {mask.mean():6.1%} of {mask.size}")

# %%
# Whether they stay
# -----------------
# If the same coordinates are on top step after step, a fixed mask could take the place
# of the clip. :func:`~optax_clip.diagnostics.mask_persistence` counts those that stay.

later = train(params, 10)
new = top_coordinates(gradient_of(later, batch_at(1010)), 0.05)
stay = jax.jit(diagnostics.mask_persistence)(top, new)
print(f"{stay.fraction:.0%} of the top coordinates are still on top ten steps later")

# %%
# Do large gradients sit on large curvature?
# ------------------------------------------
# The paper conjectures that they do, coordinate by coordinate. A sample of coordinates
# can be measured exactly, by one Hessian-vector product each.


@jax.jit
def correlate(params, batch):
    return diagnostics.gradient_hessian_correlation(
        loss, params, batch, key=jax.random.key(0), coordinates=32, resamples=200
    )


found = correlate(params, batch)
low, high = found.spearman_interval
print(f"Spearman's correlation {found.spearman:.2f} ({low:.2f} to {high:.2f})")

# %%
# The sample pools all arrays. Those with large gradients may be those with large
# curvature, and then a correlation of coordinates says less than it seems to. Draw from
# one array at a time, by ``where=``, to see the correlation within it.
