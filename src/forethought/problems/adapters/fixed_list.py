"""A fixed list as a source with levels, so that a stream can draw from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from forethought.errors import UserError
from forethought.problems.problem import Language, Problem, Verdict
from forethought.problems.source import ProblemSource


class FixedList:
    """The problems of a `ProblemSource` by level: seed s is the (s mod n)-th of the level's n.

    A problem is held out by its text, as everywhere, so that one in 16 lines is never trained on,
    and the same question in two files is on the same side. Implements `LevelledSource`.
    """

    languages: tuple[Language, ...] = ("en",)

    def __init__(self, source: ProblemSource) -> None:
        self._source = source
        self._of_level: dict[int, list[Problem]] = {}
        for index in range(len(source)):
            problem = source.problem(index)
            self._of_level.setdefault(problem.level, []).append(problem)

    @property
    def name(self) -> str:
        """What its problems give as their family."""
        return self._source.name

    @property
    def levels(self) -> int:
        """The highest level; lower ones may have no problem."""
        return max(self._of_level)

    def problem(self, level: int, seed: int, language: Language | None = None) -> Problem:
        """The problem of a level and a seed. UserError for a level or a language it lacks."""
        if language not in {None, *self.languages}:
            raise UserError(f"{self.name} asks in English only: leave the language out.")
        problems = self._of_level.get(level)
        if problems is None:
            there = ", ".join(map(str, sorted(self._of_level)))
            raise UserError(f"{self.name} has no problem of level {level}: its levels are {there}.")
        return problems[seed % len(problems)]

    def problems(
        self, level: int, seeds: Iterable[int], language: Language | None = None
    ) -> Iterator[Problem]:
        """Those of several seeds in order."""
        return (self.problem(level, seed, language) for seed in seeds)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The verdict on a final answer."""
        return self._source.verify(problem, answer)
