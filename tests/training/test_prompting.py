"""A problem is put in training as it is when the saved folder is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forethought as ft
from forethought.checkpoints.save_folder import save_folder
from forethought.dialogue.messages import Message
from forethought.dialogue.prompt import build_prompt
from forethought.dialogue.templates import ChatTemplate
from forethought.engines.model import Model
from forethought.training.prompting import R1_ZERO, ZERO_TEMPLATE, Prompter, reply_text
from forethought.training.tokenizer import BOS, CHAT_TEMPLATE, TAGS
from tiny_training import tiny_dense, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATES = {"chat": CHAT_TEMPLATE, "r1-zero": ZERO_TEMPLATE}
QUESTIONS = [
    "What is 2 + 2?",
    "1",
    "  Two lines,\n\nand blanks at both ends. ",
    "从 3, 5, 7 得到 22。",
    "It's \"quoted\", with {braces} and 'quotes' \\ and {{ question }}",
]
SPECIALS = set(range(7))


def encoded(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.tokenizer.encode(text, parse_special=False))


def asked(name: str, question: str) -> tuple[int, ...]:
    """The ids that a chat template gives, up to the thought that is opened behind it."""
    prompt = build_prompt(
        [Message("user", question)],
        template=ChatTemplate(TEMPLATES[name]),
        tokenizer=TOKENIZER.tokenizer,
        bos_token=BOS,
        eos_token="",
    )
    assert prompt.ids is not None
    at = max(at for at, token in enumerate(prompt.ids) if token == TOKENIZER.think_id)
    assert prompt.ids[at + 1 :] == encoded("\n")
    return tuple(prompt.ids[:at])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_the_template(name, question):
    assert Prompter(TOKENIZER, name).ids(question) == asked(name, question)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_a_saved_folder(name: str, tmp_path: Path):
    files = {**TOKENIZER.files, "chat_template.jinja": TEMPLATES[name].encode()}
    network = tiny_dense(TOKENIZER.padded_size)
    save_folder(
        tmp_path / "saved", network.config, network.checkpoint_tensors(), tokenizer_files=files
    )
    with ft.load(str(tmp_path / "saved"), engine="torch", device="cpu", threads=1) as model:
        assert isinstance(model, Model)
        for question in QUESTIONS:
            prompt = model.prompt(question)
            expected = Prompter(TOKENIZER, name).ids(question)
            assert prompt.ids is not None
            assert prompt.ids[: len(expected)] == expected
            rest = prompt.ids[len(expected) :]
            assert rest in ((), (TOKENIZER.think_id, *encoded("\n")))


def test_the_paper_s_prompt_is_one_text():
    ids = Prompter(TOKENIZER, "r1-zero").ids("What is 2 + 2?")
    text = b"".join(TOKENIZER.tokenizer.pieces(ids[1:])).decode()
    assert ids[0] == TOKENIZER.bos_id
    assert text == R1_ZERO.replace("{question}", "What is 2 + 2?")


def test_the_chat_prompt_has_the_marks_around_the_question():
    ids = Prompter(TOKENIZER, "chat").ids("What?")
    inner = encoded("What?")
    assert ids == (TOKENIZER.bos_id, TOKENIZER.user_id, *inner, TOKENIZER.assistant_id)


_HOSTILE = st.lists(
    st.sampled_from([*TOKENIZER.tokenizer.special_texts(), "<thi", "nk>", "a", " ", "\n", "</"]),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(question=_HOSTILE)
def test_tags_and_marks_in_a_question_stay_text(name, question):
    prompter = Prompter(TOKENIZER, name)
    ids = prompter.ids(question)
    marks = {token: ids.count(token) for token in SPECIALS}
    assert marks == {token: prompter.ids("What?").count(token) for token in SPECIALS}
    whole = b"".join(TOKENIZER.tokenizer.pieces(ids)).decode()
    assert question in whole


def test_a_reply_has_the_form_of_a_message_with_a_thought():
    text = reply_text("It is 4.", "4")
    assert text == f"{TAGS.open}\nIt is 4.\n{TAGS.close}\n\n<answer>4</answer>"
    ids = TOKENIZER.tokenizer.encode(text, parse_special=True)
    assert ids[0] == TOKENIZER.think_id
    assert ids.count(TOKENIZER.end_think_id) == 1
