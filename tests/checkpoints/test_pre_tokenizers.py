"""The table of pre-tokenizers, and recognising one in a tokenizer.json."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from trained_tokenizers import definition

from forethought.checkpoints.pre_tokenizers import (
    KNOWN_PRE,
    byte_characters,
    derive_pre,
    pre_tokenizer,
    pre_tokenizer_json,
    token_to_bytes,
)
from forethought.errors import ModelError

OWN_NAMES = [pre for pre in KNOWN_PRE if pre_tokenizer(pre).name == pre]


def minimal(pre: str) -> dict[str, Any]:
    return {
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_json(pre),
        "model": {
            "type": "BPE",
            "vocab": {"a": 0},
            "merges": [],
            "ignore_merges": pre_tokenizer(pre).ignore_merges,
        },
    }


@pytest.mark.parametrize("pre", OWN_NAMES)
def test_every_rule_is_recognised_from_its_own_json(pre):
    assert derive_pre(minimal(pre)) == pre


def test_the_names_of_r1_and_its_distills_are_known():
    assert pre_tokenizer("deepseek-r1-qwen").name == "qwen2"
    assert pre_tokenizer("llama-bpe").ignore_merges
    assert pre_tokenizer("deepseek-v3").splits[0] == r"\p{N}{1,3}"


def test_rules_cut_as_their_models_do():
    from tokenizers import Tokenizer, models

    def words(pre: str, text: str) -> list[str]:
        import json

        blank = json.loads(Tokenizer(models.BPE()).to_str())
        cutter = Tokenizer.from_str(
            json.dumps({**blank, "pre_tokenizer": pre_tokenizer_json(pre)})
        ).pre_tokenizer
        return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]

    text = "it's 12345,\n\nok中文 x"
    assert words("gpt-2", text) == ["it", "'s", " 12345", ",", "\n", "\n", "ok中文", " x"]
    assert words("smollm", "a 123") == ["a", " ", "1", "2", "3"]
    assert words("qwen2", text) == ["it", "'s", " ", *"12345", ",\n\n", "ok中文", " x"]
    assert words("llama-bpe", text) == ["it", "'s", " ", "123", "45", ",\n\n", "ok中文", " x"]
    assert words("deepseek-v3", text) == [
        "it", "'s", " ", "123", "45", ",\n\n", "ok", "中文", " x",
    ]  # fmt: skip
    assert words("deepseek-coder", "x+1\ny中") == ["x", "+", "1", "\n", "y", "中"]


def test_the_way_a_rule_is_written_does_not_matter():
    qwen = minimal("qwen2")
    split = qwen["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = (
        split["pattern"]["Regex"]
        .replace(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        )
        .replace(r"\r", "\r")
        .replace(r"\n", "\n")
    )
    qwen["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [qwen["pre_tokenizer"]]}
    qwen["normalizer"] = {"type": "Sequence", "normalizers": []}
    assert derive_pre(qwen) == "qwen2"


def test_an_escape_protects_what_normalisation_would_change():
    letters = pre_tokenizer("deepseek-llm").splits[1]
    assert "\u212a-\u212d" in letters  # as K-ℭ it would span nearly everything
    assert "\u1fbe" in letters


def broken(pre: str, change: str) -> dict[str, Any]:
    found = copy.deepcopy(minimal(pre))
    steps = found["pre_tokenizer"].get("pretokenizers", [found["pre_tokenizer"]])
    if change == "nfc":
        found["normalizer"] = {"type": "NFC"}
    elif change == "nested normaliser":
        found["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}
    elif change == "regex":
        steps[0]["pattern"]["Regex"] += "|x"
    elif change == "behaviour":
        steps[0]["behavior"] = "Removed"
    elif change == "inverted":
        steps[0]["invert"] = True
    elif change == "prefix space":
        steps[-1]["add_prefix_space"] = True
    elif change == "use_regex":
        steps[-1]["use_regex"] = not steps[-1]["use_regex"]
    elif change == "digits together":
        steps[0]["individual_digits"] = False
    elif change == "ignore_merges":
        found["model"]["ignore_merges"] = True
    elif change == "no pre-tokenizer":
        found["pre_tokenizer"] = None
    elif change == "byte fallback":
        found["model"]["byte_fallback"] = True
    elif change in {"WordPiece", "Unigram"}:
        found["model"] = {"type": change, "vocab": {"a": 0}}
    elif change == "no model":
        del found["model"]
    return found


@pytest.mark.parametrize(
    ("pre", "change", "says"),
    [
        ("qwen2", "nfc", "NFC"),
        ("qwen2", "nested normaliser", "normalises"),
        ("qwen2", "regex", "no name"),
        ("qwen2", "behaviour", "Removed"),
        ("qwen2", "inverted", "Split"),
        ("gpt-2", "prefix space", "add_prefix_space"),
        ("qwen2", "use_regex", "no name"),
        ("smollm", "digits together", "Digits"),
        ("qwen2", "ignore_merges", "ignore_merges"),
        ("gpt-2", "no pre-tokenizer", "byte-level BPE"),
        ("gpt-2", "byte fallback", "byte_fallback"),
        ("gpt-2", "WordPiece", "WordPiece"),
        ("gpt-2", "Unigram", "Unigram"),
        ("gpt-2", "no model", "no vocabulary"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_with_the_reason(pre, change, says):
    with pytest.raises(ModelError, match=says) as caught:
        derive_pre(broken(pre, change), "F/tokenizer.json")
    assert str(caught.value).startswith("F/tokenizer.json")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ModelError, match=r"x\.gguf has the pre-tokenizer 'viking'.*deepseek-v3"):
        pre_tokenizer("viking", "x.gguf")
    with pytest.raises(ModelError):
        pre_tokenizer(None)


def test_bytes_have_gpt2s_characters():
    assert len(set(byte_characters())) == 256
    assert (byte_characters()[0], byte_characters()[32], byte_characters()[65]) == ("Ā", "Ġ", "A")
    assert token_to_bytes("Ġcaf" + "é".encode().decode("latin-1")) == " café".encode()
    assert token_to_bytes("中") == "中".encode()  # no byte has this character


def test_a_trained_tokenizer_keeps_its_rule():
    assert derive_pre(definition("deepseek-v3", size=300)) == "deepseek-v3"
