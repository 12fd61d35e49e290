"""Sharpness of your own model: `python -m examples.measure_sharpness` (5 seconds).

All that it takes is a loss, parameters, and a direction, such as an optimizer's update.
Along SGD's gradient the loss bends most; clipped or divided by Adam it bends less, and
the step to the parabola's minimum is longer.
"""

import jax
import numpy as np
import optax

import optax_clip
from examples.data import zipf
from optax_clip import diagnostics


def loss(params, batch):
    x_BxW, y_B = batch
    return ((jax.nn.relu(x_BxW @ params["hidden"]) @ params["out"] - y_B) ** 2).mean()


OPTIMIZERS = {
    "SGD": optax.sgd(1.0),
    "SGD, 5 % clipped": optax_clip.clipped_sgd(1.0, fraction=0.05, decay=0.0),
    "Adam": optax.adam(3e-3),  # the one that trains
}


@jax.jit
def train_step(params, states, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates = {}
    for name, optimizer in OPTIMIZERS.items():
        updates[name], states[name] = optimizer.update(grads, states[name], params)
    return optax.apply_updates(params, updates["Adam"]), states, updates, value


@jax.jit
def measure(params, updates, batch):
    return diagnostics.directional_derivatives(loss, params, updates, batch)


def main() -> dict[str, float]:
    hidden, out = jax.random.normal(jax.random.key(0), (2, zipf.WORDS, 64)) / 16
    params, losses, found = {"hidden": hidden, "out": out[0]}, [], {}
    states = {name: optimizer.init(params) for name, optimizer in OPTIMIZERS.items()}
    for step in range(400):
        at, batch = params, zipf.batch_at(np.int32(step))
        params, states, updates, value = train_step(at, states, batch)
        losses.append(float(value))
        if step % 100 == 20:
            found = measure(at, updates, batch)
            for name, d in found.items():
                print(f"step {step}: sharpness along {name} {float(d.sharpness):.2f}")
    print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")
    return {name: float(d.sharpness) for name, d in found.items()}


if __name__ == "__main__":
    main()
