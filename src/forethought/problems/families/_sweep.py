"""A search that leaves nothing out: how one works a countdown through, pair by pair.

First what each number needs, if it comes last: with 55 left and 65 wanted, 10 (55 + 10) or 120
(120 - 55). Then every pair in the order of the numbers, and of four numbers every result of a pair
with each of the other two. As soon as a result is what the number left over needs, that is it:

    I need 65. 19 needs 46, 84. 36 needs 29, 101. 55 needs 10, 120. 7 needs 58, 72.
    19 + 36 = 55: 55 gives 110, 0, 1; 7 gives 62, 48; 55 needs 10, 120; 55 and 7 give 62, 48.
    36 - 19 = 17: 55 gives 72, yes. 36 - 19 = 17, 17 + 55 = 72, 72 - 7 = 65.

A thought of this kind is never lost: what has been tried is in the order, and what is wanted stands
at its top, so that every step is one that a small network can do from what it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple

from forethought.problems.expression import (
    Expression,
    Operation,
    operate,
    value_of,
    write_calculation,
)
from forethought.problems.problem import Language

SIZES: Final = (3, 4)
"""How many numbers can be worked through."""
_REACH: Final = 2
"""Results more than this many times the largest of target and numbers are not gone on from."""


class _Words(NamedTuple):
    needs: str
    """What a number needs, if it comes last: {number}, {list}."""
    first: str
    """The head of a line of four numbers: {calculation}."""
    gives: str
    """What a number and the result so far come to: {number}, {list}."""
    give: str
    """What two numbers come to: {one}, {other}, {list}."""
    joint: str
    between: str
    yes: str
    stop: str
    space: str


_WORDS: Final[dict[Language, _Words]] = {
    "en": _Words(
        needs="{number} needs {list}",
        first="{calculation}: ",
        gives="{number} gives {list}",
        give="{one} and {other} give {list}",
        joint=", ",
        between="; ",
        yes=", yes.",
        stop=".",
        space=" ",
    ),
    "zh": _Words(
        needs="{number} 要 {list}",
        first="{calculation}：",
        gives="和 {number} 得 {list}",
        give="{one} 和 {other} 得 {list}",
        joint="、",
        between="；",
        yes="，对了。",
        stop="。",
        space="",
    ),
}


@dataclass(slots=True)
class Sweep:
    """The lines of a search and the expression that it found; None: there is none within reach."""

    lines: list[str] = field(default_factory=list)
    found: Operation | None = None


def sweep(numbers: Sequence[int], target: int, operators: str, language: Language) -> Sweep:
    """Work through three or four numbers (ValueError for any other count).

    Results on the way are whole, not negative and at most twice the largest of ``numbers`` and
    ``target``; what needs larger ones is not found.
    """
    if len(numbers) not in SIZES:
        raise ValueError(f"{len(numbers)} numbers, not one of {SIZES}")
    return _Sweeper(target, operators, _REACH * max(target, *numbers), _WORDS[language]).all(
        numbers
    )


@dataclass(frozen=True, slots=True)
class _Sweeper:
    target: int
    operators: str
    reach: int
    words: _Words

    def all(self, numbers: Sequence[int]) -> Sweep:
        words = self.words
        made = Sweep()
        needs = [words.needs.format(number=one, list=self._needed(one)) for one in numbers]
        made.lines.append(words.space.join(need + words.stop for need in needs))
        for (i, one), (j, other) in combinations(enumerate(numbers), 2):
            left = [number for at, number in enumerate(numbers) if at not in (i, j)]
            for line, found in self._pair(one, other, left, split=i == 0):
                made.lines.append(line)
                if found is not None:
                    made.found = found
                    return made
        return made

    def _pair(
        self, one: int, other: int, left: list[int], *, split: bool
    ) -> Iterator[tuple[str, Operation | None]]:
        """The lines that begin with two numbers, and what was found at the end of each."""
        if len(left) == 1:
            listed, found = self._listed(one, other, left[0])
            yield self.words.give.format(one=one, other=other, list=listed), found
            return
        for first in self._together(one, other):
            parts: list[str] = []
            found = None
            for at, number in enumerate(left):
                listed, found = self._listed(first, number, left[1 - at])
                parts.append(self.words.gives.format(number=number, list=listed))
                if found is not None:
                    break
            else:
                if split:
                    value = value_of(first)
                    need = self.words.needs.format(number=value, list=self._needed(int(value)))
                    listed, found = self._listed(left[0], left[1], first)
                    pair = self.words.give.format(one=left[0], other=left[1], list=listed)
                    parts += [need, pair]
            head = self.words.first.format(calculation=write_calculation(first))
            tail = "" if found is not None else self.words.stop
            yield head + self.words.between.join(parts) + tail, found

    def _listed(
        self, one: Expression, other: Expression, last: Expression
    ) -> tuple[str, Operation | None]:
        """The results of two parts as a list that ends at the one that ``last`` needs."""
        shown: list[str] = []
        for result in self._together(one, other):
            shown.append(str(result.value))
            whole = self._completed(result, last)
            if whole is not None:
                return self.words.joint.join(shown) + self.words.yes, whole
        return self.words.joint.join(shown), None

    def _completed(self, one: Expression, last: Expression) -> Operation | None:
        """The operation on the two that comes to the target."""
        for whole in _operations(one, last, self.operators):
            if whole.value == self.target:
                return whole
        return None

    def _together(self, one: Expression, other: Expression) -> list[Operation]:
        """Results within reach, each value once: sum, difference, product, quotient."""
        found: dict[object, Operation] = {}
        for made in _operations(one, other, self.operators):
            if made.value <= self.reach:
                found.setdefault(made.value, made)
        return list(found.values())

    def _needed(self, number: int) -> str:
        """The values that make the target with ``number``: "10, 120"."""
        target = self.target
        wanted = [abs(target - number), target + number]
        if "*" in self.operators and number and not target % number:
            wanted.append(target // number)
        if "/" in self.operators and number * target <= self.reach:
            wanted.append(number * target)
        if "/" in self.operators and number and not number % target:
            wanted.append(number // target)
        return self.words.joint.join(map(str, dict.fromkeys(wanted)))


def _operations(one: Expression, other: Expression, operators: str) -> Iterator[Operation]:
    """Every operation on two parts that gives a whole number that is not negative."""
    more, less = (one, other) if value_of(one) >= value_of(other) else (other, one)
    yield operate("+", one, other)
    yield operate("-", more, less)
    if "*" in operators:
        yield operate("*", one, other)
    if "/" in operators and value_of(less) and not value_of(more) % value_of(less):
        yield operate("/", more, less)
