"""Problems that nano was never trained on, and which answers a vote takes for the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, cast

from forethought.problems.answers import plain, read_whole
from forethought.problems.expression import (
    Expression,
    NotAnExpressionError,
    Operation,
    ascii_operators,
    between,
    operate,
    parse,
    standard,
    value_of,
)
from forethought.problems.families.chained_arithmetic import ChainedArithmetic
from forethought.problems.families.countdown import Combination, CombiningFamily, Countdown
from forethought.problems.problem import Problem
from forethought.problems.source import LevelledSource
from forethought.training.judging import Judged

LONG: Final = (10_000, 99_999)
"""Two digits more than the longest numbers of chained_arithmetic, 100 to 999."""


@dataclass(frozen=True)
class FiveNumbers(Countdown):
    """Countdown with one number more than its highest level."""

    name: ClassVar[str] = "countdown_five"
    levels: ClassVar[int] = 1

    def draw(self, rng: Random, level: int) -> Combination:
        return super().draw(rng, 3)


@dataclass(frozen=True)
class LongerOperands(ChainedArithmetic):
    """Two or three numbers of five digits, added or taken away; no value on the way is negative."""

    name: ClassVar[str] = "arithmetic_longer"
    levels: ClassVar[int] = 1

    def draw(self, rng: Random, level: int) -> Operation:
        chain: Expression = between(rng, *LONG)
        for _ in range(between(rng, 1, 2)):
            term = between(rng, *LONG)
            minus = cast(int, value_of(chain)) >= term and rng.random() < 0.5
            chain = operate("-" if minus else "+", chain, term)
        return cast(Operation, chain)


def never_trained(countdown: Countdown | None) -> list[CombiningFamily | ChainedArithmetic]:
    """Both families; the first with the trained one's range of numbers."""
    if countdown is None:
        return [FiveNumbers(), LongerOperands()]
    return [
        FiveNumbers(
            smallest=countdown.smallest,
            largest=countdown.largest,
            lowest_target=countdown.lowest_target,
            highest_target=countdown.highest_target,
            operators=countdown.operators,
        ),
        LongerOperands(),
    ]


def class_of(family: LevelledSource, problem: Problem, judged: Judged) -> str | None:
    """What a vote takes an answer for; None where it cannot be read.

    The family's own verifier says which answers are the right one. Where many are right (an
    expression that makes a target) each is its own: those that differ in the order of terms and
    in brackets alone are one. Wrong ones are the same number, or the same text.
    """
    answer = judged.reply.final_answer
    bare = None if answer is None else plain(answer)
    if answer is None or not answer.strip():
        return None
    if isinstance(family, CombiningFamily):
        try:
            return standard(parse(ascii_operators(bare or "").partition("=")[0]))
        except NotAnExpressionError:
            return f"text {answer}"
    if judged.verdict.correct:
        return "right"
    number = read_whole(answer)
    return (
        f"text {' '.join((bare or answer).split()).casefold()}" if number is None else f"{number}"
    )


def majority(family: LevelledSource, problem: Problem, judged: Sequence[Judged]) -> float:
    """Whether the answer with the most votes is right; among equals, the share of right ones."""
    votes: Counter[str] = Counter()
    right: set[str] = set()
    for one in judged:
        name = class_of(family, problem, one)
        if name is None:
            continue
        votes[name] += 1
        if one.verdict.correct:
            right.add(name)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [name for name, count in votes.items() if count == most]
    return sum(name in right for name in winners) / len(winners)
