"""The subwords of decoders such as Llama: a `tokenizer.json`, or those in a GGUF.

Both give `Subwords`, in which a document lies between the tokens that the model has
seen around documents: <|endoftext|> of SmolLM2 on both sides, <s> and </s> of Llama 2.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from examples.data import pointers
from examples.data.subwords import Subwords

_KEY = "tokenizer.ggml"
_SPARE_ROWS = 127  # embedding tables may be padded
# What is before a document, behind it, and in none.
_FAMILIES = (
    ("<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
    ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    ("<s>", "</s>", "<unk>"),
)
_CONTROL, _USER_DEFINED = 3, 4  # the kinds of tokens that text is searched for first


def from_json(path: Path, rows: int) -> Subwords:
    """The subwords in a tokenizer.json, for an embedding of so many rows."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a tokenizer.json, found no such file."
        )
    pointers.refuse(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path}: expected a tokenizer.json ({error}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _subwords(tokenizer, path, rows)


def from_gguf(get: Callable[[str, Any], Any], path: Path, rows: int) -> Subwords:
    """The subwords in a GGUF, which are a byte-level BPE of GPT-2's kind.

    `get(key, default)` is an entry of its metadata.
    """
    model, pre = get(f"{_KEY}.model", "none"), get(f"{_KEY}.pre", "gpt-2")
    if model != "gpt2" or pre not in _SPLITS:
        raise ValueError(
            f"{path}: expected a tokenizer of the kind 'gpt2' that splits words as "
            f"{' or '.join(_SPLITS)} does, got {model!r} and {pre!r}: use the "
            "checkpoint in the Hugging Face layout, with its tokenizer.json."
        )
    tokens, merges = get(f"{_KEY}.tokens", []), get(f"{_KEY}.merges", [])
    try:
        vocabulary = {token: id_ for id_, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ")) for merge in merges]
        tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path}: its tokens are no BPE's ({error}).") from error
    tokenizer.pre_tokenizer = _SPLITS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    kinds = get(f"{_KEY}.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            special = kind == _CONTROL
            added = tokenizers.AddedToken(token, special=special, normalized=False)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    return _subwords(tokenizer, path, rows)


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _words_apart()])


def _words_apart() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


_SPLITS = {"gpt-2": _words_apart, "smollm": _digits_apart}


def _subwords(tokenizer: tokenizers.Tokenizer, path: Path, rows: int) -> Subwords:
    for family in _FAMILIES:
        ids = [tokenizer.token_to_id(name) for name in family]
        known = [id_ for id_ in ids if id_ is not None]
        if len(known) == len(family):
            break
    else:
        names = ", or ".join(" ".join(family) for family in _FAMILIES)
        raise ValueError(f"{path}: expected a tokenizer with the tokens {names}.")
    before, behind, in_none = known
    words = Subwords(tokenizer, in_none, in_none, before, behind, in_none)
    if not words.size <= rows <= words.size + _SPARE_ROWS:
        raise ValueError(
            f"{path}: its tokenizer of {words.size:,} ids does not fit the embedding "
            f"of {rows:,} rows: use the checkpoint's own."
        )
    return words
