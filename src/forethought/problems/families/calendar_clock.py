"""Arithmetic with clocks, weekdays and dates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import ClassVar

from forethought.problems.answers import plain
from forethought.problems.families._calendar_tasks import (
    DAY,
    CalendarTask,
    Clock,
    DateWeekday,
    Days,
    Span,
    Weekday,
)
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong


@dataclass(frozen=True)
class CalendarClock(Family):
    """Times of the day, weekdays and dates (of the Gregorian calendar, 1900 to 2100).

    Level 1: the time 1 to 5 hours after or before a full or half hour of the same day; or the
    weekday 1 to 6 days later or earlier. Level 2: the time 1 to 779 minutes later or earlier, over
    midnight too; or the weekday 7 to 99 days later or earlier. Level 3: the minutes between two
    times of a day; or the days between two dates of one year that is no leap year. Level 4: the
    days from a date to one 20 to 400 days later; or the weekday of such a later date, that of the
    first being told; every second year drawn is divisible by 4. The two kinds of a level are
    equally frequent, all else is uniform.

    Canonical: the kind's own parts, such as "09:30 +180 min" or "2024-02-03 to 2024-05-01".
    Final answers: a time like 14:05 (also 9:05, 2:05 pm, 14点5分), a weekday in English or
    Chinese, or a whole number (with or without its unit).

    Styles: "steps" calculates; a slip is a wrong sum, a wrong length of a month, a day passed over.
    "check" then goes back from the answer and, where that does not lead to the start, calculates
    again.
    """

    name: ClassVar[str] = "calendar_clock"
    levels: ClassVar[int] = 4
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> CalendarTask:
        kind = _DRAWS[level][rng.random() < 0.5]
        return kind(rng)

    def canonical(self, task: CalendarTask) -> str:
        return task.canonical()

    def phrase(self, task: CalendarTask, rng: Random, language: Language) -> str:
        return task.phrase(rng, language)

    def answer(self, task: CalendarTask, language: Language) -> str:
        return task.answer(language)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        bare = plain(answer)
        if bare is None:
            return wrong("too long for a time, a weekday or a number")
        return CORRECT if _task(problem).is_right(bare) else wrong("not the right one")

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        return _task(problem).wrong(rng, problem.language)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task, language, zh = _task(problem), problem.language, problem.language == "zh"
        steps: list[str] = []
        found = task.work(rng, slip, language, steps)
        if style == "check":
            steps.append("检查：" if zh else "Check:")
            if task.goes_back(found, rng, language, steps):
                steps.append("对。" if zh else "Right.")
            else:
                steps.append("等等，不对。再算：" if zh else "Wait, that is wrong. Again:")
                found = task.work(rng, 0.0, language, steps)
        return Worked(tuple(steps), found)


def _task(problem: Problem) -> CalendarTask:
    assert isinstance(problem.task, CalendarTask)
    return problem.task


def _upto(rng: Random, count: int) -> int:
    return int(rng.random() * count)


def _either_way(rng: Random, amount: int) -> int:
    return amount if rng.random() < 0.5 else -amount


def _whole_hours(rng: Random) -> Clock:
    start, delta = 30 * _upto(rng, 48), _either_way(rng, 60 * (1 + _upto(rng, 5)))
    return Clock(start, delta if 0 <= start + delta < DAY else -delta)


def _minutes(rng: Random) -> Clock:
    return Clock(_upto(rng, DAY), _either_way(rng, 1 + _upto(rng, 779)))


def _few_days(rng: Random) -> Weekday:
    return Weekday(_upto(rng, 7), _either_way(rng, 1 + _upto(rng, 6)))


def _many_days(rng: Random) -> Weekday:
    return Weekday(_upto(rng, 7), _either_way(rng, 7 + _upto(rng, 93)))


def _span(rng: Random) -> Span:
    a, b = _upto(rng, DAY), _upto(rng, DAY - 1)
    b += b >= a
    return Span(min(a, b), max(a, b))


def _within_a_year(rng: Random) -> Days:
    year = 1901 + 4 * _upto(rng, 49) + _upto(rng, 3)
    a, b = _upto(rng, 365), _upto(rng, 364)
    b += b >= a
    start = date(year, 1, 1)
    return Days(start + timedelta(min(a, b)), start + timedelta(max(a, b)))


def _over_years(rng: Random) -> tuple[date, date]:
    year = 1900 + _upto(rng, 200)
    if rng.random() < 0.5:
        year -= year % 4
    first = date(year, 1, 1) + timedelta(_upto(rng, 365))
    return first, first + timedelta(20 + _upto(rng, 381))


_DRAWS = {
    1: (_whole_hours, _few_days),
    2: (_minutes, _many_days),
    3: (_span, _within_a_year),
    4: (lambda rng: Days(*_over_years(rng)), lambda rng: DateWeekday(*_over_years(rng))),
}
