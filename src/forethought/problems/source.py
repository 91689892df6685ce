"""A fixed list of problems: a benchmark, or a file of questions with answers."""

from __future__ import annotations

from typing import Protocol

from forethought.problems.problem import Problem, Verdict


class ProblemSource(Protocol):
    """Problems by number, and a verifier. A `Family` makes problems; a source has them.

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
