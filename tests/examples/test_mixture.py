"""The mixture that a T5 is pretrained on: its batches, its loss, its optimizer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from examples.data import mixture, translation, vocabulary
from examples.models import t5
from examples.pretrain import geometry, mixture_card, shrinking, t5_mixture

TOKENS = 144


@pytest.fixture(scope="module")
def parts():
    return translation.libreoffice_parts()


@pytest.fixture(scope="module")
def buckets(words, parts):
    return mixture.bucketed(parts.translated[:600], words)


def test_no_page_and_no_sentence_is_in_two_parts(parts):
    for field in translation.Pair._fields:
        sets = [{getattr(pair, field) for pair in part} for part in parts]
        assert not sets[0] & sets[1]
        assert not (sets[0] | sets[1]) & sets[2]
    train = translation.libreoffice_split().train
    assert len(parts.translated) + len(parts.untranslated) == len(train)
    assert len(parts.translated) == pytest.approx(2 / 3 * len(train), rel=0.1)


def test_each_pair_is_in_the_first_shape_that_it_fits(words, parts, buckets):
    lengths = [
        (
            len(words.encode([translation.PREFIX + pair.english])[0]),
            len(words.encode([pair.french])[0]),
        )
        for pair in parts.translated[:600]
    ]
    left = lengths
    for bucket, (source, target) in zip(buckets, mixture.SHAPES, strict=True):
        fitting = [(s, t) for s, t in left if s <= source and t <= target]
        left = [(s, t) for s, t in left if s > source or t > target]
        assert bucket["source"].shape == (len(fitting), source)
        assert bucket["target"].shape == (len(fitting), target)
        found = [(bucket[k] != vocabulary.PAD).sum(1) for k in ("source", "target")]
        assert list(zip(*(x.tolist() for x in found), strict=True)) == fitting


def test_sources_begin_with_the_prefix_and_targets_are_their_translations(
    words, parts, buckets
):
    french = {
        words.decode(words.encode([translation.PREFIX + pair.english]))[0]: pair.french
        for pair in parts.translated[:600]
    }
    batch = mixture.batch_at(buckets, TOKENS, seed=0, step=5)
    for source, target in zip(*map(words.decode, batch.values()), strict=True):
        assert source.startswith(translation.PREFIX)
        assert words.decode(words.encode([french[source]])) == [target]


def test_an_epoch_takes_no_row_twice_and_a_step_needs_only_its_number(buckets):
    sizes = mixture.batches_per_epoch(buckets, TOKENS)
    steps = range(sum(sizes), 2 * sum(sizes))
    batches = [mixture.batch_at(buckets, TOKENS, seed=0, step=step) for step in steps]
    rows = [row.tobytes() for batch in batches for row in batch["source"]]
    assert len(set(rows)) == len(rows)
    assert all(
        len(batch["target"]) == TOKENS // batch["target"].shape[1] for batch in batches
    )
    shapes = [batch["source"].shape for batch in batches]
    assert sorted(map(shapes.count, set(shapes))) == sorted(sizes)
    again = mixture.batch_at(buckets, TOKENS, seed=0, step=steps[3])
    np.testing.assert_array_equal(again["source"], batches[3]["source"])
    other = mixture.batch_at(buckets, TOKENS, seed=1, step=steps[3])
    assert other["source"].tobytes() != again["source"].tobytes()


def test_too_few_pairs_for_a_batch_are_refused(buckets):
    with pytest.raises(ValueError, match="expected pairs for at least one batch"):
        mixture.batch_at(buckets, 10**6, seed=0, step=0)


def test_the_joint_loss_is_the_mean_over_the_tokens_of_both_parts():
    batch = {"a": {"x": jnp.arange(3.0)}, "b": {"x": jnp.array([5.0])}}
    loss = mixture.joint_loss(
        lambda params, part, _: params * part["x"].mean(),
        lambda part: jnp.asarray(part["x"].size),
    )
    assert loss(2.0, batch) == pytest.approx(2 * (0 + 1 + 2 + 5) / 4)


def test_a_batch_of_the_pretraining_has_both_objectives(words):
    settings = t5_mixture.Settings(target_tokens=TOKENS)
    _, train, valid = t5_mixture.prepare(settings)
    batch = t5_mixture.batches(settings, words, train, seed=0)(7)
    assert batch["spans"]["source"].shape == (8, 64)
    assert (batch["spans"]["source"] >= words.sentinel(9)).any(axis=1).all()
    assert not (batch["translation"]["source"] >= words.sentinel(99)).any()
    assert len(train.stream) > 2_000_000 > 20 * len(valid.stream) / 2


def test_queries_and_keys_take_a_quarter_of_the_updates_of_adafactor():
    settings = t5_mixture.Settings(steps=8, warmup_steps=1)
    config = t5.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1
    )
    _, params = t5.init(config, 0)
    grads = jax.tree.map(jnp.cos, params)
    found = []
    for factor in (0.25, 1.0):
        tx = t5_mixture.optimizer(
            t5_mixture.Settings(steps=8, warmup_steps=1, queries_and_keys=factor)
        )
        state = tx.init(params)
        for _ in range(2):  # the first step of a warm-up is none
            updates, state = tx.update(grads, state, params)
        found.append(updates)
    quotient = jax.tree.map(
        lambda a, b: optax.tree.norm(a) / optax.tree.norm(b), *found
    )
    for path, one in jax.tree_util.tree_leaves_with_path(quotient):
        small = any(key.key in ("query", "key") for key in path if hasattr(key, "key"))
        assert one == pytest.approx(0.25 if small else 1.0), path
    assert t5_mixture.schedule(settings)(8) == pytest.approx(0.003)


def test_the_rate_is_held_and_then_falls_linearly():
    schedule = t5_mixture.schedule(t5_mixture.Settings(steps=1000))
    steps = [50, 100, 750, 875, 1000, 2000]
    expected = [0.015, 0.03, 0.03, 0.0165, 0.003, 0.003]
    found = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


TINY = {
    "steps": 4,
    "target_tokens": TOKENS,
    "windows": 2,
    "d_model": 8,
    "d_kv": 4,
    "num_heads": 2,
    "d_ff": 16,
    "num_layers": 1,
}


@pytest.mark.slow
def test_the_pretraining_ends_with_weights_and_a_card_and_resumes(
    tmp_path, monkeypatch
):
    settings = t5_mixture.Settings(**TINY)
    run, out = tmp_path / "run", tmp_path / "out"
    t5_mixture.main(settings, run, out)
    weights = (out / "model.safetensors").read_bytes()
    card = (out / "README.md").read_text()
    assert "| embedding | " in card
    assert "chrF before any fine-tuning" in card
    assert card.count("SGD, 5 % clipped |") == 4
    heads = (out / "loss.csv").read_text().splitlines()[0]
    assert heads == "step,train_loss,held_out_loss,held_out_span_loss"
    measured = json.loads((out / "geometry.json").read_text())
    kinds = {"embedding", "query", "key", "value", "attention output", "norm gain"}
    assert set(measured["growth"]) >= kinds | set(geometry.RELEASED)
    assert all(0.5 < row["growth"] < 2 for row in measured["growth"].values())
    # Its measurements take most of the time, and depend on the weights alone.
    monkeypatch.setattr(mixture_card, "write", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=r"t5-mixture: .* continue it with --resume"):
        t5_mixture.main(settings, run, out)
    t5_mixture.main(settings, run, out, resume=True)
    assert (out / "model.safetensors").read_bytes() == weights


def test_an_impossible_pretraining_is_refused_before_it_claims_a_folder(tmp_path):
    for impossible, reason in (
        ({"target_tokens": 10**7}, "expected pairs for at least one batch"),
        ({"windows": 10**6}, "expected at least one batch of"),
        ({"steps": 0}, "--settings.steps must be at least 1; got 0"),
        ({"dropout_rate": 2.0}, r"dropout_rate must be in \[0, 1\), got 2.0"),
    ):
        settings = t5_mixture.Settings(**impossible)
        with pytest.raises(SystemExit, match=f"pretrain.t5-mixture: .*{reason}"):
            t5_mixture.main(settings, tmp_path / "run", tmp_path / "out")
        assert not (tmp_path / "run").exists()


def test_a_trial_does_not_replace_the_committed_weights(tmp_path):
    with pytest.raises(SystemExit, match=r"committed weights.*with --out"):
        t5_mixture.main(t5_mixture.Settings(steps=1), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_curvature_at_a_point_and_over_a_distance_agree_on_a_parabola():
    rows = {"x": np.arange(8.0, dtype=np.float32)[:, None]}
    diagonal = jnp.array([3.0, 1.0])

    def loss(params, batch):
        return 0.5 * (diagonal * params["w"] ** 2).sum() + 0.0 * batch["x"].sum()

    params = {"w": jnp.array([1.0, 2.0])}
    found = list(geometry.curvatures(loss, params, rows, size=2, moments=1, seed=0))
    gradient = diagonal * params["w"]
    expected = float((diagonal * gradient**2).sum() / (gradient**2).sum())
    assert [row["direction"] for row in found] == ["sgd", "clipped_sgd"]
    assert found[0]["point"] == pytest.approx(expected)
    assert found[0]["distances"]["0.1"] == pytest.approx(expected, rel=1e-4)
    assert found[0]["direction_norm"] == pytest.approx(float(jnp.linalg.norm(gradient)))


def test_a_t5_with_shrunk_weights_is_the_same_function(rng):
    config = t5.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2
    )
    graphdef, initial = t5.init(config, 0)
    params = jax.tree.map(lambda x: x * rng.uniform(1.5, 4.0), t5.init(config, 1)[1])
    small = shrinking.shrunk(params, initial)
    model = [nnx.merge(graphdef, weights) for weights in (params, small)]
    ids = jnp.asarray(rng.integers(2, 40, (3, 7)), jnp.int32)
    logits = [one(ids, ids) for one in model]
    np.testing.assert_allclose(*logits, rtol=2e-3, atol=2e-3)
    before, after = (geometry.growth(weights, initial) for weights in (params, small))
    for kind in ("embedding", "value", "feed-forward input"):
        assert after[kind]["growth"] == pytest.approx(1, rel=0.05)
    assert after["query"] == before["query"]


def test_predicted_growth_is_that_of_orthogonal_relative_updates():
    settings = t5_mixture.Settings(steps=4, warmup_steps=2, queries_and_keys=0.5)
    found = t5_mixture.predicted_growth(settings)
    # The rates are 0, 0.015, 0.03, 0.03, the squares of which sum to 0.002025.
    assert found["value"] == pytest.approx(np.exp(0.002025 / 2), rel=1e-6)
    assert found["query"] == pytest.approx(np.exp(0.002025 / 8), rel=1e-6)
