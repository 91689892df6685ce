"""Vocabularies to a GGUF and back, each compared with llama.cpp itself and with transformers."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import re
import unicodedata

import pytest
from trained_tokenizers import definition, write_folder

from forethought.checkpoints.comparison_strings import comparison_strings
from forethought.checkpoints.gguf_header import read_header
from forethought.checkpoints.gguf_vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED
from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.pre_tokenizers import KNOWN_PRE, byte_characters, pre_tokenizer
from forethought.checkpoints.vocabulary import (
    check_against_llama_cpp,
    folder_vocabulary,
    known_difference,
    tokenizer_files_from_gguf,
    vocabulary_gguf,
)
from forethought.engines.llama_vocabulary import open_llama_tokenizer
from forethought.errors import ModelError

OWN_NAMES = [pre for pre in KNOWN_PRE if pre_tokenizer(pre).name == pre]


@pytest.fixture(scope="module")
def trained():
    return definition("qwen2", size=500)


@pytest.mark.parametrize("pre", OWN_NAMES)
def test_llama_cpp_agrees_on_a_thousand_strings(tmp_path, pre):
    folder = write_folder(tmp_path, definition(pre, size=1500))
    vocabulary = folder_vocabulary(folder).padded(1600)
    assert (vocabulary.pre, vocabulary.size) == (pre, 1600)
    check_against_llama_cpp(
        vocabulary, HFTokenizer.from_folder(folder), open_llama_tokenizer, strings=1200
    )


def test_llama_cpp_has_the_same_pieces_and_kinds(tmp_path, trained):
    folder = write_folder(tmp_path, trained)
    vocabulary = folder_vocabulary(folder)
    ours = HFTokenizer.from_folder(folder)
    with open_llama_tokenizer(vocabulary_gguf(vocabulary, tmp_path / "v.gguf")) as theirs:
        assert list(theirs.vocabulary) == list(ours.vocabulary)
        assert theirs.special_texts() == ours.special_texts()
        for token in range(vocabulary.size):
            assert theirs.is_control(token) is ours.is_control(token)


@pytest.mark.parametrize("named", ["gpt-2", "smollm", "deepseek-v3"])
def test_a_wrong_name_is_found_out(tmp_path, trained, named):
    folder = write_folder(tmp_path, trained)
    right = folder_vocabulary(folder)
    wrong = dataclasses.replace(right, metadata={**right.metadata, "tokenizer.ggml.pre": named})
    with pytest.raises(ModelError, match=rf"llama\.cpp \({named}\) tokenises") as caught:
        check_against_llama_cpp(wrong, HFTokenizer.from_folder(folder), open_llama_tokenizer)
    said = re.search(r"tokenises (['\"].*['\"]) as (\[.*\]) and .* as (\[.*\]),", str(caught.value))
    assert said is not None
    # What is shown is the heart of the difference, and it is true.
    text, theirs, ours = map(ast.literal_eval, said.groups())
    assert len(text) < 12
    assert theirs != ours
    assert ours == HFTokenizer.from_folder(folder).encode(text, parse_special=False)


def test_bytes_alone_make_a_vocabulary_too(tmp_path):
    """llama.cpp wants a merge; the one it gets never applies."""
    base = definition("qwen2", size=256)
    base["model"] = {
        **base["model"],
        "vocab": {character: number for number, character in enumerate(byte_characters())},
        "merges": [],
    }
    for number, item in enumerate(base["added_tokens"]):
        item["id"] = 256 + number
    folder = write_folder(tmp_path, base)
    vocabulary = folder_vocabulary(folder)
    tokenizer = HFTokenizer.from_folder(folder)
    check_against_llama_cpp(vocabulary, tokenizer, open_llama_tokenizer, strings=300)
    back = HFTokenizer.from_gguf(read_header(vocabulary_gguf(vocabulary, tmp_path / "v.gguf")))
    assert back.encode("    x", parse_special=False) == tokenizer.encode(
        "    x", parse_special=False
    )


def test_the_metadata_says_what_the_folder_says(tmp_path, trained):
    folder = write_folder(
        tmp_path, trained, chat_template="T", add_bos_token=True, pad_token="<|end|>"
    )
    ids = {item["content"]: item["id"] for item in trained["added_tokens"]}
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids["<|end|>"], ids["<|user|>"]]})
    )
    vocabulary = folder_vocabulary(folder)
    found = vocabulary.metadata
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.bos_token_id"] == ids["<s>"]
    assert found["tokenizer.ggml.eos_token_id"] == ids["<|end|>"]
    assert found["tokenizer.ggml.eot_token_id"] == ids["<|user|>"]
    assert found["tokenizer.ggml.padding_token_id"] == ids["<|end|>"]
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.chat_template"] == "T"
    assert len(found["tokenizer.ggml.merges"]) == len(trained["model"]["merges"])
    assert vocabulary.texts(CONTROL) == ["<|end|>", "<|user|>", "<s>"]
    assert vocabulary.texts(USER_DEFINED) == ["<think>", "</think>"]
    assert vocabulary.token_types.count(NORMAL) == 500


def test_rows_beyond_the_tokenizer_become_unused_with_names_of_their_own(tmp_path, trained):
    clash = copy.deepcopy(trained)
    clash["added_tokens"][0]["content"] = "[PAD507]"
    vocabulary = folder_vocabulary(write_folder(tmp_path, clash, eos_token="<s>"))
    assert vocabulary.size == 505
    padded = vocabulary.padded(510)
    assert padded.tokens[505:] == ["[PAD505]", "[PAD506]", "[[PAD507]]", "[PAD508]", "[PAD509]"]
    assert padded.token_types[505:] == [UNUSED] * 5
    assert vocabulary.size == 505  # the first one is as it was
    assert vocabulary.padded(505) is vocabulary
    with pytest.raises(ModelError, match="505 tokens, and the embedding 504 rows"):
        vocabulary.padded(504)


def test_a_hole_among_the_ids_becomes_unused(tmp_path, trained):
    holed = copy.deepcopy(trained)
    vocab = holed["model"]["vocab"]
    for item in holed["added_tokens"]:  # as in files that have added tokens in the vocabulary too
        item["id"] += 2
        vocab[item["content"]] = item["id"]
    vocabulary = folder_vocabulary(write_folder(tmp_path, holed))
    assert vocabulary.tokens[500:502] == ["[PAD500]", "[PAD501]"]
    check_against_llama_cpp(
        vocabulary, HFTokenizer.from_folder(tmp_path), open_llama_tokenizer, strings=100
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalises text \\(NFC\\)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "byte-level BPE"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "WordPiece"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
    ],
)
def test_what_cannot_go_into_a_gguf_is_refused(tmp_path, trained, change, says):
    folder = write_folder(tmp_path, {**trained, **change})
    with pytest.raises(ModelError, match=says):
        folder_vocabulary(folder)


def test_nfc_may_still_be_run_by_torch(tmp_path, trained):
    """Real Qwen2 folders have it: no GGUF, but a tokenizer."""
    folder = write_folder(tmp_path, {**trained, "normalizer": {"type": "NFC"}})
    tokenizer = HFTokenizer.from_folder(folder)
    for parse_special in (True, False):
        ids = tokenizer.encode("e\u0301", parse_special=parse_special)
        assert b"".join(tokenizer.pieces(ids)) == "\u00e9".encode()


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_a_token_that_looks_around_is_refused(tmp_path, trained, flag):
    changed = copy.deepcopy(trained)
    changed["added_tokens"][1][flag] = True
    with pytest.raises(ModelError, match=r"'<\|user\|>'.*" + "lstrip"):
        folder_vocabulary(write_folder(tmp_path, changed))


def test_llama_cpp_is_never_left_to_guess_the_end(tmp_path, trained):
    folder = write_folder(tmp_path, trained, eos_token=None, bos_token=None)
    with pytest.raises(ModelError, match="eos_token"):
        folder_vocabulary(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 502}')
    found = folder_vocabulary(folder).metadata
    assert found["tokenizer.ggml.eos_token_id"] == 502
    assert found["tokenizer.ggml.bos_token_id"] == 502
    with pytest.raises(ModelError, match="bos_token"):
        folder_vocabulary(
            write_folder(folder, trained, eos_token="<s>", bos_token=None, add_bos_token=True)
        )


def test_known_differences_are_said():
    told = {pre for pre in OWN_NAMES if pre_tokenizer(pre).other_spaces}
    assert told == {"deepseek-llm", "deepseek-coder"}


def test_a_known_difference_is_a_real_one(tmp_path):
    """llama.cpp parts the wide space from the full stops around it; the original does not."""
    texts = ["。　。"] * 99
    folder = write_folder(tmp_path, definition("deepseek-llm", size=280, texts=texts))
    vocabulary = folder_vocabulary(folder)
    assert "U+3000" in (known_difference(vocabulary) or "")
    ours = HFTokenizer.from_folder(folder)
    with open_llama_tokenizer(vocabulary_gguf(vocabulary, tmp_path / "v.gguf")) as theirs:
        text = "。　。"
        assert ours.encode(text, parse_special=False) != theirs.encode(text, parse_special=False)


def write_files(folder, header, model_type):
    folder.mkdir()
    for name, raw in tokenizer_files_from_gguf(header).items():
        (folder / name).write_bytes(raw)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize(
    ("pre", "model_type"),
    [
        ("gpt-2", "llama"),
        ("qwen2", "qwen3"),
        ("llama-bpe", "llama"),
        ("deepseek-v3", "deepseek_v3"),
    ],
)
def test_transformers_opens_the_files_of_a_gguf_to_the_same_ids(tmp_path, pre, model_type):
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = write_folder(
        tmp_path / "first", definition(pre, size=400), chat_template="{{ 'x' }}", add_bos_token=True
    )
    first = folder_vocabulary(folder)
    header = read_header(vocabulary_gguf(first.padded(420), tmp_path / "v.gguf"))
    opened = auto.from_pretrained(write_files(tmp_path / "second", header, model_type))
    ours = HFTokenizer.from_folder(folder)
    bos = ours.encode("<s>", parse_special=True)
    for text in comparison_strings(200, seed=3, tags=ours.special_texts()):
        ids = ours.encode(text, parse_special=True)
        assert opened.encode(text, add_special_tokens=False) == ids
        assert opened.encode(text) == bos + ids
        assert opened.decode(ids, clean_up_tokenization_spaces=False) == text
    assert (opened.bos_token, opened.eos_token) == ("<s>", "<|end|>")
    # And back: the template is not in the vocabulary's GGUF, everything else is.
    second = folder_vocabulary(tmp_path / "second")
    expected = {key: value for key, value in first.metadata.items() if "template" not in key}
    assert second.metadata == expected


def test_transformers_composes_text_for_the_model_type_qwen2(tmp_path):
    """It puts its own class, with NFC, in the place of the one that a folder names."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = write_folder(tmp_path / "first", definition("qwen2", size=400))
    header = read_header(vocabulary_gguf(folder_vocabulary(folder), tmp_path / "v.gguf"))
    opened = auto.from_pretrained(write_files(tmp_path / "second", header, "qwen2"))
    ours = HFTokenizer.from_folder(folder)
    for text in comparison_strings(200, seed=3, tags=ours.special_texts()):
        composed = unicodedata.normalize("NFC", text)
        assert opened.encode(composed, add_special_tokens=False) == ours.encode(
            composed, parse_special=True
        )


