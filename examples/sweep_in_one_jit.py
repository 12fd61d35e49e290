"""A sweep of learning rates in one call: `python -m examples.sweep_in_one_jit` (5 s).

`vmap` over the learning rate trains all of them at once, each with a clip of its own:
a rate may be traced, and the whole of the sweep is compiled once.
"""

import jax
import jax.numpy as jnp
import optax

import optax_clip
from examples.data import zipf

STEPS = 100
RATES = jnp.logspace(-2, 1, 7)


def loss(params, step):
    x_BxW, y_B = zipf.batch_at(step)
    return ((x_BxW @ params - y_B) ** 2).mean()


def train(learning_rate: jax.Array) -> jax.Array:
    """The losses of a training."""
    optimizer = optax_clip.clipped_sgd(learning_rate, fraction=0.05)

    def train_step(carry, step):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, step)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    params = jnp.zeros(zipf.WORDS)
    return jax.lax.scan(
        train_step, (params, optimizer.init(params)), jnp.arange(STEPS)
    )[1]


def main() -> tuple[jax.Array, jax.Array]:
    losses = jax.jit(jax.vmap(train))(RATES)
    before, after = losses[:, :10].mean(1), losses[:, -10:].mean(1)
    for rate, final in zip(RATES, after, strict=True):
        print(f"learning rate {rate:.3g}: final loss {final:.4g}")
    best = int(jnp.nanargmin(after))
    print(f"at {RATES[best]:.3g}: loss {before[best]:.2f} -> {after[best]:.4f}")
    return RATES, after


if __name__ == "__main__":
    main()
