"""Greatest common divisors and least common multiples: draw, verifier and worked thoughts."""

import re
from random import Random

import pytest

from family_contract import first_problems
from forethought.problems.expression import parse, value_of
from forethought.problems.families.gcd_lcm import Asked, GcdLcm
from forethought.problems.problem import LANGUAGES, Problem

FAMILY = GcdLcm()
LEVELS = range(1, FAMILY.levels + 1)


def by_trial(task: Asked) -> int:
    """The result from the definition: trying one number after the other."""
    if task.kind == "gcd":
        candidates = range(min(task.numbers), 0, -1)
        return next(one for one in candidates if all(n % one == 0 for n in task.numbers))
    step = max(task.numbers)
    candidate = step
    while any(candidate % number for number in task.numbers):
        candidate += step
    return candidate


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_own_answer_is_right_by_definition(level: int, language: str):
    for seed in range(300):
        problem = FAMILY.problem(level, seed, language)
        assert FAMILY.verify(problem, problem.answer).correct, problem
        assert int(problem.answer) == by_trial(problem.task)
        assert [int(number) for number in re.findall("[0-9]+", problem.text)] == list(
            problem.task.numbers
        )
        lcm = any(word in problem.text.lower() for word in ("multiple", "lcm", "倍数", "smallest"))
        assert (lcm or "最小正整数" in problem.text) == (problem.task.kind == "lcm")


@pytest.mark.parametrize(
    ("level", "kinds", "counts", "largest"),
    [
        (1, {"gcd"}, {2}, 45),
        (2, {"gcd", "lcm"}, {2}, 240),
        (3, {"gcd", "lcm"}, {2, 3}, 300),
        (4, {"gcd", "lcm"}, {2, 3}, 2400),
    ],
)
def test_draw_keeps_its_bounds(level: int, kinds: set[str], counts: set[int], largest: int):
    drawn = [problem.task for problem in first_problems(FAMILY, level, 400)]
    assert {task.kind for task in drawn} == kinds
    assert {len(task.numbers) for task in drawn} == counts
    assert largest * 0.8 < max(max(task.numbers) for task in drawn) <= largest
    for task in drawn:
        assert min(task.numbers) >= (1 if level == 1 else 2)
        assert len(set(task.numbers)) == len(task.numbers)
    results = [task.result for task in drawn if task.kind == "gcd"]
    assert results.count(1) < len(results) / 4


def test_canonical_form_does_not_know_order_or_words():
    one, other = Asked("gcd", (48, 18), 6), Asked("gcd", (18, 48), 6)
    assert FAMILY.canonical(one) == FAMILY.canonical(other) == "gcd 18 48"
    assert FAMILY.canonical(one) != FAMILY.canonical(Asked("lcm", (18, 48), 144))


GCD = Problem("gcd_lcm", 1, 0, "en", "", "12", "", Asked("gcd", (48, 36), 12))
LCM = Problem("gcd_lcm", 1, 0, "zh", "", "144", "", Asked("lcm", (48, 18), 144))


@pytest.mark.parametrize(
    "answer",
    [
        "12",
        " 12 \n",
        "12.",
        "12。",
        "+12",
        "$12$",
        "**12**",
        "`12`",
        "gcd = 12",
        "GCD = 12",
        "gcd(48, 36) = 12",
        "gcd(36,48)=12.",
        "$gcd(48, 36) = 12$",
    ],
)
def test_odd_forms_of_right_answers_are_right(answer: str):
    assert FAMILY.verify(GCD, answer).correct


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "gcd",
        "gcd =",
        "gcd 12",
        "6",
        "-12",
        "12 or 6",
        "12, 6",
        "12 = 12",
        "gcd = 12 = 12",
        "gcd = gcd = 12",
        "lcm = 12",
        "gcd(48, 35) = 12",
        "gcd(48) = 12",
        "gcd(48, 36, 12) = 12",
        "12.0",
        "2 * 6",
        "１２",
        "١٢",
        "gcd(٤٨, 36) = 12",
        "12²",
        "1_2",
        "12\x00",
        "9" * 100_000,
        "gcd(" + "1," * 100_000,
        "gcd(" * 90,
    ],
)
def test_hostile_and_near_answers_are_wrong(answer: str):
    verdict = FAMILY.verify(GCD, answer)
    assert verdict.status == "wrong"
    assert verdict.reason


def test_answers_to_the_other_question_are_wrong():
    assert FAMILY.verify(LCM, "LCM(48, 18) = 144").correct
    assert not FAMILY.verify(LCM, "gcd(48, 18) = 144").correct
    assert not FAMILY.verify(LCM, "6").correct


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", FAMILY.styles)
def test_thought_without_slip_is_true_and_arrives(level: int, style: str):
    for problem in first_problems(FAMILY, level, 300):
        worked = FAMILY.worked(problem, Random(problem.seed), style=style)
        assert worked.answer == problem.answer
        shown = re.findall(r"([0-9][0-9 */+]*) = ([0-9][0-9 */+]*[0-9])", " ".join(worked.steps))
        assert shown
        for left, right in shown:
            assert value_of(parse(left)) == value_of(parse(right)), worked


def test_euclid_is_written_as_it_is_known():
    worked = FAMILY.worked(
        Problem("gcd_lcm", 1, 0, "en", "", "6", "", Asked("gcd", (48, 18), 6)), Random(0)
    )
    assert worked.steps[:3] == ("48 = 2 * 18 + 12.", "18 = 1 * 12 + 6.", "12 = 2 * 6.")


def test_check_repairs_every_wrong_result_that_it_does_not_overlook():
    repaired = 0
    for level in LEVELS:
        for problem in first_problems(FAMILY, level, 200):
            worked = FAMILY.worked(problem, Random(problem.seed), style="check", slip=0.3)
            if {"Wait, again.", "等等，再算一遍。"} & set(worked.steps):
                assert worked.answer == problem.answer
                repaired += 1
    assert repaired > 100
