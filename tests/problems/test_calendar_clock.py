from datetime import date
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families._calendar_tasks import (
    CalendarTask,
    Clock,
    DateWeekday,
    Days,
    Span,
    Weekday,
)
from forethought.problems.families.calendar_clock import CalendarClock
from forethought.problems.problem import Language, Problem

FAMILY = CalendarClock()
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def asking(task: CalendarTask, language: Language = "en") -> Problem:
    answer = FAMILY.answer(task, language)
    return Problem("calendar_clock", 1, 0, language, "?", answer, FAMILY.canonical(task), task)


def days_of_month(year: int, month: int) -> int:
    leap = year % 400 == 0 or (year % 4 == 0 and year % 100 != 0)
    return [31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1]


def days_walked(first: date, last: date) -> int:
    """Day after day from one date to the other."""
    year, month, day, n = first.year, first.month, first.day, 0
    while (year, month, day) != (last.year, last.month, last.day):
        day, n = day + 1, n + 1
        if day > days_of_month(year, month):
            day, month = 1, month + 1
        if month > 12:
            month, year = 1, year + 1
    return n


def zeller(when: date) -> str:
    """The weekday by Zeller's congruence."""
    month, year = (when.month + 12, when.year - 1) if when.month < 3 else (when.month, when.year)
    h = when.day + 13 * (month + 1) // 5 + year + year // 4 - year // 100 + year // 400
    return DAYS[(h + 5) % 7]


def solved(task: CalendarTask) -> str:
    """The answer in English by counting one by one."""
    if isinstance(task, Clock):
        hour, minute = divmod(task.start, 60)
        for _ in range(abs(task.delta)):
            minute += 1 if task.delta > 0 else -1
            if minute in (-1, 60):
                hour, minute = (hour + (1 if minute == 60 else -1)) % 24, minute % 60
        return f"{hour:02d}:{minute:02d}"
    if isinstance(task, Weekday):
        day = task.day
        for _ in range(abs(task.delta)):
            day = (day + (1 if task.delta > 0 else 6)) % 7
        return DAYS[day]
    if isinstance(task, Span):
        return str(len(range(task.start, task.end)))
    if isinstance(task, Days):
        return str(days_walked(task.first, task.last))
    assert isinstance(task, DateWeekday)
    return zeller(task.last)


def test_calendar_clock_keeps_the_contract_of_a_family():
    check_contract(FAMILY, 100)


def test_the_answer_is_what_counting_one_by_one_gives():
    for problem in problems_of(FAMILY, 120):
        answer = FAMILY.problem(problem.level, problem.seed, "en").answer
        assert answer == solved(problem.task), problem.task


def test_every_level_draws_what_the_docstring_says():
    kinds: dict[int, set[type]] = {}
    midnight = leap_days = 0
    for problem in problems_of(FAMILY, 400):
        task, level = problem.task, problem.level
        kinds.setdefault(level, set()).add(type(task))
        if isinstance(task, Clock) and level == 1:
            assert task.start % 30 == 0
            assert abs(task.delta) in (60, 120, 180, 240, 300)
            assert 0 <= task.start + task.delta < 24 * 60
        elif isinstance(task, Clock):
            assert 1 <= abs(task.delta) <= 779
            midnight += not 0 <= task.start + task.delta < 24 * 60
        elif isinstance(task, Weekday):
            low, high = (1, 6) if level == 1 else (7, 99)
            assert low <= abs(task.delta) <= high
        elif isinstance(task, Span):
            assert 0 <= task.start < task.end < 24 * 60
        elif level == 3:
            assert task.first.year == task.last.year
            assert days_of_month(task.first.year, 2) == 28
            assert task.first < task.last
        else:
            assert 20 <= days_walked(task.first, task.last) <= 400
            assert 1900 <= task.first.year <= 2099
            leap_days += any(
                days_of_month(year, 2) == 29 and task.first < date(year, 2, 29) <= task.last
                for year in (task.first.year, task.last.year)
            )
    assert kinds == {
        1: {Clock, Weekday},
        2: {Clock, Weekday},
        3: {Span, Days},
        4: {Days, DateWeekday},
    }
    assert midnight > 20
    assert leap_days > 50


def test_the_canonical_form_has_no_language_and_tells_directions_apart():
    forms = {
        asking(task, language).canonical
        for task in (Clock(570, 180), Clock(570, -180), Weekday(0, 5), Weekday(0, -5))
        for language in ("en", "zh")
    }
    assert forms == {
        "09:30 +180 min", "09:30 -180 min", "Monday +5 days", "Monday -5 days"
    }  # fmt: skip
    days = asking(Days(date(2024, 2, 3), date(2024, 5, 1)))
    assert days.canonical == "2024-02-03 to 2024-05-01"


AFTERNOON = Clock(11 * 60, 185)  # 14:05
MORNING = Clock(0, 545)  # 09:05
THURSDAY = Weekday(2, 1)
SUNDAY = Weekday(5, 1)
LONG_DAYS = Days(date(2023, 1, 1), date(2026, 1, 1))  # 1096
MINUTES = Span(0, 90)


