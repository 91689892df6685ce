"""The five kinds of question of the family calendar_clock, each with its reader and its thought."""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from datetime import date
from random import Random
from typing import ClassVar, Final

from forethought.problems.answers import read_whole
from forethought.problems.problem import Language

DAY: Final = 24 * 60
"""Minutes."""

WEEKDAYS: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "zh": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
}
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_READ_WEEKDAY: Final = {
    **{name.lower(): day for day, name in enumerate(WEEKDAYS["en"])},
    **{name.lower()[:3]: day for day, name in enumerate(WEEKDAYS["en"])},
    **{
        week + day: at for at, day in enumerate("一二三四五六日") for week in ("星期", "周", "礼拜")
    },
    **{week + "天": 6 for week in ("星期", "周", "礼拜")},
}
_READ_CLOCK: Final = re.compile(
    r"(?P<hour>[0-9]{1,2}) ?[:：] ?(?P<minute>[0-9]{2})(?: ?(?P<half_day>[AaPp])\.?[Mm]\.?)?"
)
_READ_CLOCK_ZH: Final = re.compile(
    r"(?P<hour>[0-9]{1,2})[点时](?:(?P<minute>[0-9]{1,2})分?|整|(?P<half>半))?"
)


class CalendarTask(abc.ABC):
    """A question about clocks or dates. ``phrases`` are filled with what `words` gives."""

    __slots__ = ()
    phrases: ClassVar[dict[Language, tuple[str, ...]]]

    @abc.abstractmethod
    def canonical(self) -> str:
        """What names it in any language."""

    @abc.abstractmethod
    def words(self, language: Language) -> dict[str, str]:
        """What the phrasings leave open."""

    @abc.abstractmethod
    def answer(self, language: Language) -> str:
        """The right answer as the question wants it."""

    @abc.abstractmethod
    def is_right(self, bare: str) -> bool:
        """Whether a short text is the right answer."""

    @abc.abstractmethod
    def wrong(self, rng: Random, language: Language) -> str:
        """A wrong answer not far off."""

    @abc.abstractmethod
    def work(self, rng: Random, slip: float, language: Language, steps: list[str]) -> str:
        """Works it out aloud; returns the answer."""

    @abc.abstractmethod
    def goes_back(self, found: str, rng: Random, language: Language, steps: list[str]) -> bool:
        """Works back from an answer aloud; whether that leads to where the question starts."""

    def phrase(self, rng: Random, language: Language) -> str:
        phrases = self.phrases[language]
        return phrases[int(rng.random() * len(phrases))].format_map(self.words(language))


def _say(steps: list[str], language: Language, en: str, zh: str = "") -> None:
    """A step; arithmetic is written alike in both languages."""
    steps.append(f"{en}." if language == "en" else f"{zh or en}。")


def _slips(rng: Random, slip: float) -> bool:
    return slip > 0.0 and rng.random() < slip


def _slipped(value: int, rng: Random, slip: float, by: int = 1) -> int:
    """``value``, or with probability ``slip`` one beside it."""
    return value + rng.choice((-by, by)) if _slips(rng, slip) else value


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _read_clock(bare: str) -> int | None:
    """Minutes since midnight."""
    if read := _READ_CLOCK.fullmatch(bare):
        hour, minute = int(read["hour"]), int(read["minute"])
        if read["half_day"] is not None:
            if not 1 <= hour <= 12:
                return None
            hour = hour % 12 + (12 if read["half_day"] in "Pp" else 0)
    elif read := _READ_CLOCK_ZH.fullmatch(bare):
        hour, minute = int(read["hour"]), int(read["minute"] or (30 if read["half"] else 0))
    else:
        return None
    return hour * 60 + minute if hour < 24 and minute < 60 else None


