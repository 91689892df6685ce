"""Documents by number: reproducible, never of a held-out problem, in the shares asked for."""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from forethought.problems.registry import BUNDLED, families
from forethought.problems.stream import ProblemStream
from forethought.training.config import CorpusConfig, RewardConfig
from forethought.training.corpus import Corpus, CorpusSpec, Document, documents, encoded_documents
from forethought.training.judging import Judge
from forethought.training.prompting import Prompter
from tiny_training import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
GIVEN_UP = (
    "I do not know.",
    "I give up.",
    "This is too hard.",
    "我不知道。",
    "算不出来。",
    "太难了。",
)


def spec(*names: str, seed: int = 3, language=None, **shares: Any) -> CorpusSpec:
    return CorpusSpec(
        families=names or tuple(BUNDLED),
        levels={},
        weights={},
        language=language,
        config=CorpusConfig(**shares),
        seed=seed,
        folder=Path(__file__).parent,
    )


def marked(count: int, **shares: Any) -> list[Document]:
    corpus = Corpus(spec("corpus_family.py:Marked", **shares))
    return [corpus[at] for at in range(count)]


@lru_cache
def bundled() -> list[Document]:
    corpus = Corpus(spec())
    return [corpus[at] for at in range(5000)]


def share(found: list[Document], which) -> float:
    return sum(map(which, found)) / len(found)


def test_a_document_is_a_function_of_seed_and_number():
    again = Corpus(spec())
    for at in (4321, 7, 0, 7):
        assert again[at] == bundled()[at]
    other = Corpus(spec(seed=4))
    assert sum(other[at] == bundled()[at] for at in range(100)) < 5


@pytest.mark.slow
def test_workers_make_the_same_documents_in_the_same_order():
    one = spec("corpus_family.py:Marked", "chained_arithmetic")
    with documents(one, 300) as own, documents(one, 300, workers=2) as theirs:
        assert list(islice(own, 700)) == list(islice(theirs, 700))


@pytest.mark.slow
def test_workers_tokenise_as_this_process_does():
    prompter = Prompter(TOKENIZER, "chat")
    with documents(spec(), 300) as found:
        expected = [document.ids(TOKENIZER, prompter) for document in islice(found, 300)]
    for workers in (0, 2):
        with encoded_documents(spec(), 300, TOKENIZER, prompter, workers=workers) as found:
            assert list(islice(found, 300)) == expected


def test_documents_begin_at_any_number():
    with documents(spec(), 4000) as found:
        assert list(islice(found, 20)) == bundled()[4000:4020]


def test_no_held_out_problem_is_in_it():
    stream = ProblemStream(families(BUNDLED), 3)
    asked = {at: stream[at] for at in range(5000)}
    for at, document in enumerate(bundled()):
        problem = asked[at]
        assert problem.text in (document.question or document.text)
        assert not problem.held_out
    assert {problem.family for problem in asked.values()} == set(BUNDLED)


def test_both_languages_are_there_unless_one_is_asked_for():
    chinese = share(bundled(), lambda one: "：" in one.text or "。" in (one.question or one.text))
    assert 0.3 < chinese < 0.7
    for language, word in (("en", "Marked"), ("zh", "标记")):
        corpus = Corpus(spec("corpus_family.py:Marked", language=language))
        found = [corpus[at] for at in range(50)]
        assert all(word in (one.question or one.text) for one in found)


def test_bare_families_are_question_and_answer_only():
    corpus = Corpus(spec("corpus_family.py:Bare", "corpus_family.py:Marked", think=0.5))
    bare = [one for one in (corpus[at] for at in range(300)) if "Bare" in one.text]
    assert len(bare) > 100
    for one in bare:
        assert one.question is None
        assert one.ended
        assert "right" in one.text
        assert "step" not in one.text


def test_bare_families_may_stand_behind_the_prompt_with_an_empty_thought():
    settings = {"think": 0.5, "bare_think": 0.4, "hasty": 0.7}
    corpus = Corpus(spec("corpus_family.py:Bare", **settings))
    found = [corpus[at] for at in range(2000)]
    asked = [one for one in found if one.question is not None]
    assert len(asked) / len(found) == pytest.approx(0.4, abs=0.04)
    for one in asked:
        assert one.text.startswith("<think>\n...\n</think>")
        assert "step" not in one.text
    assert share(asked, lambda one: "<answer>right" in one.text) == pytest.approx(0.3, abs=0.05)
    assert share(asked, lambda one: "<answer>wrong" in one.text) == pytest.approx(0.7, abs=0.05)


