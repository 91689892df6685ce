"""A task of one's own: the sum of a number's digits."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

import forethought as ft
from forethought.problems.answers import plain, whole_number
from forethought.problems.problem import wrong

PHRASES = {
    "en": ("What is the sum of the digits of {}?", "Add up the digits of {}."),
    "zh": ("{} 的各位数字之和是多少？", "把 {} 的各位数字加起来。"),
}


@dataclass(frozen=True)
class DigitSum(ft.Family):
    """Level 1: a number of 2 digits. Level 2: of 3 or 4. Level 3: of 5 to ``longest``.

    Lengths and digits are uniform, the first digit is not 0. Canonical: the number. The final
    answer is a whole number.
    """

    name: ClassVar[str] = "digit_sum"
    levels: ClassVar[int] = 3
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    longest: int = 8

    def validate(self) -> None:
        if self.longest < 5:
            raise ft.UserError(f"digit_sum: longest is {self.longest}; it must be at least 5.")

    def draw(self, rng: Random, level: int) -> int:
        fewest, most = ((2, 2), (3, 4), (5, self.longest))[level - 1]
        digits = rng.randint(fewest, most)
        return rng.randrange(10 ** (digits - 1), 10**digits)

    def canonical(self, task: int) -> str:
        return str(task)

    def phrase(self, task: int, rng: Random, language: str) -> str:
        return rng.choice(PHRASES[language]).format(task)

    def answer(self, task: int, language: str) -> str:
        return str(digit_sum(task))

    def verify(self, problem: ft.Problem, answer: str) -> ft.Verdict:
        bare = plain(answer)  # without **, $ or quotes around it
        if bare is None:
            return wrong("too long for one number")
        return whole_number(bare, digit_sum(problem.task), stop=False)

    def worked(
        self, problem: ft.Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> ft.Worked:
        first, *rest = map(int, str(problem.task))
        stop = "。" if problem.language == "zh" else "."
        steps, total = [], first
        for digit in rest:
            off = rng.choice((-1, 1)) if rng.random() < slip else 0
            steps.append(f"{total} + {digit} = {total + digit + off}{stop}")
            total += digit + off
        if style == "check":
            right = digit_sum(problem.task)
            said = "检查：" if problem.language == "zh" else "Check: "
            steps.append(f"{said}{' + '.join(str(problem.task))} = {right}{stop}")
            total = right
        return ft.Worked(tuple(steps), str(total))


def digit_sum(number: object) -> int:
    return sum(map(int, str(number)))
