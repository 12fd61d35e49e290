"""Normalization of updates, block by block."""

import jax
import jax.numpy as jnp
import optax

from optax_clip._trees import balance, check_leaves


def normalize_by_block_rms(
    eps: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide every block of the updates by its root mean square.

    A block is a leaf: a weight matrix or vector with :math:`P_b` coordinates.

    .. math::
      u_b \leftarrow u_b / \max(\epsilon, \operatorname{RMS}(u_b)), \qquad
      \operatorname{RMS}(u_b) = \|u_b\|_2 / \sqrt{P_b}

    A block of zeros stays zero. Normalized SGD does this *after* momentum. (One norm
    over all blocks instead, :func:`optax.normalize_by_update_norm`, would not change
    the direction of the update.)

    Args:
      eps: floor of the root mean square, in units of the updates.

    Returns:
      A stateless transformation. Updates keep shape and type, and are computed in
      float32 at least.

    Raises:
      ValueError: for a negative ``eps``.
      TypeError: at update, for a leaf that is not floating-point or complex.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_clip
      >>> normalize = optax_clip.normalize_by_block_rms()
      >>> updates = {"a": jnp.array([3.0, -3.0]), "b": jnp.array([0.0, 0.0])}
      >>> normalize.update(updates, normalize.init(updates))[0]
      {'a': Array([ 1., -1.], dtype=float32), 'b': Array([0., 0.], dtype=float32)}

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, algorithm 2.
    """
    if isinstance(eps, (int, float)) and eps < 0:
        raise ValueError(
            "normalize_by_block_rms: expected eps >= 0, a floor of the root mean "
            f"square; got {eps}."
        )

    def normalize(block):
        if block.size == 0:
            return block
        wide = block.astype(jnp.promote_types(block.dtype, jnp.float32))
        # Near 1 the squares neither overflow nor underflow.
        scale = balance(jnp.max(jnp.abs(wide)))
        unit = wide * scale
        rms = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(unit))))
        normalized = unit / jnp.where(rms > 0, jnp.maximum(rms, eps * scale), 1)
        return normalized.astype(block.dtype)

    def update_fn(updates, params):
        del params
        check_leaves(updates, "normalize_by_block_rms")
        return jax.tree.map(normalize, updates)

    return optax.with_extra_args_support(optax.stateless(update_fn))
