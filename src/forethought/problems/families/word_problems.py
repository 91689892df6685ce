"""Everyday stories that ask for a number."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, NamedTuple

from forethought.problems.answers import plain, read_whole
from forethought.problems.expression import miscalculated
from forethought.problems.families._long_stories import FOUR_STEPS, THREE_STEPS
from forethought.problems.families._short_stories import ONE_STEP, TWO_STEPS
from forethought.problems.families._story import NAMES, THINGS, Operator, Story, Words
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, LANGUAGES, Language, Problem, Verdict, wrong

STORIES: Final = (ONE_STEP, TWO_STEPS, THREE_STEPS, FOUR_STEPS)
"""The stories of each level."""

_FIELDS: Final = "xyzvw"
_OPPOSITE: Final[dict[Operator, Operator]] = {"+": "-", "-": "+", "*": "/", "/": "*"}


class WordTask(NamedTuple):
    """A story with its numbers, and places in the lists of names and of things."""

    story: Story
    numbers: tuple[int, ...]
    names: tuple[int, int, int]
    things: tuple[int, int]


@dataclass(frozen=True)
class WordProblems(Family):
    """Everyday stories (in the style of GSM8K, Cobbe et al. 2021) whose answer is a whole number.

    A story of level n takes n calculations with + - * /; every result is a whole number above 0.
    Story, names and things are uniform; the numbers are drawn by the story, as the functions in
    `_short_stories` and `_long_stories` say. They are at least 2. At level 1 no number or result is
    above 81, at level 2 above 100, at level 3 above 250, at level 4 above 1000.

    Canonical: the story and its numbers; names, things and wording do not count, nor the order of
    parts that can be exchanged (two sums that are added). A final answer is the number, perhaps
    with what is counted behind it ("12 apples", "12个苹果") or a dollar sign before it.

    Styles: "steps" does one calculation after another, with or without saying what each is good
    for. A slip miscalculates. "check" then does each the other way round, and repairs.
    """

    name: ClassVar[str] = "word_problems"
    levels: ClassVar[int] = 4
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> WordTask:
        stories = STORIES[level - 1]
        story = stories[int(rng.random() * len(stories))]
        return WordTask(story, story.numbers(rng), _three_of_16(rng), _three_of_16(rng)[:2])

    def canonical(self, task: WordTask) -> str:
        numbers = list(task.numbers)
        alike = task.story.alike
        if alike:
            groups = sorted(tuple(numbers[at] for at in group) for group in alike)
            for group, values in zip(alike, groups, strict=True):
                for at, value in zip(group, values, strict=True):
                    numbers[at] = value
        return f"{task.story.name} {' '.join(map(str, numbers))}"

    def phrase(self, task: WordTask, rng: Random, language: Language) -> str:
        words = task.story.words[language]
        told = words.told[int(rng.random() * len(words.told))]
        asked = words.asked[int(rng.random() * len(words.asked))]
        text = f"{told} {asked}" if language == "en" else told + asked
        return text.format_map(_fields(task, language))

    def answer(self, task: WordTask, language: Language) -> str:
        return str(_values(task)[-1])

    def verify(self, problem: Problem, answer: str) -> Verdict:
        task = _task(problem)
        right = _values(task)[-1]
        value = read_whole(answer)
        if value is None:
            value = read_whole(_without_unit(plain(answer) or "", task), stop=False)
        if value is None:
            return wrong("not one whole number")
        return CORRECT if value == right else wrong(f"{value} is not right")

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        thought = _Thought(_task(problem), problem.language, rng)
        value = thought.calculate(rng, slip)
        if style == "check":
            value = thought.check()
        return Worked(tuple(thought.steps), str(value))


def _task(problem: Problem) -> WordTask:
    assert isinstance(problem.task, WordTask)
    return problem.task


def _three_of_16(rng: Random) -> tuple[int, int, int]:
    """Three different numbers of 0 .. 15 in any order."""
    first = int(rng.random() * 16)
    second = (first + 1 + int(rng.random() * 15)) % 16
    third = int(rng.random() * 16)
    while third in (first, second):
        third = int(rng.random() * 16)
    return first, second, third


def _values(task: WordTask) -> list[int]:
    """The numbers of the story, then the result of each calculation."""
    values = list(task.numbers)
    for operator, left, right in task.story.plan:
        values.append(_calculated(operator, values[left], values[right]))
    return values


def _calculated(operator: Operator, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left // right


def _fields(task: WordTask, language: Language) -> dict[str, str | int]:
    """What stands in the fields of `Words`."""
    names, things = NAMES[language], THINGS[language]
    (measure, thing), (other_measure, other) = (things[at] for at in task.things)
    fields: dict[str, str | int] = dict(zip(_FIELDS, task.numbers, strict=False))
    a, b, c = task.names
    fields.update(
        a=names[a],
        b=names[b],
        c=names[c],
        t=measure + thing,
        u=other_measure + other,
        m=measure,
        k=other_measure,
        n=thing,
        o=other,
    )
    return fields


def _without_unit(text: str, task: WordTask) -> str:
    """A number without what is counted, in either language."""
    for language in LANGUAGES:
        unit = task.story.words[language].unit
        measure, thing = THINGS[language][task.things[0]]
        words = [unit.format(t=measure + thing)]
        if unit == "{t}" and language == "zh":
            words.append(measure)
        for word in words:
            if text.lower().endswith(word):
                return text[: -len(word)]
    if task.story.words["en"].unit == "dollars" and text[:1] in ("$", "¥", "￥"):
        return text[1:]
    return text


class _Thought:
    """A thought that calculates: its steps, and the values that it holds for right."""

    def __init__(self, task: WordTask, language: Language, rng: Random) -> None:
        self.steps: list[str] = []
        self._task = task
        self._zh = language == "zh"
        self._stop = "。" if self._zh else "."
        self._words: Words | None = task.story.words[language] if rng.random() < 0.7 else None
        self._fields = _fields(task, language)
        self._held = list(task.numbers)

    def calculate(self, rng: Random, slip: float) -> int:
        """Says the calculations in order; the last result."""
        for number, (operator, left, right) in enumerate(self._task.story.plan):
            a, b = self._held[left], self._held[right]
            # After a slip a quotient may be no whole number: it is taken for one.
            result = _calculated(operator, a, b)
            if slip and rng.random() < slip:
                result = miscalculated(result, rng)
            self._held.append(result)
            calculation = f"{a} {operator} {b} = {result}"
            if self._words:
                step = self._words.steps[number].format_map({**self._fields, "calc": calculation})
            else:
                step = f"{calculation}{self._stop}"
            self.steps.append(step)
        return self._held[-1]

    def check(self) -> int:
        """Says each calculation the other way round, or does it again if it is not right."""
        values = _values(self._task)
        count = len(self._task.numbers)
        for at, (operator, left, right) in enumerate(self._task.story.plan, count):
            a, b, result = values[left], values[right], values[at]
            if self._held[at] == result:
                check = f"{result} {_OPPOSITE[operator]} {b} = {a}"
                self.steps.append(f"检查：{check}。" if self._zh else f"Check: {check}.")
            else:
                again = f"{a} {operator} {b} = {result}"
                self.steps.append(f"等等，{again}。" if self._zh else f"Wait, {again}.")
        return values[-1]
