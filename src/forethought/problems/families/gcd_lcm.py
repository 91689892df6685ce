"""Greatest common divisors and least common multiples of two or three numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, Literal, NamedTuple, cast

from forethought.problems.answers import plain, whole_number
from forethought.problems.expression import between, miscalculated
from forethought.problems.family import Family, Worked
from forethought.problems.problem import Language, Problem, Verdict, wrong

Kind = Literal["gcd", "lcm"]

_NAMED: Final = re.compile(
    r"(gcd|lcm)\s*(?:\(([0-9]{1,9}(?:,\s*[0-9]{1,9}){1,2})\))?\s*=", re.IGNORECASE | re.ASCII
)


class Asked(NamedTuple):
    kind: Kind
    numbers: tuple[int, ...]
    result: int


class _Draw(NamedTuple):
    """``size`` different multiples of a number up to ``factor``: times ``low`` to ``high``."""

    kind: Kind
    size: int
    factor: int
    low: int
    high: int


_LEVELS: Final = (
    (_Draw("gcd", 2, 9, 1, 5),),
    (_Draw("gcd", 2, 20, 2, 12), _Draw("lcm", 2, 1, 2, 15)),
    (_Draw("gcd", 3, 20, 2, 15), _Draw("lcm", 2, 10, 2, 10)),
    (_Draw("gcd", 2, 40, 11, 60), _Draw("gcd", 3, 40, 11, 60), _Draw("lcm", 3, 1, 2, 24)),
)


@dataclass(frozen=True)
class GcdLcm(Family):
    """Two or three different numbers: a common factor f times different cofactors. All draws are
    even, also the one between the lines of a level.

    1. gcd of two: f 1-9, cofactors 1-5.
    2. gcd of two: f 1-20, cofactors 2-12; lcm of two numbers 2-15.
    3. gcd of three: f 1-20, cofactors 2-15; lcm of two: f 1-10, cofactors 2-10.
    4. gcd of two, or of three: f 1-40, cofactors 11-60; lcm of three numbers 2-24.

    Canonical: what is asked and the sorted numbers, "gcd 18 48". Styles: ``steps`` is Euclid's
    algorithm, two numbers at a time (for the lcm followed by dividing and multiplying); ``check``
    then divides the numbers by the gcd, or the lcm by the numbers: that has to come out even, with
    no common factor left. If it does not, it starts again.
    """

    name: ClassVar[str] = "gcd_lcm"
    levels: ClassVar[int] = len(_LEVELS)
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> Asked:
        kinds = _LEVELS[level - 1]
        kind, size, most, low, high = kinds[int(rng.random() * len(kinds))]
        factor = between(rng, 1, most)
        cofactors: list[int] = []
        while len(cofactors) < size:
            drawn = between(rng, low, high)
            if drawn not in cofactors:
                cofactors.append(drawn)
        numbers = tuple([factor * cofactor for cofactor in cofactors])
        result = math.gcd(*numbers) if kind == "gcd" else math.lcm(*numbers)
        return Asked(kind, numbers, result)

    def canonical(self, task: Asked) -> str:
        return f"{task.kind} {' '.join(map(str, sorted(task.numbers)))}"

    def phrase(self, task: Asked, rng: Random, language: Language) -> str:
        *first, last = map(str, task.numbers)
        joint, final = (", ", " and ") if language == "en" else ("、", " 和 ")
        template = rng.choice(_PHRASINGS[language, task.kind])
        return template.replace("{numbers}", joint.join(first) + final + last).replace(
            "{list}", ", ".join((*first, last))
        )

    def answer(self, task: Asked, language: Language) -> str:
        return str(task.result)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The number; "gcd = " or "gcd(48, 18) = " may stand before it."""
        task = cast(Asked, problem.task)
        bare = plain(answer)
        if bare is None:
            return wrong("too long")
        named = _NAMED.match(bare)
        if named:
            if named[1].lower() != task.kind:
                return wrong(f"asked was the {task.kind}")
            if named[2] and sorted(map(int, named[2].split(","))) != sorted(task.numbers):
                return wrong("not the numbers that were asked")
            bare = bare[named.end() :]
        return whole_number(bare, task.result, stop=False)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = cast(Asked, problem.task)
        words = _WORDS[problem.language]
        steps: list[str] = []
        result = _find(task, rng, slip, words, steps)
        if style == "check":
            fault = None if rng.random() < slip else _fault(task, result, words)
            if fault is None:
                steps.append(words.right.format(shown=words.comma.join(_divisions(task, result))))
            else:
                steps += [fault, words.again]
                result = _find(task, rng, 0.0, words, steps)
        name = words.names[task.kind]
        steps.append(rng.choice(words.so).format(name=name, result=result))
        return Worked(tuple(steps), str(result))


