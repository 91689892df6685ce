"""The search that leaves nothing out."""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from random import Random

import pytest

from forethought.problems.expression import operations, parse, value_of, write
from forethought.problems.families._sweep import sweep
from forethought.problems.families.countdown import Combination, Countdown, reachable, way_to
from forethought.problems.families.game24 import Game24
from forethought.problems.problem import LANGUAGES

FAMILIES = (Countdown(sweep=True), Game24(sweep=True))
CASES = [(family, level) for family in FAMILIES for level in range(1, family.levels + 1)]


def test_the_thought_of_the_docstring():
    found = sweep((19, 36, 55, 7), 65, "+-*/", "en")
    assert found.lines == [
        "19 needs 46, 84. 36 needs 29, 101. 55 needs 10, 120. 7 needs 58, 72.",
        "19 + 36 = 55: 55 gives 110, 0, 1; 7 gives 62, 48; 55 needs 10, 120; 55 and 7 give 62, 48.",
        "36 - 19 = 17: 55 gives 72, yes.",
    ]
    assert found.found is not None
    assert write(found.found) == "36 - 19 + 55 - 7"
    assert value_of(found.found) == 65


@pytest.mark.parametrize(("family", "level"), CASES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_search_arrives_at_a_right_answer(family, level, language):
    for seed in range(60):
        problem = family.problem(level, seed, language)
        worked = family.worked(problem, Random(seed), style="search")
        assert family.verify(problem, worked.answer).correct
        # The last calculation comes to the target, and each one that is shown is true.
        for one, operator, other, result in re.findall(
            r"(\d+) ([-+*/]) (\d+) = (\d+(?:/\d+)?)", " ".join(worked.steps[:-1])
        ):
            assert value_of(parse(f"{one} {operator} {other}")) == Fraction(result)


@pytest.mark.parametrize("level", [1, 2])
def test_nothing_within_reach_is_left_out(level):
    for seed in range(150):
        task = FAMILIES[0].problem(level, seed, "en").task
        reach = 2 * max(task.target, *task.numbers)
        found = sweep(task.numbers, task.target, "+-*/", "en").found
        assert (found is not None) == (task.target in _values(task.numbers, reach))


def _values(numbers, reach):
    """What the numbers come to in every way, no value on it above ``reach``."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i, j in combinations(range(len(numbers)), 2):
        rest = [n for at, n in enumerate(numbers) if at not in (i, j)]
        more, less = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        results = {more + less, more - less, more * less}
        if less and not more % less:
            results.add(more // less)
        for result in results:
            if result <= reach or not rest:
                found |= _values((result, *rest), reach)
    return found


def test_operators_that_are_not_tried_are_not_met():
    family = Countdown(largest=9, lowest_target=1, highest_target=20, operators="+-", sweep=True)
    for seed in range(200):
        problem = family.problem(2, seed, "en")
        worked = family.worked(problem, Random(seed), style="search")
        assert {one.operator for one in operations(parse(worked.answer))} <= set("+-")
        assert not set("*/") & set(" ".join(worked.steps))


@pytest.mark.parametrize(("family", "level"), CASES)
def test_a_slip_is_believed(family, level):
    for seed in range(60):
        problem = family.problem(level, seed, "en")
        worked = family.worked(problem, Random(seed), style="search", slip=1.0)
        assert not family.verify(problem, worked.answer).correct
        assert f"= {problem.task.target}." in worked.steps[-1]


def test_only_where_it_is_asked_for():
    plain, problem = Countdown(), Countdown().problem(2, 3, "en")
    assert problem == FAMILIES[0].problem(2, 3, "en")
    for style in ("direct", "check"):
        swept = FAMILIES[0].worked(problem, Random(1), style=style)
        assert plain.worked(problem, Random(1), style=style) == swept
    assert plain.worked(problem, Random(1)) != FAMILIES[0].worked(problem, Random(1))


def test_five_numbers_are_searched_as_ever():
    # A sweep would pass over the fifth and believe what the other four come to.
    numbers, target = (3, 5, 7, 11, 2), 60
    with pytest.raises(ValueError, match="5 numbers"):
        sweep(numbers, target, "+-*/", "en")
    solution = way_to(target, reachable(numbers), numbers)
    task = Combination(numbers, target, solution, "+-*/")
    for family in (Countdown(), FAMILIES[0]):
        problem = replace(family.problem(2, 1, "en"), task=task)
        worked = family.worked(problem, Random(1), style="search")
        assert family.verify(problem, worked.answer).correct
