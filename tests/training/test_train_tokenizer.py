"""A tokenizer trained here gives the same ids in transformers and in llama.cpp."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import forethought as ft
from forethought.checkpoints.comparison_strings import comparison_strings
from forethought.checkpoints.export import export_gguf
from forethought.checkpoints.gguf_header import read_header
from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import DeepseekConfig
from forethought.checkpoints.pre_tokenizers import derive_pre
from forethought.checkpoints.save_folder import save_folder
from forethought.checkpoints.tokenizer_files import read_tokenizer_folder
from forethought.dialogue.messages import Message
from forethought.dialogue.prompt import build_prompt
from forethought.dialogue.templates import ChatTemplate, render_r1
from forethought.engines.llama_tokenizer import LlamaTokenizer
from forethought.engines.llama_vocabulary import open_llama_tokenizer
from forethought.errors import ModelError, UserError
from forethought.training.tokenizer import (
    BOS,
    CHAT_TEMPLATE,
    MIN_VOCABULARY,
    PAD,
    TRAINING_TEMPLATE,
    TrainedTokenizer,
    read_tokenizer,
    render_conversation,
    train_tokenizer,
)

EOS = "<｜end▁of▁sentence｜>"
SPECIAL = (BOS, EOS, PAD, "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")


def corpus(count: int = 400, seed: int = 0) -> list[str]:
    """Sums in English and Chinese, some with the special tokens of a rendered conversation."""
    draw = random.Random(seed)
    syllables = ("ba", "che", "dro", "fín", "Lu", "mo", "ster", "ing", "tion", "明", "红", "山")
    texts = []
    for number in range(count):
        a, b = draw.randint(1, 999), draw.randint(1, 99)
        who = "".join(draw.choices(syllables, k=draw.randint(1, 4)))
        question, thought, answer = draw.choice(
            (
                (
                    f"{who} has {a} apples and buys {b} more. How many are there now?",
                    f"Wait, {who} had {a}. So {a} + {b} = {a + b}. Let me check: that's right.",
                    f"There are \\boxed{{{a + b}}} apples.",
                ),
                (
                    f"{who}有{a}个苹果，又买了{b}个，现在一共有多少个苹果？",
                    f"先算{a}加{b}，等于{a + b}。再检查一遍，没有错。",
                    f"答案是\\boxed{{{a + b}}}。",
                ),
            )
        )
        rendered = (
            f"{BOS}<｜User｜>{question}<｜Assistant｜><think>\n{thought}\n</think>\n\n{answer}{EOS}"
        )
        texts.append(rendered if number % 2 else f"{question}\n{answer}\n")
    return texts


SPACES = "".join(map(chr, (0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x3000)))
CONTROLS = "".join(map(chr, (*range(0x01, 0x20), *range(0x7F, 0xA0))))  # no NUL: a C string ends
ALPHABETS = (
    "".join(map(chr, range(0x20, 0x7F))),
    "0123456789",
    "０１२٣४²½Ⅷ",
    "一二三加减乘除等于多少个苹果小明，。！？：；「」（）",
    "".join(map(chr, range(0x300, 0x370))) + "aeioucnAEé",
    "😀🎉👩🚀👍🏽🇩🇪❤\ufe0f\u200d\u20e31#☠",
    " \t\n\r\x0b\x0c" + SPACES,
    CONTROLS,
    "\u200b\u200c\u2060\ufeff\ufffd\ue000\U000f0000",
    "ßçñøØłαβγДжשلक้か한",
    "<>|｜▁/think",
)


def random_strings(count: int, seed: int = 0) -> list[str]:
    """Half of them characters of one to three alphabets, half words and code; no special token."""
    draw = random.Random(seed)
    found = []
    for _ in range(count // 2):
        letters = "".join(draw.sample(ALPHABETS, draw.randint(1, 3)))
        text = "".join(draw.choices(letters, k=draw.randint(0, 40)))
        found.append(text if not any(each in text for each in SPECIAL) else "")
    return found + comparison_strings(count - len(found), seed)


@pytest.fixture(scope="module")
def trained() -> TrainedTokenizer:
    return train_tokenizer(corpus(), vocab_size=500)


def network(trained: TrainedTokenizer) -> ft.models.CausalLM:
    config = DeepseekConfig(
        model_type="deepseek_v3",
        vocab_size=trained.padded_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        rope_theta=10000.0,
        initializer_range=0.2,
        bos_token_id=trained.bos_id,
        eos_token_ids=(trained.eos_id,),
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        norm_topk_prob=True,
        first_k_dense_replace=1,
    )
    return ft.models.build(config, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(trained: TrainedTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model: a DeepSeek-V3 of two layers with this tokenizer."""
    target = tmp_path_factory.mktemp("run") / "model"
    model = network(trained)
    save_folder(target, model.config, model.checkpoint_tensors(), tokenizer_files=trained.files)
    return target


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    target = folder.with_suffix(".gguf")
    export_gguf(folder, target, "f32", open_llama_tokenizer=open_llama_tokenizer)
    return target


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The folder's tokenizer in transformers."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[LlamaTokenizer]:
    with open_llama_tokenizer(gguf) as tokenizer:
        yield tokenizer


