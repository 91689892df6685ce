from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families._common_words import COMMON_WORDS
from forethought.problems.families.letter_counting import LetterCounting, LetterCountingTask
from forethought.problems.problem import Problem

FAMILY = LetterCounting()


def asking(text: str, letter: str) -> Problem:
    task = LetterCountingTask(tuple(text.split()), letter)
    answer = FAMILY.answer(task, "en")
    return Problem("letter_counting", 1, 0, "en", "?", answer, FAMILY.canonical(task), task)


def test_letter_counting_keeps_the_contract_of_a_family():
    check_contract(FAMILY)


def test_every_level_draws_what_the_docstring_says():
    kinds, absent, invented = set(), 0, 0
    for problem in problems_of(FAMILY, 400):
        words, letter = problem.task
        counts = {1: (1,), 2: (1,), 3: (2, 3), 4: (4, 5, 6)}[problem.level]
        shortest, longest = {1: (3, 5), 2: (6, 10)}.get(problem.level, (3, 10))
        assert len(words) in counts
        kinds.add((problem.level, len(words)))
        assert len(letter) == 1
        for word in words:
            assert shortest <= len(word) <= longest
            assert word.isascii()
            assert word.islower()
            if word not in COMMON_WORDS:
                invented += 1
                vowels = set(word) & set("aeiou")
                assert len(vowels) <= 2
                assert len(set(word) - vowels) <= 2
        absent += letter not in "".join(words)
    assert len(kinds) == 7
    assert 20 < absent < 200
    assert invented > 1000


def test_the_first_level_has_several_answers():
    answers = Counter(FAMILY.problem(1, seed).answer for seed in range(1000))
    assert set(answers) == {"0", "1", "2", "3"}
    assert answers["2"] > 150


def test_the_answer_is_what_counting_one_by_one_gives():
    for problem in problems_of(FAMILY, 100):
        count = 0
        for letter in problem.canonical.partition(" in ")[2]:
            if letter == problem.task.letter:
                count += 1
        assert problem.answer == str(count)


def test_the_question_shows_the_words_and_the_letter():
    assert FAMILY.canonical(LetterCountingTask(("big", "straw"), "r")) == "r in big straw"
    for problem in problems_of(FAMILY, 50):
        assert f'"{" ".join(problem.task.words)}"' in problem.text


@pytest.mark.parametrize(
    "answer", ["3", " 3 ", "3.", "3。", "**3**", "`3`", "$3$", '"3"', "“3.”", "+3", "03", "3\n"]
)
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(asking("strawberry", "r"), answer).correct


@pytest.mark.parametrize(
    "answer",
    ["", "2", "-3", "3.0", "3 or 2", "2, 3", "3, 3", "3 = 2", "3 3", "３", "٣", "³", "0x3", "1+2",
     "r", "3...", "****3****", "3" + " " * 400, "0" * 500 + "3", "len('rrr')", "$$", "3\x00"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(asking("strawberry", "r"), answer).correct


@given(st.text(max_size=60))
def test_no_text_makes_the_verifier_raise(text):
    FAMILY.verify(asking("strawberry", "r"), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.3 < share_right(FAMILY, "steps", 0.5) < 0.9
    assert share_right(FAMILY, "check", 0.5) == 1.0


def test_thoughts_spell_and_count():
    problem = FAMILY.problem(1, 2, "en")
    assert problem.task == LetterCountingTask(("vuvuv",), "v")
    steps = FAMILY.worked(problem, Random(2), style="check").steps
    assert steps[:2] == ("v 1, u 1, v 2, u 2, v 3.", "Check: (v) u (v) u (v): 3.")
    slipped = [
        FAMILY.worked(problem, Random(seed), style="check", slip=0.9).steps for seed in range(20)
    ]
    assert any("Wait, 3, not 2." in steps for steps in slipped)


def test_thoughts_of_the_first_level_are_short():
    for seed in range(200):
        problem = FAMILY.problem(1, seed)
        assert sum(map(len, FAMILY.worked(problem, Random(seed)).steps)) <= 40
