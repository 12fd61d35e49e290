"""The mixture that a T5 is pretrained on: its batches, its loss, its optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.data import mixture, translation, vocabulary
from examples.models import t5
from examples.pretrain import t5_mixture

TOKENS = 144


@pytest.fixture(scope="module")
def words():
    return vocabulary.load()


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
