"""Linear equations in one unknown with a whole solution."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, NamedTuple, cast

from forethought.problems.answers import plain, whole_number
from forethought.problems.expression import between, miscalculated, write_number
from forethought.problems.family import Family, Worked
from forethought.problems.problem import Language, Problem, Verdict, wrong

_UNKNOWN_FIRST: Final = re.compile(r"[xX]\s*[=＝]")


class Side(NamedTuple):
    """``factor * (x + shift) + constant``; a factor of 0 leaves the constant."""

    factor: int
    shift: int
    constant: int

    def at(self, x: int) -> int:
        return self.factor * (x + self.shift) + self.constant


class Equation(NamedTuple):
    left: Side
    right: Side
    solution: int


def _term(factor: int, unknown: str) -> str:
    """ "3x", "x", "-x"."""
    if factor == 1:
        return unknown
    return f"-{unknown}" if factor == -1 else f"{factor}{unknown}"


def _write_side(side: Side, *, constant_first: bool = False) -> str:
    """ "3x + 5", "5 + 3x", "2(x - 3) + 4", "7"."""
    factor, shift, constant = side
    if not factor:
        return str(constant)
    unknown = "x" if not shift else f"(x {'+' if shift > 0 else '-'} {abs(shift)})"
    if not constant:
        return _term(factor, unknown)
    if constant_first:
        return f"{constant} {'+' if factor > 0 else '-'} {_term(abs(factor), unknown)}"
    return f"{_term(factor, unknown)} {'+' if constant > 0 else '-'} {abs(constant)}"


def _write(left: Side, right: Side) -> str:
    return f"{_write_side(left)} = {_write_side(right)}"


def _nonzero(rng: Random, most: int) -> int:
    """From -most to most, but not 0."""
    drawn = between(rng, 1, most)
    return drawn if rng.random() < 0.5 else -drawn


@dataclass(frozen=True)
class LinearEquations(Family):
    """An equation in x with a whole solution; all draws are even.

    1. x + b = c or x - b = c: b 1-9; x 1-9, and at least b for a difference.
    2. ax = c, ax + b = c or ax - b = c: a 2-9, b 1-20; x 1-12.
    3. ax + b = cx + d: a and c different, 1-9; b from -20 to 20, not 0; x from -10 to 10, not 0.
    4. a(x + p) + b = cx + d, in half of the problems c(x + q) + d on the right: a and c different,
       2-9; p and q from -9 to 9, not 0; b from -20 to 20; x from -12 to 12, not 0.

    Either side may stand first, and either term of a side. Canonical: both sides, a term in x
    before a number, in sorted order. Styles: ``steps`` (brackets, then x to one side, then the
    number to the other, then the division); ``check`` puts the solution in and repairs what does
    not hold.
    """

    name: ClassVar[str] = "linear_equations"
    levels: ClassVar[int] = 4
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> Equation:
        if level == 1:
            x, shift = between(rng, 1, 9), between(rng, 1, 9)
            left = Side(1, 0, -shift if shift <= x and rng.random() < 0.5 else shift)
            return _with_solution(left, Side(0, 0, 0), x)
        if level == 2:
            x, factor = between(rng, 1, 12), between(rng, 2, 9)
            constant = (0, 1, -1)[int(rng.random() * 3)] * between(rng, 1, 20)
            return _with_solution(Side(factor, 0, constant), Side(0, 0, 0), x)
        lowest = 1 if level == 3 else 2
        factor, other = between(rng, lowest, 9), between(rng, lowest, 8)
        other += other >= factor
        if level == 3:
            left = Side(factor, 0, _nonzero(rng, 20))
            return _with_solution(left, Side(other, 0, 0), _nonzero(rng, 10))
        left = Side(factor, _nonzero(rng, 9), between(rng, -20, 20))
        shift = _nonzero(rng, 9) if rng.random() < 0.5 else 0
        return _with_solution(left, Side(other, shift, 0), _nonzero(rng, 12))

    def canonical(self, task: Equation) -> str:
        one, other = _write_side(task.left), _write_side(task.right)
        return f"{one} = {other}" if one < other else f"{other} = {one}"

    def phrase(self, task: Equation, rng: Random, language: Language) -> str:
        left, right = task.left, task.right
        if rng.random() < 0.3:
            left, right = right, left
        # A number before the term in x reads well only without a sign of its own.
        one = _write_side(left, constant_first=left.constant > 0 and rng.random() < 0.3)
        other = _write_side(right, constant_first=right.constant > 0 and rng.random() < 0.3)
        return rng.choice(_PHRASINGS[language]).replace("{equation}", f"{one} = {other}")

    def answer(self, task: Equation, language: Language) -> str:
        return str(task.solution)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The number, or "x = " and the number."""
        bare = plain(answer)
        if bare is None:
            return wrong("too long")
        named = _UNKNOWN_FIRST.match(bare)
        value = bare[named.end() :] if named else bare
        return whole_number(value, cast(Equation, problem.task).solution, stop=False)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = cast(Equation, problem.task)
        words = _WORDS[problem.language]
        steps: list[str] = []
        x = _solve(task, rng, slip, words, steps)
        if style == "check":
            holds = task.left.at(x) == task.right.at(x) or rng.random() < slip
            steps.append(_check(task, x, holds, words))
            if not holds:
                steps.append(words.again)
                x = _solve(task, rng, 0.0, words, steps)
        return Worked(tuple(steps), str(x))


