"""Chained arithmetic: what a sum of numbers, products, quotients and brackets comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, NamedTuple, cast

from forethought.problems.answers import plain, whole_number
from forethought.problems.expression import (
    Expression,
    NotAnExpressionError,
    Operation,
    ascii_operators,
    between,
    miscalculated,
    operate,
    parse,
    standard,
    value_of,
    write,
    write_number,
)
from forethought.problems.family import Family, Worked
from forethought.problems.problem import Language, Problem, Verdict, wrong

Term = Callable[[Random], Expression]


def _number(low: int, high: int) -> Term:
    return lambda rng: between(rng, low, high)


def _product(low: int, high: int) -> Term:
    """A number times a one-digit number."""
    return lambda rng: operate("*", between(rng, low, high), between(rng, 2, 9))


def _quotient(low: int, high: int) -> Term:
    """A division by a one-digit number that comes to ``low`` to ``high``."""

    def draw(rng: Random) -> Expression:
        divisor = between(rng, 2, 9)
        return operate("/", divisor * between(rng, low, high), divisor)

    return draw


def _bracket(low: int, high: int) -> Term:
    """A sum or a positive difference of two numbers."""

    def draw(rng: Random) -> Expression:
        a, b = between(rng, low, high), between(rng, low, high)
        if a == b or rng.random() < 0.5:
            return operate("+", a, b)
        return operate("-", max(a, b), min(a, b))

    return draw


def _bracket_product(low: int, high: int) -> Term:
    """A bracket times a one-digit number, either first."""
    bracket = _bracket(low, high)

    def draw(rng: Random) -> Expression:
        inner, factor = bracket(rng), between(rng, 2, 9)
        if rng.random() < 0.5:
            return operate("*", inner, factor)
        return operate("*", factor, inner)

    return draw


def _bracket_quotient(low: int, high: int) -> Term:
    """A bracket divided by a one-digit number, which comes to ``low`` to ``high``."""

    def draw(rng: Random) -> Expression:
        divisor = between(rng, 2, 9)
        total = divisor * between(rng, low, high)
        b = between(rng, 1, total - 1)
        if rng.random() < 0.5:
            return operate("/", operate("+", total - b, b), divisor)
        return operate("/", operate("-", total + b, b), divisor)

    return draw


class _Level(NamedTuple):
    """How long the sum is, which kinds its terms are of (drawn evenly), and how large the running
    value may become: at least twice the largest term, so that one of + and - is always possible."""

    fewest: int
    most: int
    terms: tuple[Term, ...]
    ceiling: int


_LEVELS: Final = (
    _Level(2, 3, (_number(1, 9),), 20),
    _Level(3, 4, (_number(1, 20), _number(1, 20), _product(2, 9)), 200),
    _Level(
        3,
        4,
        (
            _number(10, 99),
            _product(2, 19),
            _quotient(2, 12),
            _bracket(2, 50),
            _bracket_product(2, 20),
        ),
        999,
    ),
    _Level(
        4,
        5,
        (
            _number(100, 999),
            _product(11, 99),
            _quotient(11, 99),
            _bracket(10, 500),
            _bracket_product(10, 99),
            _bracket_quotient(11, 99),
        ),
        9999,
    ),
)


class _Calculation(NamedTuple):
    """One operation as a thought does it; ``result`` is what the thought takes it to come to."""

    operator: str
    left: int
    right: int
    result: int

    def __str__(self) -> str:
        left, right = write_number(self.left), write_number(self.right)
        return f"{left} {self.operator} {right} = {self.result}"

    @property
    def right_result(self) -> int:
        """A division that does not come out even (after a slip) is rounded down."""
        exact = operate(self.operator, self.left, self.right).value
        return exact if isinstance(exact, int) else math.floor(exact)

    @property
    def inverse(self) -> _Calculation:
        """What undoes it: "3 + 5 = 8" for "8 - 5 = 3". Its result is what it should come to."""
        undoing = {"+": "-", "-": "+", "*": "/", "/": "*"}[self.operator]
        return _Calculation(undoing, self.result, self.right, self.left)


@dataclass(frozen=True)
class ChainedArithmetic(Family):
    """A sum of terms to work out; every value on the way is a whole number and not negative.

    The operator before a term is + or -, drawn evenly; the other one is taken where that leaves
    the range of the running value. The kinds of terms of a level are drawn evenly:

    1. 2 or 3 numbers 1-9; running value up to 20.
    2. 3 or 4 terms: numbers 1-20 (two of three terms), products of 2-9 and 2-9; up to 200.
    3. 3 or 4 terms: numbers 10-99, products of 2-19 and 2-9, exact quotients that come to 2-12,
       brackets (sum or difference of 2-50) behind a -, brackets of 2-20 times 2-9; up to 999.
    4. 4 or 5 terms: numbers 100-999, products of 11-99 and 2-9, exact quotients that come to
       11-99, brackets of 10-500 behind a -, brackets of 10-99 times 2-9, brackets divided by 2-9
       which come to 11-99; up to 9999.

    Where a bracket cannot be taken away (too little before it) its first number stands alone.
    Canonical: the terms in sorted order, each with sorted factors, "+2+3*5-4". Styles: ``steps``
    does one operation after the other, inner ones first; ``check`` then does the inverse of each
    and repairs the first that is off.
    """

    name: ClassVar[str] = "chained_arithmetic"
    levels: ClassVar[int] = len(_LEVELS)
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> Operation:
        fewest, most, terms, ceiling = _LEVELS[level - 1]
        kinds = len(terms)
        chain: Expression = 0
        for position in range(between(rng, fewest, most)):
            term = terms[int(rng.random() * kinds)](rng)
            so_far, more = value_of(chain), value_of(term)
            bracket = isinstance(term, Operation) and term.operator in "+-"
            if bracket and so_far < more:
                term, bracket = cast(Operation, term).left, False
                more = value_of(term)
            if not position:
                chain = term
                continue
            minus = so_far >= more and (bracket or rng.random() < 0.5 or so_far + more > ceiling)
            chain = operate("-" if minus else "+", chain, term)
        return cast(Operation, chain)

    def canonical(self, task: Operation) -> str:
        return standard(task)

    def phrase(self, task: Operation, rng: Random, language: Language) -> str:
        return rng.choice(_PHRASINGS[language]).replace("{sum}", write(task))

    def answer(self, task: Operation, language: Language) -> str:
        return str(task.value)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The number, or the sum of the question, "=" and the number."""
        task = cast(Operation, problem.task)
        bare = plain(answer)
        if bare is None:
            return wrong("too long")
        asked, equals, result = bare.partition("=")
        if not equals:
            result = bare
        elif not _is(task, asked):
            return wrong("what stands before = is not what was asked")
        return whole_number(result, cast(int, task.value), stop=False)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = cast(Operation, problem.task)
        words = _WORDS[problem.language]
        done: list[_Calculation] = []
        result = _carry_out(task, rng, slip, done)
        starts = rng.choice(words.starts)
        steps = [
            f"{starts[0] if not at else starts[1]}{one}{words.stop}" for at, one in enumerate(done)
        ]
        if style == "check":
            result = _check(task, done, rng, slip, words, steps)
        closing = rng.choice(words.closings)
        if closing:
            steps.append(closing.replace("{result}", str(result)))
        return Worked(tuple(steps), str(result))