def _duration(minutes: int, language: Language) -> str:
    hours, rest = divmod(minutes, 60)
    if language == "zh":
        return " ".join([f"{hours} 小时"] * (hours > 0) + [f"{rest} 分钟"] * (rest > 0))
    parts = [f"{n} {unit}{'s' * (n > 1)}" for n, unit in ((hours, "hour"), (rest, "minute")) if n]
    return " and ".join(parts)


def _without_unit(bare: str, units: tuple[str, ...]) -> str:
    for unit in units:
        if bare.endswith(unit):
            return bare[: -len(unit)].rstrip()
    return bare


@dataclass(frozen=True, slots=True)
class Clock(CalendarTask):
    """The time ``delta`` minutes after (negative: before) ``start`` minutes since midnight."""

    start: int
    delta: int
    phrases: ClassVar[dict[Language, tuple[str, ...]]] = {
        "en": (
            "It is {at}. What time {was} it {span} {later}? Write it like 14:05.",
            "What time is {span} {after} {at}? Write it like 14:05.",
            "{at} {plus} {span}: what time is that on a 24-hour clock?",
            "A clock shows {at}. What {did} it show {span} {later}? Answer as hh:mm.",
        ),
        "zh": (
            "现在是 {at}，{span}{after}是几点？写成 14:05 的形式。",
            "{at} 的 {span}{after}是几点？写成 14:05 的形式。",
            "{at} {plus} {span}，用 24 小时制表示是几点几分？",
            "时钟显示 {at}，{span}{after}显示什么？按 hh:mm 回答。",
        ),
    }

    def canonical(self) -> str:
        return f"{_clock(self.start)} {self.delta:+d} min"

    def words(self, language: Language) -> dict[str, str]:
        past = self.delta < 0
        words = {"at": _clock(self.start), "span": _duration(abs(self.delta), language)}
        if language == "zh":
            return {
                **words,
                "after": "之前" if past else "之后",
                "plus": "减去" if past else "加上",
            }
        return {
            **words,
            "was": "was" if past else "is",
            "did": "did" if past else "does",
            "later": "earlier" if past else "later",
            "after": "before" if past else "after",
            "plus": "minus" if past else "plus",
        }

    def answer(self, language: Language) -> str:
        return _clock((self.start + self.delta) % DAY)

    def is_right(self, bare: str) -> bool:
        return _read_clock(bare) == (self.start + self.delta) % DAY

    def wrong(self, rng: Random, language: Language) -> str:
        return _clock((self.start + self.delta + rng.choice((-60, -10, -1, 1, 10, 60))) % DAY)

    def work(self, rng: Random, slip: float, language: Language, steps: list[str]) -> str:
        sign, direction = ("-", -1) if self.delta < 0 else ("+", 1)
        add_hours, add_minutes = divmod(abs(self.delta), 60)
        hour, minute = divmod(self.start, 60)
        if add_hours:
            before, hour = hour, _slipped(hour + direction * add_hours, rng, slip)
            _say(steps, language, f"{before} {sign} {add_hours} = {hour}")
        if add_minutes:
            before, minute = minute, _slipped(minute + direction * add_minutes, rng, slip, 10)
            _say(steps, language, f"{before} {sign} {add_minutes} = {minute}")
            if not 0 <= minute < 60:
                carry = minute // 60
                whole = 60 * abs(carry)
                there, back = ("-", "+") if carry > 0 else ("+", "-")
                minutes = f"{minute} {there} {whole} = {minute % 60}"
                hours = f"{hour} {back} {abs(carry)} = {hour + carry}"
                _say(steps, language, f"{minutes}, {hours}")
                minute, hour = minute % 60, hour + carry
        if not 0 <= hour < 24:
            undo = "-" if hour >= 24 else "+"
            _say(steps, language, f"{hour} {undo} 24 = {hour % 24}")
        found = _clock(hour % 24 * 60 + minute)
        _say(steps, language, f"So {found}", f"所以是 {found}")
        return found

    def goes_back(self, found: str, rng: Random, language: Language, steps: list[str]) -> bool:
        back = Clock(_read_clock(found) or 0, -self.delta).work(rng, 0.0, language, steps)
        return back == _clock(self.start)