def _find(task: Asked, rng: Random, slip: float, words: _Words, steps: list[str]) -> int:
    """The result, two numbers at a time, with slips; adds each line to ``steps``."""
    combine: Callable[[int, int, Random, float, str, list[str]], int]
    combine = _euclid if task.kind == "gcd" else _multiple
    so_far, *others = task.numbers
    for number in others:
        so_far = combine(so_far, number, rng, slip, words.stop, steps)
    return so_far


def _euclid(a: int, b: int, rng: Random, slip: float, stop: str, steps: list[str]) -> int:
    """Euclid's algorithm: "48 = 2 * 18 + 12" and so on until nothing is left."""
    a, b = max(a, b), min(a, b)
    while True:
        times, left = divmod(a, b)
        if rng.random() < slip:
            left = (left + rng.choice((-1, 1, 2))) % b
        steps.append(f"{a} = {times} * {b}{f' + {left}' if left else ''}{stop}")
        if not left:
            return b
        a, b = b, left


def _multiple(a: int, b: int, rng: Random, slip: float, stop: str, steps: list[str]) -> int:
    """The least common multiple: a divided by what both share, times b."""
    shared = _euclid(a, b, rng, slip, stop, steps)
    quotient = a // shared
    steps.append(f"{a} / {shared} = {quotient}{stop}")
    result = quotient * b
    if rng.random() < slip:
        result = miscalculated(result, rng)
    steps.append(f"{quotient} * {b} = {result}{stop}")
    return result


def _pairs(task: Asked, result: int) -> list[tuple[int, int]]:
    """What has to be divisible by what, if the result is right."""
    if task.kind == "gcd":
        return [(number, result) for number in task.numbers]
    return [(result, number) for number in task.numbers]


def _divisions(task: Asked, result: int) -> list[str]:
    return [f"{a} / {b} = {a // b}" for a, b in _pairs(task, result)]


def _fault(task: Asked, result: int, words: _Words) -> str | None:
    """What a check finds wrong with a result, or None: the quotients are whole and have no common
    factor for the right one alone."""
    pairs = _pairs(task, result)
    for a, b in pairs:
        if a % b:
            return words.uneven.format(a=a, b=b)
    common = math.gcd(*[a // b for a, b in pairs])
    if common == 1:
        return None
    shown = words.comma.join(_divisions(task, result))
    return words.common.format(shown=shown, common=common)


class _Words(NamedTuple):
    """What the worked thoughts say."""

    stop: str
    comma: str
    names: dict[Kind, str]
    so: tuple[str, ...]
    right: str
    uneven: str
    common: str
    again: str


_WORDS: Final[dict[Language, _Words]] = {
    "en": _Words(
        stop=".",
        comma=", ",
        names={"gcd": "gcd", "lcm": "lcm"},
        so=("So the {name} is {result}.", "The {name} is {result}."),
        right="Check: {shown}, right.",
        uneven="Check: {a} / {b} is not whole.",
        common="Check: {shown}, still all divisible by {common}.",
        again="Wait, again.",
    ),
    "zh": _Words(
        stop="。",
        comma="，",
        names={"gcd": "最大公约数", "lcm": "最小公倍数"},
        so=("所以{name}是 {result}。", "{name}是 {result}。"),
        right="检查：{shown}，对。",
        uneven="检查：{a} / {b} 不是整数。",
        common="检查：{shown}，还都能被 {common} 整除。",
        again="等等，再算一遍。",
    ),
}

_PHRASINGS: Final[dict[tuple[Language, Kind], tuple[str, ...]]] = {
    ("en", "gcd"): (
        "What is the greatest common divisor of {numbers}?",
        "Find the GCD of {numbers}.",
        "gcd({list}) = ?",
        "What is the largest whole number that divides all of {numbers} without a remainder?",
    ),
    ("en", "lcm"): (
        "What is the least common multiple of {numbers}?",
        "Find the LCM of {numbers}.",
        "lcm({list}) = ?",
        "What is the smallest positive whole number that is divisible by all of {numbers}?",
    ),
    ("zh", "gcd"): (
        "{numbers} 的最大公约数是多少？",
        "求 {numbers} 的最大公约数。",
        "gcd({list}) = ？",
        "能同时整除 {numbers} 的最大整数是多少？",
    ),
    ("zh", "lcm"): (
        "{numbers} 的最小公倍数是多少？",
        "求 {numbers} 的最小公倍数。",
        "lcm({list}) = ？",
        "能同时被 {numbers} 整除的最小正整数是多少？",
    ),
}
