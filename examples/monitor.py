"""Diagnostics within a budget: `python -m examples.monitor` (15 seconds).

While clipped SGD trains a network of two layers, a monitor takes the sharpness along
the update, the norms of the linear head and of the layer below, and a histogram of the
update. They are due every 20 steps and wait until they fit into 5 % of the time.
"""

from pathlib import Path

import jax
import numpy as np
import optax

import optax_clip
from examples.data import zipf
from examples.lab import log
from examples.lab.monitoring import Monitor
from optax_clip import diagnostics

FOLDER = Path("runs/monitor")
optimizer = optax_clip.clipped_sgd(0.3, fraction=0.05)


def loss(params, batch):
    x_BxW, y_B = batch
    return ((jax.nn.relu(x_BxW @ params["hidden"]) @ params["head"] - y_B) ** 2).mean()


@jax.jit
def train_step(params, opt_state, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, updates, value


def sharpness(params, update, batch):
    return diagnostics.directional_derivatives(loss, params, update, batch)


def main() -> None:
    hidden, head = jax.random.normal(jax.random.key(0), (2, zipf.WORDS, 64)) / 16
    params = {"hidden": hidden, "head": head[0]}
    opt_state, losses = optimizer.init(params), []
    measured = {
        "sharpness": jax.jit(sharpness),
        "norm": jax.jit(lambda params, *_: diagnostics.block_norms(params)),
        "update": jax.jit(lambda _, u, __: diagnostics.coordinate_histogram(u)),
    }
    with Monitor(FOLDER, measured, every=20, budget=0.05) as monitor:
        for step in range(400):
            at, batch = params, zipf.batch_at(np.int32(step))
            params, opt_state, updates, value = train_step(at, opt_state, batch)
            monitor(step, at, updates, batch)
            losses.append(float(value))
    lines = log.read_metrics(FOLDER)
    norms = [x["value"]["head"]["l2"] for x in lines if x["diagnostic"] == "norm"]
    print(f"{FOLDER}: norm of the head {norms[0]:.2f} -> {norms[-1]:.2f}")
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
