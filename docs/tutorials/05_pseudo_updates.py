"""
Pseudo-updates: many optimizers on one trajectory
=================================================

Two optimizers that train apart soon stand at different points, and a difference of
their sharpness is then one of the points. The paper compares *pseudo-updates* instead:
one optimizer trains, the others see the same gradients, and what each of them would do
next is measured at the same point.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tiny_model import batch_at, init_params, loss

import optax_clip
from optax_clip import diagnostics

# %%
# An optimizer that watches others
# --------------------------------
# :func:`~optax_clip.pseudo_updates` is a transformation that passes gradients on
# unchanged and keeps in its state what each of its optimizers would have done. Their
# learning rates do not matter for the sharpness, which does not depend on the length of
# an update.

pseudo = optax_clip.pseudo_updates(
    {
        "SGD": optax_clip.clipped_sgd(1.0, fraction=0.0),
        "SGD, 5 % clipped": optax_clip.clipped_sgd(1.0, fraction=0.05),
        "normalized SGD": optax_clip.clipped_normalized_sgd(1.0, fraction=0.0),
        "Adam": optax.adam(1.0),
    }
)
optimizer = optax.chain(pseudo, optax.sgd(0.3))  # plain SGD makes the trajectory

# %%
# Train, and stop to measure
# --------------------------


@jax.jit
def train(params, state, first, steps):
    def step(i, carry):
        params, state = carry
        gradient = jax.grad(loss)(params, batch_at(first + i))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, state))


# What the state has recorded belongs to the parameters before the last step.
# `pseudo_updates_at` has what the next step's gradient would make of the current ones.
@jax.jit
def updates_at(params, state, step):
    gradient = jax.grad(loss)(params, batch_at(step))
    return optax_clip.pseudo_updates_at(optimizer, gradient, state, params)


@jax.jit
def measure(params, updates, batch):
    return diagnostics.directional_sharpness(loss, params, updates, batch)


params = init_params()
state = jax.jit(optimizer.init)(params)
batch = batch_at(2000, size=128)
steps, sharpness = [], []
for first in range(0, 100, 10):
    params, state = train(params, state, first, 10)
    steps.append(first + 10)
    updates = updates_at(params, state, first + 10)
    sharpness.append(measure(params, updates, batch))

# %%
# As the paper reports it
# -----------------------
# Each is divided by the magnitude of SGD's at the same moment.

ratios = {
    name: np.array([row[name] / abs(row["SGD"]) for row in sharpness])
    for name in sharpness[0]
}
for name, ratio in ratios.items():
    low, high = ratio.min(), ratio.max()
    print(f"{name:18} mean ratio {ratio.mean():.2f}, from {low:.2f} to {high:.2f}")

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (name, ratio), marker in zip(ratios.items(), "os^D", strict=True):
    ax.plot(steps, ratio, marker=marker, label=name)
ax.set(yscale="log", xlabel="step of SGD", ylabel="sharpness / SGD's")
ax.set_title("Directional sharpness on SGD's trajectory, one seed")
ax.legend()

# %%
# What it does not say
# --------------------
# A small ratio means that the loss is flatter along that update *here*. How far the
# optimizer gets also depends on its slope, and on where it would stand had it trained
# itself. :func:`~optax_clip.diagnostics.sharpness_table` has slope, sharpness and ratio
# of all updates in rows that may be averaged over batches, and what follows from them:

table = jax.jit(
    lambda p, u, b: diagnostics.sharpness_table(loss, p, u, b, baseline="SGD")
)(params, updates, batch)
for name, row in table.items():
    print(
        f"{name:18} slope {row.slope:6.3f}, ratio {row.ratio:.2f}, "
        f"can fall by {row.predicted_decrease:.3f}"
    )
