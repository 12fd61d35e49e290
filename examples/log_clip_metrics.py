"""Clip metrics in a log: `python -m examples.log_clip_metrics` (5 seconds).

The numbers stay on the device, so the loop never waits for a step; those of 20 updates
are fetched together and become lines of JSON. `optax.MultiSteps` averages four
gradients for an update, and it is this average that is clipped.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import optax_clip
from examples.data import zipf

LOG = Path("runs/log_clip_metrics.jsonl")
UPDATES, ACCUMULATE, FETCH_EVERY = 100, 4, 20

optimizer = optax.MultiSteps(optax_clip.clipped_sgd(0.3, fraction=0.05), ACCUMULATE)


def loss(params: jax.Array, step: jax.Array) -> jax.Array:
    x_BxW, y_B = zipf.batch_at(step)
    return ((x_BxW @ params - y_B) ** 2).mean()


@jax.jit
def train_step(params, opt_state, step):
    value, grads = jax.value_and_grad(loss)(params, step)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    metrics = {"loss": value, **optax_clip.clip_metrics(opt_state)}
    return optax.apply_updates(params, updates), opt_state, metrics


def main() -> None:
    params = jnp.zeros(zipf.WORDS)
    opt_state = optimizer.init(params)
    pending, lines = [], []
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w") as log:
        for step in range(UPDATES * ACCUMULATE):
            params, opt_state, metrics = train_step(params, opt_state, step)
            if (step + 1) % ACCUMULATE == 0:
                pending.append(metrics)
            if len(pending) == FETCH_EVERY or step + 1 == UPDATES * ACCUMULATE:
                for values in jax.device_get(pending):
                    numbers = {name: round(float(v), 6) for name, v in values.items()}
                    lines.append({"update": len(lines) + 1, **numbers})
                    log.write(json.dumps(lines[-1]) + "\n")
                pending.clear()
    print(f"{LOG}: {len(lines)} lines, the last is {json.dumps(lines[-1])}")
    print(f"loss {lines[0]['loss']:.2f} -> {lines[-1]['loss']:.4f}")


if __name__ == "__main__":
    main()
