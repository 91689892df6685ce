"""Writing a number in another base."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, NamedTuple

from forethought.problems.answers import plain
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong


class BaseConversionTask(NamedTuple):
    """``value`` is shown in base ``source`` and wanted in base ``target``."""

    value: int
    source: int
    target: int


_NAMES: Final[dict[Language, dict[int, str]]] = {
    "en": {2: "binary", 8: "octal", 10: "decimal", 16: "hexadecimal"},
    "zh": {2: "二进制", 8: "八进制", 10: "十进制", 16: "十六进制"},
}
_PHRASES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "Convert {shown} from {a_name} to {b_name}.",
        "What is {shown} (base {a}) in base {b}?",
        "Write the {a_name} number {shown} in {b_name}.",
        "{shown} in base {a} is what in base {b}?",
        "Change {shown} from base {a} to base {b}.",
    ),
    "zh": (
        "把{a_name}数 {shown} 转换为{b_name}。",
        "{a_name}的 {shown} 用{b_name}怎么写？",
        "将 {shown} 从{a_name}改写成{b_name}。",
        "{shown}（{a_name}）等于{b_name}的多少？",
        "求{a_name}数 {shown} 的{b_name}表示。",
    ),
}
_FORMATS: Final = {2: "b", 8: "o", 10: "d", 16: "X"}
_ANSWERS: Final = {
    2: re.compile(r"(?:0[bB])?([01]{1,60})"),
    8: re.compile(r"(?:0[oO])?([0-7]{1,60})"),
    10: re.compile(r"([0-9]{1,60}|[0-9]{1,3}(?:,[0-9]{3}){1,9})"),
    16: re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,60})"),
}
_DIGITS: Final = "0123456789ABCDEF"
_PAIRS: Final = {
    1: ((2, 10), (10, 2)),
    2: ((2, 10), (10, 2), (8, 10), (10, 8)),
    3: ((8, 10), (10, 8), (16, 10), (10, 16)),
    4: ((2, 8), (8, 2), (2, 16), (16, 2), (8, 16), (16, 8)),
}
_LARGEST: Final = {1: 127, 2: 255, 3: 4095, 4: 4095}


@dataclass(frozen=True)
class BaseConversion(Family):
    """Write a whole number of one base in another.

    Level 1: 2 .. 127 between binary and decimal. Level 2: 8 .. 255 between decimal and binary or
    octal. Level 3: 16 .. 4095 between decimal and octal or hexadecimal. Level 4: 16 .. 4095 between
    binary, octal and hexadecimal. Value and pair of bases are uniform, either direction.

    Canonical: the value in decimal and the two bases. The final answer is written in capital hex
    digits without a prefix; small letters, leading zeros and the prefix of its own base (0b, 0o,
    0x) are right too.

    Styles: "steps" goes by way of decimal: times the base plus the next digit, and division with
    remainder. "check" then goes all the way back and, where that does not lead to the start, does
    it again.
    """

    name: ClassVar[str] = "base_conversion"
    levels: ClassVar[int] = 4
    bare: ClassVar[bool] = True
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> BaseConversionTask:
        pairs = _PAIRS[level]
        source, target = pairs[int(rng.random() * len(pairs))]
        lowest = max(2, 8 * (level >= 2), 16 * (level >= 3))
        value = lowest + int(rng.random() * (_LARGEST[level] - lowest + 1))
        return BaseConversionTask(value, source, target)

    def canonical(self, task: BaseConversionTask) -> str:
        return f"{task.value} from {task.source} to {task.target}"

    def phrase(self, task: BaseConversionTask, rng: Random, language: Language) -> str:
        names, phrases = _NAMES[language], _PHRASES[language]
        return phrases[int(rng.random() * len(phrases))].format(
            shown=_written(task.value, task.source),
            a=task.source,
            b=task.target,
            a_name=names[task.source],
            b_name=names[task.target],
        )

    def answer(self, task: BaseConversionTask, language: Language) -> str:
        return _written(task.value, task.target)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        task = _task(problem)
        read = _ANSWERS[task.target].fullmatch(plain(answer) or "")
        if read is None:
            return wrong(f"not one number of base {task.target}")
        if int(read[1].replace(",", ""), task.target) == task.value:
            return CORRECT
        return wrong("another number")

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """A number nearby, or the digits turned round."""
        task = _task(problem)
        turned = problem.answer[::-1].lstrip("0")
        if int(turned, task.target) != task.value and rng.random() < 0.3:
            return turned
        return _written(max(1, task.value + rng.choice((-2, -1, 1, 2, 4, 8))), task.target)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        value, source, target = _task(problem)
        zh, shown = problem.language == "zh", _written(value, source)
        steps: list[str] = []
        found = _converted(shown, source, target, rng, slip, zh, steps)
        if style == "check":
            steps.append("检查：" if zh else "Check:")
            back = _converted(found, target, source, rng, 0.0, zh, steps)
            if back == shown:
                steps.append("对。" if zh else "Right.")
            else:
                steps.append(
                    f"等等，{back} 不是 {shown}。再来："
                    if zh
                    else f"Wait, {back} is not {shown}. Again:"
                )
                found = _converted(shown, source, target, rng, 0.0, zh, steps)
        return Worked(tuple(steps), found)


def _task(problem: Problem) -> BaseConversionTask:
    assert isinstance(problem.task, BaseConversionTask)
    return problem.task


def _written(value: int, base: int) -> str:
    return format(value, _FORMATS[base])


def _converted(
    shown: str, source: int, target: int, rng: Random, slip: float, zh: bool, steps: list[str]
) -> str:
    """The number in the other base, by way of decimal, aloud."""
    value = int(shown) if source == 10 else _to_decimal(shown, source, rng, slip, zh, steps)
    return str(value) if target == 10 else _from_decimal(value, target, rng, slip, zh, steps)


def _slipped(rng: Random, slip: float) -> bool:
    return slip > 0.0 and rng.random() < slip


def _to_decimal(shown: str, base: int, rng: Random, slip: float, zh: bool, steps: list[str]) -> int:
    """Horner's scheme, a step for each digit."""
    stop = "。" if zh else "."
    value = 0
    for at, digit in enumerate(shown):
        one = _DIGITS.index(digit)
        before, value = value, value * base + one + _slipped(rng, slip) * rng.choice((-1, 1))
        value = max(0, value)
        named = "" if one < 10 else f"{digit} = {one}, "
        sum_ = f"{value}" if at == 0 else f"{before} * {base} + {one} = {value}"
        steps.append(f"{named}{sum_}{stop}")
    return value


def _from_decimal(
    value: int, base: int, rng: Random, slip: float, zh: bool, steps: list[str]
) -> str:
    """Division until nothing is left; the remainders are the digits, the last one first."""
    digits = ""
    left = value
    while left >= base or not digits:
        quotient, rest = divmod(left, base)
        if _slipped(rng, slip):
            rest = (rest + rng.choice((1, base - 1))) % base
        named = f" = {_DIGITS[rest]}" if rest >= 10 else ""
        steps.append(
            f"{left} / {base} = {quotient} 余 {rest}{named}。"
            if zh
            else f"{left} / {base} = {quotient} remainder {rest}{named}."
        )
        digits, left = _DIGITS[rest] + digits, quotient
    if left:
        named = f" = {_DIGITS[left]}" if left >= 10 else ""
        steps.append(f"剩下 {left}{named}。" if zh else f"{left}{named} is left.")
        digits = _DIGITS[left] + digits
    steps.append(f"倒着读：{digits}。" if zh else f"Read backwards: {digits}.")
    return digits