# -- the vocabulary


def test_special_tokens_come_first_and_are_special_as_in_r1(trained: TrainedTokenizer) -> None:
    ids = (
        trained.bos_id, trained.eos_id, trained.pad_id, trained.user_id, trained.assistant_id,
        trained.think_id, trained.end_think_id,
    )  # fmt: skip
    assert ids == tuple(range(7))
    assert trained.tokenizer.special_texts() == SPECIAL
    added = json.loads(trained.files["tokenizer.json"])["added_tokens"]
    assert {token["content"] for token in added if token["special"]} == {BOS, EOS, PAD}


def test_every_byte_is_there_and_digits_are_single(trained: TrainedTokenizer) -> None:
    pieces = trained.tokenizer.vocabulary
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)
    assert len(set(pieces)) == len(pieces) == trained.size
    assert not [
        piece for piece in pieces if len(piece) > 1 and any(b"%d" % d in piece for d in range(10))
    ]
    assert len(trained.tokenizer.encode("1234567", parse_special=False)) == 7


def test_sizes(trained: TrainedTokenizer) -> None:
    assert (trained.size, trained.padded_size) == (500, 512)
    small = train_tokenizer(["abab"], vocab_size=4096)
    assert (small.size, small.padded_size) == (MIN_VOCABULARY, 320)
    exact = train_tokenizer(corpus(), vocab_size=320)
    assert (exact.size, exact.padded_size) == (320, 320)
    assert train_tokenizer(corpus(), vocab_size=MIN_VOCABULARY).size == MIN_VOCABULARY


def test_no_normaliser_and_the_rule_of_qwen2(trained: TrainedTokenizer) -> None:
    definition = json.loads(trained.files["tokenizer.json"])
    assert derive_pre(definition) == "qwen2"
    assert (definition["normalizer"], definition["post_processor"]) == (None, None)
    encode = trained.tokenizer.encode
    assert encode("e\u0301", parse_special=False) != encode("\u00e9", parse_special=False)


def test_special_tokens_in_the_texts_teach_nothing() -> None:
    marked = train_tokenizer(f"{text}</think>" for text in corpus())
    assert marked.files == train_tokenizer(corpus()).files
    assert b"<think" not in marked.tokenizer.vocabulary


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(trained: TrainedTokenizer, text: str) -> None:
    for parse_special in (True, False):
        ids = trained.tokenizer.encode(text, parse_special=parse_special)
        assert b"".join(trained.tokenizer.pieces(ids)) == text.encode()


# -- the same texts, the same bytes


def digest(trained: TrainedTokenizer) -> str:
    return hashlib.sha256(b"\0".join(trained.files.values())).hexdigest()


def test_order_and_chunks_do_not_matter() -> None:
    texts = corpus()
    first = digest(train_tokenizer(texts, 1000))
    assert digest(train_tokenizer(iter(texts), 1000)) == first
    assert digest(train_tokenizer(reversed(texts), 1000)) == first
    # A special token ends a word, wherever the texts are cut.
    assert digest(train_tokenizer([EOS.join(texts)], 1000)) == first
    assert digest(train_tokenizer(texts[1:], 1000)) != first


