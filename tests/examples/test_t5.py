"""The T5 of the examples against transformers' PyTorch T5, and against itself.

The golden numbers come from `make_t5_goldens.py`. If a test against them fails and
the model was not meant to change, it is a bug; they are facts about T5, not about us.
"""

import dataclasses
import functools
import itertools
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from examples.models import huggingface, t5

from ..helpers import assert_close, assert_finite, assert_same_bits
from . import models
from .models import hub, jit, rewrite, to_tensors

pytestmark = pytest.mark.usefixtures("strict")

CASES = ["v1_0", "gated_tied", "v1_1"]
DTYPES = [np.float32, np.float64]

TINY = t5.T5Config(
    vocab_size=11,
    d_model=8,
    d_kv=3,
    d_ff=12,
    num_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    relative_attention_num_buckets=4,
    relative_attention_max_distance=6,
)
TINY_V1_1 = dataclasses.replace(
    TINY, feed_forward_proj="gated-gelu", tie_word_embeddings=False
)

golden = functools.partial(models.golden, "t5")
golden_tensors = functools.partial(models.golden_tensors, "t5")
assert_as_good_as_torch = functools.partial(models.assert_as_good_as_torch, "t5")


def golden_batch(case):
    return {k: jnp.asarray(golden(case)[k], jnp.int32) for k in ("source", "target")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each case, with the config.json of transformers."""
    folders = {case: tmp_path_factory.mktemp(case) for case in CASES}
    for case, folder in folders.items():
        models.golden_checkpoint("t5", case, folder)
    return folders


def from_tensors(config, tensors, dtype):
    """A tree like `params` out of tensors named and oriented as in PyTorch."""
    flat = {}
    for name, keys in huggingface.tensor_names(config).items():
        x = tensors[name].T if keys[-1] == "kernel" else tensors[name]
        flat[keys] = jnp.asarray(x, dtype)
    return unflatten_dict(flat)


@functools.cache
def results(folder, case, dtype):
    """Logits, loss, gradient and, in float64, the Hessian times the golden vector."""
    batch = golden_batch(case)
    with jax.enable_x64(dtype == np.float64):
        config, graphdef, params = huggingface.load(folder, dtype)
        derivative = jax.value_and_grad(t5.make_loss(graphdef, config))
        start_Bx1 = jnp.full((3, 1), config.decoder_start_token_id)
        input_BxT = jnp.concatenate([start_Bx1, batch["target"][:, :-1]], axis=1)

        def compute(params, v):
            def first(params):
                return derivative(params, batch)

            logits = nnx.merge(graphdef, params)(batch["source"], input_BxT)
            if v is None:
                return logits, *first(params), None
            (loss, gradient), (_, hvp) = jax.jvp(first, (params,), (v,))
            return logits, loss, gradient, hvp

        v = from_tensors(config, golden_tensors(case, "v"), dtype)
        single = dtype == np.float32
        logits, loss, gradient, hvp = jit(compute)(params, None if single else v)
    names = huggingface.tensor_names(config)
    return types.SimpleNamespace(
        logits=logits,
        loss=loss,
        gradient=to_tensors(names, gradient),
        hvp=None if single else to_tensors(names, hvp),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_equal_those_of_transformers(checkpoints, case, dtype):
    ours = results(checkpoints[case], case, dtype)
    assert ours.logits.dtype == ours.loss.dtype == dtype
    assert_as_good_as_torch(case, "logits", ours.logits, golden(case)["logits"])
    assert_as_good_as_torch(case, "logits", ours.loss, golden(case)["loss"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_every_tensor_equals_that_of_transformers(
    checkpoints, case, dtype
):
    ours = results(checkpoints[case], case, dtype).gradient
    theirs = golden_tensors(case, "gradient")
    assert ours.keys() == theirs.keys()
    for name, exact in theirs.items():
        assert ours[name].dtype == dtype
        assert_as_good_as_torch(case, "gradient", ours[name], exact)


@pytest.mark.parametrize("case", CASES)
def test_a_hessian_vector_product_equals_double_backward_of_torch(checkpoints, case):
    ours = results(checkpoints[case], case, np.float64).hvp
    for name, exact in golden_tensors(case, "hvp").items():
        assert_as_good_as_torch(case, "hvp", ours[name], exact)


def test_without_a_source_mask_padding_is_attended_to_as_in_transformers(checkpoints):
    config, graphdef, params = huggingface.load(checkpoints["v1_0"])
    loss = t5.make_loss(graphdef, config, mask_source=False)
    ours = jit(loss)(params, golden_batch("v1_0"))
    exact = golden("v1_0")["loss_without_source_mask"]
    assert_as_good_as_torch("v1_0", "logits", ours, exact)
    assert abs(exact - golden("v1_0")["loss"]) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_gives_the_tokens_of_transformers(checkpoints, case):
    _, graphdef, params = huggingface.load(checkpoints[case])
    ids = jit(t5.greedy_decode, static_argnums=(0, 3))(
        graphdef, params, golden_batch(case)["source"], 16
    )
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, golden(case)["generated"])


def test_greedy_decoding_equals_a_loop_that_rereads_everything(checkpoints):
    _, graphdef, params = huggingface.load(checkpoints["v1_0"])
    source, length = golden_batch("v1_0")["source"], 12

    @jit
    def next_token(input_BxT, position):
        model = nnx.merge(graphdef, params)
        return model(source, input_BxT, mask_source=False)[:, position].argmax(-1)

    ids = np.zeros((3, length + 1), np.int32)
    for t in range(length):
        token = np.where((ids == 1).any(1), 0, next_token(ids[:, :-1], t))
        ids[:, t + 1] = token
    decode = jit(t5.greedy_decode, static_argnums=(0, 3), static_argnames="mask_source")
    cached = decode(graphdef, params, source, length, mask_source=False)
    np.testing.assert_array_equal(cached, ids[:, 1:])


def test_decoding_pads_after_the_end_of_each_row():
    _, graphdef, params = tiny()
    # All else zero, the decoder repeats what it reads: make that eos for any input.
    params = jax.tree.map(jnp.zeros_like, params)
    params["decoder"]["norm"]["scale"] = jnp.ones(TINY.d_model)
    table_VxD = jnp.ones((TINY.vocab_size, TINY.d_model)).at[1].set(2.0)
    params["embed"]["embedding"] = table_VxD
    decode = jit(t5.greedy_decode, static_argnums=(0, 3))
    ids = decode(graphdef, params, jnp.array([[3, 1], [4, 1]]), 5)
    np.testing.assert_array_equal(ids, [[1, 0, 0, 0, 0]] * 2)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("sizes", [(32, 128), (32, 256), (8, 20), (16, 64), (20, 100)])
def test_relative_position_buckets_equal_those_of_transformers(sizes, bidirectional):
    ours = t5.relative_position_bucket(
        golden("buckets")["offset"],
        bidirectional=bidirectional,
        num_buckets=sizes[0],
        max_distance=sizes[1],
    )
    theirs = golden("buckets")[f"{sizes[0]}/{sizes[1]}/{bidirectional}"]
    np.testing.assert_array_equal(ours, theirs)


def abstract_params(config):
    return jax.eval_shape(functools.partial(t5.init, config), 0)[1]


def test_the_default_is_t5_small():
    shapes = [x.shape for x in jax.tree.leaves(abstract_params(t5.T5Config()))]
    assert len(shapes) == 131
    assert sum(np.prod(shape) for shape in shapes) == 60_506_624


def test_t5_v1_1_small_has_its_published_size():
    config = t5.T5Config(
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    leaves = jax.tree.leaves(abstract_params(config))
    assert sum(x.size for x in leaves) == 76_961_152


def test_initial_weights_have_the_spread_of_mesh_tensorflow():
    config = t5.T5Config(
        vocab_size=300,
        d_model=64,
        d_kv=32,
        d_ff=256,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    spread = {
        "embed": 1,
        "head": 1,
        "query": (64 * 32) ** -0.5,
        "key": 64**-0.5,
        "value": 64**-0.5,
        "attention/output": (4 * 32) ** -0.5,
        "relative_bias": 64**-0.5,
        "input": 64**-0.5,
        "gate": 64**-0.5,
        "feed_forward/output": 256**-0.5,
    }
    _, params = t5.init(config, 0)
    for keys, x in flatten_dict(params).items():
        name = "/".join(map(str, keys))
        if keys[-1] == "scale":
            np.testing.assert_array_equal(x, 1)
            continue
        (expected,) = (s for part, s in spread.items() if f"{part}/" in name)
        # The spread of n normal numbers is known to 1 / sqrt(2n): allow four of it.
        rtol = 4 / np.sqrt(2 * x.size)
        np.testing.assert_allclose(x.std(), expected, rtol=rtol, err_msg=name)


def tiny(config=TINY):
    return models.random_model(t5.init, config)


def tiny_batch(rng, sources=5, targets=4):
    batch = {
        "source": rng.integers(2, 11, (3, sources)),
        "target": rng.integers(2, 11, (3, targets)),
    }
    batch["source"][1, -2:] = 0
    batch["target"][2, -1:] = 0
    return {k: jnp.asarray(ids, jnp.int32) for k, ids in batch.items()}


def padded(ids, columns):
    """With a row and some columns more."""
    return jnp.pad(ids, ((0, 1), (0, columns)))


def test_no_gradient_flows_from_a_logit_to_a_later_token(rng):
    _, graphdef, params = tiny()
    model, source = nnx.merge(graphdef, params), tiny_batch(rng)["source"][:1]
    weights_V = jnp.asarray(rng.normal(size=11), jnp.float32)

    def scores(y_TxD):
        y_1xTxD, _ = model.decoder(y_TxD[None], *model.encode(source))
        return model.logits(y_1xTxD)[0] @ weights_V

    y_TxD = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)
    jacobian_TxTxD = jit(jax.jacobian(scores))(y_TxD)
    influence_TxT = jnp.abs(jacobian_TxTxD).max(-1)
    np.testing.assert_array_equal(influence_TxT > 0, np.tri(6, dtype=bool))


def test_padding_does_not_change_the_loss(rng):
    config, graphdef, params = tiny()
    batch, loss = tiny_batch(rng), t5.make_loss(graphdef, config)
    # More columns, and a row that is nothing but padding.
    more = {"source": padded(batch["source"], 3), "target": padded(batch["target"], 2)}
    value, gradient = jit(jax.value_and_grad(loss))(params, more)
    assert_close(value, jit(loss)(params, batch))
    assert_finite(gradient)


def test_a_batch_of_padding_has_loss_zero_and_gradient_zero():
    config, graphdef, params = tiny()
    batch = {k: jnp.zeros((2, 3), jnp.int32) for k in ("source", "target")}
    derivative = jit(jax.value_and_grad(t5.make_loss(graphdef, config)))
    loss, gradient = derivative(params, batch)
    assert loss == 0
    assert all((g == 0).all() for g in jax.tree.leaves(gradient))


def test_losses_of_microbatches_weighted_by_their_tokens_make_that_of_the_batch(rng):
    config, graphdef, params = tiny()
    batch = tiny_batch(rng)
    loss = jit(t5.make_loss(graphdef, config))
    parts = [{k: x[i : i + 1] for k, x in batch.items()} for i in range(3)]
    counts = jnp.stack([t5.token_count(part) for part in parts])
    losses = jnp.stack([loss(params, part) for part in parts])
    assert counts.tolist() == [4, 4, 3]
    assert t5.token_count(batch) == 11
    assert_close((counts * losses).sum() / counts.sum(), loss(params, batch))


def test_dropout_is_a_function_of_its_key(rng):
    config, graphdef, params = tiny()
    batch = tiny_batch(rng)
    loss = jit(t5.make_loss(graphdef, config))
    keys = [jax.random.key(i) for i in range(2)]
    assert loss(params, batch, keys[0]) == loss(params, batch, keys[0])
    values = {float(loss(params, batch, key)) for key in [*keys, None]}
    assert len(values) == 3


def test_dropout_with_rate_zero_is_no_dropout(rng):
    config, graphdef, params = tiny(dataclasses.replace(TINY, dropout_rate=0.0))
    loss, batch = jit(t5.make_loss(graphdef, config)), tiny_batch(rng)
    assert loss(params, batch, jax.random.key(0)) == loss(params, batch)


def test_half_precision_weights_compute_in_it_but_for_the_loss(rng):
    config, graphdef, params = tiny(TINY_V1_1)
    batch, loss = tiny_batch(rng), jit(t5.make_loss(graphdef, config))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = jax.eval_shape(lambda p: nnx.merge(graphdef, p)(*batch.values()), half)
    assert logits.dtype == jnp.bfloat16
    assert loss(half, batch).dtype == jnp.float32
    np.testing.assert_allclose(loss(half, batch), loss(params, batch), rtol=0.02)


def test_several_runs_train_in_one_vmap_of_a_scan(rng):
    config, graphdef, params = tiny()
    gradient, batch = jax.grad(t5.make_loss(graphdef, config)), tiny_batch(rng)

    def train(params, key):
        def step(params, i):
            g = gradient(params, batch, jax.random.fold_in(key, i))
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, g), None

        return jax.lax.scan(step, params, jnp.arange(2))[0]

    keys = jax.vmap(jax.random.key)(jnp.array([1, 2, 1]))
    trained = jit(jax.vmap(train, in_axes=(None, 0)))(params, keys)
    first, second, third = (
        jax.tree.map(lambda x, i=i: x[i], trained) for i in range(3)
    )
    assert_same_bits(first, third)
    assert_finite(first)
    assert not np.array_equal(first["embed"]["embedding"], second["embed"]["embedding"])


def test_initialisation_takes_a_traced_seed():
    seeds = jnp.arange(3)
    graphdef, params = jax.eval_shape(jax.vmap(functools.partial(t5.init, TINY)), seeds)
    assert graphdef == tiny()[1]
    assert params["embed"]["embedding"].shape == (3, TINY.vocab_size, TINY.d_model)


def test_tree_mode_and_graph_mode_of_nnx_agree(rng):
    batch = tiny_batch(rng)

    def loss_of(mode):
        with nnx.set_graph_mode(mode), nnx.set_graph_updates(mode):
            config, graphdef, params = tiny(TINY_V1_1)
            loss = t5.make_loss(graphdef, config)
            return params, jit(loss)(params, batch, jax.random.key(0))

    assert_same_bits(loss_of(mode=False), loss_of(mode=True))


def test_a_config_refuses_a_feed_forward_it_does_not_know():
    with pytest.raises(ValueError, match="'relu' or 'gated-gelu', got 'silu'"):
        t5.T5Config(feed_forward_proj="silu")


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a tiny v1.0 in float32, to be spoilt."""
    config, _, params = tiny()
    huggingface.save(tmp_path, config, params, dtype=np.float32)
    return tmp_path


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("config", [TINY, TINY_V1_1], ids=["v1.0", "v1.1"])
def test_what_is_saved_loads_to_the_bits_of_its_dtype(tmp_path, config, dtype):
    _, graphdef, params = tiny(config)
    huggingface.save(tmp_path / "new" / "folder", config, params, dtype)
    loaded = huggingface.load(tmp_path / "new" / "folder")
    assert loaded[:2] == (config, graphdef)
    assert hash(loaded[1]) == hash(graphdef)
    assert_same_bits(
        loaded[2], jax.tree.map(lambda x: x.astype(dtype).astype("f4"), params)
    )


def test_half_precision_is_what_save_writes_unless_told(tmp_path):
    config, _, params = tiny()
    huggingface.save(tmp_path, config, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("case", CASES)
def test_saved_tensors_are_those_of_transformers_to_the_bit(
    checkpoints, tmp_path, case
):
    config, _, params = huggingface.load(checkpoints[case])
    huggingface.save(tmp_path, config, params, dtype=np.float32)
    theirs = golden_tensors(case, "weight")
    assert_same_bits(load_file(tmp_path / "model.safetensors"), theirs)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "t5"
    assert saved["architectures"] == ["T5ForConditionalGeneration"]
    assert saved["tie_word_embeddings"] == (case != "v1_1")


def test_loading_can_give_another_dtype(checkpoint):
    *_, params = huggingface.load(checkpoint, jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_shards_load_as_one_file_does(checkpoint):
    *_, whole = huggingface.load(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    index = {}
    for i in range(2):
        name = f"model-{i + 1:05}-of-00002.safetensors"
        shard = dict(list(tensors.items())[i::2])
        save_file(shard, checkpoint / name)
        index |= dict.fromkeys(shard, name)
    path = checkpoint / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    *_, sharded = huggingface.load(checkpoint)
    assert_same_bits(sharded, whole)

    (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match="missing: model-00002-of-00002"):
        huggingface.load(checkpoint)


def test_the_known_superfluous_tensors_are_accepted(checkpoint):
    *_, params = huggingface.load(checkpoint)

    def add(tensors):
        for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
            tensors[f"{name}.weight"] = tensors["shared.weight"]
        prefix = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"
        tensors[f"{prefix}.weight"] = np.ones((4, 2), np.float32)

    rewrite(checkpoint, add)
    assert_same_bits(huggingface.load(checkpoint)[2], params)


EMBEDDINGS = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_the_embedding_may_have_any_of_its_names(checkpoint, name):
    *_, params = huggingface.load(checkpoint)
    models.rename(checkpoint, "shared.weight", f"{name}.weight")
    assert_same_bits(huggingface.load(checkpoint)[2], params)


def test_an_untied_head_is_no_name_of_the_embedding(tmp_path):
    config, _, params = tiny(TINY_V1_1)
    huggingface.save(tmp_path, config, params, dtype=np.float32)
    models.rename(tmp_path, "shared.weight", "decoder.embed_tokens.weight")
    assert_same_bits(huggingface.load(tmp_path)[2], params)
    rewrite(tmp_path, lambda tensors: tensors.pop("decoder.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"missing tensors: shared\.weight \(11, 8\)"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize("others", [*itertools.combinations(EMBEDDINGS, 2)])
def test_copies_of_the_embedding_that_disagree_are_refused(checkpoint, others):
    def change(tensors):
        embedding = tensors.pop("shared.weight")
        tensors |= {f"{name}.weight": embedding + i for i, name in enumerate(others)}

    rewrite(checkpoint, change)
    first, second = others
    with pytest.raises(ValueError, match=rf"{second}\.weight differs from {first}\."):
        huggingface.load(checkpoint)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16])
def test_a_copy_of_another_type_is_compared_by_its_numbers(checkpoint, dtype):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["shared.weight"].astype(dtype)

    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from shared"):
        huggingface.load(checkpoint)


def test_an_mt5_is_untied_and_gated_where_its_config_does_not_say(tmp_path):
    config, _, params = tiny(TINY_V1_1)
    huggingface.save(tmp_path, config, params)
    fields = {"tie_word_embeddings", "feed_forward_proj"}
    models.change_config(tmp_path, drop=fields, model_type="mt5")
    assert huggingface.load(tmp_path)[0] == config


@pytest.mark.parametrize("config", [TINY, TINY_V1_1], ids=["v1.0", "v1.1"])
def test_half_precision_does_not_overflow_in_the_feed_forward(rng, config):
    """The sums of trained weights exceed 65504, the largest number of float16."""
    batch = tiny_batch(rng)
    _, graphdef, params = tiny(config)
    for stack in ("encoder", "decoder"):
        weights = params[stack]["layers"][0]["feed_forward"]["output"]
        weights["kernel"] *= 2e4
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    y_BxTxD = 10 * jnp.asarray(rng.normal(size=(3, 5, 8)), np.float16)
    layer = nnx.merge(graphdef, half).encoder.layers[0]
    added_BxTxD = layer.feed_forward(y_BxTxD, None)
    assert np.finfo(np.float16).max < abs(added_BxTxD).max() < np.inf
    derivative = jit(jax.value_and_grad(t5.make_loss(graphdef, config)))
    loss, gradient = derivative(half, batch)
    np.testing.assert_allclose(loss, derivative(params, batch)[0], rtol=0.02)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {np.dtype(np.float16)}
    decode = jit(t5.greedy_decode, static_argnums=(0, 3))
    assert decode(graphdef, half, batch["source"], 3).shape == (3, 3)


def test_loading_refuses_a_dtype_that_overflows(checkpoint):
    def change(tensors):
        tensors["shared.weight"] *= 1e6

    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=r"shared\.weight reaches .* beyond float16"):
        huggingface.load(checkpoint, np.float16)
    huggingface.load(checkpoint, jnp.bfloat16)


def test_missing_unknown_and_misshapen_tensors_are_all_named(checkpoint):
    def spoil(tensors):
        del tensors["encoder.final_layer_norm.weight"]
        tensors["encoder.block.7.surplus"] = np.ones((2, 3), np.float32)
        wo = "decoder.block.0.layer.2.DenseReluDense.wo.weight"
        tensors[wo] = np.ascontiguousarray(tensors[wo].T)
        wi = "decoder.block.0.layer.2.DenseReluDense.wi.weight"
        tensors[wi] = tensors[wi].astype(np.int8)

    rewrite(checkpoint, spoil)
    with pytest.raises(ValueError, match="tensors") as caught:
        huggingface.load(checkpoint)
    assert str(caught.value).replace(str(checkpoint), "folder").split("\n") == [
        "folder: missing tensors: encoder.final_layer_norm.weight (8,).",
        "folder: tensors that this T5 does not have: encoder.block.7.surplus (2, 3).",
        "folder: misshapen tensors: decoder.block.0.layer.2.DenseReluDense.wo.weight "
        "(expected (8, 12), got (12, 8)).",
        "folder: tensors that are not one of F64, F32, F16, BF16: "
        "decoder.block.0.layer.2.DenseReluDense.wi.weight (I8).",
    ]


def test_a_long_list_of_tensors_is_cut_short(checkpoint):
    rewrite(checkpoint, lambda tensors: [tensors.pop(k) for k in list(tensors)[1:]])
    with pytest.raises(ValueError, match=r"missing tensors: .* and \d+ more\.$"):
        huggingface.load(checkpoint)


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", Path("nowhere")])
def test_a_folder_that_does_not_exist_is_said_so(name):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        huggingface.load(name)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "tf_model.h5"]
)
def test_weights_in_another_format_are_named_and_the_way_out(checkpoint, name):
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    with pytest.raises(FileNotFoundError, match=rf"but {name}\. .*`python -c .*torch"):
        huggingface.load(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_is_said_so_and_what_to_run(checkpoint, name):
    models.make_pointer(checkpoint / name)
    with pytest.raises(ValueError, match=rf"{name}: a Git LFS pointer.*`git lfs pull`"):
        huggingface.load(checkpoint)


def test_an_index_that_is_none_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    for text in ("[]", "{}", '{"weight_map": {"shared.weight": 1}}', "{"):
        index.write_text(text)
        with pytest.raises(
            ValueError, match="expected a JSON object with a weight_map"
        ):
            huggingface.load(checkpoint)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_is_said_so(checkpoint, missing):
    (checkpoint / missing).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(missing)):
        huggingface.load(checkpoint)


def test_a_file_that_is_not_safetensors_is_said_so(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match="not a safetensors file"):
        huggingface.load(checkpoint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"model_type": "bert"}', "expected model_type 't5' or 'mt5', got 'bert'"),
        ('{"eos_token_id": [1]}', r"values of an unknown type: eos_token_id=\[1\]"),
        ('{"feed_forward_proj": "gated-silu"}', "got 'gated-silu'"),
    ],
)
def test_a_config_that_is_not_of_a_t5_is_refused(checkpoint, text, message):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        huggingface.load(checkpoint)


