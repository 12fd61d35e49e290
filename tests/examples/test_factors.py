"""The variants of the factor experiment, and weights of another scale."""

import dataclasses
from typing import get_args

import jax
import numpy as np
import pytest
from jax.tree_util import DictKey

from examples.factors import experiment as factors
from examples.factors import report, variants
from examples.models import huggingface, t5, t5_scales


@pytest.mark.parametrize("scaled", t5_scales.SCALED)
def test_rescaled_weights_change_the_gradient_and_not_the_loss(micro_t5, scaled):
    config, graphdef, params = huggingface.load(micro_t5)
    # A norm adds its epsilon to the mean square, which a smaller stream notices.
    config = dataclasses.replace(config, layer_norm_epsilon=1e-12)
    graphdef, _ = t5.init(config, 0)
    loss = t5.make_loss(graphdef, config)
    ids = np.random.default_rng(0).integers(3, 400, (2, 2, 9)).astype(np.int32)
    batch = dict(zip(("source", "target"), ids, strict=True))
    value, grads = jax.value_and_grad(loss)(params, batch)
    other, other_grads = jax.value_and_grad(loss)(
        t5_scales.rescaled(params, scaled, 4.0), batch
    )
    np.testing.assert_allclose(other, value, rtol=1e-5)
    powers = t5_scales.SCALED[scaled]
    touched = set()
    paths = jax.tree_util.tree_leaves_with_path(grads)
    for (path, grad), other in zip(paths, jax.tree.leaves(other_grads), strict=True):
        last = path == (DictKey("decoder"), DictKey("norm"), DictKey("scale"))
        kind = "last gain" if last else t5_scales.kind(path)
        touched.add(kind)
        np.testing.assert_allclose(
            other * 4.0 ** powers.get(kind, 0), grad, rtol=2e-3, atol=1e-5
        )
    assert set(powers) <= touched


def test_what_can_be_scaled_is_named_once():
    assert get_args(t5_scales.Scaled) == tuple(t5_scales.SCALED)


def test_a_t5_that_no_scale_keeps_is_refused(micro_t5):
    config, _, _ = huggingface.load(micro_t5)
    gated = dataclasses.replace(config, feed_forward_proj="gated-gelu")
    with pytest.raises(ValueError, match=r"ReLU and a tied embedding.*values"):
        t5_scales.rescaled(t5.init(gated, 0)[1], "values", 2.0)


def test_every_factor_changes_one_thing_of_another_variant():
    base = dataclasses.asdict(variants.Variant())
    for name, own in variants.FACTORS.items():
        for variant in own:
            changed = {
                k for k, v in dataclasses.asdict(variant).items() if v != base[k]
            }
            allowed = {"start", "adam_steps"} if "vocabulary" in name else set()
            allowed |= {"start"} if "random" in name else set()
            allowed |= {"scale"} if variant.scaled else set()
            if variant.source_length == 160:
                allowed = {"source_length"}
            assert len(changed - allowed) <= 1, (name, changed)


def test_an_unknown_factor_is_refused():
    with pytest.raises(ValueError, match="--factor: expected some of 'as it is'"):
        factors.Settings(factor=("weather",)).check()


def test_a_row_is_over_the_seeds_that_did_not_diverge():
    variant = dataclasses.asdict(variants.Variant(rate=0.1))
    known = {"factor": "SGD's learning rate", "variant": variant, "diverged": None}
    names = variants.COMPARED
    seeds = [
        {
            **known,
            "loss": loss,
            "sharpness": {name: [2.0, 4.0] for name in names},
            "ratios": dict.fromkeys(names, ratios),
        }
        for loss, ratios in ((1.0, [0.1, 0.3]), (2.0, [0.4, None]))
    ]
    found = report.row([*seeds, {**known, "diverged": 3}])
    assert found[:4] == [
        "SGD's learning rate",
        "rate 0.1 (1 of 3 diverged)",
        "1.50",
        "3",
    ]
    assert set(found[4:]) == {"0.3 (0.2 to 0.4)"}