TRAIN = """
import json, sys
from forethought.training.tokenizer import train_tokenizer
sys.stdout.buffer.write(train_tokenizer(json.load(sys.stdin), 1000).files["tokenizer.json"])
"""


@pytest.mark.parametrize(
    ("seed", "threads", "parallel"), [("0", "1", "false"), ("1", "1", "true"), ("2", "4", "true")]
)
def test_processes_and_threads_do_not_matter(seed: str, threads: str, parallel: str) -> None:
    """Most counts of so small a corpus are ties, so an order by hash would show."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": seed,
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": parallel,
    }
    found = subprocess.run(
        [sys.executable, "-c", TRAIN],
        input=json.dumps(corpus()).encode(),
        env=environment,
        check=True,
        capture_output=True,
    ).stdout
    assert found == train_tokenizer(corpus(), 1000).files["tokenizer.json"]


# -- transformers and llama.cpp


def compare(trained: TrainedTokenizer, texts: Sequence[str], theirs: Any, llama: Any) -> None:
    own = [trained.tokenizer.encode(text, parse_special=False) for text in texts]
    assert all(
        b"".join(trained.tokenizer.pieces(ids)) == text.encode()
        for text, ids in zip(texts, own, strict=True)
    )
    assert theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] == own
    # With its defaults too: nothing is put before or after.
    assert theirs(texts[:200])["input_ids"] == own[:200]
    assert theirs.batch_decode(own) == list(texts)
    different = [
        text
        for text, ids in zip(texts, own, strict=True)
        if llama.encode(text, parse_special=False) != ids
    ]
    assert not different, f"{len(different)} of {len(texts)}, the first {different[0]!a}"


def test_a_thousand_strings(trained: TrainedTokenizer, theirs: Any, llama: LlamaTokenizer) -> None:
    compare(trained, random_strings(1000), theirs, llama)


@pytest.mark.slow
def test_ten_thousand_strings(theirs: Any, llama: LlamaTokenizer, folder: Path) -> None:
    compare(read_tokenizer(folder), random_strings(10_000, seed=1), theirs, llama)


CONVERSATIONS = (
    [Message("user", "1 + 1?")],
    [Message("system", "Be brief."), Message("user", " 小明有3个苹果。 ")],
    [
        Message("user", "What is 12 + 30?"),
        Message("assistant", "It is \\boxed{42}.", "Wait, 12 + 30 = 42.\n\nYes."),
        Message("user", "And in Chinese?\n"),
        Message("assistant", "四十二", ""),
        Message("user", "Thanks"),
    ],
    [
        Message("system", "Unused."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("system", "Be kind. "),
        Message("user", "c"),
    ],
)


def turns(conversation: Sequence[Message]) -> list[dict[str, str]]:
    """With thoughts in the content, as datasets have them."""
    return [
        {
            "role": message.role,
            "content": message.content
            if message.thought is None
            else f"<think>\n{message.thought}\n</think>\n\n{message.content}",
        }
        for message in conversation
    ]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRAINING_TEMPLATE], ids=["chat", "training"])
@pytest.mark.parametrize("generate", [True, False])
def test_one_text_in_the_sandbox_and_in_transformers(
    template: str, generate: bool, trained: TrainedTokenizer, theirs: Any, llama: LlamaTokenizer
) -> None:
    for conversation in CONVERSATIONS:
        messages = turns(conversation)
        text = ChatTemplate(template).render(
            messages, add_generation_prompt=generate, bos_token=BOS, eos_token=EOS
        )
        given = {"add_generation_prompt": generate, "chat_template": template}
        assert theirs.apply_chat_template(messages, tokenize=False, **given) == text
        ids = trained.tokenizer.encode(text, parse_special=True)
        assert theirs.apply_chat_template(messages, return_dict=False, **given) == ids
        assert llama.encode(text, parse_special=True) == ids
        assert theirs.decode(ids) == text
        assert ids.count(trained.bos_id) == 1


def test_the_folders_template_is_r1s_without_the_opened_thought(theirs: Any) -> None:
    assert theirs.chat_template == CHAT_TEMPLATE
    for conversation in CONVERSATIONS:
        messages = turns(conversation)
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<｜Assistant｜>")
        assert text + "<think>\n" == render_r1(messages, True, BOS)
    with pytest.raises(UserError, match="the user or the assistant"):
        ChatTemplate(CHAT_TEMPLATE).render([{"role": "tool", "content": "x"}])


def test_skip_special_tokens_keeps_the_thought(theirs: Any) -> None:
    ids = theirs.encode(f"{BOS}<think>\na\n</think>\n\nb{EOS}{PAD}")
    assert theirs.decode(ids, skip_special_tokens=True) == "<think>\na\n</think>\n\nb"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)


# -- conversations as ids


def joined(segments: Sequence[tuple[list[int], bool]]) -> list[int]:
    return list(chain.from_iterable(ids for ids, _ in segments))


def test_ids_and_what_is_learnt_are_those_of_the_training_template(
    trained: TrainedTokenizer, theirs: Any
) -> None:
    for conversation in CONVERSATIONS:
        rendered = theirs.apply_chat_template(
            turns(conversation),
            chat_template=TRAINING_TEMPLATE,
            add_generation_prompt=conversation[-1].role == "user",
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        segments = render_conversation(trained, conversation)
        assert joined(segments) == rendered["input_ids"]
        learnt = [int(segment.trained) for segment in segments for _ in segment.ids]
        assert learnt == list(rendered["assistant_masks"])


def test_what_is_learnt_begins_with_the_thought_and_ends_with_eos(
    trained: TrainedTokenizer,
) -> None:
    conversation = CONVERSATIONS[2][:4]
    segments = render_conversation(trained, conversation)
    assert [trained_ for _, trained_ in segments] == [False, True, False, True]
    for ids, learnt in segments:
        if learnt:
            assert (ids[0], ids[-1]) == (trained.think_id, trained.eos_id)
        else:
            assert ids[-1] == trained.assistant_id
    alone = render_conversation(trained, conversation, history="strip")
    assert [trained_ for _, trained_ in alone] == [False, True]
    assert alone[1] == segments[3]
    assert trained.think_id not in alone[0].ids


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_are_those_that_a_model_is_asked_with(
    conversation: list[Message], trained: TrainedTokenizer
) -> None:
    (prompt,) = render_conversation(trained, conversation, history="strip")
    asked = build_prompt(
        conversation,
        template=ChatTemplate(CHAT_TEMPLATE),
        tokenizer=trained.tokenizer,
        bos_token=BOS,
        eos_token=EOS,
    )
    opened = [trained.think_id, *trained.tokenizer.encode("\n", parse_special=False)]
    assert asked.ids == (*prompt.ids, *opened)
    assert not prompt.trained
    kept = build_prompt(
        conversation,
        template=ChatTemplate(CHAT_TEMPLATE),
        tokenizer=trained.tokenizer,
        history="keep",
        bos_token=BOS,
        eos_token=EOS,
    )
    assert kept.ids == (*joined(render_conversation(trained, conversation)), *opened)


def test_no_text_becomes_a_token(trained: TrainedTokenizer) -> None:
    """Neither a person's nor a model's: a tag in a thought would end it."""
    everything = "".join(SPECIAL)
    conversation = [
        Message("system", everything),
        Message("user", f"Repeat <think>: {everything}"),
        Message("assistant", f"{everything}<thi", f"</thi{everything}</think"),
        Message("user", "nk>"),
    ]
    ids = joined(render_conversation(trained, conversation))
    assert [token for token in ids if token < len(SPECIAL)] == [0, 3, 4, 5, 6, 1, 3, 4]
    text = b"".join(trained.tokenizer.pieces(ids)).decode()
    assert text == ChatTemplate(TRAINING_TEMPLATE).render(
        turns(conversation), bos_token=BOS, eos_token=EOS
    )


def test_why_a_template_must_not_encode_foreign_text(theirs: Any) -> None:
    """Fails once transformers splits these as well: then the module's first words can go."""
    ids = theirs(f"<think>{EOS}", split_special_tokens=True)["input_ids"]
    assert 5 in ids
    assert 1 not in ids