def _with_solution(left: Side, right: Side, x: int) -> Equation:
    """The equation whose right side gets the constant that makes it hold for ``x``."""
    constant = left.at(x) - right.at(x)
    return Equation(left, right._replace(constant=constant), x)


def _solve(task: Equation, rng: Random, slip: float, words: _Words, steps: list[str]) -> int:
    """Solve it on paper, with slips; adds each line to ``steps``."""

    def slipping(value: int) -> int:
        return miscalculated(value, rng) if rng.random() < slip else value

    def without_bracket(side: Side) -> Side:
        factor, shift, constant = side
        if not shift:
            return side
        product = slipping(factor * shift)
        bracket, expanded = Side(factor, shift, 0), Side(factor, 0, product)
        steps.append(f"{_write_side(bracket)} = {_write_side(expanded)}{words.stop}")
        return Side(factor, 0, slipping(constant + product) if constant else product)

    steps.append(_write(task.left, task.right) + words.stop)
    left, right = without_bracket(task.left), without_bracket(task.right)
    if (left, right) != (task.left, task.right):
        steps.append(words.so.format(equation=_write(left, right)))
    if left.factor < right.factor:
        left, right = right, left
    if right.factor:
        taken = _term(right.factor, "x")
        left = left._replace(factor=slipping(left.factor - right.factor))
        right = right._replace(factor=0)
        steps.append(words.take.format(term=taken, equation=_write(left, right)))
    total = right.constant
    if left.constant:
        total = slipping(right.constant - left.constant)
        difference = f"{right.constant} {'-' if left.constant > 0 else '+'} {abs(left.constant)}"
        steps.append(f"{_term(left.factor, 'x')} = {difference} = {total}{words.stop}")
    if left.factor == 1:
        return total
    # After a slip the division may not come out even; it is rounded down then.
    x = slipping(total // left.factor)
    steps.append(f"x = {total} / {left.factor} = {x}{words.stop}")
    return x


def _check(task: Equation, x: int, holds: bool, words: _Words) -> str:
    """The solution put in; ``holds`` is what the thought sees."""
    left, right = task.left.at(x), task.right.at(x)
    shown = f"{_write_at(task.left, x)} = {right if holds else left}"
    off = words.not_that
    if task.right.factor:
        shown += f"{words.comma}{_write_at(task.right, x)} = {right}"
        off = words.not_equal
    return (words.right if holds else off).format(shown=shown, right=right)


def _write_at(side: Side, x: int) -> str:
    """ "3 * 5 + 7", "2 * (5 - 3)"."""
    factor, shift, constant = side
    if shift:
        text = f"{factor} * ({x} {'+' if shift > 0 else '-'} {abs(shift)})"
    elif factor == 1:
        text = str(x)
    else:
        text = f"{factor} * {write_number(x)}"
    if constant:
        text += f" {'+' if constant > 0 else '-'} {abs(constant)}"
    return text


class _Words(NamedTuple):
    """What the worked thoughts say."""

    stop: str
    comma: str
    so: str
    take: str
    right: str
    not_that: str
    not_equal: str
    again: str


_WORDS: Final[dict[Language, _Words]] = {
    "en": _Words(
        stop=".",
        comma=", ",
        so="So {equation}.",
        take="Take {term} from both sides: {equation}.",
        right="Check: {shown}, right.",
        not_that="Check: {shown}, not {right}.",
        not_equal="Check: {shown}, not the same.",
        again="Wait, again.",
    ),
    "zh": _Words(
        stop="。",
        comma="，",
        so="所以 {equation}。",
        take="两边减去 {term}：{equation}。",
        right="检查：{shown}，对。",
        not_that="检查：{shown}，不是 {right}。",
        not_equal="检查：{shown}，不相等。",
        again="等等，再算一遍。",
    ),
}

_PHRASINGS: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "Solve for x: {equation}.",
        "{equation}. What is x?",
        "Find the number x for which {equation}.",
        "Which whole number x solves the equation {equation}?",
    ),
    "zh": (
        "解方程：{equation}。",
        "{equation}，x 等于多少？",
        "求满足 {equation} 的数 x。",
        "方程 {equation} 的整数解 x 是多少？",
    ),
}