@dataclass(frozen=True, slots=True)
class Span(CalendarTask):
    """The minutes from one time to a later one of the same day."""

    start: int
    end: int
    phrases: ClassVar[dict[Language, tuple[str, ...]]] = {
        "en": (
            "How many minutes are there from {a} to {b}?",
            "It is {a}. In how many minutes will it be {b}?",
            "A film starts at {a} and ends at {b} on the same day. How many minutes does it last?",
            "How many minutes after {a} is {b}? Answer with a number.",
        ),
        "zh": (
            "从 {a} 到 {b} 有多少分钟？",
            "现在是 {a}，再过多少分钟是 {b}？",
            "一部电影 {a} 开始，当天 {b} 结束，一共多少分钟？",
            "{b} 比 {a} 晚多少分钟？请用数字回答。",
        ),
    }

    def canonical(self) -> str:
        return f"{_clock(self.start)} to {_clock(self.end)}"

    def words(self, language: Language) -> dict[str, str]:
        return {"a": _clock(self.start), "b": _clock(self.end)}

    def answer(self, language: Language) -> str:
        return str(self.end - self.start)

    def is_right(self, bare: str) -> bool:
        number = _without_unit(bare, ("minutes", "minute", "min", "分钟"))
        return read_whole(number, stop=False) == self.end - self.start

    def wrong(self, rng: Random, language: Language) -> str:
        near = [self.end - self.start + by for by in (-60, -10, -1, 1, 10, 60)]
        return str(rng.choice([minutes for minutes in near if minutes > 0]))

    def work(self, rng: Random, slip: float, language: Language, steps: list[str]) -> str:
        (hour_a, minute_a), (hour_b, minute_b) = divmod(self.start, 60), divmod(self.end, 60)
        hours = _slipped(hour_b - hour_a, rng, slip)
        _say(steps, language, f"{hour_b} - {hour_a} = {hours}")
        whole = _slipped(hours * 60, rng, slip, 10)
        _say(steps, language, f"{hours} * 60 = {whole}")
        minutes = _slipped(minute_b - minute_a, rng, slip, 10)
        _say(steps, language, f"{minute_b} - {minute_a} = {minutes}")
        found = _slipped(whole + minutes, rng, slip)
        _say(steps, language, f"{whole} {'-' if minutes < 0 else '+'} {abs(minutes)} = {found}")
        return str(found)

    def goes_back(self, found: str, rng: Random, language: Language, steps: list[str]) -> bool:
        span = int(found)
        hours, rest = divmod(span, 60)
        _say(steps, language, f"{span} = {hours} * 60 + {rest}")
        forward = Clock(self.start, span).work(rng, 0.0, language, steps)
        return forward == _clock(self.end) and 0 < span < DAY


