from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families._common_words import COMMON_WORDS
from forethought.problems.families.sorting import Sorting, SortingTask
from forethought.problems.problem import Problem

FAMILY = Sorting()


def asking(*items: int | str, descending: bool = False) -> Problem:
    task = SortingTask(items, descending)
    answer = FAMILY.answer(task, "en")
    return Problem("sorting", 1, 0, "en", "?", answer, FAMILY.canonical(task), task)


def test_sorting_keeps_the_contract_of_a_family():
    check_contract(FAMILY)


def test_every_level_draws_what_the_docstring_says():
    kinds = set()
    for problem in problems_of(FAMILY, 300):
        items = problem.task.items
        low, high, counts = {
            1: (0, 9, (3, 4, 5)),
            2: (0, 99, (3, 4, 5)),
            3: (0, 999, (6, 7, 8)),
            4: (-99, 99, (4, 5, 6) if isinstance(items[0], str) else (5, 6, 7)),
        }[problem.level]
        kinds.add((problem.level, type(items[0]), problem.task.descending, len(items)))
        assert len(items) in counts
        if isinstance(items[0], str):
            assert problem.level == 4
            assert set(items) <= set(COMMON_WORDS)
        else:
            assert all(low <= item <= high for item in items)
        if problem.level == 1 or isinstance(items[0], str):
            assert len(set(items)) == len(items)
    assert len(kinds) == 2 * (3 + 3 + 3 + 3 + 3)


def test_the_answer_is_what_repeated_exchange_of_neighbours_gives():
    for problem in problems_of(FAMILY, 100):
        items = list(problem.task.items)
        for _ in items:
            for i in range(len(items) - 1):
                if (items[i] < items[i + 1]) == problem.task.descending:
                    items[i], items[i + 1] = items[i + 1], items[i]
        assert problem.answer == ", ".join(map(str, items))


def test_the_canonical_form_forgets_how_the_items_were_shown():
    assert FAMILY.canonical(SortingTask((40, 3, 17), False)) == "asc 3, 17, 40"
    assert FAMILY.canonical(SortingTask((3, 17, 40), False)) == "asc 3, 17, 40"
    assert FAMILY.canonical(SortingTask((17, 3, 40), True)) == "desc 3, 17, 40"


@pytest.mark.parametrize(
    "answer",
    ["3, 17, 40", "3,17,40", "3 17 40", "3，17，40。", "3、17、40", "[3, 17, 40]", "(3; 17; 40)",
     " 3,  17,\n40 ", "3, 17, 40.", "**3, 17, 40**", "`[3, 17, 40]`", "$3, 17, 40$", "+3, 17, 040",
     "“3, 17, 40”"],
)  # fmt: skip
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(asking(40, 3, 17), answer).correct


@pytest.mark.parametrize(
    "answer",
    ["", " ", ".", "()", "40, 17, 3", "3, 17", "3, 17, 40, 40", "3, 17, 40, 99", "3, 17, 40 or 4",
     "3, 17, 40; 3, 17, 40", "31740", "3-17-40", "3,,17,40", "3, 17, 40,", "３, 17, 40",
     "٣, 17, 40", "3², 17, 40", "3.0, 17, 40", "3, 17, 40]", "[[3, 17, 40]]", "[3, 17, 40)",
     "3 < 17 < 40", "three, 17, 40", "3, 17, 40 = 3, 17, 40", "3, 17, 40" + " " * 400,
     "3, " * 200, "sorted([40, 3, 17])", "3, 17, 40..", "\x00", "**", "$$"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(asking(40, 3, 17), answer).correct


def test_words_and_negative_numbers_are_read():
    words = asking("pear", "apple", "fig", descending=True)
    assert FAMILY.verify(words, "Pear, fig, APPLE").correct
    assert not FAMILY.verify(words, "pear, fig, apple, apple").correct
    assert not FAMILY.verify(words, "pear fıg apple").correct
    numbers = asking(4, -5, 0)
    assert FAMILY.verify(numbers, "−5, 0, 4").correct
    assert not FAMILY.verify(numbers, "5, 0, 4").correct
    assert not FAMILY.verify(asking("kit", "sea"), "\N{KELVIN SIGN}it, sea").correct


@given(st.lists(st.integers(-999, 999), min_size=3, max_size=8), st.randoms(), st.booleans())
def test_any_separators_do_and_any_change_of_the_items_does_not(items, rng, descending):
    problem = asking(*items, descending=descending)
    right = problem.answer.split(", ")
    assert FAMILY.verify(problem, rng.choice((" ", ",", "、", "\n", " ; ")).join(right)).correct
    assert not FAMILY.verify(problem, FAMILY.wrong_answer(problem, Random(1))).correct


@given(st.text(max_size=60))
def test_no_text_makes_the_verifier_raise(text):
    FAMILY.verify(asking(40, 3, 17), text)
    FAMILY.verify(asking("b", "a"), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.05 < share_right(FAMILY, "steps", 0.5) < 0.4
    assert share_right(FAMILY, "check", 0.5) == 1.0


def test_thoughts_pick_and_check_in_words():
    digits = FAMILY.problem(1, 0, "en")
    assert digits.task == SortingTask((4, 1, 7), True)
    assert FAMILY.worked(digits, Random(0)).steps == ("Largest: 7.", "Then 4.", "Then 1.")
    problem = FAMILY.problem(2, 3, "en")
    assert problem.task == SortingTask((58, 35, 81), False)
    assert FAMILY.worked(problem, Random(0), style="check").steps == (
        "The smallest of 58, 35, 81 is 35.",
        "The smallest of 58, 81 is 58.",
        "81 is left.",
        "Check: 3 of 3 are there.",
        "35 < 58.",
        "58 < 81.",
    )
    repaired = [
        FAMILY.worked(problem, Random(seed), style="check", slip=0.6).steps for seed in range(20)
    ]
    assert any("Wait, 35 comes before 58: 35, 58, 81." in steps for steps in repaired)
    assert any("Check: 2 of 3 are there." in steps for steps in repaired)


def test_thoughts_of_the_first_level_are_short():
    for seed in range(200):
        problem = FAMILY.problem(1, seed)
        assert sum(map(len, FAMILY.worked(problem, Random(seed)).steps)) <= 70