RIGHT = {
    AFTERNOON: [
        "14:05", "2:05 pm", "02:05 P.M.", "14：05", "14点05分。", "14时5分", "**14:05**", "14:05."
    ],
    MORNING: [
        "9:05", "09:05", "9:05 a.m.", "`09:05`"
    ],
    Clock(0, 750): [
        "12点半"
    ],
    Clock(0, 720): [
        "12点整", "12:00pm"
    ],
    Clock(60, -60): [
        "0:00", "12:00 AM"
    ],
    THURSDAY: [
        "thursday", "Thu", "星期四", "周四。", "“Thursday.”"
    ],
    SUNDAY: [
        "礼拜天", "星期日", "周日"
    ],
    LONG_DAYS: [
        "1,096", "1096 days", "1096天"
    ],
    MINUTES: [
        "90 minutes.", "90 分钟", "90"
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "answer"), [(key, answer) for key, answers in RIGHT.items() for answer in answers]
)
def test_odd_forms_of_a_right_answer_are_right(task, answer):
    assert FAMILY.verify(asking(task), answer).correct


WRONG = {
    AFTERNOON: [
        "", "2:05", "14:05 pm", "2:05 am", "14:05 or 2:05", "14:05, 14:05", "14:5", "１４:05",
        "١٤:٠٥", "14:05:00", "1405", "845", "14:05" + " " * 400, "13:65", "14-05", "38:05"
    ],
    Clock(60, -60): [
        "24:00", "0:00 am"
    ],
    THURSDAY: [
        "Friday", "Thursday or Friday", "Thursday Friday", "Th", "四", "3", "星期4",
        "not Thursday", "星期四星期四"
    ],
    SUNDAY: [
        "ſunday", "14:05"
    ],
    LONG_DAYS: [
        "1095", "1096 minutes", "days", "10,96", "1096 days days", "1095 or 1096", "1096.0",
        "１０９６"
    ],
    MINUTES: [
        "1:30", "90 days", "1.5 hours"
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "answer"), [(key, answer) for key, answers in WRONG.items() for answer in answers]
)
def test_hostile_answers_are_wrong(task, answer):
    assert not FAMILY.verify(asking(task), answer).correct


@given(st.text(max_size=60), st.sampled_from((AFTERNOON, THURSDAY, LONG_DAYS, MINUTES)))
def test_no_text_makes_the_verifier_raise(text, task):
    FAMILY.verify(asking(task), text)


@given(st.integers(0, 1438), st.integers(1, 1439), st.randoms())
def test_wrong_answers_about_spans_are_wrong(start, length, rng):
    problem = asking(Span(start, min(1439, start + length)))
    assert not FAMILY.verify(problem, FAMILY.wrong_answer(problem, rng)).correct


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.1 < share_right(FAMILY, "steps", 0.5) < 0.6
    assert share_right(FAMILY, "check", 0.5) == 1.0
    assert share_right(FAMILY, "check", 1.0) == 1.0


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        (Clock(9 * 60 + 30, 180), ("9 + 3 = 12.", "So 12:30.")),
        (
            Clock(60 + 20, -(2 * 60 + 45)),
            ("1 - 2 = -1.", "20 - 45 = -25.", "-25 + 60 = 35, -1 - 1 = -2.", "-2 + 24 = 22.",
             "So 22:35."),
        ),
        (Weekday(4, 3), ("1 Saturday, 2 Sunday, 3 Monday.",)),
        (Weekday(4, -9), ("9 = 1 * 7 + 2.", "1 Thursday, 2 Wednesday.")),
        (Weekday(4, 14), ("14 = 2 * 7 + 0.", "Friday again.")),
        (Span(580, 845), ("14 - 9 = 5.", "5 * 60 = 300.", "5 - 40 = -35.", "300 - 35 = 265.")),
        (
            Days(date(2024, 1, 30), date(2024, 3, 2)),
            ("January 31 - 30 = 1.", "February 29, 1 + 29 = 30.", "March 2, 30 + 2 = 32."),
        ),
    ],
)  # fmt: skip
def test_thoughts_are_arithmetic_that_holds(task, steps):
    assert FAMILY.worked(asking(task), Random(0)).steps == steps


def test_a_check_finds_the_slip():
    problem = asking(Weekday(4, 3), "zh")
    thoughts = [
        "".join(FAMILY.worked(problem, Random(seed), style="check", slip=1.0).steps)
        for seed in range(20)
    ]
    assert all(
        "等等，不对。再算：1 星期六, 2 星期日, 3 星期一。" in thought for thought in thoughts
    )


def test_thoughts_of_the_first_level_are_short():
    for seed in range(200):
        problem = FAMILY.problem(1, seed)
        assert sum(map(len, FAMILY.worked(problem, Random(seed)).steps)) <= 80
