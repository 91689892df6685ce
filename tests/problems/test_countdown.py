"""Countdown: its draw, its verifier and its worked thoughts."""

import hashlib
import re
from collections import Counter
from fractions import Fraction
from itertools import islice, permutations, product
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import first_problems
from forethought.errors import UserError
from forethought.problems.expression import operands, operations, parse, value_of
from forethought.problems.families.countdown import (
    Combination,
    Countdown,
    check_combination,
    reachable,
    way_to,
)
from forethought.problems.families.game24 import Game24
from forethought.problems.problem import LANGUAGES

FAMILY = Countdown()
LEVELS = range(1, FAMILY.levels + 1)


def every_value(numbers: tuple[int, ...], operators: str = "+-*/") -> set[int]:
    """All that one can reach, by putting two numbers together in every way, again and again."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for a, b, *rest in set(permutations(numbers)):
        results = {a + b}
        if a >= b:
            results.add(a - b)
        if "*" in operators:
            results.add(a * b)
        if "/" in operators and b and a % b == 0:
            results.add(a // b)
        for result in results:
            found |= every_value((result, *rest), operators)
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_own_answer_is_right(level: int, language: str):
    for seed in range(300):
        problem = FAMILY.problem(level, seed, language)
        assert FAMILY.verify(problem, problem.answer).correct, problem
        for number in (*problem.task.numbers, problem.task.target):
            assert str(number) in problem.text
        assert problem.task == FAMILY.problem(level, seed).task


@pytest.mark.parametrize("level", LEVELS)
def test_draw_keeps_its_bounds(level: int):
    drawn = [problem.task for problem in first_problems(FAMILY, level, 500)]
    numbers = [number for task in drawn for number in task.numbers]
    assert {len(task.numbers) for task in drawn} == {level + 2}
    assert min(numbers) in (1, 2)
    assert max(numbers) in (98, 99)
    assert all(10 <= task.target <= 100 for task in drawn)
    assert any(len(set(task.numbers)) < len(task.numbers) for task in drawn)


@pytest.mark.parametrize(("level", "count"), [(1, 60), (2, 4)])
def test_targets_are_drawn_evenly_from_all_that_is_reachable(level: int, count: int):
    for problem in first_problems(FAMILY, level, count):
        numbers = problem.task.numbers
        reachable = {value for value in every_value(numbers) if 10 <= value <= 100}
        hits = Counter(Draws(numbers).draw(Random(seed), level).target for seed in range(300))
        assert set(hits) <= reachable
        if len(reachable) < 30:
            assert set(hits) == reachable
            assert max(hits.values()) < 3.5 * 300 / len(reachable)


class Draws(Countdown):
    """Countdown whose random numbers say `numbers` first."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__()
        object.__setattr__(self, "numbers", numbers)

    def draw(self, rng: Random, level: int) -> Combination:
        return super().draw(Loaded(rng, [(number - 0.5) / 99 for number in self.numbers]), level)


class Loaded(Random):
    """Gives the first values, then those of another generator."""

    def __init__(self, rng: Random, first: list[float]) -> None:
        self.rest, self.first = rng, list(first)

    def random(self) -> float:
        return self.first.pop(0) if self.first else self.rest.random()


@pytest.mark.parametrize("level", LEVELS)
def test_the_way_there_stays_within_whole_numbers(level: int):
    for problem in first_problems(FAMILY, level, 300):
        waiting = [problem.task.solution]
        while waiting:
            one = waiting.pop()
            value = value_of(one)
            assert isinstance(value, int)
            assert value >= 0
            if not isinstance(one, int):
                waiting += [one.left, one.right]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_there_is_a_way_to_every_value_of_small_and_equal_numbers(count: int):
    for numbers in islice(product(range(1, 5), repeat=count), 0, None, 3):
        table = reachable(numbers)
        assert table[-1] == every_value(numbers)
        for value in table[-1]:
            way = way_to(value, table, numbers)
            assert value_of(way) == value
            assert sorted(operands(way)) == sorted(numbers)


def test_settings_move_the_draw():
    family = Countdown(smallest=20, largest=25, lowest_target=44, highest_target=46)
    for seed in range(50):
        task = family.problem(2, seed).task
        assert all(20 <= number <= 25 for number in task.numbers)
        assert 44 <= task.target <= 46


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"smallest": 0}, "smallest"),
        ({"smallest": 9, "largest": 8}, "largest"),
        ({"largest": 10**7}, "largest"),
        ({"lowest_target": 0}, "lowest_target"),
        ({"lowest_target": 101}, "highest_target"),
        ({"tries": -1}, "tries"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], says: str):
    with pytest.raises(UserError, match=says):
        Countdown(**settings)