@dataclass(frozen=True, slots=True)
class Weekday(CalendarTask):
    """The weekday ``delta`` days after (negative: before) ``day`` (Monday is 0)."""

    day: int
    delta: int
    phrases: ClassVar[dict[Language, tuple[str, ...]]] = {
        "en": (
            "Today is {day}. Which weekday {is_} it {in_n}?",
            "Which day of the week is {n} {days} {after} {day}?",
            "It is {day}. Name the weekday {n} {days} {later}.",
            "If today is {day}, what day of the week {is_} it {in_n}?",
        ),
        "zh": (
            "今天是{day}，{n} 天{after}是星期几？",
            "{day}的 {n} 天{after}是星期几？",
            "如果今天是{day}，那么 {n} 天{after}是星期几？",
            "已知今天是{day}，请问 {n} 天{after}是星期几？",
        ),
    }

    def canonical(self) -> str:
        return f"{WEEKDAYS['en'][self.day]} {self.delta:+d} days"

    def words(self, language: Language) -> dict[str, str]:
        past, n = self.delta < 0, abs(self.delta)
        words = {"day": WEEKDAYS[language][self.day], "n": str(n)}
        if language == "zh":
            return {**words, "after": "前" if past else "后"}
        days = "day" if n == 1 else "days"
        return {
            **words,
            "days": days,
            "is_": "was" if past else "is",
            "in_n": f"{n} {days} ago" if past else f"in {n} {days}",
            "after": "before" if past else "after",
            "later": "earlier" if past else "later",
        }

    def answer(self, language: Language) -> str:
        return WEEKDAYS[language][(self.day + self.delta) % 7]

    def is_right(self, bare: str) -> bool:
        return _READ_WEEKDAY.get(bare.lower()) == (self.day + self.delta) % 7

    def wrong(self, rng: Random, language: Language) -> str:
        return WEEKDAYS[language][(self.day + self.delta + rng.choice((-2, -1, 1, 2))) % 7]

    def work(self, rng: Random, slip: float, language: Language, steps: list[str]) -> str:
        names, direction = WEEKDAYS[language], -1 if self.delta < 0 else 1
        weeks, left = divmod(abs(self.delta), 7)
        if weeks:
            left = _slipped(left, rng, slip) % 7
            _say(steps, language, f"{abs(self.delta)} = {weeks} * 7 + {left}")
        day = self.day
        passed_over = 1 + rng.randrange(left) if left and _slips(rng, slip) else 0
        counted: list[str] = []
        for n in range(1, left + 1):
            day = (day + direction * (2 if n == passed_over else 1)) % 7
            counted.append(f"{n} {names[day]}")
        if counted:
            _say(steps, language, ", ".join(counted))
        else:
            _say(steps, language, f"{names[day]} again", f"还是{names[day]}")
        return names[day]

    def goes_back(self, found: str, rng: Random, language: Language, steps: list[str]) -> bool:
        start = WEEKDAYS[language].index(found)
        back = Weekday(start, -self.delta).work(rng, 0.0, language, steps)
        return back == WEEKDAYS[language][self.day]


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _month_days(year: int, month: int) -> int:
    return 28 + _leap(year) if month == 2 else 30 if month in (4, 6, 9, 11) else 31


def _date(when: date, language: Language) -> str:
    if language == "zh":
        return f"{when.year} 年 {when.month} 月 {when.day} 日"
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}"


