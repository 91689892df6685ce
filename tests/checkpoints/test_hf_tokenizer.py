"""The tokenizer over the library `tokenizers`: exact bytes, no tag out of a user's text."""

from __future__ import annotations

import copy
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import definition, write_folder

from forethought.checkpoints.comparison_strings import comparison_strings
from forethought.checkpoints.gguf_header import read_header
from forethought.checkpoints.hf_tokenizer import HFTokenizer, added_tokens
from forethought.checkpoints.vocabulary import (
    folder_vocabulary,
    tokenizer_files_from_gguf,
    vocabulary_gguf,
)
from forethought.engines.model import Model
from forethought.errors import ForethoughtError, ModelError, UserError


@pytest.fixture(scope="module")
def trained():
    return definition("qwen2", size=500)


@pytest.fixture(scope="module")
def tokenizer(trained, tmp_path_factory) -> HFTokenizer:
    return HFTokenizer.from_folder(write_folder(tmp_path_factory.mktemp("folder"), trained))


@pytest.fixture(scope="module")
def whole_words(tmp_path_factory) -> HFTokenizer:
    """Llama 3's way: a word that is a token is taken whole."""
    return HFTokenizer.from_folder(
        write_folder(tmp_path_factory.mktemp("folder"), definition("llama-bpe", size=500))
    )


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(["<think>", "</think>", "<|end|>", "<s>", " ", "a", "é", "e\u0301", "\n"])
).map("".join)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_joined_pieces_are_the_text_and_no_tag_is_among_them(tokenizer, whole_words, text):
    for each in (tokenizer, whole_words):
        ids = each.encode(text, parse_special=False)
        assert b"".join(each.pieces(ids)) == text.encode()
        tags = {each.encode(tag, parse_special=True)[0] for tag in each.special_texts()}
        assert tags.isdisjoint(ids)
        assert b"".join(each.pieces(each.encode(text, parse_special=True))) == text.encode()


def test_tags_are_one_id_where_they_may_be(tokenizer):
    assert set(tokenizer.special_texts()) == {"<|end|>", "<|user|>", "<s>", "<think>", "</think>"}
    for text in tokenizer.special_texts():
        (only,) = tokenizer.encode(text, parse_special=True)
        assert tokenizer.pieces([only]) == [text.encode()]
        assert tokenizer.is_control(only) is (text not in {"<think>", "</think>"})
        assert len(tokenizer.encode(text, parse_special=False)) > 1


def test_a_turns_mark_is_control_whatever_the_file_calls_it():
    mark = {"id": 7, "content": "<｜User｜>", "special": False}
    tag = {"id": 8, "content": "<think>", "special": False}
    assert [token.control for token in added_tokens({"added_tokens": [mark, tag]}, "x")] == [
        True,
        False,
    ]


def test_nothing_is_added_and_nothing_cut_off(trained, tmp_path):
    changed = copy.deepcopy(trained)
    end = next(item["id"] for item in trained["added_tokens"] if item["content"] == "<s>")
    changed["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    changed["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    }  # fmt: skip
    changed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [end], "tokens": ["<s>"]}},
    }
    changed = HFTokenizer.from_folder(write_folder(tmp_path, changed))
    for parse_special in (True, False):
        ids = changed.encode("hello world, think", parse_special=parse_special)
        assert b"".join(changed.pieces(ids)) == b"hello world, think"
        assert changed.encode("", parse_special=parse_special) == []


