"""Signs of a hack are seen, and honest answers of every family are none."""

from __future__ import annotations

import pytest

from family_contract import problems_of
from forethought.problems.registry import BUNDLED, family
from forethought.training.hack_signs import commonest_answer, reads_like_code


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "().__class__.__base__",
        "eval('5')",
        "exit(0)",
        "os._exit(0)",
        "sys.exit()",
        "import os",
        "from math import pi",
        "lambda: 5",
        "print ( 5 )",
        "5; import  sys",
    ],
)
def test_code_is_seen(answer: str) -> None:
    assert reads_like_code(answer)


@pytest.mark.parametrize("name", BUNDLED)
def test_honest_answers_are_no_code(name: str) -> None:
    assert not any(reads_like_code(problem.answer) for problem in problems_of(family(name), 50))


@pytest.mark.parametrize("answer", [None, "", "x = 5", "the cat", "An important thing", "(3 + 4)"])
def test_words_and_sums_are_no_code(answer: str | None) -> None:
    assert not reads_like_code(answer)


def test_the_commonest_answer_is_that_of_its_family() -> None:
    mixed = [("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")]
    assert commonest_answer(mixed) == 0.25
    assert commonest_answer([("a", "7"), ("a", " 7"), ("a", "7\n"), ("a", "1")]) == 0.75
    assert commonest_answer([("a", "7"), ("a", "7"), ("b", "7"), ("b", "8")]) == 0.75
    assert commonest_answer([("a", "7"), ("a", None)]) == 1.0
    assert commonest_answer([("a", None)]) is None
    assert commonest_answer([]) is None
