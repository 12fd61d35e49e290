"""The Llama of the examples against transformers' PyTorch Llama, and against itself.

The golden numbers come from `golden_makers/make_llama_goldens.py`. If a test against
them fails and the model was not meant to change, it is a bug; they are facts about
Llama, not about us.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from examples.models import huggingface_llama, llama

from ..helpers import assert_close, assert_finite, assert_same_bits
from . import models
from .models import change_config, jit, rename, rewrite, to_tensors

pytestmark = pytest.mark.usefixtures("strict")

CASES = ["smollm2", "llama", "wide_heads"]
DTYPES = [np.float32, np.float64]

TINY = llama.LlamaConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=16,
)
UNTIED = dataclasses.replace(TINY, tie_word_embeddings=False)

golden = functools.partial(models.golden, "llama")
golden_tensors = functools.partial(models.golden_tensors, "llama")
assert_as_good_as_torch = functools.partial(models.assert_as_good_as_torch, "llama")


def golden_batch(case):
    return {k: jnp.asarray(golden(case)[k], jnp.int32) for k in ("ids", "labels")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each case, with the config.json of transformers."""
    folders = {case: tmp_path_factory.mktemp(case) for case in CASES}
    for case, folder in folders.items():
        models.golden_checkpoint("llama", case, folder)
    return folders


@functools.cache
def results(folder, case, dtype):
    """Logits, loss, gradient and, in float64, the Hessian times the golden vector."""
    batch = golden_batch(case)
    with jax.enable_x64(dtype == np.float64):
        config, graphdef, params = huggingface_llama.load(folder, dtype)
        names = huggingface_llama.tensor_names(config)
        derivative = jax.value_and_grad(llama.make_loss(graphdef, config))
        tensors = golden_tensors(case, "v")
        v = unflatten_dict(
            {
                keys: jnp.asarray(
                    tensors[k].T if keys[-1] == "kernel" else tensors[k], dtype
                )
                for k, keys in names.items()
            }
        )

        def compute(params, v):
            logits = nnx.merge(graphdef, params)(batch["ids"])
            if v is None:
                return logits, *derivative(params, batch), None
            (loss, gradient), (_, hvp) = jax.jvp(
                lambda p: derivative(p, batch), (params,), (v,)
            )
            return logits, loss, gradient, hvp

        single = dtype == np.float32
        logits, loss, gradient, hvp = jit(compute)(params, None if single else v)
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


@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_gives_the_tokens_of_transformers(checkpoints, case):
    _, graphdef, params = huggingface_llama.load(checkpoints[case])
    given, L = golden(case), golden(case)["generated"].shape[1]
    ids = jit(llama.greedy_decode, static_argnums=0)(
        graphdef,
        params,
        jnp.asarray(given["ids"][:, :L], jnp.int32),  # only the prompts may matter
        jnp.asarray(given["prompts"]),
    )
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, given["generated"])


@pytest.mark.parametrize("case", CASES)
def test_saved_tensors_are_those_of_transformers_to_the_bit(
    checkpoints, tmp_path, case
):
    config, _, params = huggingface_llama.load(checkpoints[case])
    huggingface_llama.save(tmp_path, config, params, dtype=np.float32)
    theirs = golden_tensors(case, "weight")
    assert_same_bits(load_file(tmp_path / "model.safetensors"), theirs)
    assert huggingface_llama.load(tmp_path)[0] == config


def test_the_defaults_are_smollm2_and_its_size_is_known():
    _, params = jax.eval_shape(functools.partial(llama.init, llama.LlamaConfig()), 0)
    assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008


def test_initial_weights_have_one_spread_and_norms_of_one():
    _, params = llama.init(UNTIED, 0)
    for keys, x in flatten_dict(params).items():
        if keys[-1] == "scale":
            np.testing.assert_array_equal(x, 1)
            continue
        # The spread of n normal numbers is known to 1 / sqrt(2n): allow four of it.
        rtol = 4 / np.sqrt(2 * x.size)
        np.testing.assert_allclose(x.std(), 0.02, rtol=rtol, err_msg=str(keys))


