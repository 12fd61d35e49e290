"""A scheduled fraction, one compilation: `python -m examples.fraction_schedule` (5 s).

`optax.inject_hyperparams` keeps the fraction in the optimizer state: a schedule moves
it, a log reads it, and a controller of your own could write it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clip
from examples.data import zipf

STEPS = 200
FRACTION = optax.linear_schedule(0.2, 0.0, STEPS // 2)

optimizer = optax.inject_hyperparams(optax_clip.clipped_sgd)(
    optax.cosine_decay_schedule(0.3, STEPS), fraction=FRACTION
)


def loss(params: jax.Array, step: jax.Array) -> jax.Array:
    x_BxW, y_B = zipf.batch_at(step)
    return ((x_BxW @ params - y_B) ** 2).mean()


def main() -> tuple[list[float], list[float], int]:
    compilations = 0

    @jax.jit
    def train_step(params, opt_state, step):
        nonlocal compilations
        compilations += 1  # Python comes here only when JAX traces the function.
        value, grads = jax.value_and_grad(loss)(params, step)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = jnp.zeros(zipf.WORDS)
    opt_state = optimizer.init(params)
    losses, fractions, clipped = [], [], []
    for step in range(STEPS):
        params, opt_state, value = train_step(params, opt_state, step)
        losses.append(value)
        fractions.append(opt_state.hyperparams["fraction"])
        clipped.append(optax_clip.clip_metrics(opt_state)["clipped_fraction"])
        if step % 20 == 0:
            print(f"{step:3}: fraction {fractions[-1]:.2f}, clipped {clipped[-1]:.3f}")
    print(f"compilations of the step: {compilations}")
    print(f"loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.4f}")
    return jax.device_get(fractions), jax.device_get(clipped), compilations


if __name__ == "__main__":
    main()