def test_a_tag_that_merges_spell_is_left_out_of_text(tmp_path):
    """The vocabulary was trained on the tag, then the tag was made special."""
    spelled = definition("gpt-2", size=300, texts=["think think"] * 50)
    word = spelled["model"]["vocab"]["think"]
    spelled["added_tokens"] = [
        {"id": word, "content": "think", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    ]  # fmt: skip
    tokenizer = HFTokenizer.from_folder(write_folder(tmp_path, spelled))
    assert tokenizer.encode("think", parse_special=True) == [word]
    ids = tokenizer.encode("think", parse_special=False)
    assert word not in ids
    assert b"".join(tokenizer.pieces(ids)) == b"think"


def test_white_space_that_is_an_added_token_is_no_tag(tmp_path, trained):
    spaced = copy.deepcopy(trained)
    number = max(item["id"] for item in spaced["added_tokens"]) + 1
    spaced["added_tokens"].append(
        {**spaced["added_tokens"][-1], "id": number, "content": " " * 5, "special": False}
    )
    tokenizer = HFTokenizer.from_folder(write_folder(tmp_path, spaced))
    for parse_special in (True, False):
        assert number in tokenizer.encode("a     b", parse_special=parse_special)
    ids = tokenizer.encode("     <think>", parse_special=False)
    assert ids[0] == number
    assert b"".join(tokenizer.pieces(ids)) == b"     <think>"
    assert len(ids) > 2


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer):
    size = len(tokenizer.vocabulary)
    assert tokenizer.pieces([size, size + 1000]) == [b"", b""]
    with pytest.raises(ModelError, match="-1 is no token id"):
        tokenizer.pieces([3, -1])


def test_half_a_character_is_refused(tokenizer):
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("a\ud800", parse_special=False)


def test_text_is_never_lost(tmp_path, trained):
    poor = copy.deepcopy(trained)
    vocab = poor["model"]["vocab"]
    vocab["ĀĀĀĀ"] = vocab.pop("Ã")  # the first byte of é
    poor["model"]["merges"] = [m for m in poor["model"]["merges"] if "Ã" not in "".join(m)]
    tokenizer = HFTokenizer.from_folder(write_folder(tmp_path, poor))
    assert tokenizer.encode("abc", parse_special=False)
    with pytest.raises(ModelError, match=r"no token for some bytes"):
        tokenizer.encode("caf\u00e9", parse_special=False)


def test_threads_share_one_tokenizer(trained, tmp_path):
    tokenizer = HFTokenizer.from_folder(write_folder(tmp_path, trained))
    texts = comparison_strings(200, seed=5, tags=tokenizer.special_texts())
    alone = [tokenizer.encode(text, parse_special=False) for text in texts]
    found: list[list[list[int]]] = []

    def work() -> None:
        found.append([tokenizer.encode(text, parse_special=False) for text in texts])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 4


def damaged(trained, change):
    found = copy.deepcopy(trained)
    model = found["model"]
    if change == "merge of nothing":
        model["merges"].append(["nowhere", "to be found"])
    elif change == "ids that collide":
        found["added_tokens"][0]["id"] = 3
    elif change == "added id far away":
        found["added_tokens"][0]["id"] += 1000
    elif change == "added without text":
        del found["added_tokens"][0]["content"]
    elif change == "added is no list":
        found["added_tokens"] = {"a": 1}
    elif change == "bad regex":
        found["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(("
    elif change == "wordpiece":
        found["model"] = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}
    elif change == "sentencepiece":
        found["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁"}
    return found


@pytest.mark.parametrize(
    "change",
    [
        "merge of nothing", "ids that collide", "added id far away", "added without text",
        "added is no list", "bad regex", "wordpiece", "sentencepiece",
    ],
)  # fmt: skip
def test_a_damaged_or_other_tokenizer_is_one_sentence(tmp_path, trained, change):
    folder = write_folder(tmp_path, damaged(trained, change))
    with pytest.raises(ModelError, match=r"tokenizer\.json") as caught:
        HFTokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_gguf_of_another_kind_is_refused(tmp_path):
    from gguf_writer import small

    small(tmp_path / "spm.gguf", model="llama")
    with pytest.raises(ModelError, match=r"'llama'.*llama\.cpp engine"):
        HFTokenizer.from_gguf(read_header(tmp_path / "spm.gguf"))
    small(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="pre-tokenizer None"):
        HFTokenizer.from_gguf(read_header(tmp_path / "nothing.gguf"))


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "deepseek-v3"])
def test_a_vocabulary_comes_back_from_a_gguf(tmp_path, pre):
    folder = write_folder(tmp_path, definition(pre, size=400))
    path = vocabulary_gguf(folder_vocabulary(folder).padded(450), tmp_path / "v.gguf")
    ours, back = HFTokenizer.from_folder(folder), HFTokenizer.from_gguf(read_header(path))
    assert len(back.vocabulary) == 450
    size = len(ours.vocabulary)
    assert back.pieces(range(size)) == ours.pieces(range(size))
    assert back.special_texts() == ours.special_texts()
    for text in comparison_strings(200, seed=2, tags=ours.special_texts()):
        for parse_special in (True, False):
            assert back.encode(text, parse_special=parse_special) == ours.encode(
                text, parse_special=parse_special
            )