def test_saving_refuses_weights_of_another_config(tmp_path):
    _, _, params = tiny()
    with pytest.raises(ValueError, match="structure of T5Config"):
        huggingface.save(tmp_path, TINY_V1_1, params)
    wider = dataclasses.replace(TINY, d_ff=13)
    with pytest.raises(
        ValueError, match=r"wi\.weight of shape \(13, 8\), got \(12, 8\)"
    ):
        huggingface.save(tmp_path, wider, params)
    assert not list(tmp_path.iterdir())


def test_saving_refuses_a_dtype_that_overflows(tmp_path):
    config, _, params = tiny()
    params["embed"]["embedding"] *= 1e6
    with pytest.raises(ValueError, match=r"shared\.weight reaches .* beyond float16"):
        huggingface.save(tmp_path, config, params)
    huggingface.save(tmp_path, config, params, jnp.bfloat16)


def test_a_hub_name_without_the_hub_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install.*put config\.json and model"):
        huggingface.load("t5-small")


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    def unreachable(name, **kwargs):
        raise OSError("no route to host")

    hub(monkeypatch, unreachable)
    with pytest.raises(ConnectionError, match=r"no route to host.*put config\.json"):
        huggingface.load("google/t5-v1_1-small")


def test_a_hub_name_is_fetched_and_loaded(monkeypatch, checkpoint):
    def download(name, allow_patterns):
        assert name == "t5-small"
        assert "pytorch_model.bin" not in allow_patterns
        return str(checkpoint)

    hub(monkeypatch, download)
    config, *_ = huggingface.load("t5-small")
    assert config == TINY
