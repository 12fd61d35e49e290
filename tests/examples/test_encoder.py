"""The encoders of the examples against transformers' PyTorch, and against themselves.

The golden numbers come from `make_encoder_goldens.py`; see `test_t5.py`.
"""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from examples.models import encoder, huggingface_encoder

from ..helpers import assert_close, assert_finite, assert_same_bits
from . import models
from .models import change_config, hub, jit, rewrite, to_tensors

pytestmark = pytest.mark.usefixtures("strict")

CASES = ["bert", "roberta", "causal"]
golden = functools.partial(models.golden, "encoder")
golden_tensors = functools.partial(models.golden_tensors, "encoder")
assert_as_good_as_torch = functools.partial(models.assert_as_good_as_torch, "encoder")

BERT = encoder.EncoderConfig(
    vocab_size=11,
    hidden_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=9,
)
ROBERTA = dataclasses.replace(
    BERT, model_type="roberta", type_vocab_size=1, pad_token_id=1
)
PRE = dataclasses.replace(BERT, norm_placement="pre")
CAUSAL = dataclasses.replace(BERT, causal=True)
ALL = {"bert": BERT, "roberta": ROBERTA, "pre": PRE, "causal": CAUSAL}
every = pytest.mark.parametrize("config", ALL.values(), ids=list(ALL))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each case, with the config.json of transformers."""
    folders = {case: tmp_path_factory.mktemp(case) for case in CASES}
    for case, folder in folders.items():
        models.golden_checkpoint("encoder", case, folder)
    return folders


@functools.cache
def results(folder, case, dtype):
    batch = {k: jnp.asarray(golden(case)[k], jnp.int32) for k in ("ids", "labels")}
    with jax.enable_x64(dtype == np.float64):
        config, graphdef, params = huggingface_encoder.load(folder, dtype)
        derivative = jax.value_and_grad(encoder.make_loss(graphdef, config))

        @jit
        def compute(params):
            logits = nnx.merge(graphdef, params)(batch["ids"])
            return logits, *derivative(params, batch)

        logits, loss, gradient = compute(params)
    names = huggingface_encoder.tensor_names(config)
    gradient = to_tensors(names, gradient)
    return types.SimpleNamespace(logits=logits, loss=loss, gradient=gradient)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_every_gradient_equal_those_of_transformers(
    checkpoints, case, dtype
):
    ours = results(checkpoints[case], case, dtype)
    assert ours.logits.dtype == ours.loss.dtype == dtype
    assert_as_good_as_torch(case, "logits", ours.logits, golden(case)["logits"])
    assert_as_good_as_torch(case, "logits", ours.loss, golden(case)["loss"])
    theirs = golden_tensors(case, "gradient")
    assert ours.gradient.keys() == theirs.keys()
    for name, exact in theirs.items():
        assert ours.gradient[name].dtype == dtype
        if name.endswith("key.bias"):  # the same for all keys: a softmax ignores it
            query = theirs[name.replace("key", "query")]
            rounding = np.finfo(dtype).eps * np.linalg.norm(query)
            assert np.linalg.norm(ours.gradient[name]) <= 16 * rounding
        else:
            assert_as_good_as_torch(case, "gradient", ours.gradient[name], exact)


def abstract_params(config):
    return jax.eval_shape(functools.partial(encoder.init, config), 0)[1]


def test_the_default_is_bert_base_without_its_pooler():
    size = sum(
        x.size for x in jax.tree.leaves(abstract_params(encoder.EncoderConfig()))
    )
    assert size == 109_514_298  # what transformers counts in BertForMaskedLM


def test_distilroberta_has_its_published_size():
    config = encoder.EncoderConfig(
        model_type="roberta",
        vocab_size=50265,
        num_hidden_layers=6,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
    )
    assert sum(x.size for x in jax.tree.leaves(abstract_params(config))) == 82_170_201


def test_initial_weights_have_the_spread_of_bert():
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64}
    _, params = encoder.init(dataclasses.replace(PRE, **sizes), 0)
    for keys, x in flatten_dict(params).items():
        if keys[-1] in ("bias", "scale"):
            np.testing.assert_array_equal(x, float(keys[-1] == "scale"))
            continue
        # The spread of n normal numbers is known to 1 / sqrt(2n): allow four of it.
        rtol = 4 / np.sqrt(2 * x.size)
        np.testing.assert_allclose(x.std(), 0.02, rtol=rtol, err_msg=str(keys))


def tiny(config=BERT):
    return models.random_model(encoder.init, config)


def tiny_batch(rng, config=BERT):
    """Three rows, one of them padded, and some labels."""
    ids = rng.integers(2, 11, (3, 6))
    labels = rng.integers(2, 11, (3, 6))
    labels[rng.random((3, 6)) < 0.5] = encoder.IGNORED
    ids[1, -2:], labels[1, -2:] = config.pad_token_id, encoder.IGNORED
    return {k: jnp.asarray(x, jnp.int32) for k, x in (("ids", ids), ("labels", labels))}


def gathered(batch, columns=5):
    """The same labels with their positions, and places to spare."""
    positions = np.zeros((3, columns), np.int32)
    labels = np.full((3, columns), encoder.IGNORED, np.int32)
    for row, given in enumerate(np.asarray(batch["labels"])):
        where = np.flatnonzero(given != encoder.IGNORED)
        positions[row, : len(where)] = where
        labels[row, : len(where)] = given[where]
    return {
        "ids": batch["ids"],
        "labels": jnp.asarray(labels),
        "positions": jnp.asarray(positions),
    }


@every
def test_logits_at_positions_are_the_logits_there(rng, config):
    config, graphdef, params = tiny(config)
    model, ids = nnx.merge(graphdef, params), tiny_batch(rng, config)["ids"]
    positions = jnp.array([[5, 0], [3, 3], [1, 2]], jnp.int32)
    everywhere, some = jit(lambda: (model(ids), model(ids, None, positions)))()
    assert_close(some, jnp.take_along_axis(everywhere, positions[..., None], axis=1))


def test_the_loss_of_labels_at_positions_is_that_of_whole_rows(rng):
    config, graphdef, params = tiny()
    batch = tiny_batch(rng)
    derivative = jit(jax.value_and_grad(encoder.make_loss(graphdef, config)))
    assert encoder.label_count(gathered(batch)) == encoder.label_count(batch) > 0
    assert_close(derivative(params, gathered(batch)), derivative(params, batch))


@every
def test_a_logit_depends_on_the_tokens_that_the_mask_allows(rng, config):
    config, graphdef, params = tiny(config)
    ids = np.tile(tiny_batch(rng, config)["ids"][1], (5, 1))  # its last two are pads
    for i in range(4):
        ids[i + 1, i] = 2 + (ids[i + 1, i] - 1) % 9  # another id
    logits = jit(nnx.merge(graphdef, params))(jnp.asarray(ids))
    changed = np.asarray((logits[1:] != logits[:1]).any(-1))  # by token, at position
    expected = np.ones((4, 6), bool)
    if config.causal:
        expected = np.tri(6, dtype=bool).T[:4]
    np.testing.assert_array_equal(changed, expected)


@every
def test_padding_does_not_change_the_loss(rng, config):
    config, graphdef, params = tiny(config)
    batch, loss = tiny_batch(rng, config), encoder.make_loss(graphdef, config)
    # One column more, and a row that is nothing but padding.
    more = {
        "ids": jnp.pad(
            batch["ids"], ((0, 1), (0, 1)), constant_values=config.pad_token_id
        ),
        "labels": jnp.pad(
            batch["labels"], ((0, 1), (0, 1)), constant_values=encoder.IGNORED
        ),
    }
    value, gradient = jit(jax.value_and_grad(loss))(params, more)
    assert_close(value, jit(loss)(params, batch))
    assert_finite(gradient)


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero(rng):
    config, graphdef, params = tiny()
    batch = tiny_batch(rng)
    batch["labels"] = jnp.full_like(batch["labels"], encoder.IGNORED)
    derivative = jit(jax.value_and_grad(encoder.make_loss(graphdef, config)))
    loss, gradient = derivative(params, batch)
    assert loss == 0
    assert all((g == 0).all() for g in jax.tree.leaves(gradient))


def test_losses_of_microbatches_weighted_by_their_labels_make_that_of_the_batch(rng):
    config, graphdef, params = tiny()
    batch, loss = tiny_batch(rng), jit(encoder.make_loss(graphdef, config))
    parts = [{k: x[i : i + 1] for k, x in batch.items()} for i in range(3)]
    counts = jnp.stack([encoder.label_count(part) for part in parts])
    losses = jnp.stack([loss(params, part) for part in parts])
    assert_close((counts * losses).sum() / counts.sum(), loss(params, batch))


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_layers_that_add_nothing_leave_the_norms_of_their_placement(rng, placement):
    config = dataclasses.replace(
        BERT, norm_placement=placement, num_hidden_layers=2, layer_norm_eps=1e-3
    )
    _, graphdef, params = tiny(config)
    for layer in params["layers"].values():
        for part in ("attention", "feed_forward"):
            layer[part]["output"] = jax.tree.map(jnp.zeros_like, layer[part]["output"])

    def norm(y, weights):
        y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3)
        return y * np.asarray(weights["scale"]) + np.asarray(weights["bias"])

    ids = tiny_batch(rng)["ids"]
    words, rows, types_ = (
        np.asarray(params[k]["embedding"], np.float64)
        for k in ("embed", "position_embed", "type_embed")
    )
    y = norm(words[ids] + rows[:6] + types_[0], params["embed_norm"])
    if placement == "pre":
        y = norm(y, params["norm"])
    else:
        for layer in params["layers"].values():
            y = norm(norm(y, layer["attention_norm"]), layer["feed_forward_norm"])
    assert ("norm" in params) == (placement == "pre")
    assert_close(nnx.merge(graphdef, params).encode(ids), y, ulps=64)


def test_dropout_is_a_function_of_its_key(rng):
    config, graphdef, params = tiny()
    batch, loss = tiny_batch(rng), jit(encoder.make_loss(graphdef, config))
    keys = [jax.random.key(i) for i in range(2)]
    assert loss(params, batch, keys[0]) == loss(params, batch, keys[0])
    assert len({float(loss(params, batch, key)) for key in [*keys, None]}) == 3


def test_half_precision_weights_compute_in_it_but_for_the_loss(rng):
    config, graphdef, params = tiny()
    batch, loss = tiny_batch(rng), jit(encoder.make_loss(graphdef, config))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = jax.eval_shape(lambda p: nnx.merge(graphdef, p)(batch["ids"]), half)
    assert logits.dtype == jnp.bfloat16
    assert loss(half, batch).dtype == jnp.float32
    np.testing.assert_allclose(loss(half, batch), loss(params, batch), rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type must be 'bert' or 'roberta', got 't5'"),
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ({"norm_placement": "mid"}, "must be 'post' or 'pre', got 'mid'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"pad_token_id": -1}, "pad_token_id must be at least 0, got -1"),
        ({"hidden_dropout_prob": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"num_attention_heads": 5}, "a multiple of num_attention_heads=5, got 6"),
        (
            {"model_type": "roberta", "pad_token_id": 8},
            r"must be more than pad_token_id \+ 1 = 9 for a RoBERTa, got 9",
        ),
    ],
)
def test_a_config_refuses_what_it_does_not_know(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **changes)


@pytest.mark.parametrize(("config", "most"), [(BERT, 9), (ROBERTA, 7)])
def test_rows_longer_than_the_positions_are_refused(config, most):
    loss = encoder.make_loss(tiny(config)[1], config)
    params, ids = abstract_params(config), jnp.full((1, most + 1), 3)
    with pytest.raises(
        ValueError, match=f"at most {most} ids in a row, got {most + 1}"
    ):
        jax.eval_shape(loss, params, {"ids": ids, "labels": ids})
    jax.eval_shape(loss, params, {"ids": ids[:, 1:], "labels": ids[:, 1:]})


# Checkpoints: what is the same for every model is tested in test_t5.py.


@pytest.fixture(params=[BERT, ROBERTA], ids=["bert", "roberta"])
def checkpoint(request, tmp_path):
    """A folder with a tiny model in float32, to be spoilt."""
    config, _, params = tiny(request.param)
    huggingface_encoder.save(tmp_path, config, params, dtype=np.float32)
    return tmp_path


@pytest.mark.parametrize("name", ["bert", "roberta", "causal"])
def test_what_is_saved_loads_to_the_bits_of_its_dtype(tmp_path, name):
    config, graphdef, params = tiny(ALL[name])
    huggingface_encoder.save(tmp_path, config, params)
    loaded = huggingface_encoder.load(tmp_path)
    assert loaded[:2] == (config, graphdef)
    assert_same_bits(
        loaded[2], jax.tree.map(lambda x: x.astype("f2").astype("f4"), params)
    )


@pytest.mark.parametrize(
    ("case", "architecture"),
    [
        ("bert", "BertForMaskedLM"),
        ("roberta", "RobertaForMaskedLM"),
        ("causal", "BertLMHeadModel"),
    ],
)
def test_saved_tensors_are_those_of_transformers_to_the_bit(
    checkpoints, tmp_path, case, architecture
):
    config, _, params = huggingface_encoder.load(checkpoints[case])
    huggingface_encoder.save(tmp_path, config, params, dtype=np.float32)
    theirs = golden_tensors(case, "weight")
    assert_same_bits(load_file(tmp_path / "model.safetensors"), theirs)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [architecture]
    theirs = json.loads(str(golden(case)["config"]))
    known = saved.keys() - {"architectures"}
    assert {k: saved[k] for k in known} == {k: theirs[k] for k in known}


def strip(tensors, prefix):
    """Leave the encoder alone, named as the sentence encoders name it."""
    for name in list(tensors):
        tensor = tensors.pop(name)
        if name.startswith(prefix):
            tensors[name.removeprefix(prefix)] = tensor


def test_an_encoder_without_head_and_prefix_loads_with_a_fresh_head(checkpoint):
    config, graphdef, params = huggingface_encoder.load(checkpoint)
    rewrite(checkpoint, lambda tensors: strip(tensors, f"{config.model_type}."))
    with pytest.raises(ValueError, match=r"no masked-LM head \(.*fresh_head=seed"):
        huggingface_encoder.load(checkpoint)
    fresh = [
        huggingface_encoder.load(checkpoint, fresh_head=seed) for seed in (0, 0, 1)
    ]
    assert fresh[0][1] == graphdef
    heads = [loaded[2].pop("head") for loaded in fresh]
    del params["head"]
    assert_same_bits(fresh[0][2], params)
    assert_same_bits(heads[0], heads[1])
    assert (heads[0]["bias"] == 0).all()
    kernels = [head["dense"]["kernel"] for head in heads]
    assert not np.array_equal(kernels[0], kernels[2])


def test_a_head_in_the_checkpoint_stays_whatever_the_seed(checkpoint):
    *_, params = huggingface_encoder.load(checkpoint)
    assert_same_bits(huggingface_encoder.load(checkpoint, fresh_head=0)[2], params)


def test_the_known_superfluous_tensors_are_accepted(checkpoint):
    config, _, params = huggingface_encoder.load(checkpoint)
    model = config.model_type
    head = "cls.predictions" if model == "bert" else "lm_head"

    def add(tensors):
        words = tensors[f"{model}.embeddings.word_embeddings.weight"]
        tensors[f"{head}.decoder.weight"] = words
        tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"]
        tensors[f"{model}.embeddings.position_ids"] = np.arange(9)[None]
        tensors[f"{model}.pooler.dense.weight"] = np.ones((6, 6), np.float32)
        tensors[f"{model}.pooler.dense.bias"] = np.ones(6, np.float32)
        tensors["cls.seq_relationship.weight"] = np.ones((2, 6), np.float32)
        tensors["cls.seq_relationship.bias"] = np.ones(2, np.float32)

    rewrite(checkpoint, add)
    assert_same_bits(huggingface_encoder.load(checkpoint)[2], params)

    def spoil(tensors):
        tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"] + 1

    rewrite(checkpoint, spoil)
    message = rf"{head}\.decoder\.bias differs from {head}\.bias"
    with pytest.raises(ValueError, match=message):
        huggingface_encoder.load(checkpoint)


def test_the_old_names_of_norms_are_understood(checkpoint):
    *_, params = huggingface_encoder.load(checkpoint)

    def age(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace("m.weight", "m.gamma").replace("m.bias", "m.beta")
            tensors[old] = tensors.pop(name)

    rewrite(checkpoint, age)
    assert_same_bits(huggingface_encoder.load(checkpoint)[2], params)


def test_missing_unknown_and_misshapen_tensors_are_all_named(checkpoint):
    model = huggingface_encoder.load(checkpoint)[0].model_type

    def spoil(tensors):
        del tensors[f"{model}.embeddings.LayerNorm.weight"]
        tensors["classifier.bias"] = np.ones(2, np.float32)
        name = f"{model}.encoder.layer.0.output.dense.weight"
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    rewrite(checkpoint, spoil)
    with pytest.raises(ValueError, match="tensors") as caught:
        huggingface_encoder.load(checkpoint)
    assert str(caught.value).replace(str(checkpoint), "folder").split("\n") == [
        f"folder: missing tensors: {model}.embeddings.LayerNorm.weight (6,).",
        f"folder: tensors that this {model.capitalize()} does not have: "
        "classifier.bias (2,).",
        f"folder: misshapen tensors: {model}.encoder.layer.0.output.dense.weight "
        "(expected (6, 10), got (10, 6)).",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "expected model_type 'bert' or 'roberta', got 't5'"),
        ({"model_type": None}, "expected model_type 'bert' or 'roberta', got None"),
        ({"hidden_act": "gelu_new"}, "hidden_act must be 'gelu', got 'gelu_new'"),
        (
            {"position_embedding_type": "relative_key"},
            "expected position_embedding_type 'absolute', got 'relative_key'",
        ),
        (
            {"tie_word_embeddings": False},
            "expected tie_word_embeddings True, got False",
        ),
    ],
)
def test_a_config_of_another_model_is_refused(checkpoint, changes, message):
    change_config(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        huggingface_encoder.load(checkpoint)


def test_a_roberta_pads_with_1_where_its_config_does_not_say(checkpoint):
    change_config(checkpoint, drop={"pad_token_id"})
    config = huggingface_encoder.load(checkpoint)[0]
    assert config.pad_token_id == int(config.model_type == "roberta")


def test_saving_refuses_norms_in_front(tmp_path):
    config, _, params = tiny(PRE)
    with pytest.raises(ValueError, match="expected norm_placement 'post', got 'pre'"):
        huggingface_encoder.save(tmp_path, config, params)
    assert not list(tmp_path.iterdir())


def test_a_hub_name_is_fetched_with_its_vocabulary(monkeypatch, checkpoint):
    def download(name, allow_patterns):
        assert name == "distilroberta-base"
        assert {"tokenizer.json", "vocab.*", "merges.txt"} <= set(allow_patterns)
        return str(checkpoint)

    hub(monkeypatch, download)
    huggingface_encoder.load("distilroberta-base")
