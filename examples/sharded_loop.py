"""FSDP on eight devices: `python -m examples.sharded_loop` (10 seconds).

Parameters, momentum and batch are sharded over one axis of a mesh. The threshold is
that of all shards together: nothing changes but where the arrays are.
"""

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_clip
from examples.data import zipf

DEVICES = 8  # of a CPU; leave this out where there are several
optimizer = optax_clip.clipped_sgd(3.0, fraction=0.05)


def loss(params, batch):
    x_BxW, y_B = batch
    return ((jax.nn.relu(x_BxW @ params["hidden"]) @ params["out"] - y_B) ** 2).mean()


@jax.jit
def train_step(params, opt_state, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def main() -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    if jax.config.values["jax_num_cpu_devices"] < DEVICES:
        jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = jax.make_mesh((DEVICES,), ("shards",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("shards"))  # of each first dimension
    hidden, out = jax.random.normal(jax.random.key(0), (2, zipf.WORDS, 64)) / 16
    params = jax.device_put({"hidden": hidden, "out": out[0]}, sharded)
    opt_state, losses = jax.jit(optimizer.init)(params), []
    for step in range(200):
        batch = jax.device_put(zipf.batch_at(np.int32(step)), sharded)
        params, opt_state, value = train_step(params, opt_state, batch)
        losses.append(float(value))  # a CPU may hang with several steps on their way
    metrics = optax_clip.clip_metrics(opt_state)
    shard = params["hidden"].addressable_shards[0].data.shape
    print(f"hidden {params['hidden'].shape}, on each of {DEVICES} devices {shard}")
    print(f"{metrics['clipped_fraction']:.1%} of the last gradient clipped")
    print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")
    return params, metrics


if __name__ == "__main__":
    main()
