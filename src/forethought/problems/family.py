"""What a problem family is: a draw, phrasings in two languages, a verifier, worked thoughts.

A family is one file and one frozen dataclass. Its fields are its settings (with defaults), so that
``Countdown(largest=50)`` is another family of the same name; `validate` refuses impossible ones.
A problem is a pure function of (settings, level, seed): nothing else is random.

    @dataclass(frozen=True)
    class Doubling(Family):
        name: ClassVar[str] = "doubling"
        levels: ClassVar[int] = 2

        def draw(self, rng, level): return rng.randrange(10**level)
        def canonical(self, task): return str(task)
        def phrase(self, task, rng, language): return f"Double {task}."
        def answer(self, task, language): return str(2 * task)
        def verify(self, problem, answer): return whole_number(answer, 2 * problem.task)
        def worked(self, problem, rng, *, style="steps", slip=0.0): ...
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from forethought.errors import UserError
from forethought.problems.problem import LANGUAGES, Language, Problem, Verdict


@dataclass(frozen=True, slots=True)
class Worked:
    """A worked thought: ``steps`` are its pieces of text in order, in the problem's language.

    They are joined by single spaces (English) or nothing (Chinese) or newlines, as the style of
    the document wants, so each is complete with its punctuation. ``answer`` is the final answer the
    thought arrives at, right or not; None when it arrives at none. A reader may stop after any
    step: what is left is an unfinished thought.
    """

    steps: tuple[str, ...]
    answer: str | None


@dataclass(frozen=True)
class Family(abc.ABC):
    """See the module. Methods that draw take a `random.Random` and use nothing else."""

    name: ClassVar[str]
    levels: ClassVar[int]
    """Levels are 1 .. levels, harder upwards; the docstring of the family states each draw."""
    languages: ClassVar[tuple[Language, ...]] = LANGUAGES
    bare: ClassVar[bool] = False
    """In pretraining it appears as problem and answer only, never as a worked thought."""
    styles: ClassVar[tuple[str, ...]] = ("steps",)
    """Ways in which its worked thoughts go about it, the plainest first."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:  # noqa: B027 (a family without impossible settings needs none)
        """Raise UserError (one sentence naming the field) for settings that make no problem."""

    # What a family brings. ``task`` is a small immutable value of its own choosing.

    @abc.abstractmethod
    def draw(self, rng: Random, level: int) -> Any:
        """The task: what is asked, without words."""

    @abc.abstractmethod
    def canonical(self, task: Any) -> str:
        """What names the task whatever the order of its parts; without the family's name."""

    @abc.abstractmethod
    def phrase(self, task: Any, rng: Random, language: Language) -> str:
        """The question in one of several phrasings. It says how the final answer is written."""

    @abc.abstractmethod
    def answer(self, task: Any, language: Language) -> str:
        """A right final answer."""

    @abc.abstractmethod
    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Whether a final answer (hostile text, already taken out of the sample) is right.

        Exact, linear in the length of the text, never raises.
        """

    @abc.abstractmethod
    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        """A thought that works the problem out, in its language.

        ``style`` is one of `styles`. With probability ``slip`` a step goes wrong (a miscalculation,
        a lost item) and the thought goes on from the wrong value, so that it may arrive at a wrong
        answer; with 0.0 it arrives at a right one, or (styles that guess) perhaps at none.
        """

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """A plausible wrong final answer, for documents that err. By default a number nearby."""
        try:
            value = int(problem.answer)
        except ValueError:
            raise NotImplementedError(f"{self.name} brings no wrong_answer") from None
        return str(value + rng.choice((-10, -2, -1, 1, 2, 10)))

    def guess(self, problem: Problem, rng: Random) -> str:
        """What one says without having looked: by default the answer of another problem of the
        level where answers are whole numbers, which is right now and then; else a wrong answer."""
        try:
            int(problem.answer)
        except ValueError:
            return self.wrong_answer(problem, rng)
        return self.answer(self.draw(rng, problem.level), problem.language)

    # What every family does the same way.

    def problem(self, level: int, seed: int, language: Language | None = None) -> Problem:
        """The problem of a level and a seed; UserError for a level that the family lacks.

        The language is drawn too unless given; the task does not depend on it.
        """
        if not 1 <= level <= self.levels:
            raise UserError(f"{self.name} has no level {level}: its levels are 1 to {self.levels}.")
        rng = Random(seed * 64 + level)
        task = self.draw(rng, level)
        drawn = LANGUAGES[rng.random() < 0.5]
        spoken = language or drawn
        return Problem(
            family=self.name,
            level=level,
            seed=seed,
            language=spoken,
            text=self.phrase(task, rng, spoken),
            answer=self.answer(task, spoken),
            canonical=f"{self.name}:{self.canonical(task)}",
            task=task,
        )

    def problems(
        self, level: int, seeds: Iterable[int], language: Language | None = None
    ) -> Iterator[Problem]:
        """Those of several seeds, each made when it is asked for."""
        return (self.problem(level, seed, language) for seed in seeds)
