"""Sudoku on four by four cells."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from random import Random
from typing import ClassVar, Final, NamedTuple

from forethought.errors import UserError
from forethought.problems.answers import LONGEST, plain
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong

MOST_BLANKS: Final = 12
"""No 4 x 4 sudoku with fewer than four clues has one solution only."""

_LEVELS: Final = 5
_DIGITS: Final = "1234"
_CELLS: Final = range(16)


class Sudoku4Task(NamedTuple):
    """Cells row by row: the puzzle with "." for a blank, and its one solution."""

    puzzle: str
    solution: str


def _units() -> tuple[tuple[int, ...], ...]:
    """The cells of the four rows, the four columns and the four 2 x 2 boxes."""
    rows = [tuple(cell for cell in _CELLS if cell // 4 == at) for at in range(4)]
    columns = [tuple(cell for cell in _CELLS if cell % 4 == at) for at in range(4)]
    boxes = [
        tuple(cell for cell in _CELLS if cell // 8 * 2 + cell % 4 // 2 == at) for at in range(4)
    ]
    return (*rows, *columns, *boxes)


_UNITS: Final = _units()
_PEERS: Final = tuple(
    tuple(sorted({other for unit in _UNITS if cell in unit for other in unit} - {cell}))
    for cell in _CELLS
)


# The grids with 1234 in the first row: 12, from which new names for the digits make all 288.


@cache
def _first_grids() -> tuple[str, ...]:
    return tuple(_completions(_DIGITS + "." * 12))


@cache
def _renamings() -> tuple[dict[int, str], ...]:
    return tuple(
        {ord(old): new for old, new in zip(_DIGITS, order, strict=True)}
        for order in permutations(_DIGITS)
    )


def _completions(grid: str) -> Iterator[str]:
    """All the solutions of a grid."""
    at = grid.find(".")
    if at < 0:
        yield grid
        return
    for digit in _fitting(grid, at):
        yield from _completions(grid[:at] + digit + grid[at + 1 :])


def _fitting(grid: str | list[str], cell: int) -> list[str]:
    """The digits that no cell of the same row, column or box has."""
    seen = {grid[peer] for peer in _PEERS[cell]}
    return [digit for digit in _DIGITS if digit not in seen]


@cache
def _ambiguous(which: int) -> bytes:
    """A bit for each set of cells (itself a bit mask): whether another grid agrees with the first
    grid number ``which`` in all the other cells. The names of the digits do not matter."""
    grid = _first_grids()[which]
    found = 0
    for first in _first_grids():
        for renaming in _renamings():
            other = first.translate(renaming)
            differing = sum(1 << cell for cell in _CELLS if grid[cell] != other[cell])
            found |= 1 << differing if differing else 0
    # With a set each one that has more cells: cell after cell is added to those sets without it.
    everything = (1 << (1 << 16)) - 1
    for cell in _CELLS:
        without = everything // ((1 << (1 << cell)) + 1)
        found |= (found & without) << (1 << cell)
    return found.to_bytes(1 << 13, "little")


@cache
def _patterns(which: int, blanks: int) -> array[int]:
    """The sets of so many cells that can be left blank in the first grid number ``which`` such
    that it remains the only solution."""
    ambiguous = _ambiguous(which)
    return array(
        "H",
        (
            cells
            for cells in range(1 << 16)
            if cells.bit_count() == blanks and not ambiguous[cells >> 3] >> (cells & 7) & 1
        ),
    )


_PHRASES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "Solve this 4x4 sudoku. Answer with the four rows.\n{}",
        "Fill in the 4x4 sudoku and write its four rows:\n{}",
        "Each row, column and 2x2 box has 1, 2, 3 and 4 once. "
        "Complete the grid and give it as four rows.\n{}",
        "{}\nThis is a 4x4 sudoku with dots for empty cells. Write its four full rows.",
        "Which digits go where the dots are in this 4x4 sudoku? Give all four rows.\n{}",
    ),
    "zh": (
        "解这个 4x4 数独，写出四行数字。\n{}",
        "填满这个 4x4 数独，答案写成四行：\n{}",
        "每行、每列、每个 2x2 宫都恰好有 1、2、3、4。请补全方格，写出四行。\n{}",
        "{}\n这是一个 4x4 数独，点表示空格。请写出完整的四行数字。",
        "这个 4x4 数独里的点应填什么数字？请给出全部四行。\n{}",
    ),
}

_BETWEEN: Final = dict.fromkeys(map(ord, " \t\r\n,，、;；/|[](){}"))
"""What may stand between the sixteen digits of an answer."""


@dataclass(frozen=True)
class Sudoku4(Family):
    """Complete a 4 x 4 sudoku that has exactly one solution.

    Level n (1 .. 5) has ``blanks[n - 1]`` empty cells: 2, 4, 6, 8 and 10. One of the 288 grids is
    drawn uniformly, then uniformly one of the sets of that many cells that can be left blank.

    Canonical: the sixteen cells row by row, "." where blank. A final answer is the sixteen digits
    of the solution row by row; white space, commas, semicolons, slashes, bars and brackets between
    them do not matter.

    Styles: "steps" fills in again and again a cell that takes one digit only, or a digit that has
    one place only (after a slip there may be neither: then it guesses). "check" then looks for
    equal digits in a row, column or box and starts again if it finds any. "search" tries digits
    cell by cell and goes back when a cell takes none. A slip writes another digit, or in a search
    overlooks one, so that the search may find nothing.
    """

    name: ClassVar[str] = "sudoku4"
    levels: ClassVar[int] = _LEVELS
    styles: ClassVar[tuple[str, ...]] = ("steps", "check", "search")

    blanks: tuple[int, ...] = (2, 4, 6, 8, 10)

    def validate(self) -> None:
        if len(self.blanks) != _LEVELS or not all(1 <= n <= MOST_BLANKS for n in self.blanks):
            raise UserError(
                f"blanks is {self.blanks!r} in {self.name}: "
                f"give {_LEVELS} whole numbers of 1 to {MOST_BLANKS}, one for each level."
            )

    def draw(self, rng: Random, level: int) -> Sudoku4Task:
        which = int(rng.random() * 12)
        patterns = _patterns(which, self.blanks[level - 1])
        renaming = _renamings()[int(rng.random() * 24)]
        solution = _first_grids()[which].translate(renaming)
        blank = patterns[int(rng.random() * len(patterns))]
        puzzle = "".join(
            ["." if blank >> cell & 1 else digit for cell, digit in enumerate(solution)]
        )
        return Sudoku4Task(puzzle, solution)

    def canonical(self, task: Sudoku4Task) -> str:
        return task.puzzle

    def phrase(self, task: Sudoku4Task, rng: Random, language: Language) -> str:
        phrases = _PHRASES[language]
        return phrases[int(rng.random() * len(phrases))].format(_rows(task.puzzle))

    def answer(self, task: Sudoku4Task, language: Language) -> str:
        return _rows(task.solution)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        if len(answer) > LONGEST:
            return wrong("not one grid")
        digits = answer.translate(_BETWEEN)
        if digits != _task(problem).solution:
            digits = (plain(answer) or "").translate(_BETWEEN)
        if digits == _task(problem).solution:
            return CORRECT
        if len(digits) != 16 or not set(digits) <= set(_DIGITS):
            return wrong("not four rows of the digits 1 to 4")
        return wrong("not the solution")

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """The solution with two digits of a row exchanged, or with one digit changed."""
        cells = list(_task(problem).solution)
        row = rng.randrange(4) * 4
        one, other = rng.sample(range(row, row + 4), 2)
        if rng.random() < 0.5:
            cells[one], cells[other] = cells[other], cells[one]
        else:
            cells[one] = cells[other]
        return _rows("".join(cells))

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = _task(problem)
        says = _Says(problem.language, rng)
        steps: list[str] = []
        if style == "search":
            solved: str | None = _search(task.puzzle, rng, slip, says, steps)
        else:
            solved = _fill(task.puzzle, rng, slip, says, steps)
            if style == "check" and not _looks_right(solved, says, steps):
                solved = _fill(task.puzzle, rng, 0.0, says, steps)
        return Worked(tuple(steps), solved and _rows(solved))


def _task(problem: Problem) -> Sudoku4Task:
    assert isinstance(problem.task, Sudoku4Task)
    return problem.task


def _rows(cells: str) -> str:
    return f"{cells[:4]}\n{cells[4:8]}\n{cells[8:12]}\n{cells[12:]}"


def _fill(puzzle: str, rng: Random, slip: float, says: _Says, steps: list[str]) -> str:
    """The grid that is full when one sure cell after another has been filled in.

    After a slip there may be no sure cell; then a cell with the least choice takes any digit.
    """
    grid = list(puzzle)
    while "." in grid:
        step = _only_digit(grid, says) or _only_place(grid, says)
        if step is None:
            blanks = [cell for cell in _CELLS if grid[cell] == "."]
            cell = min(blanks, key=lambda one: len(_fitting(grid, one)))
            digit = rng.choice(_fitting(grid, cell) or _DIGITS)
            step = (cell, digit, says.guesses(cell, digit))
        cell, digit, words = step
        if slip and rng.random() < slip:
            digit = rng.choice(_DIGITS.replace(digit, ""))
            words = says.only_digit(cell, _DIGITS.replace(digit, ""), digit)
        steps.append(words)
        grid[cell] = digit
    return "".join(grid)


def _only_digit(grid: list[str], says: _Says) -> tuple[int, str, str] | None:
    """A blank cell that one digit only fits, that digit, and the words for it."""
    for cell in _CELLS:
        if grid[cell] == ".":
            digits = _fitting(grid, cell)
            if len(digits) == 1:
                seen = _DIGITS.replace(digits[0], "")
                return cell, digits[0], says.only_digit(cell, seen, digits[0])
    return None


def _only_place(grid: list[str], says: _Says) -> tuple[int, str, str] | None:
    """The only cell of a row, column or box for a digit, that digit, and the words for it."""
    for number, unit in enumerate(_UNITS):
        missing = set(_DIGITS) - {grid[cell] for cell in unit}
        for digit in sorted(missing):
            places = [cell for cell in unit if grid[cell] == "." and digit in _fitting(grid, cell)]
            if len(places) == 1:
                return places[0], digit, says.only_place(number, places[0], digit)
    return None


def _looks_right(grid: str, says: _Says, steps: list[str]) -> bool:
    """Looks for equal digits in each row, column and box, up to the first that has some."""
    for number, unit in enumerate(_UNITS):
        digits = [grid[cell] for cell in unit]
        for digit in _DIGITS:
            if digits.count(digit) > 1:
                steps.append(says.twice(number, digit))
                return False
        if number % 4 == 3:
            steps.append(says.all_right(number // 4))
    return True


def _search(puzzle: str, rng: Random, slip: float, says: _Says, steps: list[str]) -> str | None:
    """The first solution that trying digits in the order of the cells finds.

    A slip does not see that a digit fits, so that the search may come to its end without one.
    """
    at = puzzle.find(".")
    if at < 0:
        return puzzle
    tried = False
    for digit in _fitting(puzzle, at):
        if slip and rng.random() < slip:
            continue
        steps.append(says.tries(at, digit, again=tried))
        tried = True
        found = _search(puzzle[:at] + digit + puzzle[at + 1 :], rng, slip, says, steps)
        if found is not None:
            return found
    steps.append(says.stuck(at, tried=tried))
    return None


class _Says:
    """The words of a thought in one language, in one of two wordings."""

    def __init__(self, language: Language, rng: Random) -> None:
        self._zh = language == "zh"
        self._wording = rng.randrange(2)

    def _cell(self, cell: int) -> str:
        row, column = cell // 4 + 1, cell % 4 + 1
        if self._zh:
            return f"第 {row} 行第 {column} 列"
        return f"row {row} column {column}"

    def _unit(self, number: int) -> str:
        kind, at = divmod(number, 4)
        if self._zh:
            return f"第 {at + 1} {'行列宫'[kind]}"
        return f"{('row', 'column', 'box')[kind]} {at + 1}"

    def only_digit(self, cell: int, seen: str, digit: str) -> str:
        if self._zh:
            so = ("所以是", "只能填")[self._wording]
            return f"{self._cell(cell)}：不是 {'、'.join(seen)}，{so} {digit}。"
        so = ("so", "only")[self._wording]
        return f"{self._cell(cell).capitalize()}: not {', '.join(seen)}, {so} {digit}."

    def only_place(self, number: int, cell: int, digit: str) -> str:
        if self._zh:
            return f"{self._unit(number)}的 {digit} 只能在{self._cell(cell)}。"
        return f"The {digit} of {self._unit(number)} can only be at {self._cell(cell)}."

    def guesses(self, cell: int, digit: str) -> str:
        if self._zh:
            return f"{self._cell(cell)}：就填 {digit}。"
        return f"{self._cell(cell).capitalize()}: perhaps {digit}."

    def tries(self, cell: int, digit: str, *, again: bool) -> str:
        if self._zh:
            word = ("再试" if again else "试", "改填" if again else "先填")[self._wording]
            return f"{self._cell(cell)}{word} {digit}。"
        word = ("Now try" if again else "Try", "Then take" if again else "Take")[self._wording]
        return f"{word} {digit} at {self._cell(cell)}."

    def stuck(self, cell: int, *, tried: bool) -> str:
        if self._zh:
            return f"{self._cell(cell)}{'都不行' if tried else '填不了'}，退回。"
        why = "fails with all of them" if tried else "takes nothing"
        return f"{self._cell(cell).capitalize()} {why}, back."

    def twice(self, number: int, digit: str) -> str:
        if self._zh:
            return f"等等，{self._unit(number)}有两个 {digit}。重新来。"
        return f"Wait, {self._unit(number)} has {digit} twice. Start again."

    def all_right(self, kind: int) -> str:
        if self._zh:
            return f"检查：各{'行列宫'[kind]}没有重复。"
        return f"Check: no {('row', 'column', 'box')[kind]} has a digit twice."
