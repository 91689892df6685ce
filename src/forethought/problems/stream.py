"""Endless problems of several families: the n-th is a function of (seed, n), so that a cursor is
one number and a run can go on where it stopped."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Final, TypeAlias

from forethought.errors import UserError
from forethought.problems.problem import Language, Problem
from forethought.problems.source import LevelledSource

_TRIES: Final = 10_000
_TRIES_FOR_ANOTHER: Final = 2_500
"""Draws after which a held-out problem may come a second time."""

LevelChoice: TypeAlias = Callable[[str, int], int]
"""The level to draw, of a family by its name and a number of `LEVEL_BITS` uniform bits."""
LEVEL_BITS: Final = 16

_64_BITS: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def _mixed(number: int) -> int:
    """64 bits that look random, a function of the number: the output of SplitMix64 (Steele, Lea
    and Flood 2014). A tenth of the time that it takes to make a `random.Random`."""
    number = (number + _GOLDEN) & _64_BITS
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return number ^ (number >> 31)


def _seeds(bits: int) -> Iterator[int]:
    """Seeds without end that follow from ``bits``."""
    while True:
        bits = _mixed(bits)
        yield bits & ((1 << 48) - 1)


def _levels(
    families: Sequence[LevelledSource], chosen: Mapping[str, tuple[int, ...]] | None
) -> list[tuple[int, ...]]:
    """The levels of each family: those that were chosen by its name, else all."""
    found = []
    for one in families:
        levels = (chosen or {}).get(one.name) or tuple(range(1, one.levels + 1))
        for level in levels:
            if not 1 <= level <= one.levels:
                raise UserError(
                    f"{one.name} has no level {level}: its levels are 1 to {one.levels}."
                )
        found.append(tuple(levels))
    return found


class ProblemStream:
    """Problems for training: families in turn by weight, every level of a family equally often.

    ``levels`` restricts a family to some of its levels, by name. Problems that are held out never
    come (``held_out`` turns that round: then nothing else does). Raises UserError for a level that
    the family lacks or a weight that is not positive.
    """

    def __init__(
        self,
        families: Sequence[LevelledSource],
        seed: int,
        *,
        levels: dict[str, tuple[int, ...]] | None = None,
        weights: dict[str, float] | None = None,
        language: Language | None = None,
        held_out: bool = False,
    ) -> None:
        if not families:
            raise UserError("no problem family was named; name at least one.")
        self._start = _mixed(seed)
        self._language = language
        self._held_out = held_out
        self._families = list(families)
        self._levels = _levels(families, levels)
        shares = [(weights or {}).get(one.name, 1.0) for one in families]
        for one, weight in zip(families, shares, strict=True):
            if not 0 < weight < float("inf"):
                raise UserError(
                    f"the weight of {one.name} is {weight}; it must be a number above 0."
                )
        total = sum(shares)
        self._bounds = [int(part / total * _64_BITS) for part in accumulate(shares[:-1])]
        """Where in 64 bits the share of the next family begins."""

    @property
    def ladders(self) -> dict[str, tuple[int, ...]]:
        """The levels of each family that problems are drawn from, by its name."""
        pairs = zip(self._families, self._levels, strict=True)
        return {one.name: levels for one, levels in pairs}

    def __getitem__(self, index: int) -> Problem:
        """The problem number ``index`` (from 0)."""
        return self.problem(index)

    def problem(self, index: int, choose: LevelChoice | None = None) -> Problem:
        """The problem number ``index``, of the level that ``choose`` says; by default any of its
        family's. Families come as often, and from the same numbers, whatever the levels."""
        bits = _mixed(self._start ^ index)
        which = bisect(self._bounds, bits)
        one, levels = self._families[which], self._levels[which]
        for _ in range(_TRIES):
            bits = _mixed(bits)
            # Level from the upper bits, seed from the lower ones.
            upper = bits >> (64 - LEVEL_BITS)
            at = upper * len(levels) >> LEVEL_BITS
            level = levels[at] if choose is None else choose(one.name, upper)
            problem = one.problem(level, bits & ((1 << 48) - 1), self._language)
            if problem.held_out == self._held_out:
                return problem
        raise UserError(
            f"{one.name} has too few problems: none of {_TRIES} draws was "
            f"{'' if self._held_out else 'not '}held out."
        )


def held_out_problems(
    families: Sequence[LevelledSource],
    count: int,
    seed: int,
    *,
    levels: dict[str, tuple[int, ...]] | None = None,
    language: Language | None = None,
) -> list[Problem]:
    """``count`` different held-out problems, over families, their levels and (unless one
    ``language`` is given) languages equally.

    In turn: family after family, each with its next level and then in the other language, so that
    any figure over them weighs all families, and all levels of a family, equally (to within one
    problem). A level with too few different ones repeats some. Raises UserError for a level that
    the family lacks or that has no held-out problem.
    """
    of_family = _levels(families, levels)
    chosen: list[Problem] = []
    seen: set[str] = set()
    exhausted: set[tuple[int, int]] = set()
    seeds = _seeds(_mixed(seed))
    for number in range(count):
        turn, at = divmod(number, len(families))
        one, (round_, which) = families[at], divmod(turn, len(of_family[at]))
        level = of_family[at][which]
        spoken = language or one.languages[(at + which + round_) % len(one.languages)]
        drawn = islice(one.problems(level, seeds, spoken), _TRIES)
        for attempt, problem in enumerate(drawn):
            if not problem.held_out:
                continue
            if attempt >= _TRIES_FOR_ANOTHER:
                exhausted.add((at, level))
            if problem.canonical not in seen or (at, level) in exhausted:
                break
        else:
            raise UserError(f"{one.name} has no held-out problem at level {level}.")
        seen.add(problem.canonical)
        chosen.append(problem)
    return chosen
