"""Families whose documents show how they came about: what was drawn, which style, which slip."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong


@dataclass(frozen=True)
class Marked(Family):
    name: ClassVar[str] = "marked"
    levels: ClassVar[int] = 2
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> int:
        return rng.randrange(100, 1000)

    def canonical(self, task: int) -> str:
        return str(task)

    def phrase(self, task: int, rng: Random, language: Language) -> str:
        return f"Marked {task}?" if language == "en" else f"标记 {task}？"

    def answer(self, task: int, language: Language) -> str:
        return f"right{task}"

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return CORRECT if answer == problem.answer else wrong("not the answer")

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        word = "step" if problem.language == "en" else "步骤"
        steps = [f"{word}{at}." for at in range(4)]
        answer = problem.answer
        if rng.random() < slip:
            answer = f"wrong{problem.task}"
        if style == "check":
            steps.append("CHECK.")
        return Worked(tuple(steps), answer)

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        return f"wrong{problem.task}"


@dataclass(frozen=True)
class Bare(Marked):
    name: ClassVar[str] = "bare_marked"
    bare: ClassVar[bool] = True

    def phrase(self, task: int, rng: Random, language: Language) -> str:
        return f"Bare {task}?"

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        raise AssertionError("a bare family is never worked")