def test_shares_are_those_of_the_config():
    count = 3000
    found = marked(
        count, think=0.3, terse=0.2, wrong=0.0, given_up=0.0, unfinished=0.0, mixed=0.0, check=0.4
    )
    bound = 0.03
    worked = [one for one in found if "0." in one.text]
    assert share(found, lambda one: one.question is not None) == pytest.approx(0.3, abs=bound)
    assert 1 - len(worked) / count == pytest.approx(0.2, abs=bound)
    assert share(worked, lambda one: "CHECK" in one.text) == pytest.approx(0.4, abs=bound)
    assert all("right" in one.text and one.ended for one in found)


def test_the_hasty_think_nothing_and_guess():
    found = marked(3000, think=0.5, hasty=0.6, terse=0.0, wrong=0.0, given_up=0.0, unfinished=0.0)
    formed = [one for one in found if one.question is not None]
    # Every step of this family's is numbered.
    hasty = [one for one in formed if "0." not in one.text]
    assert share(found, lambda one: one.question is not None) == pytest.approx(0.5, abs=0.03)
    assert len(hasty) / len(formed) == pytest.approx(0.6, abs=0.03)
    # This family's answers are no numbers: a guess is a wrong answer.
    assert all("wrong" in one.text for one in hasty)
    assert all("right" in one.text for one in found if one not in hasty)


@pytest.mark.parametrize("slip", [0.0, 0.5, 1.0])
def test_shares_of_what_goes_wrong(slip):
    shares = {"think": 0.0, "terse": 0.0, "mixed": 0.0, "check": 0.0}
    found = marked(3000, wrong=0.4, slip=slip, given_up=0.2, unfinished=0.1, **shares)
    bound = 0.03
    gave_up = share(found, lambda one: one.text.endswith(GIVEN_UP))
    assert gave_up == pytest.approx(0.2, abs=bound)
    assert share(found, lambda one: not one.ended) == pytest.approx(0.1, abs=bound)
    # A guess is always wrong. Of those that slip, here every second has an effect.
    wrong = 0.4 * (1 - slip / 2)
    assert share(found, lambda one: "wrong" in one.text) == pytest.approx(wrong, abs=bound)
    finished = [one for one in found if one.ended and not one.text.endswith(GIVEN_UP)]
    assert all(("right" in one.text) != ("wrong" in one.text) for one in finished)
    assert not any("right" in one.text for one in found if not one.ended)


def test_the_share_that_changes_language():
    quiet = {"terse": 0.0, "wrong": 0.0, "given_up": 0.0, "unfinished": 0.0, "check": 0.0}
    found = marked(2000, mixed=0.5, **quiet)
    both = share(found, lambda one: "step" in one.text and "步骤" in one.text)
    # Three of the five places to go over leave steps in both languages.
    assert both == pytest.approx(0.5 * 3 / 5, abs=0.03)
    assert not any("step" in o.text and "步骤" in o.text for o in marked(500, mixed=0.0, **quiet))


def test_what_is_in_think_form_reads_as_well_formed():
    judge = Judge(TOKENIZER, {one.name: one for one in families(BUNDLED)}, RewardConfig())
    stream = ProblemStream(families(BUNDLED), 3)
    seen, right = set(), 0
    for name in ("chat", "r1-zero"):
        prompter = Prompter(TOKENIZER, name)
        for at, document in enumerate(bundled()[:1000]):
            if document.question is None:
                continue
            prompt = prompter.ids(document.question)
            ids = document.ids(TOKENIZER, prompter)
            assert ids[: len(prompt)] == prompt
            judged = judge.judge(stream[at], ids[len(prompt) :])
            assert judged.reply.well_formed, document
            right += judged.verdict.correct
            seen.add(stream[at].family)
    bare = {one.name for one in families(BUNDLED) if one.bare}
    assert seen == set(BUNDLED) - bare
    assert right > 100


def test_a_document_ends_with_the_end_token_if_it_is_finished():
    prompter = Prompter(TOKENIZER, "chat")
    plain = Document("Q: <think> 1?\nA: 2")
    ids = plain.ids(TOKENIZER, prompter)
    assert (ids[0], ids[-1]) == (TOKENIZER.bos_id, TOKENIZER.eos_id)
    # Tags in a plain document are text; its tokens are all of it.
    assert TOKENIZER.think_id not in ids
    assert b"".join(TOKENIZER.tokenizer.pieces(ids[1:-1])).decode() == plain.text
    unfinished = Document("Q: 1?\nA: so", ended=False).ids(TOKENIZER, prompter)
    assert TOKENIZER.eos_id not in unfinished


def test_more_than_all_documents_is_refused():
    with pytest.raises(ValueError, match="more than all documents"):
        CorpusConfig(think=0.7, terse=0.4)
    with pytest.raises(ValueError, match="more than all worked documents"):
        CorpusConfig(wrong=0.7, given_up=0.2, unfinished=0.2)