@dataclass(frozen=True, slots=True)
class Days(CalendarTask):
    """The number of days from one date to a later one."""

    first: date
    last: date
    phrases: ClassVar[dict[Language, tuple[str, ...]]] = {
        "en": (
            "How many days after {a} is {b}?",
            "Today is {a}. In how many days will it be {b}?",
            "How many days lie between {a} and {b}, counting the last day but not the first?",
            "{b} is how many days later than {a}? Answer with a number.",
        ),
        "zh": (
            "{b}比 {a}晚多少天？",
            "今天是 {a}，再过多少天是 {b}？",
            "从 {a}到 {b}有多少天（算最后一天，不算第一天）？",
            "{a}与 {b}相差多少天？请用数字回答。",
        ),
    }

    def canonical(self) -> str:
        return f"{self.first} to {self.last}"

    def words(self, language: Language) -> dict[str, str]:
        return {"a": _date(self.first, language), "b": _date(self.last, language)}

    def answer(self, language: Language) -> str:
        return str((self.last - self.first).days)

    def is_right(self, bare: str) -> bool:
        number = _without_unit(bare, ("days", "day", "天"))
        return read_whole(number, stop=False) == (self.last - self.first).days

    def wrong(self, rng: Random, language: Language) -> str:
        days = (self.last - self.first).days
        return str(rng.choice([n for n in range(days - 2, days + 3) if n > 0 and n != days]))

    def _months(self) -> list[tuple[int, int]]:
        """Year and month of each month from the first to the last."""
        start = self.first.year * 12 + self.first.month - 1
        end = self.last.year * 12 + self.last.month - 1
        return [(at // 12, at % 12 + 1) for at in range(start, end + 1)]

    def work(self, rng: Random, slip: float, language: Language, steps: list[str]) -> str:
        return self._add_up(self._months(), rng, slip, language, steps)

    def goes_back(self, found: str, rng: Random, language: Language, steps: list[str]) -> bool:
        return self._add_up(self._months()[::-1], rng, 0.0, language, steps) == found

    def _add_up(
        self,
        months: list[tuple[int, int]],
        rng: Random,
        slip: float,
        language: Language,
        steps: list[str],
    ) -> str:
        """The days of each month that belong to the span, and their sum, in this order."""
        first, last = self.first, self.last
        if len(months) == 1:
            total = _slipped(last.day - first.day, rng, slip)
            _say(steps, language, f"{last.day} - {first.day} = {total}")
            return str(total)
        total = 0
        for at, (year, month) in enumerate(months):
            # A slip is a wrong length of a month or a wrong sum.
            slip_length, slip_sum = rng.choice(((slip, 0.0), (0.0, slip))) if slip else (0.0, 0.0)
            days = length = _slipped(_month_days(year, month), rng, slip_length)
            name = _MONTHS[month - 1] if language == "en" else f"{month} 月"
            told = f"{name} {length}"
            if (year, month) == (first.year, first.month):
                days = length - first.day
                told = f"{told} - {first.day} = {days}"
            elif (year, month) == (last.year, last.month):
                days = last.day
                told = f"{name} {days}"
            before, total = total, total + days
            if at:
                total = _slipped(total, rng, slip_sum)
                told = f"{told}, {before} + {days} = {total}"
            _say(steps, language, told)
        return str(total)


@dataclass(frozen=True, slots=True)
class DateWeekday(CalendarTask):
    """The weekday of a date, where that of an earlier one is told."""

    first: date
    last: date
    phrases: ClassVar[dict[Language, tuple[str, ...]]] = {
        "en": (
            "{a} is a {day}. Which weekday is {b}?",
            "If {a} is a {day}, what day of the week is {b}?",
            "{a} falls on a {day}. On which weekday does {b} fall?",
            "Given that {a} is a {day}, name the weekday of {b}.",
        ),
        "zh": (
            "{a}是{day}，{b}是星期几？",
            "如果 {a}是{day}，那么 {b}是星期几？",
            "已知 {a}是{day}，求 {b}是星期几。",
            "{a}那天是{day}，请问 {b}是星期几？",
        ),
    }

    def canonical(self) -> str:
        return f"weekday of {self.last} from {self.first}"

    def words(self, language: Language) -> dict[str, str]:
        return {
            "a": _date(self.first, language),
            "b": _date(self.last, language),
            "day": WEEKDAYS[language][self.first.weekday()],
        }

    def _weekday(self, days: int) -> Weekday:
        return Weekday(self.first.weekday(), days)

    def answer(self, language: Language) -> str:
        return WEEKDAYS[language][self.last.weekday()]

    def is_right(self, bare: str) -> bool:
        return self._weekday((self.last - self.first).days).is_right(bare)

    def wrong(self, rng: Random, language: Language) -> str:
        return self._weekday((self.last - self.first).days).wrong(rng, language)

    def work(self, rng: Random, slip: float, language: Language, steps: list[str]) -> str:
        days = int(Days(self.first, self.last).work(rng, slip, language, steps))
        return self._weekday(days).work(rng, slip, language, steps)

    def goes_back(self, found: str, rng: Random, language: Language, steps: list[str]) -> bool:
        days = Days(self.first, self.last)
        right = days.answer(language)
        days.goes_back(right, rng, language, steps)
        return self._weekday(int(right)).goes_back(found, rng, language, steps)
