"""Clipping in an Equinox loop: `python -m examples.equinox_loop` (5 seconds).

An Equinox model is a pytree with functions among its leaves; `eqx.filter` leaves the
arrays, and these are what the optimizer gets. It needs `pip install equinox`.
"""

import jax
import numpy as np

import optax_clip
from examples.data import zipf

optimizer = optax_clip.clipped_sgd(3.0, fraction=0.05)


def main() -> None:
    try:
        import equinox as eqx
    except ImportError:
        print("This example needs Equinox: pip install equinox.")
        return

    def loss(model, step):
        x_BxW, y_B = zipf.batch_at(step)
        return ((jax.vmap(model)(x_BxW) - y_B) ** 2).mean()

    @eqx.filter_jit
    def train_step(model, opt_state, step):
        value, grads = eqx.filter_value_and_grad(loss)(model, step)
        arrays = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(grads, opt_state, arrays)
        return eqx.apply_updates(model, updates), opt_state, value

    model = eqx.nn.MLP(zipf.WORDS, "scalar", 64, depth=1, key=jax.random.key(0))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    losses = []
    for step in range(200):
        model, opt_state, value = train_step(model, opt_state, np.int32(step))
        losses.append(value)
    clipped = optax_clip.clip_metrics(opt_state)["clipped_fraction"]
    print(f"{clipped:.1%} of the last gradient clipped")
    print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")


if __name__ == "__main__":
    main()
