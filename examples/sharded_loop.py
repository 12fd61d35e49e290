"""A Llama on eight devices: `python -m examples.sharded_loop` (30 seconds).

Parameters and momentum are split over both axes of a mesh: fully sharded along "data",
as the batch is, and tensor parallel along "model". The threshold is that of all shards
together, so that losses are those of one device, and a checkpoint goes on anywhere.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_clip
from examples.data import sequences
from examples.models import llama

DEVICES = 8  # of a CPU; leave this out where there are several
STEPS = 60
CONFIG = llama.LlamaConfig(
    vocab_size=sequences.IDS, hidden_size=32, intermediate_size=64,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=8,
)  # fmt: skip
optimizer = optax_clip.clipped_sgd(3.0, fraction=0.05)


def shardings(mesh: Mesh, tree):
    """Of parameters, and of the momentum, whose leaves have the same names."""

    def sharding(path, leaf):
        narrows = any(getattr(key, "key", "") in ("output", "embed") for key in path)
        spec = P("model", "data") if narrows else P("data", "model")
        return NamedSharding(mesh, spec if leaf.ndim == 2 else P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def train(mesh: Mesh, state, steps):
    """Parameters and optimizer state after these steps, and their losses."""
    where, losses = shardings(mesh, state), []
    loss = llama.make_loss(llama.init(CONFIG, 0)[0], CONFIG)
    gradient = jax.value_and_grad(loss)
    if AxisType.Explicit in mesh.axis_types:
        # A product over a sharded dimension has no type of its own, so the model leaves
        # its axes to the compiler; the update has them in its types.
        specs = jax.tree.map(lambda sharding: sharding.spec, where[0])
        gradient = jax.sharding.auto_axes(out_sharding=(P(), specs))(gradient)

    def step(state, batch):
        value, grads = gradient(state[0], batch)
        updates, opt_state = optimizer.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    train_step = jax.jit(step, out_shardings=(where, everywhere))
    with jax.set_mesh(mesh):
        state = jax.device_put(state, where)
        for number in steps:
            batch = jax.device_put(sequences.batch_at(number), rows)
            state, value = train_step(state, batch)
            losses.append(float(value))  # a CPU may hang with several on their way
    return state, losses


def main() -> dict[str, tuple]:
    if jax.config.values["jax_num_cpu_devices"] < DEVICES:
        jax.config.update("jax_num_cpu_devices", DEVICES)
    params = llama.init(CONFIG, 0)[1]
    start = params, optimizer.init(params)

    def mesh(data, model, kind=AxisType.Auto):
        kinds, devices = (kind, kind), jax.devices()[: data * model]
        return jax.make_mesh((data, model), ("data", "model"), kinds, devices=devices)

    found = {"one device": train(mesh(1, 1), start, range(STEPS))}
    explicit = mesh(2, 4, AxisType.Explicit)
    found["2 x 4, explicit axes"] = train(explicit, start, range(STEPS))
    state, losses = train(mesh(2, 4), start, range(STEPS // 2))
    other = mesh(4, 2)
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as saver:
        saver.save(path := Path(folder) / "checkpoint", state)
        saver.wait_until_finished()
        fresh = jax.device_put(start, shardings(other, start))
        state = saver.restore(path, fresh)
    state, more = train(other, state, range(STEPS // 2, STEPS))
    found["2 x 4, restored on 4 x 2, automatic axes"] = state, losses + more
    for name, (_, losses) in found.items():
        print(f"{name}: loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")
    return found


if __name__ == "__main__":
    main()