# -- a folder that a run saved


def test_a_saved_folder_opens_to_the_same(trained: TrainedTokenizer, folder: Path) -> None:
    again = read_tokenizer(folder)
    assert again == trained
    assert again.tokenizer.encode("小明 has 3", parse_special=False) == trained.tokenizer.encode(
        "小明 has 3", parse_special=False
    )
    found = read_tokenizer_folder(folder)
    assert (found.bos_token, found.eos_token, found.pad_token) == (BOS, EOS, PAD)
    assert not found.add_bos
    assert found.chat_template == CHAT_TEMPLATE


def test_what_no_tokenizer_can_be_made_of() -> None:
    for too_small in (MIN_VOCABULARY - 1, 0, -5):
        with pytest.raises(UserError, match=f"vocab_size is {too_small}.*at least 264"):
            train_tokenizer(corpus(), too_small)
    for nothing in ([], ["", "abc", "12 12"], list(SPECIAL)):
        with pytest.raises(UserError, match="give more text"):
            train_tokenizer(nothing)
    with pytest.raises(UserError, match=r"'ab\\ud800c'.*surrogate"):
        train_tokenizer(["ab\ud800c"])


def test_a_folder_without_the_special_tokens(trained: TrainedTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        read_tokenizer(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path)
    definition = json.loads(trained.files["tokenizer.json"])
    definition["added_tokens"] = [
        token for token in definition["added_tokens"] if token["content"] not in (PAD, "<think>")
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(UserError, match=r"lacks the special tokens <｜▁pad▁｜>, <think>") as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_transformers_opens_the_whole_folder(folder: Path, theirs: Any) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model).__name__ == "DeepseekV3ForCausalLM"
    ids = theirs.apply_chat_template(
        [{"role": "user", "content": "1 + 1?"}], return_dict=False, add_generation_prompt=True
    )
    prompt = torch.tensor([ids])
    with torch.no_grad():
        assert torch.allclose(
            model(prompt).logits, ft.models.load(folder)(prompt), atol=1e-4, rtol=1e-4
        )


def test_the_folder_can_be_asked(folder: Path, trained: TrainedTokenizer) -> None:
    with ft.load(str(folder), threads=1) as model:
        assert model.engine.name == "torch"
        assert model.thinks == "native"
        tags = model.persona.tags
        assert (tags.open_id, tags.close_id) == (trained.think_id, trained.end_think_id)
        prompt = model.prompt("What is <think> 1 + 1?")
        assert prompt.starts_in_thought
        assert prompt.ids is not None
        assert prompt.ids.count(trained.think_id) == 1
        sample = model.ask("1 + 1?", max_tokens=40, max_thought=10, temperature=1.0, seed=1)
        assert sample.thought
        assert sample.answer
        assert "think>" not in sample.thought + sample.answer
        assert trained.end_think_id in sample.ids
        assert max(sample.ids) < trained.size


def test_the_gguf_can_be_asked(gguf: Path, trained: TrainedTokenizer) -> None:
    tokenizer = HFTokenizer.from_gguf(read_header(gguf))
    assert tokenizer.size == trained.size
    assert tokenizer.special_texts() == SPECIAL
    with ft.load(str(gguf), threads=1) as model:
        assert model.engine.name == "llama.cpp"
        asked = model.prompt("1 + 1? <think>")
        (prompt,) = render_conversation(trained, [Message("user", "1 + 1? <think>")])
        assert asked.ids is not None
        assert asked.ids[-2] == trained.think_id
        # llama.cpp takes the tag out of any text, so the builder cuts it in two: other ids, no tag.
        assert asked.ids.count(trained.think_id) == 1
        assert b"".join(trained.tokenizer.pieces(asked.ids[:-2])) == b"".join(
            trained.tokenizer.pieces(prompt.ids)
        )
        sample = model.ask("1 + 1?", max_tokens=40, max_thought=10, temperature=1.0, seed=1)
        assert sample.thought
        assert "think>" not in sample.thought + sample.answer
