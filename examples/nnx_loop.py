"""Clipping in a Flax NNX loop: `python -m examples.nnx_loop` (10 seconds).

Nothing changes but the transformation that `nnx.Optimizer` gets. With the top 5 % of
the coordinates clipped, SGD stands ten times its learning rate, and ends lower.
"""

import jax
import numpy as np
import optax
from flax import nnx

import optax_clip
from examples.data import zipf


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(zipf.WORDS, 64, rngs=rngs)
        self.out = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x_BxW: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x_BxW)))[:, 0]


@nnx.jit
def train_step(model: Model, optimizer: nnx.Optimizer, step: np.int32) -> jax.Array:
    x_BxW, y_B = zipf.batch_at(step)
    loss, grads = nnx.value_and_grad(lambda m: ((m(x_BxW) - y_B) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


def train(name: str, tx: optax.GradientTransformation, steps: int = 200) -> float:
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = [train_step(model, optimizer, np.int32(step)) for step in range(steps)]
    if "clipped" in name:
        metrics = optax_clip.clip_metrics(optimizer.opt_state)
        print(*(f"last {key} {value:.2g}" for key, value in metrics.items()))
    before, after = np.mean(losses[:10]), np.mean(losses[-10:])
    print(f"{name}: loss {before:.2f} -> {after:.4f}")
    return float(after)


def main() -> dict[str, float]:
    clip = optax_clip.clip_top_k_coordinates(fraction=0.05)
    optimizers = {
        "SGD": optax.sgd(0.03, momentum=0.9),
        "SGD, 5 % clipped": optax.chain(clip, optax.sgd(0.3, momentum=0.9)),
    }
    return {name: train(name, tx) for name, tx in optimizers.items()}


if __name__ == "__main__":
    main()