def test_by_default_every_problem_and_thought_is_the_one_it_always_was():
    """To the bit: recorded before operators could be chosen."""
    known = {
        Countdown: "b8336f227c962e3b7760c19c96287d5a4d6cda811eed7cc98dfe59642d7b15c5",
        Game24: "ddb7500d1f122aed0f83ae876455677c741e135bd2f53ca474299c22cf9b0e22",
    }
    for kind, digest in known.items():
        family, found = kind(), hashlib.sha256()
        for level, language, seed in product(range(1, family.levels + 1), ("en", "zh"), range(200)):
            problem, rng = family.problem(level, seed, language), Random(seed)
            said = [problem.text, problem.answer, problem.canonical]
            said.append(family.wrong_answer(problem, rng))
            for style in family.styles:
                said += family.worked(problem, rng, style=style, slip=0.2).steps
            found.update("\n".join(said).encode())
        assert found.hexdigest() == digest


@pytest.mark.parametrize("operators", ["*/", "-+", "+", "", "+-/", "+-*/^", 3, ["+-"], None])
def test_operators_that_there_are_not_are_refused_in_a_sentence(operators: Any):
    with pytest.raises(UserError) as refused:
        Countdown(operators=operators)
    assert str(refused.value) == (
        f'countdown: operators is "{operators}"; it must be "+-", "+-*" or "+-*/".'
    )


SUBSETS = st.sampled_from(["+-", "+-*", "+-*/"])


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), SUBSETS)
def test_reachable_is_what_the_operators_reach_and_the_way_there_has_no_other(
    numbers: list[int], operators: str
):
    table = reachable(numbers, operators=operators)
    assert table[-1] == every_value(tuple(numbers), operators)
    for value in table[-1]:
        way = way_to(value, table, numbers, operators=operators)
        assert value_of(way) == value
        assert sorted(operands(way)) == sorted(numbers)
        assert {one.operator for one in operations(way)} <= set(operators)


@given(SUBSETS, st.integers(0, 3), st.sampled_from(LEVELS), st.integers(0, 10**6))
def test_targets_and_thoughts_are_made_of_the_operators(
    operators: str, tries: int, level: int, seed: int
):
    draw = {"largest": 9, "lowest_target": 1, "highest_target": 20, "operators": operators}
    family = Countdown(**draw, tries=tries)
    problem = family.problem(level, seed)
    # How long thoughts search is no part of the draw.
    assert problem == Countdown(**draw).problem(level, seed)
    task = problem.task
    assert 1 <= task.target <= 20
    assert task.target in every_value(task.numbers, operators)
    for style in family.styles:
        worked = family.worked(problem, Random(seed), style=style)
        said = " ".join((*worked.steps, problem.answer, worked.answer or ""))
        assert set("+-*/") & set(said) <= set(operators)
        assert family.verify(problem, worked.answer or "").correct
        if style == "search":
            opener, *tried, _ = worked.steps
            assert "=" not in opener
            assert 1 <= len(tried) <= tries + 1


def test_each_operator_is_used_somewhere():
    for operators in ("+-", "+-*", "+-*/"):
        problems = first_problems(Countdown(largest=9, operators=operators), 1, 200)
        used = {one.operator for problem in problems for one in operations(problem.task.solution)}
        assert used == set(operators)


def test_an_answer_may_use_what_its_thoughts_do_not_try():
    family = Countdown(largest=9, lowest_target=1, highest_target=20, operators="+-")
    problem = next(
        problem
        for problem in first_problems(family, 1, 2000)
        if sorted(problem.task.numbers) == [2, 2, 5] and problem.task.target == 9
    )
    assert set("+-*/") & set(problem.answer) <= set("+-")
    assert family.verify(problem, "2 * 2 + 5").correct


def test_targets_out_of_reach_are_refused():
    with pytest.raises(UserError, match="widen"):
        Countdown(smallest=1, largest=1).problem(1, 0)


def test_canonical_form_does_not_know_order_or_words():
    solution = parse("19 + 36 + 55 + 7")
    one = Combination((19, 36, 55, 7), 117, solution)
    other = Combination((55, 7, 36, 19), 117, parse("55 + 7 + 36 + 19"))
    assert FAMILY.canonical(one) == FAMILY.canonical(other) == "7 19 36 55 = 117"
    assert FAMILY.canonical(one) != FAMILY.canonical(one._replace(target=116))


SHOWN = Combination((19, 36, 55, 7), 65, parse("(55 - 36) * 7 - 19"))


@pytest.mark.parametrize(
    "answer",
    [
        "36 + 55 - 19 - 7",
        "36+55-19-7",
        " ( 36 + (55) ) - (19 + 7) \n",
        "36 + 55 - 19 - 7 = 65",
        "36 + 55 − 19 − 7.",
        "36 ＋ 55 － （19 + 7）",
        "36 + 55 - 19 - 7。",
        "**36 + 55 - 19 - 7**",
        "$36 + 55 - 19 - 7$",
        "`36 + 55 - 19 - 7`",
        '"36 + 55 - 19 - 7 = 65"',
    ],
)
def test_odd_forms_of_right_answers_are_right(answer: str):
    assert check_combination(answer, (19, 36, 55, 7), 65).correct


