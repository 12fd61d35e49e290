"""Clipping by groups of parameters: `python -m examples.partition_groups` (10 seconds).

Inside of `optax.partition` every group has a threshold of its own, and "global" means
that group; a clip chained *before* the partition has one threshold over everything.
"""

import jax
import numpy as np
import optax

import optax_clip
from examples.data import zipf

GROUPS = {"hidden": "matrix", "out": "vector"}  # parameter to label


def init_params() -> dict[str, jax.Array]:
    hidden, out = jax.random.split(jax.random.key(0))
    return {
        "hidden": jax.random.normal(hidden, (zipf.WORDS, 64)) / 16,
        "out": jax.random.normal(out, (64,)) / 8,
    }


def loss(params: dict[str, jax.Array], step: jax.Array) -> jax.Array:
    x_BxW, y_B = zipf.batch_at(step)
    return ((jax.nn.relu(x_BxW @ params["hidden"]) @ params["out"] - y_B) ** 2).mean()


def train(name: str, optimizer: optax.GradientTransformation) -> dict[str, jax.Array]:
    @jax.jit
    def train_step(params, opt_state, step):
        value, grads = jax.value_and_grad(loss)(params, step)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params, losses = init_params(), []
    opt_state = optimizer.init(params)
    for step in range(200):
        params, opt_state, value = train_step(params, opt_state, step)
        losses.append(value)
    metrics = optax_clip.clip_metrics(opt_state)
    print(*(f"last {key} {value:.3g}" for key, value in metrics.items()), sep="\n")
    print(f"{name}: loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")
    return metrics


def main() -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    sgd, clipped_sgd = optax.sgd, optax_clip.clipped_sgd
    matrix, vector = clipped_sgd(3.0, fraction=0.05), clipped_sgd(0.3, fraction=0.25)
    inside = optax.partition({"matrix": matrix, "vector": vector}, GROUPS)
    one = optax.chain(
        optax_clip.clip_top_k_coordinates(0.05),
        optax.partition({"matrix": sgd(0.3, 0.9), "vector": sgd(0.03, 0.9)}, GROUPS),
    )
    return train("a fraction for each group", inside), train("one clip", one)


if __name__ == "__main__":
    main()
