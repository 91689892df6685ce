"""The 24 game: its hands, its verifier and its worked thoughts."""

from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement
from random import Random

import pytest

from family_contract import first_problems
from forethought.errors import UserError
from forethought.problems.expression import operands, operations, parse, value_of
from forethought.problems.families.countdown import Combination
from forethought.problems.families.game24 import Game24, hands
from forethought.problems.problem import LANGUAGES, Problem

FAMILY = Game24()
LEVELS = range(1, FAMILY.levels + 1)


@cache
def values(numbers: tuple[int, ...], whole: bool, division: bool) -> frozenset[Fraction]:
    """Everything that the sorted numbers make: all splits, all operations, negative numbers too."""
    if len(numbers) == 1:
        return frozenset([Fraction(numbers[0])])
    found: set[Fraction] = set()
    for mask in range(1, 1 << (len(numbers) - 1)):
        one = tuple(n for at, n in enumerate(numbers) if mask >> at & 1)
        other = tuple(n for at, n in enumerate(numbers) if not mask >> at & 1)
        for a in values(one, whole, division):
            for b in values(other, whole, division):
                found |= {a + b, a - b, b - a, a * b}
                if division:
                    found |= {x / y for x, y in ((a, b), (b, a)) if y}
    return frozenset(v for v in found if v.denominator == 1) if whole else frozenset(found)


EVERY_HAND = list(combinations_with_replacement(range(1, 14), 4))


def check_hands(sample: list[tuple[int, ...]]) -> None:
    easy, whole, dividing = ({numbers for numbers, _ in level} for level in hands())
    for numbers in sample:
        solvable = 24 in values(numbers, True, True)
        assert (numbers in whole) == solvable
        assert (numbers in easy) == (solvable and max(numbers) <= 9)
        without = 24 in values(numbers, True, False)
        fractional = not solvable and 24 in values(numbers, False, True)
        assert (numbers in dividing) == (fractional or (solvable and not without)), numbers


def test_hands_are_those_that_a_blind_search_finds():
    check_hands(EVERY_HAND[::37])
    assert [len(level) for level in hands()] == [397, 1346, 199]


@pytest.mark.slow
def test_all_hands_are_those_that_a_blind_search_finds():
    check_hands(EVERY_HAND)


def test_solutions_of_the_hands():
    for level in hands():
        for numbers, solution in level:
            assert value_of(solution) == 24
            assert tuple(sorted(operands(solution))) == numbers
    fractional = [
        numbers
        for numbers, solution in hands()[2]
        if any(isinstance(one.value, Fraction) for one in operations(solution))
    ]
    assert len(fractional) == 16


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_own_answer_is_right(level: int, language: str):
    allowed = {numbers for numbers, _ in hands()[level - 1]}
    for seed in range(300):
        problem = FAMILY.problem(level, seed, language)
        assert FAMILY.verify(problem, problem.answer).correct, problem
        assert tuple(sorted(problem.task.numbers)) in allowed
        for number in (*problem.task.numbers, 24):
            assert str(number) in problem.text


def test_canonical_form_does_not_know_order_or_words():
    by_canonical: dict[str, set[tuple[int, ...]]] = {}
    for problem in first_problems(FAMILY, 1, 1500):
        by_canonical.setdefault(problem.canonical, set()).add(problem.task.numbers)
    assert all(len({tuple(sorted(n)) for n in shown}) == 1 for shown in by_canonical.values())
    assert any(len(shown) > 1 for shown in by_canonical.values())


EIGHTS = Problem(
    family="game24",
    level=3,
    seed=0,
    language="en",
    text="",
    answer="8 / (3 - 8 / 3)",
    canonical="",
    task=Combination((8, 3, 8, 3), 24, parse("8 / (3 - 8 / 3)")),
)


def test_odd_forms_of_right_answers_are_right_and_hostile_ones_wrong():
    for answer in (
        "8/(3-8/3)",
        "8 ÷ (3 − 8 ÷ 3) = 24",
        "（8／（3－8／3））。",
        "$8 / (3 - 8 / 3)$",
    ):
        assert FAMILY.verify(EIGHTS, answer).correct, answer
    for answer in (
        "",
        "24",
        "8 / (3 - 8 / 3) = 25",
        "8 / (3 - 3) + 8",
        "8 * 3",
        "8 + 8 + 3 + 3 + 2",
        "8 // (3 - 8 / 3)",
        "8 / (3 - 8 / 3), 8 / (3 - 8 / 3)",
        "８ / (3 - 8 / 3)",
        "8 / (3 - 2.6666)",
        "(" * 5000,
    ):
        assert FAMILY.verify(EIGHTS, answer).status == "wrong", answer


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", FAMILY.styles)
def test_thought_without_slip_arrives(level: int, style: str):
    for problem in first_problems(FAMILY, level, 300):
        worked = FAMILY.worked(problem, Random(problem.seed), style=style)
        assert worked.answer is not None
        assert FAMILY.verify(problem, worked.answer).correct


def test_thought_with_fractions_writes_them_in_brackets():
    worked = FAMILY.worked(EIGHTS, Random(0), style="direct")
    assert worked.steps[:3] == ("8 / 3 = 8/3.", "3 - (8/3) = 1/3.", "8 / (1/3) = 24.")


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="game24: tries"):
        Game24(tries=-1)