@pytest.mark.parametrize(
    ("answer", "numbers", "target"),
    [
        ("8 / (3 - 8 / 3)", (3, 3, 8, 8), 24),
        ("8 ÷ (3 − 8 ÷ 3) = 24", (3, 3, 8, 8), 24),
        ("(1 / 5 + 5 - 5 / 5) * 5", (1, 5, 5, 5, 5, 5), 21),
        ("5 - 9 + 20", (20, 5, 9), 16),
        (r"3 \times (4 + 1)", (1, 3, 4), 15),
    ],
)
def test_fractions_and_negative_numbers_on_the_way_are_right(
    answer: str, numbers: tuple[int, ...], target: int
):
    assert check_combination(answer, numbers, target).correct


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "65",
        "= 65",
        "65 = 36 + 55 - 19 - 7",
        "36 + 55 - 19",
        "36 + 55 - 19 - 7 = 66",
        "36 + 55 - 19 - 7 = 65 = 65",
        "36 + 55 - 19 - 7 =",
        "36 + 55 - 19 - 7 = 36 + 55 - 26",
        "36 + 55 - 19 - 7, 55 + 36 - 19 - 7",
        "36 + 55 - 19 - 7\n55 + 36 - 19 - 7",
        "36 + 55 - 19 - 7 or 55 + 36 - 19 - 7",
        "36 + 55 - 19 - 7 or so",
        "36 + 55 - 19 - 7 - 7 + 7",
        "36 + 55 - 19 - 7 + 0",
        "36 + 55 - (19 + 7",
        "36 + 55) - (19 + 7",
        "-7 + 36 + 55 - 19",
        "36 + 55 - 19 + -7",
        "36 + 55 - 19 - 07",
        "36 + 55 - 19 - 7.0",
        "36 + 55 - 1_9 - 7",
        "３６ + 55 - 19 - 7",
        "٣٦ + 55 - 19 - 7",
        "36 + 55 - 19 - 7 ** 1",
        "36 + 55 - 19 - 7 // 1",
        "36 + 55 - 19 - 7 if 1 else 0",
        "(lambda: 36 + 55 - 19 - 7)()",
        "36 / (55 - 55) - 19 - 7",
        "7 / (36 - 36) + 55 + 19",
        "19 36 55 7",
        "9" * 300,
        "(" * 300,
        "(" * 1_000_000,
        "36 + 55 - 19 - 7" + " " * 1_000_000 + "x",
        "36 + 55 - 19 - 7 = 65" + "\x00",
        "<answer>36 + 55 - 19 - 7</answer>",
    ],
)
def test_hostile_and_near_answers_are_wrong(answer: str):
    verdict = check_combination(answer, (19, 36, 55, 7), 65)
    assert verdict.status == "wrong"
    assert verdict.reason


def test_division_by_zero_is_wrong():
    verdict = check_combination("36 / (19 - 19) + 55", (19, 19, 36, 55), 65)
    assert (verdict.status, verdict.reason) == ("wrong", "divides by zero")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", FAMILY.styles)
def test_thought_without_slip_is_true_and_arrives(level: int, style: str):
    for seed in range(300):
        problem = FAMILY.problem(level, seed)
        worked = FAMILY.worked(problem, Random(seed), style=style)
        assert worked.answer is not None
        assert FAMILY.verify(problem, worked.answer).correct
        for left, right in calculations(worked.steps):
            assert value_of(parse(left)) == Fraction(right), worked


def calculations(steps: tuple[str, ...]) -> list[tuple[str, str]]:
    """Everything of the form "55 - 36 = 19" in the steps, as its two sides."""
    return re.findall(r"([0-9(][0-9 +*/()-]*) = ([0-9/]+)", " ".join(steps))


def test_thoughts_are_short_at_level_1_and_their_tries_bounded():
    lengths = []
    for problem in first_problems(FAMILY, 1, 200):
        direct = FAMILY.worked(problem, Random(1), style="direct")
        lengths.append(len(" ".join(direct.steps).split()))
        search = Countdown(tries=2).worked(problem, Random(problem.seed), style="search")
        assert 3 <= len(search.steps) <= 5
    assert max(lengths) <= 20
    tries = [
        len(FAMILY.worked(problem, Random(1)).steps) - 2
        for problem in first_problems(FAMILY, 2, 200)
    ]
    assert max(tries) <= FAMILY.tries + 1


def test_tries_do_not_repeat_themselves():
    for problem in first_problems(FAMILY, 1, 200):
        steps = Countdown(tries=50).worked(problem, Random(problem.seed)).steps[1:-1]
        tries = [frozenset(calculations((step,))) for step in steps]
        assert len(set(tries)) == len(tries)


def test_wrong_answer_exists_where_nearly_every_combination_is_right():
    family = Countdown(smallest=1, largest=2, lowest_target=1, highest_target=2)
    for seed in range(200):
        problem = family.problem(1, seed)
        assert not family.verify(problem, family.wrong_answer(problem, Random(seed))).correct
