"""Chained arithmetic: its draw, its verifier and its worked thoughts."""

import ast
import re
from fractions import Fraction
from random import Random

import pytest

from family_contract import first_problems
from forethought.problems.expression import Operation, operations, parse, value_of
from forethought.problems.families.chained_arithmetic import ChainedArithmetic
from forethought.problems.problem import LANGUAGES, Problem

FAMILY = ChainedArithmetic()
LEVELS = range(1, FAMILY.levels + 1)
CALCULATION = re.compile(r"(\(?-?[0-9]+\)? [+*/-] \(?-?[0-9]+\)?) = (-?[0-9]+)")


def asked(problem: Problem) -> str:
    """The sum as the question shows it."""
    found = re.findall(r"[0-9(][0-9 +*/()-]*[0-9)]", problem.text)
    return max(found, key=len)


def python_value(text: str) -> Fraction:
    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        left, right = walk(node.left), walk(node.right)
        kinds = {ast.Add: left.__add__, ast.Sub: left.__sub__, ast.Mult: left.__mul__}
        return kinds[type(node.op)](right) if type(node.op) in kinds else left / right

    return walk(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_own_answer_is_right_and_what_python_says(level: int, language: str):
    for seed in range(300):
        problem = FAMILY.problem(level, seed, language)
        assert FAMILY.verify(problem, problem.answer).correct, problem
        assert python_value(asked(problem)) == int(problem.answer)


@pytest.mark.parametrize(("level", "terms", "ceiling"), [(1, 3, 20), (2, 4, 200), (3, 4, 999)])
def test_draw_keeps_its_bounds(level: int, terms: int, ceiling: int):
    for problem in first_problems(FAMILY, level, 500):
        for one in operations(problem.task):
            assert isinstance(one.value, int)
            assert 0 <= one.value <= ceiling, problem
        outside = re.sub(r"\(.*?\)", "", asked(problem))
        assert 1 <= len(re.findall(" [+-] ", outside)) <= terms - 1


def test_level_4_stays_below_10000_and_whole():
    for problem in first_problems(FAMILY, 4, 500):
        values = [one.value for one in operations(problem.task)]
        assert all(isinstance(value, int) and 0 <= value <= 9999 for value in values)


def test_level_1_has_one_digit_numbers_and_plus_and_minus_alone():
    for problem in first_problems(FAMILY, 1, 300):
        assert re.fullmatch(r"[1-9]( [+-] [1-9]){1,2}", asked(problem)), problem


@pytest.mark.parametrize("level", [3, 4])
def test_brackets_quotients_and_products_come_up(level: int):
    shown = " ".join(asked(problem) for problem in first_problems(FAMILY, level, 100))
    for sign in ("- (", ") *", "* (", " / ", " * "):
        assert sign in shown
    assert (") /" in shown) == (level == 4)


def test_no_bracket_stands_where_it_does_not_matter():
    for problem in first_problems(FAMILY, 3, 300):
        assert "+ (" not in re.sub(r"\([^)]*\) [*/]", "", asked(problem)), problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 + 3 * 5 - 4", "5 * 3 - 4 + 2"),
        ("8 - (3 - 2)", "2 + 8 - 3"),
        ("(1 + 2) * 3", "3 * (2 + 1)"),
    ],
)
def test_canonical_form_does_not_know_order(one: str, other: str):
    assert FAMILY.canonical(read(one)) == FAMILY.canonical(read(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8 - 3 + 2", "8 + 3 - 2"),
        ("2 * 3 + 4", "2 * (3 + 4)"),
        ("12 / 3", "12 * 3"),
        ("1 + 2", "3"),
    ],
)
def test_canonical_form_tells_problems_apart(one: str, other: str):
    assert FAMILY.canonical(read(one)) != FAMILY.canonical(parse(other))


def read(text: str) -> Operation:
    found = parse(text)
    assert isinstance(found, Operation)
    return found


PROBLEM = Problem("chained_arithmetic", 2, 0, "en", "", "1234", "", read("617 * 2"))


@pytest.mark.parametrize(
    "answer",
    [
        "1234",
        " 1234\n",
        "1,234",
        "1234.",
        "1234。",
        "+1234",
        "$1234$",
        "**1234**",
        "`1234`",
        "617 * 2 = 1234",
        "617*2=1234",
        "617 × 2 = 1234",
    ],
)
def test_odd_forms_of_right_answers_are_right(answer: str):
    assert FAMILY.verify(PROBLEM, answer).correct


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "1235",
        "-1234",
        "−1234",
        "1234.0",
        "12,34",
        "1 234",
        "1234 or 1235",
        "1234, 1235",
        "1234 = 1235",
        "1234 = 1234",
        "617 * 2",
        "617 * 2 =",
        "617 * 2 = 1235",
        "617 * 3 = 1234",
        "2 * 617 = 1234 = 1234",
        "x = 1234",
        "１２３４",
        "١٢٣٤",
        "1234²",
        "1_234",
        "0x4d2",
        "1234\x00",
        "1234" + " " * 500,
        "9" * 10_000,
        "(" * 10_000,
        "1234=" * 50,
    ],
)
def test_hostile_and_near_answers_are_wrong(answer: str):
    verdict = FAMILY.verify(PROBLEM, answer)
    assert verdict.status == "wrong"
    assert verdict.reason


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", FAMILY.styles)
def test_thought_without_slip_is_true_and_arrives(level: int, style: str):
    for problem in first_problems(FAMILY, level, 300):
        worked = FAMILY.worked(problem, Random(problem.seed), style=style)
        assert worked.answer == problem.answer
        shown = CALCULATION.findall(" ".join(worked.steps))
        assert len(shown) == len(list(operations(problem.task))) * (1 + (style == "check"))
        for left, right in shown:
            assert value_of(parse(left)) == int(right), worked


def test_check_repairs_what_it_finds():
    repaired = 0
    for problem in first_problems(FAMILY, 2, 300):
        worked = FAMILY.worked(problem, Random(problem.seed), style="check", slip=0.15)
        text = " ".join(worked.steps)
        for sign in ("Wait, ", "等等，"):
            before, found, after = text.partition(sign)
            if found:
                left, right = CALCULATION.search(after).groups()
                assert value_of(parse(left)) == int(right)
                earlier = [result for shown, result in CALCULATION.findall(before) if shown == left]
                assert set(earlier) - {right}, worked
                repaired += worked.answer == problem.answer
    assert repaired > 50
