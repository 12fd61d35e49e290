"""Muon and clipping together: `python -m examples.muon_partition` (10 seconds).

Muon is for matrices between layers; it makes their updates orthogonal, and there is
nothing left to clip. Embeddings, norms and the output take clipped SGD, with one
threshold for all of them, and need no second moment.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import optax_clip
from examples.data import zipf

WIDTH = 64
LABELS = {"embed": "clipped", "scale": "clipped", "hidden": "muon", "out": "clipped"}
optimizer = optax.partition(
    {
        "muon": optax.contrib.muon(0.02),
        "clipped": optax_clip.clipped_sgd(0.3, fraction=0.05),
    },
    LABELS,
)


def loss(params, step):
    x_BxW, y_B = zipf.batch_at(step)
    y_BxD = jax.nn.relu((x_BxW @ params["embed"]) * params["scale"])
    y_BxD += jax.nn.relu(y_BxD @ params["hidden"])
    return ((y_BxD @ params["out"] - y_B) ** 2).mean()


@jax.jit
def train_step(params, opt_state, step):
    value, grads = jax.value_and_grad(loss)(params, step)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def main() -> dict[str, jax.Array]:
    normal = jax.random.normal
    embed, hidden, out = jax.random.split(jax.random.key(0), 3)
    params = {
        "embed": normal(embed, (zipf.WORDS, WIDTH)) / 16,
        "scale": jnp.ones(WIDTH),
        "hidden": normal(hidden, (WIDTH, WIDTH)) / 8,
        "out": normal(out, (WIDTH,)) / 8,
    }
    opt_state, losses = optimizer.init(params), []
    for step in np.arange(200, dtype=np.int32):
        params, opt_state, value = train_step(params, opt_state, step)
        losses.append(value)
    metrics = optax_clip.clip_metrics(opt_state)
    print(", ".join(f"last {key} {value:.3g}" for key, value in metrics.items()))
    print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")
    return metrics


if __name__ == "__main__":
    main()
