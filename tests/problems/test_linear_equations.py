"""Linear equations: their draw, their verifier and their worked thoughts."""

import re
from fractions import Fraction
from random import Random

import pytest

from family_contract import first_problems
from forethought.problems.expression import parse, value_of
from forethought.problems.families.linear_equations import Equation, LinearEquations, Side
from forethought.problems.problem import LANGUAGES, Problem

FAMILY = LinearEquations()
LEVELS = range(1, FAMILY.levels + 1)
EQUATION = re.compile(r"[0-9x(-][0-9x() +-]*=[0-9x() +-]*[0-9x)]")


def solve(shown: str) -> Fraction:
    """The solution of a written equation, from its two sides at 0 and at 1."""
    left, right = shown.split("=")
    at = [value_at(left, x) - value_at(right, x) for x in (0, 1)]
    return Fraction(at[0]) / (at[0] - at[1])


def value_at(side: str, x: int) -> Fraction:
    """A side of an equation by our own reading: signs, a factor before a bracket or x."""
    total = Fraction(0)
    for sign, factor, shift, unknown, number in re.findall(
        r"([+-]?) ?(?:([0-9]*)\(x ([+-] [0-9]+)\)|([0-9]*x)|([0-9]+))", side.strip()
    ):
        if shift:
            value = int(factor or 1) * (x + int(shift.replace(" ", "")))
        elif unknown:
            value = int(unknown[:-1] or 1) * x
        else:
            value = int(number)
        total += -value if sign == "-" else value
    return total


def test_the_reader_of_equations_reads():
    assert solve("2(x + 3) - 4 = 5x - 1") == 1
    assert solve("7 - 2x = -x + 3") == 4
    assert solve("x - 3 = 5") == 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_own_answer_solves_the_equation_in_the_text(level: int, language: str):
    for seed in range(300):
        problem = FAMILY.problem(level, seed, language)
        assert FAMILY.verify(problem, problem.answer).correct, problem
        shown = EQUATION.search(problem.text)
        assert shown, problem
        assert solve(shown[0]) == int(problem.answer), problem


@pytest.mark.parametrize(
    ("level", "solutions"),
    [
        (1, set(range(1, 10))),
        (2, set(range(1, 13))),
        (3, set(range(-10, 11)) - {0}),
        (4, set(range(-12, 13)) - {0}),
    ],
)
def test_draw_keeps_its_bounds(level: int, solutions: set[int]):
    drawn = [problem.task for problem in first_problems(FAMILY, level, 500)]
    assert {task.solution for task in drawn} == solutions
    for task in drawn:
        assert task.left.at(task.solution) == task.right.at(task.solution)
        assert task.left.factor != task.right.factor
        assert abs(task.left.constant) <= 20
        assert (task.left.shift != 0) == (level == 4)
        if level > 2:
            assert 1 <= task.left.factor <= 9
            assert 1 <= task.right.factor <= 9
        elif level == 1:
            assert task.left.factor == 1
            assert 0 <= task.right.constant <= 18


def test_canonical_form_does_not_know_the_order_of_the_sides():
    left, right = Side(3, 0, 5), Side(1, 0, 11)
    one, other = Equation(left, right, 3), Equation(right, left, 3)
    assert FAMILY.canonical(one) == FAMILY.canonical(other) == "3x + 5 = x + 11"
    assert FAMILY.canonical(one) != FAMILY.canonical(Equation(left, Side(2, 0, 8), 3))


def test_sides_and_terms_change_places():
    texts = " ".join(problem.text for problem in first_problems(FAMILY, 3, 300))
    assert re.search(r"[0-9]x [+-] [0-9]+ = [0-9]+ [+-] [0-9]+x", texts)
    assert re.search(r"[0-9]+ [+-] [0-9]+x = [0-9]x [+-] [0-9]+", texts)
    level_1 = [problem.text for problem in first_problems(FAMILY, 1, 300)]
    assert any(re.search(r"[0-9] = x", text) for text in level_1)
    assert any(re.search(r"x [+-] [0-9] = [0-9]", text) for text in level_1)


def problem_with(solution: int) -> Problem:
    task = Equation(Side(1, 0, 0), Side(0, 0, solution), solution)
    return Problem("linear_equations", 1, 0, "en", "", str(solution), "", task)


@pytest.mark.parametrize(
    "answer",
    [
        "12",
        " 12\n",
        "12.",
        "12。",
        "x = 12",
        "x=12",
        "X = 12",
        "x ＝ 12",
        "x = 12.",
        "$x = 12$",
        "**12**",
        "`x = 12`",
        '"12"',
        "+12",
    ],
)
def test_odd_forms_of_right_answers_are_right(answer: str):
    assert FAMILY.verify(problem_with(12), answer).correct


@pytest.mark.parametrize("answer", ["-12", "−12", "x = -12", "x=−12.", "x = －12", "$-12$"])
def test_negative_answers(answer: str):
    assert FAMILY.verify(problem_with(-12), answer).correct
    assert not FAMILY.verify(problem_with(12), answer).correct


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "x",
        "x =",
        "= 12",
        "x 12",
        "13",
        "-12",
        "12 or 13",
        "12, 13",
        "12 = 13",
        "x = 12 = 13",
        "x = 12, x = 13",
        "x = x = 12",
        "y = 12",
        "xx = 12",
        "x = 24 / 2",
        "x = 12.0",
        "2x = 24",
        "--12",
        "１２",
        "١٢",
        "12²",
        "1_2",
        "x = 12\x00",
        "x = " + "9" * 1000,
        "x" * 1_000_000,
        "x =" * 200,
        " " * 1_000_000 + "12",
    ],
)
def test_hostile_and_near_answers_are_wrong(answer: str):
    verdict = FAMILY.verify(problem_with(12), answer)
    assert verdict.status == "wrong"
    assert verdict.reason


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", FAMILY.styles)
def test_thought_without_slip_is_true_and_arrives(level: int, style: str):
    for problem in first_problems(FAMILY, level, 300):
        worked = FAMILY.worked(problem, Random(problem.seed), style=style)
        assert worked.answer == problem.answer
        for step in worked.steps:
            shown = re.sub("^(So|所以|Take [0-9]*x from both sides:|两边减去.*：) ?", "", step)
            shown = re.sub("^(Check: |检查：)", "", shown).rstrip(".。")
            for part in re.split(", |，", shown.removesuffix(", right").removesuffix("，对")):
                assert_holds(part, int(problem.answer))


def assert_holds(equation: str, x: int) -> None:
    """Every part between equals signs has the same value at the solution."""
    values = {value_at_any(part.strip(), x) for part in equation.split(" = ")}
    assert len(values) == 1, equation


def value_at_any(part: str, x: int) -> Fraction:
    if "x" in part:
        return value_at(part, x)
    # Our parser knows no signs: "-4" is written as a difference.
    return Fraction(value_of(parse(re.sub(r"(?<![0-9)] )-([0-9]+)", r"(0 - \1)", part))))


def test_check_repairs_what_it_finds():
    repaired = 0
    for problem in first_problems(FAMILY, 3, 200):
        worked = FAMILY.worked(problem, Random(problem.seed), style="check", slip=0.3)
        if {"Wait, again.", "等等，再算一遍。"} & set(worked.steps):
            assert worked.answer == problem.answer
            repaired += 1
    assert repaired > 20
