"""
Blocks
======

The arrays of a transformer differ in everything: size, scale of the gradient,
curvature. This page measures how unequal they are (the *gradient heterogeneity* of the
second paper), which blocks carry the sharpness of an update, and what one threshold for
all does to it.
"""

import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tiny_model import batch_at, init_params, loss

import optax_clip
from optax_clip import diagnostics


@jax.jit
def train(params, steps):
    def step(i, params):
        gradient = jax.grad(loss)(params, batch_at(i))
        return optax.apply_updates(params, optax.tree.scale(-0.3, gradient))

    return jax.lax.fori_loop(0, steps, step, params)


params = train(init_params(), 50)
batch = batch_at(2000, size=128)
gradient = jax.jit(jax.grad(loss))(params, batch_at(1000))

# %%
# How unequal the gradient is
# ---------------------------
# A block is a leaf unless ``blocks=`` says otherwise. The norm per parameter, ``rms``,
# does not grow with the size of the block. Of the measures of inequality the Gini
# coefficient is the most common: it is 0 if all blocks are equal, and near 1 if one has
# everything.

block_norms = jax.jit(diagnostics.block_norms)
norms = jax.device_get(block_norms(gradient))
for name, norm in sorted(norms.items(), key=lambda item: -item[1].rms):
    print(f"{name:22} {norm.size:6.0f} entries, norm {norm.l2:.3f}, rms {norm.rms:.5f}")


@jax.jit
def gini(tree):
    norms = diagnostics.block_norms(tree)
    return diagnostics.heterogeneity({name: n.rms for name, n in norms.items()}).gini


print(f"Gini coefficient of the norms per parameter: {gini(gradient):.2f}")

# %%
# Which blocks carry the sharpness
# --------------------------------
# :func:`~optax_clip.diagnostics.split_sharpness` gives every block its own term, and
# every pair of blocks the term between them. Together they are the sharpness, exactly.

split = jax.jit(lambda p, u, b: diagnostics.split_sharpness(loss, p, u, b))
parts = jax.device_get(split(params, gradient, batch))
own = {name: float(part.within) for name, part in parts.items()}
between = sum(float(x) for part in parts.values() for x in part.cross.values())
total = sum(own.values()) + between
print(f"sharpness {total:.2f}, of which {between / total:.0%} between blocks")

# %%
names = sorted(own, key=own.get)
width = np.arange(len(names))
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.barh(width + 0.2, [own[n] / total for n in names], 0.4, label="of the sharpness")
ax.barh(
    width - 0.2, [parts[n].norm for n in names], 0.4, color="0.7", label="of the norm²"
)
ax.set_yticks(width, names)
ax.set(xlabel="fraction")
ax.set_title("What each block carries of SGD's update")
ax.legend()

# %%
# One threshold, or one for each block
# ------------------------------------
# With ``scope="global"`` a block with large gradients loses more of its coordinates
# than others, which makes blocks more equal. With ``scope="leaf"`` every block loses
# the same fraction.


@functools.partial(jax.jit, static_argnums=0)
def clip(scope, gradient):
    transformation = optax_clip.clip_top_k_coordinates(0.05, scope=scope)
    return transformation.update(gradient, transformation.init(params))[0]


@jax.jit
def sharpness(update):
    return diagnostics.directional_sharpness(loss, params, update, batch)


for name, update in {
    "unclipped": gradient,
    'scope="leaf"': clip("leaf", gradient),
    'scope="global"': clip("global", gradient),
}.items():
    print(f"{name:15} sharpness {sharpness(update):.2f}, Gini {gini(update):.2f}")

# %%
# Curvature of the blocks
# -----------------------
# The paper weighs the spectral norms of the blocks' Hessians with the gradient, which
# is what SGD pays for (:math:`\Lambda_G`), and with the numbers of parameters, which is
# what sign descent pays for (:math:`\Lambda_P`).


@jax.jit
def complexity(params, gradient, batch):
    ends = diagnostics.block_eigenvalues(
        loss, params, batch, key=jax.random.key(0), max_iterations=10
    )
    curvatures = {name: block.spectral_norm for name, block in ends.items()}
    return diagnostics.hessian_complexity(gradient, curvatures)


found = complexity(params, gradient, batch_at(2000))
print(f"SGD {found.gradient:.2f}, sign descent {found.sign:.2f}")
