"""
Reading a landscape
===================

A sharpness is a derivative at a point. An optimizer, however, takes steps of a certain
length. This page draws the loss along three updates, lays the parabola of the
derivatives over it, and shows how to notice that the one has nothing to do with the
other.
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
# A point, and three updates at it
# --------------------------------

pseudo = optax_clip.pseudo_updates(
    {
        "SGD": optax_clip.clipped_sgd(1.0, fraction=0.0),
        "SGD, 5 % clipped": optax_clip.clipped_sgd(1.0, fraction=0.05),
        "Adam": optax.adam(1.0),
    }
)
optimizer = optax.chain(pseudo, optax.sgd(0.3))


@jax.jit
def train(params):
    def step(i, carry):
        params, state = carry
        gradient = jax.grad(loss)(params, batch_at(i))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 50, step, (params, optimizer.init(params)))


params, state = train(init_params())
updates = state[0].updates
names = ["SGD", "SGD, 5 % clipped", "Adam"]
batch = batch_at(2000, size=64)

# %%
# Let the grid find itself
# ------------------------
# :func:`~optax_clip.diagnostics.line_scan` walks along every update until the loss
# exceeds its start. Its first spacing comes from the parabola: twenty steps reach twice
# as far as the parabola's minimum.


@jax.jit
def measure(params, updates, batch):
    parabolas = diagnostics.directional_derivatives(loss, params, updates, batch)
    spacing = {name: jnp.abs(d.newton_step) / 10 for name, d in parabolas.items()}
    scans = diagnostics.line_scan(loss, params, updates, batch, spacing=spacing)
    return parabolas, scans


parabolas, scans = measure(params, updates, batch)

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
for ax, name in zip(axes, names, strict=True):
    scan, d = scans[name], parabolas[name]
    ax.plot(scan.steps, scan.losses, "o-", ms=3, label="loss")
    s = np.linspace(0, float(scan.steps[-1]), 50)
    parabola = d.loss + d.slope * s + d.sharpness * s**2 / 2
    ax.plot(s, parabola, "--", color="0.5", label="parabola")
    ax.plot(scan.lowest_step, scan.losses[0] - scan.decrease, "C3*", ms=10)
    ax.set(xlabel="distance", title=name)
low = min(float(jnp.nanmin(scan.losses)) for scan in scans.values())
start = float(parabolas["SGD"].loss)
axes[0].set(
    ylabel="loss", ylim=(low - 0.1 * (start - low), start + 0.3 * (start - low))
)
axes[0].legend()

# %%
# Predicted and realised
# ----------------------
# The star is the lowest loss that was found. If the realised decrease is near the
# predicted one, the derivatives describe the step, and sharpness explains how far the
# update can go. If they differ by a factor, they do not: the surface is jagged, or a
# softmax saturates on the way. Then compare realised decreases and forget the
# sharpness.

for name in names:
    d, scan = parabolas[name], scans[name]
    print(
        f"{name:17} step {scan.lowest_step:6.3f} (parabola {d.newton_step:6.3f}), "
        f"decrease {scan.decrease:.3f} (parabola {d.predicted_decrease:.3f})"
    )

# %%
# Without derivatives
# -------------------
# Two searches need forward passes only. :func:`~optax_clip.diagnostics.minimize_along`
# finds the lowest loss; :func:`~optax_clip.diagnostics.critical_sharpness` finds the
# multiple of the update at which the loss is back at its start, which is the largest
# learning rate, in units of the current one, that does not raise the loss of this
# batch.

lowest = jax.jit(lambda p, u, b: diagnostics.minimize_along(loss, p, u, b))(
    params, updates, batch
)
for name in names:
    found = lowest[name]
    print(f"{name:17} step {found.step:6.3f} after {found.evaluations} evaluations")