def test_the_files_of_a_real_gguf_keep_template_and_ids(smollm2_path, tmp_path):
    header = read_header(smollm2_path)
    folder = write_files(tmp_path / "folder", header, "llama")
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == header.chat_template
    ours, from_file = HFTokenizer.from_folder(folder), HFTokenizer.from_gguf(header)
    assert list(ours.vocabulary) == list(from_file.vocabulary)
    vocabulary = folder_vocabulary(folder)
    assert vocabulary.pre == "smollm"
    assert vocabulary.size == len(from_file.vocabulary)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == header.eos_id
    check_against_llama_cpp(vocabulary, ours, open_llama_tokenizer, strings=1000, seed=4)


def test_sampling_defaults_travel_to_the_generation_config(tmp_path, trained):
    vocabulary = folder_vocabulary(write_folder(tmp_path, trained))
    header = read_header(vocabulary_gguf(vocabulary, tmp_path / "v.gguf"))
    header.metadata.update(
        {"general.sampling.temp": 0.6000000238418579, "general.sampling.top_k": 20}
    )
    files = tokenizer_files_from_gguf(header)
    generation = json.loads(files["generation_config.json"])
    assert generation["do_sample"] is True
    assert (generation["temperature"], generation["top_k"]) == (0.6, 20)


def test_the_strings_are_the_same_for_the_same_seed():
    first = comparison_strings(300, seed=1, tags=["<t>"])
    assert first == comparison_strings(300, seed=1, tags=["<t>"])
    assert first != comparison_strings(300, seed=2, tags=["<t>"])
    assert 20 < sum("<t>" in text for text in first) < 90
    assert not any("\u3000" in text for text in comparison_strings(500, without="\u3000"))


@pytest.mark.timeout(60)
def test_a_vocabulary_may_be_closed_at_once(tmp_path, trained):
    path = vocabulary_gguf(folder_vocabulary(write_folder(tmp_path, trained)), tmp_path / "v.gguf")
    for _ in range(5):
        with open_llama_tokenizer(path):
            pass
