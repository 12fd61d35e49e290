"""The optimizers that the examples choose from, by name, and their learning rates."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import optax_clip

LEARNING_RATES = Path(__file__).parents[1] / "results" / "learning_rates.json"

Factory = Callable[[Any, float], optax.GradientTransformation]


def _clipping(make: Callable[..., Any], **options: Any) -> Factory:
    """An optimizer of this package as a function of learning rate and fraction."""
    return lambda rate, fraction: make(rate, fraction=fraction, **options)


def _sgd(rate: Any, _: float) -> optax.GradientTransformation:
    """`clipped_sgd` without its clip: the plain chain, which compiles faster."""
    return optax.chain(optax.ema(0.9, debias=False), optax.scale_by_learning_rate(rate))


def _normalized_sgd(rate: Any, _: float) -> optax.GradientTransformation:
    """`clipped_normalized_sgd` without its clip."""
    return optax.chain(
        optax.ema(0.9, debias=False),
        optax_clip.normalize_by_block_rms(),
        optax.scale_by_learning_rate(rate),
    )


def _clipped_adam_update(rate: Any, fraction: float) -> optax.GradientTransformation:
    """Clips what Adam would do, not the gradients that it averages."""
    return optax.chain(
        optax.scale_by_adam(),
        optax_clip.clip_top_k_coordinates(fraction),
        optax.scale_by_learning_rate(rate),
    )


def _nesterov_sgd(rate: Any, _: float) -> optax.GradientTransformation:
    """`clipped_sgd` with Nesterov's momentum and without its clip."""
    return optax_clip.clipped_sgd(rate, fraction=0.0, nesterov=True)


def _norm_clipped(make: Factory, norm: float) -> Factory:
    """An optimizer on gradients whose global norm is at most so much."""
    clip = optax.clip_by_global_norm(norm)
    return lambda rate, fraction: optax.chain(clip, make(rate, fraction))


def _sign_sgd(rate: Any, _: float) -> optax.GradientTransformation:
    """The sign of SGD's momentum (signum)."""
    return optax.chain(
        optax.ema(0.9, debias=False),
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(rate),
    )


def _scale(rate: Any, _: float) -> optax.GradientTransformation:
    """SCALE (Glentis et al., 2506.16659): columns of norm 1, momentum at the output.

    A column goes along the outputs of a layer. The output layer is the head, or the
    embedding where that is tied to it; vectors are Adam's, as in the authors' program.
    """
    output = optax.chain(optax.ema(0.9, debias=False), _unit_columns(0))
    kinds: dict[Hashable, optax.GradientTransformation] = {
        "output": output,
        "matrix": _unit_columns(-1),
        "vector": optax.scale_by_adam(),
    }

    def kind_of(params: Any) -> Any:
        paths = jax.tree_util.tree_leaves_with_path(params)
        names = {jax.tree_util.keystr(path) for path, _ in paths}
        head = "['head']['kernel']"
        last = head if head in names else "['embed']['embedding']"

        def kind(path: Any, leaf: jax.Array) -> str:
            is_last = jax.tree_util.keystr(path) == last
            return "vector" if leaf.ndim < 2 else "output" if is_last else "matrix"

        return jax.tree_util.tree_map_with_path(kind, params)

    return optax.chain(
        optax.partition(kinds, kind_of), optax.scale_by_learning_rate(rate)
    )


def _unit_columns(axis: int) -> optax.GradientTransformation:
    """Divides what lies along the axis by its norm; zeros stay zero."""

    def unit(leaf: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(leaf, axis=axis, keepdims=True)
        return jnp.where(norm == 0, leaf, leaf / jnp.where(norm == 0, 1, norm))

    return optax.stateless(lambda updates, _: jax.tree.map(unit, updates))


def _plain_sign_sgd(rate: Any, _: float) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(rate))


def _rmsprop(rate: Any, _: float) -> optax.GradientTransformation:
    """With PyTorch's defaults, which the second paper takes."""
    return optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)


def _adam(epsilon: float) -> Factory:
    return lambda rate, _: optax.adam(rate, eps=epsilon)


# Adam divides by |gradient| + epsilon: the larger it is, the softer is the sign.
EPSILONS = ("1e-6", "1e-4", "1e-2", "1")


# (learning rate, clipped fraction) -> optimizer. Momentum is the papers' moving average
# with 0.9; those that do not clip ignore the fraction. The heavy ball is the second
# paper's momentum, which is the moving average at ten times the learning rate.
OPTIMIZERS: Mapping[str, Factory] = {
    "sgd": _sgd,
    "clipped_sgd": _clipping(optax_clip.clipped_sgd),
    "adam": lambda rate, _: optax.adam(rate),
    "clipped_adam": _clipping(optax_clip.clipped_adam),
    "clipped_adam_update": _clipped_adam_update,
    "adafactor": lambda rate, _: optax_clip.clipped_adafactor(rate, fraction=0.0),
    "clipped_adafactor": _clipping(optax_clip.clipped_adafactor),
    "normalized_sgd": _normalized_sgd,
    "clipped_normalized_sgd": _clipping(optax_clip.clipped_normalized_sgd),
    "lion": lambda rate, _: optax.lion(rate, weight_decay=0.0),
    "clipped_lion": _clipping(optax_clip.clipped_lion),
    "sign_sgd": _sign_sgd,
    "norm_clipped_sgd": _norm_clipped(_sgd, 1.0),
    "norm_clipped_sgd_0.1": _norm_clipped(_sgd, 0.1),
    "nesterov_sgd": _nesterov_sgd,
    "clipped_nesterov_sgd": _clipping(optax_clip.clipped_sgd, nesterov=True),
    "norm_clipped_nesterov_sgd": _norm_clipped(_nesterov_sgd, 1.0),
    "adamw": lambda rate, _: optax.adamw(rate, weight_decay=0.01),
    "muon": lambda rate, _: optax.contrib.muon(rate),
    "scale": _scale,
    "plain_sgd": lambda rate, _: optax.sgd(rate),
    "heavy_ball_sgd": lambda rate, _: optax.sgd(rate, momentum=0.9),
    "plain_sign_sgd": _plain_sign_sgd,
    "rmsprop": _rmsprop,
    **{f"adam_eps_{epsilon}": _adam(float(epsilon)) for epsilon in EPSILONS},
    "clipped_sgd_per_leaf": _clipping(optax_clip.clipped_sgd, scope="leaf"),
}

