"""Kept words give the tokenizer's ids, whatever the text."""

from __future__ import annotations

import pickle
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.problems.registry import BUNDLED
from forethought.training.config import CorpusConfig
from forethought.training.corpus import Corpus, CorpusSpec, encoded_documents
from forethought.training.fast_encode import WordCache
from forethought.training.prompting import R1_ZERO, Prompter, PromptName
from forethought.training.tokenizer import TrainedTokenizer, train_tokenizer

SPEC = CorpusSpec(tuple(BUNDLED), {}, {}, None, CorpusConfig(), 1)


@cache
def tokenizer() -> TrainedTokenizer:
    corpus = Corpus(SPEC)
    return train_tokenizer([*(corpus[at].text for at in range(2000)), R1_ZERO], 2000)


@cache
def words() -> WordCache:
    return WordCache(tokenizer())


PIECES = st.sampled_from(
    ["19 + 7 = 26", "<think>", "</think>", "\n", "\n\n ", "  ", " x", "don't", "I'LL", "，", "小明",
     "用 3、4 得", "…", "½", "é", "\t", "\r\n", "(-2)", "\u3000", "<｜User｜>", "a1b22", "'s",
     "”“", "!?"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30), st.booleans())
@settings(max_examples=600, deadline=None)
def test_ids_are_the_tokenizers(text: str, special: bool) -> None:
    expected = tokenizer().tokenizer.encode(text, parse_special=special)
    assert words().encode(text, parse_special=special) == expected
    assert words().encode(text, parse_special=special) == expected  # from what was kept


@pytest.mark.parametrize("name", ["chat", "r1-zero"])
def test_documents_are_encoded_as_they_were(name: PromptName) -> None:
    corpus, prompter = Corpus(SPEC), Prompter(tokenizer(), name)
    with encoded_documents(SPEC, 7, tokenizer(), prompter) as made:
        for at in range(7, 1007):
            assert next(made) == corpus[at].ids(tokenizer(), prompter), corpus[at]


@settings(deadline=None)
@given(st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=20))
def test_the_prompt_is_the_template_with_the_question_in_it(question: str) -> None:
    encode = tokenizer().tokenizer.encode
    start, end = R1_ZERO.split("{question}")
    ids = Prompter(tokenizer(), "r1-zero").ids(question)
    if any(text in question for text in tokenizer().tokenizer.special_texts()):
        inner = encode(question, parse_special=False)
        expected = [
            *encode(start, parse_special=True), *inner, *encode(end, parse_special=True)
        ]  # fmt: skip
    else:
        expected = encode(start + question + end, parse_special=True)
    assert list(ids) == [tokenizer().bos_id, *expected]


def test_a_prompter_travels_after_it_was_used() -> None:
    prompter = Prompter(tokenizer(), "r1-zero")
    ids = prompter.ids("What is 1 + 1?")
    assert pickle.loads(pickle.dumps(prompter)).ids("What is 1 + 1?") == ids
