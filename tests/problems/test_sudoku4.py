from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.errors import UserError
from forethought.problems.families.sudoku4 import MOST_BLANKS, Sudoku4, Sudoku4Task
from forethought.problems.problem import Problem

FAMILY = Sudoku4()
PUZZLE, SOLUTION = "12.43.12.14343.1", "1234341221434321"


def asking(puzzle: str = PUZZLE, solution: str = SOLUTION) -> Problem:
    task = Sudoku4Task(puzzle, solution)
    return Problem("sudoku4", 1, 0, "en", "?", FAMILY.answer(task, "en"), puzzle, task)


def full_grids() -> list[str]:
    """All sudokus, by looking at every way to stack four rows."""
    rows = ["".join(row) for row in product("1234", repeat=4) if len(set(row)) == 4]
    pairs = [
        (a, b) for a in rows for b in rows if len({*a[:2], *b[:2]}) == len({*a[2:], *b[2:]}) == 4
    ]
    return [
        "".join(top + low)
        for top in pairs
        for low in pairs
        if all(len({row[column] for row in top + low}) == 4 for column in range(4))
    ]


GRIDS = full_grids()


def test_sudoku4_keeps_the_contract_of_a_family():
    check_contract(FAMILY, 40)


def test_each_puzzle_has_its_number_of_blanks_and_one_solution_of_the_288():
    assert len(GRIDS) == 288
    for problem in problems_of(FAMILY, 60):
        puzzle = problem.task.puzzle
        assert puzzle.count(".") == 2 * problem.level
        fitting = [
            grid
            for grid in GRIDS
            if all(clue in (".", cell) for clue, cell in zip(puzzle, grid, strict=True))
        ]
        assert fitting == [problem.task.solution]


def test_all_grids_come():
    assert {FAMILY.problem(5, seed).task.solution for seed in range(4000)} == set(GRIDS)


def test_as_many_blanks_as_any_puzzle_can_have():
    hardest = Sudoku4(blanks=(12, 12, 1, 1, 1))
    check_contract(hardest, 20)
    assert hardest.problem(1, 1).task.puzzle.count(".") == MOST_BLANKS


@pytest.mark.parametrize("blanks", [(), (1, 2, 3, 4), (1, 2, 3, 4, 13), (0, 1, 2, 3, 4)])
def test_impossible_blanks_are_refused(blanks):
    with pytest.raises(UserError, match=r"blanks is .* in sudoku4"):
        Sudoku4(blanks=blanks)


def test_the_text_shows_the_puzzle_and_the_canonical_form_is_it():
    for problem in problems_of(FAMILY, 40):
        rows = [problem.task.puzzle[at : at + 4] for at in (0, 4, 8, 12)]
        assert "\n".join(rows) in problem.text
        assert problem.canonical == f"sudoku4:{problem.task.puzzle}"


@pytest.mark.parametrize(
    "answer",
    ["1234\n3412\n2143\n4321", "1234341221434321", "1 2 3 4\r\n3 4 1 2\n\n2 1 4 3\n4 3 2 1\n",
     "1234, 3412, 2143, 4321", "1234/3412/2143/4321", "1234，3412，2143，4321。",
     "1234；3412；2143；4321", "[[1,2,3,4],[3,4,1,2],[2,1,4,3],[4,3,2,1]]", "`1234 3412 2143 4321`",
     "|1|2|3|4|\n|3|4|1|2|\n|2|1|4|3|\n|4|3|2|1|", "**1234 3412 2143 4321**",
     "$1234,3412,2143,4321$", "1234 3412 2143 4321."],
)  # fmt: skip
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(asking(), answer).correct


@pytest.mark.parametrize(
    "answer",
    ["", ".", PUZZLE, "1234\n3412\n2143\n4312", "1234\n3412\n2143", "1234341221434321" * 2,
     "1234341221434321 or 1234341221434321", "１234341221434321", "١٢٣٤ 3412 2143 4321",
     "1²34341221434321", "01234341221434321", "1234341221434321" + " " * 400, "1234-3412-2143-4321",
     "1234 3412 2143 432", "4321\n2143\n3412\n1234", "1324\n3142\n2413\n4231", "the grid", "\x00",
     "grid: 1234341221434321", "1234.3412.2143.4321", "..1234341221434321"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(asking(), answer).correct


@given(st.text(max_size=60))
def test_no_text_makes_the_sudoku_verifier_raise(text):
    FAMILY.verify(asking(), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.0 < share_right(FAMILY, "steps", 0.5, 60) < 0.4
    assert 0.0 < share_right(FAMILY, "search", 0.3, 60) < 0.8
    assert share_right(FAMILY, "check", 0.5, 60) == 1.0


def test_a_search_goes_back_and_a_check_starts_again():
    said = "".join(
        step
        for seed in range(30)
        for step in FAMILY.worked(FAMILY.problem(5, seed, "en"), Random(0), style="search").steps
    )
    assert "takes nothing, back." in said
    assert "fails with all of them, back." in said
    repaired = [
        FAMILY.worked(asking(), Random(seed), style="check", slip=0.5).steps for seed in range(20)
    ]
    assert any("Wait, row 1 has 4 twice. Start again." in steps for steps in repaired)
    assert any("Check: no box has a digit twice." in steps for steps in repaired)


def test_the_thoughts_of_the_first_level_are_two_short_steps():
    problem = asking("213434121.43.321", "2134341212434321")
    assert FAMILY.worked(problem, Random(1)).steps == (
        "Row 3 column 2: not 1, 3, 4, so 2.",
        "Row 4 column 1: not 1, 2, 3, so 4.",
    )
