"""Where problems come from, as far as streams and judges need to know it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from forethought.problems.problem import Language, Problem, Verdict


class ProblemSource(Protocol):
    """A fixed list of problems: a benchmark, or a file of questions with answers.

    The problem of a number is always the same; its ``seed`` is that number.
    """

    @property
    def name(self) -> str:
        """What its problems give as their ``family``."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def problem(self, index: int) -> Problem:
        """The problem of a number from 0. Raises IndexError beyond the end."""
        ...

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The verdict on a final answer, hostile text already taken out of the sample."""
        ...


class LevelledSource(Protocol):
    """Problems by level and seed, and a verifier: a `Family`, or problems of other makers.

    The problem of a level, a seed and a language is always the same.
    """

    @property
    def name(self) -> str:
        """What its problems give as their ``family``."""
        ...

    @property
    def levels(self) -> int:
        """Levels are 1 .. levels, harder upwards."""
        ...

    @property
    def languages(self) -> tuple[Language, ...]:
        """The languages that it asks in."""
        ...

    def problem(self, level: int, seed: int, language: Language | None = None) -> Problem:
        """The problem of a level and a seed. UserError for a level or a language it lacks."""
        ...

    def problems(
        self, level: int, seeds: Iterable[int], language: Language | None = None
    ) -> Iterator[Problem]:
        """Those of several seeds in order, each as it is asked for, or some ahead where that is
        cheaper. Raises what `problem` raises."""
        ...

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The verdict on a final answer, hostile text already taken out of the sample."""
        ...