def tiny(config=TINY):
    return models.random_model(llama.init, config)


def tiny_batch(rng):
    ids = jnp.asarray(rng.integers(1, 11, (3, 6)), jnp.int32)
    labels = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=llama.IGNORED)
    return {"ids": ids, "labels": labels.at[1, 3:].set(llama.IGNORED)}


def test_no_gradient_flows_from_a_logit_to_a_later_token(rng):
    _, graphdef, params = tiny(UNTIED)
    ids_1xT = jnp.arange(1, 7, dtype=jnp.int32)[None]  # each its own row of the table
    weights_V = jnp.asarray(rng.normal(size=11), jnp.float32)

    def scores(table):
        changed = params | {"embed": {"embedding": table}}
        return nnx.merge(graphdef, changed)(ids_1xT)[0] @ weights_V

    jacobian_TxVxD = jit(jax.jacobian(scores))(params["embed"]["embedding"])
    influence_TxT = jnp.abs(jacobian_TxVxD).max(-1)[:, 1:7]
    np.testing.assert_array_equal(influence_TxT > 0, np.tri(6, dtype=bool))


def test_a_head_scores_by_the_distance_of_positions_alone(rng):
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 4)), jnp.float32) for _ in range(2))
    cos, sin = llama.rotation(TINY, 16, jnp.dtype(jnp.float32))

    def score(i, j):
        at_i, at_j = ((cos[n : n + 1], sin[n : n + 1]) for n in (i, j))
        return (llama.rotate(q, at_i) * llama.rotate(k, at_j)).sum()

    assert_close(score(3, 1), score(15, 13))
    assert_close(score(0, 0), (q * k).sum())
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_padding_does_not_change_the_loss(rng):
    config, graphdef, params = tiny()
    batch, loss = tiny_batch(rng), llama.make_loss(graphdef, config)
    ends = (0, 1), (0, 3)
    more = {
        "ids": jnp.pad(batch["ids"], ends),
        "labels": jnp.pad(batch["labels"], ends, constant_values=llama.IGNORED),
    }
    value, gradient = jit(jax.value_and_grad(loss))(params, more)
    assert_close(value, jit(loss)(params, batch))
    assert_finite(gradient)


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero(rng):
    config, graphdef, params = tiny()
    batch = tiny_batch(rng)
    batch["labels"] = jnp.full_like(batch["labels"], llama.IGNORED)
    derivative = jit(jax.value_and_grad(llama.make_loss(graphdef, config)))
    loss, gradient = derivative(params, batch)
    assert loss == 0
    assert all((g == 0).all() for g in jax.tree.leaves(gradient))


def test_a_key_of_dropout_is_accepted_and_changes_nothing(rng):
    config, graphdef, params = tiny()
    batch, loss = tiny_batch(rng), jit(llama.make_loss(graphdef, config))
    assert loss(params, batch, jax.random.key(0)) == loss(params, batch)


def test_half_precision_weights_compute_in_it_but_for_the_loss(rng):
    config, graphdef, params = tiny(UNTIED)
    batch, loss = tiny_batch(rng), jit(llama.make_loss(graphdef, config))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = jax.eval_shape(lambda p: nnx.merge(graphdef, p)(batch["ids"]), half)
    assert logits.dtype == jnp.bfloat16
    assert loss(half, batch).dtype == jnp.float32
    np.testing.assert_allclose(loss(half, batch), loss(params, batch), rtol=0.03)


def test_initialisation_takes_a_traced_seed():
    seeds = jnp.arange(3)
    initialise = jax.vmap(functools.partial(llama.init, TINY))
    graphdef, params = jax.eval_shape(initialise, seeds)
    assert graphdef == tiny()[1]
    assert params["embed"]["embedding"].shape == (3, 11, 8)


