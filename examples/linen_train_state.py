"""Clipping in a Linen `TrainState`: `python -m examples.linen_train_state` (5 seconds).

An optimizer of this package is an Optax optimizer: it goes where `optax.sgd` went.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState

import optax_clip
from examples.data import zipf

STEPS = 200


class Model(nn.Module):
    @nn.compact
    def __call__(self, x_BxW: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(64)(x_BxW)))[:, 0]


@jax.jit
def train_step(state: TrainState) -> tuple[TrainState, jax.Array]:
    x_BxW, y_B = zipf.batch_at(state.step)

    def loss(params: optax.Params) -> jax.Array:
        return ((state.apply_fn({"params": params}, x_BxW) - y_B) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def main() -> None:
    model, (x_BxW, _) = Model(), zipf.batch_at(0)
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), x_BxW)["params"],
        tx=optax_clip.clipped_sgd(
            optax.cosine_decay_schedule(3.0, STEPS), fraction=0.05, decay=0.9
        ),
    )
    losses = []
    for _ in range(STEPS):
        state, loss = train_step(state)
        losses.append(loss)
    clipped = optax_clip.clip_metrics(state.opt_state)["clipped_fraction"]
    print(f"{clipped:.1%} of the last gradient's coordinates clipped")
    print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")


if __name__ == "__main__":
    main()
