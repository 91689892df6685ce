"""Reading the vocabulary files of a folder: what they say, and what is refused."""

from __future__ import annotations

import json

import pytest
from trained_tokenizers import definition, write_folder

from forethought.checkpoints.tokenizer_files import SamplingDefaults, read_tokenizer_folder
from forethought.errors import ModelError, UserError


@pytest.fixture(scope="module")
def trained():
    return definition("qwen2", size=280)


def template(bos: str) -> dict[str, object]:
    return {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}},
    }


def test_a_folder_says_its_tokens_and_its_template(tmp_path, trained):
    folder = write_folder(
        tmp_path,
        trained,
        chat_template="{{ x }}",
        pad_token={"content": "<|end|>", "special": True},
        add_bos_token=True,
    )
    files = read_tokenizer_folder(folder)
    assert files.tokenizer_json == trained
    assert json.loads(files.raw) == trained
    assert (files.bos_token, files.eos_token, files.pad_token) == ("<s>", "<|end|>", "<|end|>")
    assert files.chat_template == "{{ x }}"
    assert files.add_bos
    assert files.sampling == SamplingDefaults()
    assert files.eos_ids == ()


def test_a_template_file_comes_before_the_configuration(tmp_path, trained):
    folder = write_folder(tmp_path, trained, chat_template="old")
    (folder / "chat_template.jinja").write_text("new ｜", encoding="utf-8")
    assert read_tokenizer_folder(folder).chat_template == "new ｜"


def test_of_several_templates_the_default_is_taken(tmp_path, trained):
    both = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert (
        read_tokenizer_folder(write_folder(tmp_path, trained, chat_template=both)).chat_template
        == "d"
    )
    folder = write_folder(tmp_path, trained, chat_template=both[:1])
    assert read_tokenizer_folder(folder).chat_template is None


@pytest.mark.parametrize(
    ("processor", "config", "adds"),
    [
        (None, {}, False),
        (template("<s>"), {}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<s>")]}, {}, True),
        (template("[CLS]"), {}, False),
        (template("<s>"), {"add_bos_token": False}, False),
        (None, {"add_bos_token": True}, True),
    ],
)
def test_bos_first_comes_from_the_flag_or_the_post_processor(
    tmp_path, trained, processor, config, adds
):
    folder = write_folder(tmp_path, {**trained, "post_processor": processor}, **config)
    assert read_tokenizer_folder(folder).add_bos is adds


def test_generation_defaults_count_only_where_the_makers_sample(tmp_path, trained):
    folder = write_folder(tmp_path, trained)
    settings = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [3, 5]}
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**settings, "do_sample": True}))
    files = read_tokenizer_folder(folder)
    assert files.sampling == SamplingDefaults(0.6, 0.95, 20, None)
    assert files.eos_ids == (3, 5)
    path.write_text(json.dumps({**settings, "eos_token_id": 7}))
    files = read_tokenizer_folder(folder)
    assert files.sampling == SamplingDefaults()
    assert files.eos_ids == (7,)


def test_special_tokens_map_fills_what_the_configuration_leaves_out(tmp_path, trained):
    folder = write_folder(tmp_path, trained)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert read_tokenizer_folder(folder).eos_token == "<|end|>"


def refused(folder, says, error=ModelError):
    with pytest.raises(error, match=says) as caught:
        read_tokenizer_folder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_is_missing_is_said(tmp_path):
    refused(tmp_path / "nowhere", "There is no folder", UserError)
    refused(tmp_path, r"has no tokenizer\.json")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    refused(tmp_path, "SentencePiece.*convert")


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[1]", b"[" * 100_000, b""])
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_damaged_file_is_named(tmp_path, trained, name, raw):
    folder = write_folder(tmp_path, trained)
    (folder / name).write_bytes(raw)
    refused(folder, rf"{name} is damaged")


def test_a_file_beyond_the_cap_is_not_read(tmp_path, trained):
    folder = write_folder(tmp_path, trained)
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(200 << 20)
    refused(folder, "128 MiB")


def test_code_in_a_folder_is_refused(tmp_path, trained):
    refused(write_folder(tmp_path, trained, auto_map={"AutoTokenizer": "x.Y"}), "auto_map")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "top_p": True},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [1, -2]},
    ],
)
def test_settings_of_the_wrong_kind_are_refused(tmp_path, trained, settings):
    folder = write_folder(tmp_path, trained)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    refused(folder, r"generation_config\.json")
