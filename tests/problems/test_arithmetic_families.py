"""What the families of arithmetic have in common, each with its own numbers; the rest is in files
of their own."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest

from family_contract import first_problems
from forethought.errors import UserError
from forethought.problems.expression import operands, parse
from forethought.problems.families.chained_arithmetic import ChainedArithmetic
from forethought.problems.families.countdown import Combination, Countdown
from forethought.problems.families.game24 import Game24
from forethought.problems.families.gcd_lcm import GcdLcm
from forethought.problems.families.linear_equations import LinearEquations
from forethought.problems.family import Family
from forethought.problems.problem import LANGUAGES, Problem


class Case(NamedTuple):
    """A family and its numbers."""

    family: Family
    different: int
    """Canonical forms among 200 problems of a level: more than this."""
    slip: float
    right: tuple[int, int]
    """Of 200 thoughts with that `slip` of one level and style: between these arrive."""
    words: tuple[tuple[str, int], ...] = ()
    """Styles, and how many words a thought of level 1 has in them at most."""


CASES = {
    case.family.name: case
    for case in (
        Case(ChainedArithmetic(), 120, 0.3, (5, 190), (("steps", 18),)),
        Case(GcdLcm(), 50, 0.5, (5, 195), (("steps", 40),)),
        Case(LinearEquations(), 60, 0.5, (5, 195), (("check", 20),)),
        Case(Countdown(), 190, 0.5, (20, 180)),
        Case(Game24(), 100, 0.5, (20, 180)),
    )
}


WITH_LEVELS = [
    pytest.param(case, level, id=f"{name}-{level}")
    for name, case in CASES.items()
    for level in range(1, case.family.levels + 1)
]


def takes_all_numbers(problem: Problem, answer: str) -> bool:
    """Where numbers are to be combined: whether the answer takes each of them once."""
    task = problem.task
    return not isinstance(task, Combination) or (
        sorted(operands(parse(answer))) == sorted(task.numbers)
    )


@pytest.mark.parametrize(("case", "level"), WITH_LEVELS)
def test_problem_is_a_function_of_level_and_seed(case: Case, level: int) -> None:
    family = case.family
    assert first_problems(family, level, 50) == first_problems(type(family)(), level, 50)
    different = {problem.canonical for problem in first_problems(family, level, 200)}
    assert len(different) > case.different


@pytest.mark.parametrize(("case", "level"), WITH_LEVELS)
def test_canonical_form_is_the_same_in_both_languages(case: Case, level: int) -> None:
    english, chinese = (case.family.problem(level, 5, language) for language in LANGUAGES)
    assert english.canonical == chinese.canonical
    assert english.text != chinese.text


@pytest.mark.parametrize(("case", "level"), WITH_LEVELS)
def test_thought_with_slips_is_often_wrong(case: Case, level: int) -> None:
    family, (least, most) = case.family, case.right
    for style in family.styles:
        right = 0
        for problem in first_problems(family, level, 200):
            worked = family.worked(problem, Random(problem.seed), style=style, slip=case.slip)
            assert worked.answer is not None
            assert takes_all_numbers(problem, worked.answer)
            right += family.verify(problem, worked.answer).correct
        assert least < right < most, style


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_thoughts_of_level_1_are_short(case: Case) -> None:
    for style, most in case.words:
        for problem in first_problems(case.family, 1, 200):
            worked = case.family.worked(problem, Random(problem.seed), style=style)
            assert len(" ".join(worked.steps).split()) <= most


@pytest.mark.parametrize(("case", "level"), WITH_LEVELS)
def test_wrong_answer_is_plausible_and_wrong(case: Case, level: int) -> None:
    for problem in first_problems(case.family, level, 300):
        answer = case.family.wrong_answer(problem, Random(problem.seed))
        assert not case.family.verify(problem, answer).correct
        assert takes_all_numbers(problem, answer)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unknown_level_is_refused(case: Case) -> None:
    for level in (0, case.family.levels + 1, 9):
        with pytest.raises(UserError, match=f"level {level}"):
            case.family.problem(level, 0)