def _is(task: Operation, asked: str) -> bool:
    """Whether a text is the sum that was asked."""
    try:
        return write(parse(ascii_operators(asked))) == write(task)
    except NotAnExpressionError:
        return False


def _carry_out(
    expression: Expression,
    rng: Random,
    slip: float,
    done: list[_Calculation],
    known: Sequence[_Calculation] = (),
) -> int:
    """Work an expression out, inner operations first, with slips; adds each to ``done``. The
    first ones keep the results of ``known``."""
    if isinstance(expression, int):
        return expression
    left = _carry_out(expression.left, rng, slip, done, known)
    right = _carry_out(expression.right, rng, slip, done, known)
    one = _Calculation(expression.operator, left, right, 0)
    result = one.right_result
    if len(done) < len(known):
        result = known[len(done)].result
    elif rng.random() < slip:
        result = miscalculated(result, rng)
    done.append(one._replace(result=result))
    return result


def _check(
    task: Operation,
    done: list[_Calculation],
    rng: Random,
    slip: float,
    words: _Words,
    steps: list[str],
) -> int:
    """Do the inverse of each calculation until one is off; then repair it and go on from there
    without slips. With probability ``slip`` a check sees what it hopes to see."""
    for at, one in enumerate(done):
        back = one.inverse
        if one.result == one.right_result or rng.random() < slip:
            steps.append(words.right.format(check=back))
            continue
        shown, _, _ = str(back).partition(" = ")
        steps.append(words.off.format(check=shown, should=back.result))
        again: list[_Calculation] = []
        result = _carry_out(task, rng, 0.0, again, done[:at])
        steps.append(words.repair.format(calculation=again[at]))
        steps += [f"{later}{words.stop}" for later in again[at + 1 :]]
        return result
    return done[-1].result


class _Words(NamedTuple):
    """What the worked thoughts say: what stands before the first and the later calculations, the
    end of a sentence, the last sentence, and what a check says."""

    starts: tuple[tuple[str, str], ...]
    stop: str
    closings: tuple[str, ...]
    right: str
    off: str
    repair: str


_WORDS: Final[dict[Language, _Words]] = {
    "en": _Words(
        starts=(("", ""), ("", ""), ("First ", "Then "), ("First ", "Now ")),
        stop=".",
        closings=("", "So the answer is {result}.", "That makes {result}."),
        right="Check: {check}, right.",
        off="Check: {check} is not {should}.",
        repair="Wait, {calculation}.",
    ),
    "zh": _Words(
        starts=(("", ""), ("", ""), ("先算 ", "再算 "), ("首先 ", "然后 ")),
        stop="。",
        closings=("", "所以答案是 {result}。", "结果是 {result}。"),
        right="检查：{check}，对。",
        off="检查：{check} 不是 {should}。",
        repair="等等，{calculation}。",
    ),
}

_PHRASINGS: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "What is {sum}?",
        "Calculate {sum}.",
        "{sum} = ?",
        "Work out {sum} and answer with the number.",
        "What does {sum} come to?",
    ),
    "zh": (
        "{sum} 等于多少？",
        "计算 {sum}。",
        "{sum} = ？",
        "算出 {sum}，请用数字回答。",
        "求 {sum} 的值。",
    ),
}
