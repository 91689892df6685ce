from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families.base_conversion import BaseConversion, BaseConversionTask
from forethought.problems.problem import Problem
from forethought.problems.stream import held_out_problems

FAMILY = BaseConversion()
DIGITS = "0123456789ABCDEF"


def asking(value: int, source: int, target: int) -> Problem:
    task = BaseConversionTask(value, source, target)
    answer = FAMILY.answer(task, "en")
    return Problem("base_conversion", 1, 0, "en", "?", answer, FAMILY.canonical(task), task)


def written(value: int, base: int) -> str:
    """The digits, found from the highest power down."""
    power = 1
    while power * base <= value:
        power *= base
    digits = ""
    while power:
        digits += DIGITS[value // power]
        value %= power
        power //= base
    return digits


def test_base_conversion_keeps_the_contract_of_a_family():
    check_contract(FAMILY)
    assert FAMILY.bare


def test_every_level_draws_what_the_docstring_says():
    pairs: dict[int, set[tuple[int, int]]] = {}
    for problem in problems_of(FAMILY, 300):
        value, source, target = problem.task
        low, high = {1: (2, 127), 2: (8, 255), 3: (16, 4095), 4: (16, 4095)}[problem.level]
        assert low <= value <= high
        pairs.setdefault(problem.level, set()).add((source, target))
    assert pairs[1] == {(2, 10), (10, 2)}
    assert pairs[2] == {(2, 10), (10, 2), (8, 10), (10, 8)}
    assert pairs[3] == {(8, 10), (10, 8), (16, 10), (10, 16)}
    assert pairs[4] == {(a, b) for a in (2, 8, 16) for b in (2, 8, 16) if a != b}


def test_question_and_answer_are_what_the_highest_power_down_gives():
    for problem in problems_of(FAMILY, 100):
        value, source, target = problem.task
        assert problem.answer == written(value, target)
        assert written(value, source) in problem.text


def test_the_canonical_form_is_the_value_and_the_bases():
    assert asking(54, 2, 10).canonical == "54 from 2 to 10"
    assert asking(54, 10, 2).canonical == "54 from 10 to 2"


def test_the_first_level_has_several_problems_held_out():
    problems = held_out_problems([FAMILY], 8, 0, levels={FAMILY.name: (1,)})
    assert len({problem.canonical for problem in problems}) == 8


RIGHT = {
    2: [
        "11011", "0b11011", "0B11011.", "00011011", " `11011` "
    ],
    8: [
        "33", "0o33", "033"
    ],
    10: [
        "27", "27。", "**27**"
    ],
    16: [
        "1B", "1b", "0x1b", "0X1B", "$1B$", '"001b"'
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "answer"), [(key, answer) for key, answers in RIGHT.items() for answer in answers]
)
def test_odd_forms_of_a_right_answer_are_right(target, answer):
    assert FAMILY.verify(asking(27, 10 if target != 10 else 2, target), answer).correct


def test_thousands_may_be_separated_in_decimal_alone():
    assert FAMILY.verify(asking(2236, 8, 10), "2,236").correct
    assert not FAMILY.verify(asking(2236, 8, 10), "22,36").correct
    assert not FAMILY.verify(asking(0x1000, 10, 16), "1,000").correct


WRONG = {
    2: [
        "", "0x1B", "0o33", "27", "1101", "11011 = 27", "1_1011", "11011, 11011", "11011 or 1",
        "-11011", "１１０１１", "0b", "b11011", "1 1011", "11011" + " " * 400, "0" * 300 + "11011"
    ],
    8: [
        "0b33", "0x33", "٣٣", "38"
    ],
    10: [
        "0d27", "0x1b", "27.0", "+27", "2⁷"
    ],
    16: [
        "0b1b", "27", "1Bh", "0x", "0x0x1b", "1Ｂ", "int('1b')"
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "answer"), [(key, answer) for key, answers in WRONG.items() for answer in answers]
)
def test_hostile_answers_are_wrong(target, answer):
    assert not FAMILY.verify(asking(27, 10 if target != 10 else 2, target), answer).correct


def test_a_prefix_that_is_also_hex_digits_is_read_as_digits():
    assert FAMILY.verify(asking(0xB11, 10, 16), "0b11").correct
    assert not FAMILY.verify(asking(0b11, 10, 16), "0b11").correct


@given(st.text(max_size=60), st.sampled_from((2, 8, 10, 16)))
def test_no_text_makes_the_verifier_raise(text, target):
    FAMILY.verify(asking(27, 3, target), text)


@given(st.integers(2, 4095), st.integers(2, 4095), st.sampled_from((2, 8, 16)))
def test_only_the_same_value_is_right(value, other, target):
    assert FAMILY.verify(asking(value, 10, target), written(other, target)).correct == (
        value == other
    )


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.02 < share_right(FAMILY, "steps", 0.5) < 0.4
    assert share_right(FAMILY, "check", 0.5) == 1.0
    assert share_right(FAMILY, "check", 1.0) == 1.0


def test_thoughts_are_arithmetic_that_holds():
    problem = asking(0x1F, 16, 2)
    assert FAMILY.worked(problem, Random(0)).steps == (
        "1.",
        "F = 15, 1 * 16 + 15 = 31.",
        "31 / 2 = 15 remainder 1.",
        "15 / 2 = 7 remainder 1.",
        "7 / 2 = 3 remainder 1.",
        "3 / 2 = 1 remainder 1.",
        "1 is left.",
        "Read backwards: 11111.",
    )
    slipped = [
        step
        for seed in range(20)
        for step in FAMILY.worked(problem, Random(seed), style="check", slip=0.9).steps
    ]
    assert any(step.endswith(" is not 1F. Again:") for step in slipped)