def test_the_real_vocabulary_agrees_with_llama_cpp(smollm2: Model, smollm2_path: Path):
    """1,200 strings and every id; no user-defined token is in this vocabulary."""
    ours, theirs = HFTokenizer.from_gguf(read_header(smollm2_path)), smollm2.engine.tokenizer
    assert ours.special_texts() == theirs.special_texts()
    assert list(ours.vocabulary) == list(theirs.vocabulary)
    assert [ours.is_control(i) for i in range(40)] == [theirs.is_control(i) for i in range(40)]
    for text in comparison_strings(1200, seed=11, tags=ours.special_texts()):
        for parse_special in (False, True):
            found = ours.encode(text, parse_special=parse_special)
            assert found == theirs.encode(text, parse_special=parse_special), ascii(text)


def test_a_mutated_gguf_gives_typed_errors_only(tmp_path, trained):
    folder = write_folder(tmp_path, trained)
    raw = vocabulary_gguf(folder_vocabulary(folder), tmp_path / "v.gguf").read_bytes()
    # The metadata alone: zeros of the tensors would swallow most of the mutations.
    end = raw.index(b"token_embd.weight")
    draw = random.Random(8)
    worked, said = 0, []
    for _ in range(400):
        changed = bytearray(raw)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(24, end)] = draw.choice(
                (0, 1, 0x20, 0x7F, 0xFF, draw.randrange(256))
            )
        (tmp_path / "m.gguf").write_bytes(changed)
        try:
            tokenizer = HFTokenizer.from_gguf(read_header(tmp_path / "m.gguf"))
            tokenizer_files_from_gguf(read_header(tmp_path / "m.gguf"))
            tokenizer.pieces(tokenizer.encode("hello <think> 12 é", parse_special=True))
            tokenizer.pieces(tokenizer.encode("hello <think> 12 é", parse_special=False))
            worked += 1
        except ForethoughtError as error:
            said.append(str(error))
    assert 40 < worked < 390
    assert not any("\n" in sentence for sentence in said)


def nodes(value, path=()):
    """The paths of all parts of a JSON value; of long lists and tables only the first few."""
    yield path
    if isinstance(value, dict):
        for key in list(value)[:12]:
            yield from nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(3, len(value))):
            yield from nodes(value[index], (*path, index))


def test_a_mutated_folder_gives_typed_errors_only(tmp_path, trained, capfd):
    """Each part of the file in turn becomes something else."""
    small, said = copy.deepcopy(trained), []
    for path in list(nodes(small))[1:]:
        for value in (None, [], {}, -1, "x", True, 1 << 40):
            changed = copy.deepcopy(small)
            part = changed
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = value
            folder = write_folder(tmp_path, changed)
            for reader in (HFTokenizer.from_folder, folder_vocabulary):
                try:
                    read = reader(folder)
                    if isinstance(read, HFTokenizer):
                        read.pieces(read.encode("hello <think> 12 é", parse_special=False))
                        read.pieces(read.encode("hello <think> 12 é", parse_special=True))
                except ForethoughtError as error:
                    said.append(str(error))
    assert len(said) > 50
    assert not any("\n" in sentence for sentence in said)
    capfd.readouterr()  # the library reports its panics there
