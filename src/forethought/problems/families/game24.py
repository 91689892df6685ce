"""The 24 game: combine four cards with + - * / so that they make 24."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from random import Random
from typing import ClassVar, Final

from forethought.problems.expression import Expression, operands, parse
from forethought.problems.families.countdown import (
    AND,
    COMMAS,
    DUN,
    HE,
    Combination,
    CombiningFamily,
    list_numbers,
    reachable,
    way_to,
)
from forethought.problems.problem import Language

TARGET: Final = 24
LARGEST: Final = 13

_WITH_FRACTIONS: Final = (
    "6 / (1 - 3 / 4)",
    "4 / (1 - 5 / 6)",
    "(5 - 1 / 5) * 5",
    "6 / (1 - 6 / 8)",
    "12 / (12 / 8 - 1)",
    "(2 + 2 / 11) * 11",
    "(2 - 2 / 13) * 13",
    "12 / (3 - 5 / 2)",
    "(2 + 4 / 10) * 10",
    "(5 - 2 / 10) * 5",
    "(10 / 7 + 2) * 7",
    "(3 + 3 / 7) * 7",
    "8 / (3 - 8 / 3)",
    "(4 - 4 / 7) * 7",
    "(7 - 11 / 5) * 5",
    "(5 - 11 / 7) * 7",
)
"""A solution of each hand of 1-13 that has none with whole numbers on the way."""

Hand = tuple[tuple[int, ...], Expression]


@cache
def hands() -> tuple[tuple[Hand, ...], ...]:
    """For each level its hands, sorted, each with a solution. Takes about half a second once."""
    easy: list[Hand] = []
    whole: list[Hand] = []
    dividing: list[Hand] = [
        (tuple(sorted(operands(one))), one) for one in map(parse, _WITH_FRACTIONS)
    ]
    for numbers in combinations_with_replacement(range(1, LARGEST + 1), 4):
        table = reachable(numbers)
        if TARGET not in table[-1]:
            continue
        hand = numbers, way_to(TARGET, table, numbers)
        whole.append(hand)
        if numbers[-1] <= 9:
            easy.append(hand)
        if TARGET not in reachable(numbers, operators="+-*")[-1]:
            dividing.append(hand)
    return tuple(easy), tuple(whole), tuple(sorted(dividing, key=lambda hand: hand[0]))


@dataclass(frozen=True)
class Game24(CombiningFamily):
    """Four numbers that make 24; a hand is drawn evenly from those of the level, then shuffled.

    1. Numbers 1-9, solvable with whole numbers on the way (397 hands).
    2. Numbers 1-13, solvable with whole numbers on the way (1346 hands).
    3. Numbers 1-13, solvable with a division alone: without one, or (16 of the 199 hands) without
       fractions on the way, there is no solution.

    Canonical: the sorted numbers and the target, "3 3 8 8 = 24". What is right and how worked
    thoughts go is as in Countdown.
    """

    name: ClassVar[str] = "game24"
    levels: ClassVar[int] = 3

    def draw(self, rng: Random, level: int) -> Combination:
        choice = hands()[level - 1]
        drawn, solution = choice[int(rng.random() * len(choice))]
        numbers = list(drawn)
        rng.shuffle(numbers)
        return Combination(tuple(numbers), TARGET, solution)

    def phrase(self, task: Combination, rng: Random, language: Language) -> str:
        template, joint = rng.choice(_PHRASINGS[language])
        return template.replace("{numbers}", list_numbers(task.numbers, joint))


_PHRASINGS: Final[dict[Language, tuple[tuple[str, tuple[str, str]], ...]]] = {
    "en": (
        ("Make 24 from {numbers}.", AND),
        ("The 24 game: {numbers}. Write the expression.", COMMAS),
        ("Use each of {numbers} exactly once, with + - * / and brackets, to get 24.", AND),
        (
            "Which expression with the numbers {numbers}, each used exactly once, equals 24? Only "
            "+, -, *, / and brackets are allowed.",
            COMMAS,
        ),
    ),
    "zh": (
        ("用 {numbers} 算出 24。", HE),
        ("24 点：{numbers}。请写出算式。", DUN),
        ("用 + - * / 和括号把 {numbers} 凑成 24，每个数恰好用一次。", HE),
        ("哪个算式恰好用 {numbers} 各一次并且等于 24？只能用加、减、乘、除和括号。", DUN),
    ),
}