# The seven whose directions the paper compares on one trajectory.
PAPER = (
    "sgd",
    "clipped_sgd",
    "adam",
    "normalized_sgd",
    "clipped_normalized_sgd",
    "adafactor",
    "clipped_adafactor",
)

# What the longer version of the paper adds. It clips half of their coordinates.
LONG_VERSION = (
    "clipped_adam",
    "clipped_adam_update",
    "lion",
    "clipped_lion",
    "sign_sgd",
)
LONG_VERSION_FRACTION = 0.5

# Today's competitors of clipped SGD.
TODAYS = ("norm_clipped_sgd", "sign_sgd", "adamw", "lion", "muon", "scale")

# The second paper's six, Adam's epsilon from a hard sign to a soft one, and ours.
SECOND_PAPER = (
    "plain_sgd",
    "heavy_ball_sgd",
    "plain_sign_sgd",
    "sign_sgd",
    "rmsprop",
    "adam",
    *(f"adam_eps_{epsilon}" for epsilon in EPSILONS),
    "clipped_sgd",
    "clipped_sgd_per_leaf",
)

# Without a learning rate Adafactor takes its relative step.
_RELATIVE = ("adafactor", "clipped_adafactor")

_LABELS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adam_update": "Adam's update",
    "adafactor": "Adafactor",
    "normalized_sgd": "normalized SGD",
    "lion": "Lion",
    "sign_sgd": "sign SGD",
    "norm_clipped_sgd": "SGD, norm clipped to 1",
    "norm_clipped_sgd_0.1": "SGD, norm clipped to 0.1",
    "nesterov_sgd": "Nesterov SGD",
    "norm_clipped_nesterov_sgd": "Nesterov SGD, norm clipped to 1",
    "adamw": "AdamW",
    "muon": "Muon",
    "scale": "SCALE",
    "plain_sgd": "SGD without momentum",
    "heavy_ball_sgd": "SGD, heavy ball",
    "plain_sign_sgd": "sign SGD without momentum",
    "rmsprop": "RMSProp",
    **{f"adam_eps_{epsilon}": f"Adam, epsilon {epsilon}" for epsilon in EPSILONS},
    "sgd_per_leaf": "SGD leaf by leaf",
}


def label(name: str, fraction: float | None) -> str:
    """The name for people: "SGD, 5 % clipped", or of any fraction "SGD, clipped"."""
    base = _LABELS[name.removeprefix("clipped_")]
    percent = "" if fraction is None else f"{100 * fraction:g} % "
    return f"{base}, {percent}clipped" if is_clipped(name) else base


def is_clipped(name: str) -> bool:
    return name.startswith("clipped_")


def check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in OPTIMIZERS]
    if unknown or not names:
        raise ValueError(
            f"--optimizer: expected some of {', '.join(OPTIMIZERS)}; "
            f"got {', '.join(unknown) or 'none'}."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"--optimizer: each only once; got {', '.join(names)}.")


def check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"--fraction must be in [0, 1); got {fraction}.")


def check_rate(rate: float | None, option: str = "--learning-rate") -> None:
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"{option} must be positive and finite; got {rate}.")


def state_bytes(optimizer: optax.GradientTransformation, params: Any) -> int:
    """What an optimizer keeps between steps."""
    state = jax.eval_shape(optimizer.init, params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def learning_rates(
    names: Sequence[str], given: float | None, swept: Path = LEARNING_RATES
) -> dict[str, float | None]:
    """The learning rate of each: the given one, or the winner of the committed sweep.

    None stands for Adafactor's relative step.
    """
    if given is not None:
        if len(names) > 1:
            raise ValueError(
                "--learning-rate is for one optimizer; got "
                f"{', '.join(names)}: choose one with --optimizer."
            )
        return dict.fromkeys(names, given)
    known = json.loads(swept.read_text())["chosen"] if swept.is_file() else {}
    missing = [name for name in names if name not in {*known, *_RELATIVE}]
    if missing:
        raise ValueError(
            f"no learning rate is known for {', '.join(missing)}: the sweep has "
            f"{', '.join(known) or 'none'}; choose one optimizer and give "
            "--learning-rate, or run examples.finetune_t5.sweep."
        )
    return {name: known.get(name) for name in names}


def tuning_note(training: Mapping[str, Any], swept: Path = LEARNING_RATES) -> str:
    """Says where this training differs from the one that the rates were swept on."""
    if not swept.is_file():
        return ""
    found = json.loads(swept.read_text())["settings"]
    different = [k for k, v in training.items() if v != found.get(k)]
    changes = ", ".join(f"{k} {found.get(k)}, here {training[k]}" for k in different)
    return f"\nThe learning rates were swept with {changes}." if changes else ""
