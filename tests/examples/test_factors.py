"""The variants of the factor experiment, and weights of another scale."""

import dataclasses
import json
from typing import get_args

import jax
import numpy as np
import pytest
from jax.tree_util import DictKey

from examples.factors import experiment as factors
from examples.factors import problem, report, variants
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
            other * 4.0 ** powers.get(kind, 0), grad, atol=2e-3 * np.abs(grad).max()
        )
    assert set(powers) <= touched


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_a_factor_that_is_none_is_refused(micro_t5, factor):
    with pytest.raises(ValueError, match="a positive factor"):
        t5_scales.rescaled(huggingface.load(micro_t5)[2], "values", factor)


def test_what_can_be_scaled_is_named_once():
    assert get_args(t5_scales.Scaled) == tuple(t5_scales.SCALED)


def test_a_t5_that_no_scale_keeps_is_refused(micro_t5):
    config, _, _ = huggingface.load(micro_t5)
    gated = dataclasses.replace(config, feed_forward_proj="gated-gelu")
    with pytest.raises(ValueError, match=r"ReLU and a tied embedding.*values"):
        t5_scales.rescaled(t5.init(gated, 0)[1], "values", 2.0)


def test_every_factor_changes_one_thing_of_what_it_is_compared_with():
    everything = [v for own in variants.FACTORS.values() for v in own]
    for factor, own in variants.FACTORS.items():
        for variant in own:
            other = variants.compared_with(factor, variant)
            assert other in everything
            changed = {
                field.name
                for field in dataclasses.fields(variant)
                if getattr(variant, field.name) != getattr(other, field.name)
            }
            assert len(changed - {"scale"}) == (variant != variants.Variant())


def test_a_change_is_told_seed_by_seed_and_what_is_missing_is_counted(tmp_path):
    base = variants.Variant()
    grown = dataclasses.replace(base, scaled="values", scale=4.0)
    batch = dataclasses.replace(base, batch_size=16)
    lines = [
        {
            "factor": factor,
            "variant": dataclasses.asdict(variant),
            "seed": seed,
            "diverged": None,
            "ratios": {"clipped_sgd": [ratio, None]},
        }
        for factor, variant, ratios in (
            ("as it is", base, [0.2, 0.4, 0.8]),
            ("scale of weights", grown, [0.1, 0.2, 0.4]),
            ("batch size", batch, [0.1, 0.4, 1.6]),
        )
        for seed, ratio in enumerate(ratios)
    ]
    folder = tmp_path / "examples/results/factors"
    folder.mkdir(parents=True)
    content = {"settings": {"init": "t5", "seeds": 3}, "sessions": []}
    (folder / "settings.json").write_text(json.dumps(content))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "variants.jsonl").write_text(text)
    said = report.said(tmp_path)
    assert "**Clearly less is left**: scale of weights (values x 4.0) 0.50." in said
    assert "**No clear change**: batch size (batch size 16) 1.00." in said
    changes = sum(map(len, variants.FACTORS.values())) - 1
    assert "2 comparisons, seed by seed; not ended with all seeds" in said
    assert f"diverged with one: {changes - 2}." in said


def test_more_test_pairs_than_there_are_is_refused(tmp_path):
    init = factors.Settings().init
    with pytest.raises(ValueError, match="--test-size: expected at most the"):
        problem.set_up(variants.Variant(), init, 40, 10**6, tmp_path)


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
