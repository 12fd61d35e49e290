"""One of two processes, of two devices each: clips, and trains a small model.

    python two_processes.py NUMBER PORT

Prints JSON. `train` is what one process does alone, too.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_clip

STEPS = 4
OPTIMIZERS = {
    "clipped SGD": optax_clip.clipped_sgd(0.3, fraction=0.1),
    "Adafactor": optax_clip.clipped_adafactor(0.03, fraction=0.1),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"])
    return ((hidden @ params["out"] - batch["y"]) ** 2).mean()


def train(name, mesh):
    """The losses, the last threshold and the norm of the parameters."""
    tx = OPTIMIZERS[name]
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    params = {"in": normal(0, 16, 32) / 4, "out": normal(1, 32, 4) / 8}
    params = place(params, rows) | place({"bias": np.zeros(32, np.float32)}, everywhere)
    state = jax.jit(tx.init, out_shardings=everywhere)(params)

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    batch = place({"x": normal(2, 8, 16), "y": np.ones((8, 4), np.float32)}, rows)
    losses = []
    for _ in range(STEPS):
        params, state, value = step(params, state, batch)
        losses.append(float(value))
    size = jax.jit(optax.tree.norm, out_shardings=everywhere)(params)
    threshold = optax_clip.clip_metrics(state)["threshold"]
    return {"losses": losses, "threshold": threshold.tolist(), "norm": float(size)}


def place(tree, sharding):
    """Every process has the whole arrays and lends its devices their shards."""
    return {
        name: jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
        for name, x in tree.items()
    }


def clip(mesh):
    """The threshold of an array that no process has alone."""
    g = place({"": normal(7, 64, 32)}, NamedSharding(mesh, P("data")))
    tx = optax_clip.clip_top_k_coordinates(0.05)
    return float(jax.jit(tx.update)(g, tx.init(g))[1].threshold)


def make_mesh(devices):
    types = (AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("data",), types, devices=devices)


def main(number, port):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    mesh = make_mesh(jax.devices())
    found = {name: train(name, mesh) for name in OPTIMIZERS}
    print(json.dumps({"clip": clip(mesh), **found}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