def test_tree_mode_and_graph_mode_of_nnx_agree(rng):
    batch = tiny_batch(rng)

    def loss_of(mode):
        with nnx.set_graph_mode(mode), nnx.set_graph_updates(mode):
            config, graphdef, params = tiny(UNTIED)
            return params, jit(llama.make_loss(graphdef, config))(params, batch)

    assert_same_bits(loss_of(mode=False), loss_of(mode=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num"),
        ({"head_dim": 3}, "head_dim must be even"),
        ({"hidden_size": 0}, "hidden_size must be positive, got 0"),
        ({"rope_theta": 0.0}, "rope_theta must be positive, got 0.0"),
    ],
)
def test_a_config_refuses_what_is_no_llama(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_a_row_longer_than_the_model_was_made_for_is_refused():
    _, graphdef, params = tiny()
    with pytest.raises(ValueError, match="at most 16 ids in a row, got 17"):
        nnx.merge(graphdef, params)(jnp.zeros((1, 17), jnp.int32))


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a tiny tied Llama in float32, to be spoilt."""
    config, _, params = tiny()
    huggingface_llama.save(tmp_path, config, params, dtype=np.float32)
    return tmp_path


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_what_is_saved_loads_to_the_bits_of_its_dtype(tmp_path, config):
    _, graphdef, params = tiny(config)
    huggingface_llama.save(tmp_path, config, params)
    loaded = huggingface_llama.load(tmp_path)
    assert loaded[:2] == (config, graphdef)
    half = jax.tree.map(lambda x: x.astype(np.float16).astype("f4"), params)
    assert_same_bits(loaded[2], half)


def test_old_writers_keep_frequencies_and_a_copy_of_the_embedding(checkpoint):
    *_, params = huggingface_llama.load(checkpoint)

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        name = "model.layers.1.self_attn.rotary_emb.inv_freq"
        tensors[name] = np.ones(2, np.float32)

    rewrite(checkpoint, add)
    assert_same_bits(huggingface_llama.load(checkpoint)[2], params)


def test_the_embedding_may_be_there_as_the_head_alone(checkpoint):
    *_, params = huggingface_llama.load(checkpoint)
    rename(checkpoint, "model.embed_tokens.weight", "lm_head.weight")
    assert_same_bits(huggingface_llama.load(checkpoint)[2], params)


def test_a_tied_llama_may_be_saved_without_its_head(checkpoint):
    *_, params = huggingface_llama.load(checkpoint)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(checkpoint, strip)
    assert_same_bits(huggingface_llama.load(checkpoint)[2], params)


def test_the_config_of_an_older_transformers_says_the_same(checkpoint):
    change = {"rope_scaling": None, "rope_theta": 500000.0, "eos_token_id": [7, 9]}
    change_config(checkpoint, drop={"head_dim"}, **change)
    config = huggingface_llama.read_config(checkpoint)
    assert config.rope_theta == 500000
    assert config.head_dim == 2  # hidden_size / num_attention_heads
    assert config.eos_token_id == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "expected model_type 'llama', got 'gpt2'"),
        ({"attention_bias": True}, "expected attention_bias False, got True"),
        ({"hidden_act": "gelu"}, "expected hidden_act 'silu', got 'gelu'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "expected rope_type 'default', got 'llama3'",
        ),
        ({"rope_scaling": "x"}, "expected rope_scaling to be an object, got 'x'"),
        ({"hidden_size": "8"}, "values of an unknown type: hidden_size='8'"),
    ],
)
def test_a_config_of_something_else_is_refused(checkpoint, fields, message):
    change_config(checkpoint, **fields)
    with pytest.raises(ValueError, match=message):
        huggingface_llama.load(checkpoint)


def test_missing_tensors_are_named(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"missing tensors: model\.norm\.weight"):
        huggingface_llama.load(checkpoint)
