"""The next number of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import ClassVar, Final

from forethought.problems.answers import plain, whole_number
from forethought.problems.family import Family, Worked
from forethought.problems.problem import Language, Problem, Verdict, wrong

Terms = tuple[int, ...]
Rule = Callable[[Terms, Terms], int | None]


def _differences(terms: Terms) -> Terms:
    return tuple([after - before for before, after in pairwise(terms)])


def _constant(numbers: Terms) -> bool:
    return numbers.count(numbers[0]) == len(numbers)


# The rules of the family, of the terms shown and their differences: the next term, or None where
# the rule does not hold.


def _arithmetic(terms: Terms, steps: Terms) -> int | None:
    return terms[-1] + steps[0] if _constant(steps) else None


def _geometric(terms: Terms, steps: Terms) -> int | None:
    if terms[0] == 0 or terms[1] % terms[0] != 0:
        return None
    ratio = terms[1] // terms[0]
    if abs(ratio) < 2 or terms[1:] != tuple([term * ratio for term in terms[:-1]]):
        return None
    return terms[-1] * ratio


def _fibonacci(terms: Terms, steps: Terms) -> int | None:
    return terms[-1] + terms[-2] if steps[1:] == terms[:-2] else None


def _alternating(terms: Terms, steps: Terms) -> int | None:
    return terms[-1] + steps[-2] if steps[2:] == steps[:-2] else None


def _quadratic(terms: Terms, steps: Terms) -> int | None:
    changes = _differences(steps)
    return terms[-1] + steps[-1] + changes[0] if _constant(changes) else None


_RULES: Final[tuple[Rule, ...]] = (_arithmetic, _geometric, _fibonacci, _alternating, _quadratic)


def _fitting(terms: Terms) -> tuple[Rule, int]:
    """The first rule that holds for the terms, and what it gives next."""
    steps = _differences(terms)
    for rule in _RULES:
        after = rule(terms, steps)
        if after is not None:
            return rule, after
    raise ValueError(f"{terms} follow no rule of the family")


_PHRASES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "What comes next: {}?",
        "Find the next number: {}, ...",
        "Continue this sequence by one number: {}",
        "Which number follows in the sequence {}, ...?",
        "What is the next term of {}?",
    ),
    "zh": (
        "下一个数是什么：{}？",
        "找规律，写出下一个数：{}, ...",
        "数列 {} 的下一项是多少？",
        "按规律接着写一个数：{}",
        "{} 后面的一个数是多少？",
    ),
}


@dataclass(frozen=True)
class NumberSequences(Family):
    """Find the next term of a sequence of whole numbers.

    The rules of the family: arithmetic (a constant step), geometric (a whole ratio other than -1,
    0, 1), Fibonacci-like (each term is the sum of the two before), alternating (two steps by
    turns), quadratic (the steps change by a constant). A question has one answer within these
    rules: 5 or 6 terms are shown and no rule has more than three parameters, so that each is
    confirmed by at least two terms, and two different rules never hold for 5 terms unless both are
    the arithmetic one (a constant step is two equal steps by turns, and steps that change by 0).

    Level 1: arithmetic, 5 terms, start 0 .. 20, step 1 .. 9. Level 2, 5 terms: arithmetic, start
    -20 .. 99, step -20 .. 20 but 0; or geometric, start 1 .. 9, ratio 2 or 3. Level 3, 6 terms:
    alternating, start 0 .. 50, steps -9 .. 15; or quadratic, start 0 .. 20, first step 1 .. 9,
    change 1 .. 5. Level 4, 6 terms: Fibonacci-like, start 1 .. 30 twice; alternating, start
    -50 .. 50, steps -60 .. 60; quadratic, start -50 .. 50, first step -30 .. 30, change -12 .. 12;
    or geometric, start -9 .. 9, ratio -4 .. -2 or 2 .. 4. Kinds and numbers are uniform.

    Canonical: the terms. The final answer is a whole number.

    Styles: "steps" looks at the differences, then names the rule and applies it; a slip is a wrong
    difference or a wrong result. "check" then compares the result with what the rule demands and,
    where it differs, takes that.
    """

    name: ClassVar[str] = "number_sequences"
    levels: ClassVar[int] = 4
    bare: ClassVar[bool] = True
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> Terms:
        kinds = _DRAWS[level]
        return kinds[int(rng.random() * len(kinds))](rng)

    def canonical(self, task: Terms) -> str:
        return _listed(task)

    def phrase(self, task: Terms, rng: Random, language: Language) -> str:
        phrases = _PHRASES[language]
        return phrases[int(rng.random() * len(phrases))].format(_listed(task))

    def answer(self, task: Terms, language: Language) -> str:
        return str(_fitting(task)[1])

    def verify(self, problem: Problem, answer: str) -> Verdict:
        bare = plain(answer)
        if bare is None:
            return wrong("too long for one number")
        return whole_number(bare, int(problem.answer), stop=False)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        terms, zh = _task(problem), problem.language == "zh"
        steps: list[str] = []
        found = _continued(terms, rng, slip, zh, steps)
        if style == "check":
            found = _checked(terms, found, zh, steps)
        return Worked(tuple(steps), str(found))


def _task(problem: Problem) -> Terms:
    assert isinstance(problem.task, tuple)
    return problem.task


def _listed(terms: Sequence[int]) -> str:
    return ", ".join(map(str, terms))


# Draws. Ends of ranges are inclusive.


def _between(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _but_zero(rng: Random, low: int, high: int) -> int:
    return _between(rng, low, high - 1) or high


def _summed(start: int, steps: Sequence[int]) -> Terms:
    terms = [start]
    for step in steps:
        terms.append(terms[-1] + step)
    return tuple(terms)


def _small_arithmetic(rng: Random) -> Terms:
    return _summed(_between(rng, 0, 20), [_between(rng, 1, 9)] * 4)


def _any_arithmetic(rng: Random) -> Terms:
    return _summed(_between(rng, -20, 99), [_but_zero(rng, -20, 20)] * 4)


def _small_geometric(rng: Random) -> Terms:
    start, ratio = _between(rng, 1, 9), _between(rng, 2, 3)
    return tuple([start * ratio**n for n in range(5)])


def _any_geometric(rng: Random) -> Terms:
    start, ratio = _but_zero(rng, -9, 9), rng.choice((-4, -3, -2, 2, 3, 4))
    return tuple([start * ratio**n for n in range(6)])


def _small_alternating(rng: Random) -> Terms:
    one, other = _but_zero(rng, -9, 15), _but_zero(rng, -9, 15)
    return _summed(_between(rng, 0, 50), [one, other, one, other, one])


def _any_alternating(rng: Random) -> Terms:
    one, other = _but_zero(rng, -60, 60), _but_zero(rng, -60, 60)
    return _summed(_between(rng, -50, 50), [one, other, one, other, one])


def _small_quadratic(rng: Random) -> Terms:
    first, change = _between(rng, 1, 9), _between(rng, 1, 5)
    return _summed(_between(rng, 0, 20), [first + n * change for n in range(5)])


def _any_quadratic(rng: Random) -> Terms:
    first, change = _between(rng, -30, 30), _but_zero(rng, -12, 12)
    return _summed(_between(rng, -50, 50), [first + n * change for n in range(5)])


def _any_fibonacci(rng: Random) -> Terms:
    terms = [_between(rng, 1, 30), _between(rng, 1, 30)]
    while len(terms) < 6:
        terms.append(terms[-1] + terms[-2])
    return tuple(terms)


_DRAWS: Final = {
    1: (_small_arithmetic,),
    2: (_any_arithmetic, _small_geometric),
    3: (_small_alternating, _small_quadratic),
    4: (_any_fibonacci, _any_alternating, _any_quadratic, _any_geometric),
}


# Thoughts.


def _slipped(value: int, rng: Random, slip: float) -> int:
    return value + rng.choice((-1, 1)) if slip > 0.0 and rng.random() < slip else value


def _signed(number: int) -> str:
    """A number as the right-hand side of an operator."""
    return str(number) if number >= 0 else f"({number})"


def _plus(number: int) -> str:
    """``+ 3`` or ``- 3``."""
    return f"- {-number}" if number < 0 else f"+ {number}"


def _continued(terms: Terms, rng: Random, slip: float, zh: bool, steps: list[str]) -> int:
    """The next term, aloud: differences, rule, result."""
    stop = "。" if zh else "."
    steps_found: list[int] = []
    for before, after in pairwise(terms):
        steps_found.append(_slipped(after - before, rng, slip))
        steps.append(f"{after} - {_signed(before)} = {steps_found[-1]}{stop}")
    last, (rule, _) = terms[-1], _fitting(terms)
    if rule is _geometric:
        ratio = _slipped(terms[1] // terms[0], rng, slip)
        found = _slipped(last * ratio, rng, slip)
        steps.append(
            f"差不固定，看商。每次 * {ratio}。"
            if zh
            else f"Not the same. The ratio: always * {ratio}."
        )
        steps.append(f"{last} * {_signed(ratio)} = {found}{stop}")
        return found
    if rule is _fibonacci:
        steps.append("每个数是前两个数的和。" if zh else "Each is the sum of the two before.")
        found = _slipped(terms[-2] + last, rng, slip)
        steps.append(f"{terms[-2]} + {last} = {found}{stop}")
        return found
    step = steps_found[-2]
    if rule is _arithmetic:
        steps.append(f"每次 {_plus(step)}。" if zh else f"Always {_plus(step)}.")
    elif rule is _alternating:
        both = _plus(step), _plus(steps_found[-1])
        steps.append("轮流 {} 和 {}。".format(*both) if zh else "By turns {} and {}.".format(*both))
    else:
        change = _slipped(steps_found[-1] - step, rng, slip)
        step = steps_found[-1] + change
        steps.append(f"差每次 {_plus(change)}。" if zh else f"The steps go {_plus(change)}.")
        steps.append(f"{steps_found[-1]} {_plus(change)} = {step}{stop}")
    found = _slipped(last + step, rng, slip)
    steps.append(f"{last} {_plus(step)} = {found}{stop}")
    return found


def _checked(terms: Terms, found: int, zh: bool, steps: list[str]) -> int:
    """Compares the step to ``found`` with the one that the rule demands."""
    last, (rule, right) = terms[-1], _fitting(terms)
    if rule is _geometric:
        due = f"{last} * {_signed(right // last)} = {right}"
    else:
        due = f"{last} {_plus(right - last)} = {right}"
    steps.append(f"检查：应为 {due}。" if zh else f"Check: {due}.")
    if found == right:
        steps.append("对。" if zh else "Right.")
    else:
        steps.append(f"等等，不是 {found}，是 {right}。" if zh else f"Wait, {right}, not {found}.")
    return right
