"""Countdown: combine all the numbers with + - * / so that they make the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import ClassVar, Final, NamedTuple, cast

from forethought.errors import UserError
from forethought.problems.answers import plain
from forethought.problems.expression import (
    MOST_DIGITS,
    Expression,
    NotAnExpressionError,
    Number,
    Operation,
    ascii_operators,
    operands,
    operate,
    operations,
    parse,
    value_of,
    write,
    write_calculation,
)
from forethought.problems.families._sweep import SIZES, sweep
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong

OPERATORS: Final = "+-*/"
_REDRAWS: Final = 10_000
_WRONG_GUESSES: Final = 2
_FAR: Final = 10
"""A person does not go on from a value more than this many times the target."""


class Combination(NamedTuple):
    """The numbers in the order in which they are shown, the target, one way to it, and the
    operations that thoughts about it try."""

    numbers: tuple[int, ...]
    target: int
    solution: Expression
    operators: str = OPERATORS


# Which values a set of numbers can take. Sets of numbers are bit masks over their positions.

Table = list[set[int]]


@cache
def _splits(count: int) -> dict[int, list[tuple[int, int]]]:
    """Each set of two or more of ``count`` numbers, smaller ones first, and its ways to fall into
    two parts, the larger part first."""
    sets = sorted(range(1, 1 << count), key=lambda mask: (mask.bit_count(), mask))
    return {
        mask: [
            (part, mask ^ part)
            for part in reversed(sets)
            if part & mask == part != mask and sets.index(part) > sets.index(mask ^ part)
        ]
        for mask in sets[count:]
    }


def reachable(numbers: Sequence[int], *, operators: str = OPERATORS) -> Table:
    """For each set of the numbers (the index is its bit mask) the values that it can take with
    every number used once and non-negative whole numbers on the way; + and - are always used."""
    products, division = "*" in operators, "/" in operators
    table: Table = [set() for _ in range(1 << len(numbers))]
    for position, number in enumerate(numbers):
        table[1 << position].add(number)
    for mask, parts in _splits(len(numbers)).items():
        add = table[mask].add
        for left, right in parts:
            for b in table[right]:
                for a in table[left]:
                    add(a + b)
                    if products:
                        add(a * b)
                    if a > b:
                        add(a - b)
                        if b and division and not a % b:
                            add(a // b)
                    else:
                        add(b - a)
                        if a and division and not b % a:
                            add(b // a)
    return table


def way_to(
    value: int,
    table: Table,
    numbers: Sequence[int],
    mask: int = -1,
    *,
    operators: str = OPERATORS,
) -> Expression:
    """One expression of the numbers of ``mask`` (all of them by default) that comes to ``value``,
    which has to be in the table, which is that of the same operators."""
    products, division = "*" in operators, "/" in operators
    if mask < 0:
        mask = len(table) - 1
    if not mask & (mask - 1):
        return numbers[mask.bit_length() - 1]
    for left, right in _splits(len(numbers))[mask]:
        values = table[left]
        for b in sorted(table[right]):
            if value - b in values:
                operator, a = "+", value - b
            elif value + b in values:
                operator, a = "-", value + b
            elif b - value in values:
                operator, a = "-", b - value
            elif not b:
                continue
            elif products and not value % b and value // b in values:
                operator, a = "*", value // b
            elif division and value * b in values:
                operator, a = "/", value * b
            elif division and value and not b % value and b // value in values:
                operator, a = "/", b // value
            else:
                continue
            one = way_to(a, table, numbers, left, operators=operators)
            other = way_to(b, table, numbers, right, operators=operators)
            return operate(operator, one, other) if a >= b else operate(operator, other, one)
    raise ValueError(f"{value} cannot be reached")


def check_combination(answer: str, numbers: Sequence[int], target: int) -> Verdict:
    """Whether ``answer`` is one expression that uses each of ``numbers`` once and comes to
    ``target``; "= target" may follow it."""
    bare = plain(answer)
    if bare is None:
        return wrong("too long")
    text, equals, result = ascii_operators(bare).partition("=")
    if equals and result.strip() != str(target):
        return wrong("what follows the expression is not the target")
    try:
        expression = parse(text)
    except NotAnExpressionError as error:
        return wrong(str(error))
    if sorted(operands(expression)) != sorted(numbers):
        return wrong("does not use each number exactly once")
    value = value_of(expression)
    return CORRECT if value == target else wrong(f"comes to {value}, not {target}")


class _Words(NamedTuple):
    """What the worked thoughts say, by language."""

    comma: str
    stop: str
    openers: tuple[str, ...]
    no: tuple[str, ...]
    yes: tuple[str, ...]
    so: str
    guess: tuple[str, ...]
    other_guess: tuple[str, ...]


_WORDS: Final[dict[Language, _Words]] = {
    "en": _Words(
        comma=", ",
        stop=".",
        openers=("I need {target}.", "The target is {target}.", "Let me try."),
        no=("no", "no", "not {target}"),
        yes=("yes", "yes", "that is it"),
        so="So {whole} = {target}.",
        guess=("Maybe {whole}?", "Let me try {whole}.", "How about {whole}?"),
        other_guess=("Then {whole}?", "Try {whole} instead.", "What about {whole}?"),
    ),
    "zh": _Words(
        comma="，",
        stop="。",
        openers=("要得到 {target}。", "目标是 {target}。", "试一试。"),
        no=("不对", "不对", "不是 {target}"),
        yes=("对了", "对了", "正好"),
        so="所以 {whole} = {target}。",
        guess=("也许是 {whole}？", "先试 {whole}。", "{whole} 怎么样？"),
        other_guess=("那么 {whole}？", "改试 {whole}。", "换成 {whole} 呢？"),
    ),
}


@dataclass(frozen=True)
class CombiningFamily(Family):
    """What Countdown and the 24 game share: everything but the draw and the phrasings.

    Right is every expression that uses each number exactly once and comes to the target, with
    fractions on the way or not; "= target" may follow it. Styles of the worked thoughts:

    - ``search``: up to ``tries`` combinations that fail, each one step, then one that makes it.
      The first operations of a try are drawn at random, the last one comes nearest to the target.
    - ``direct``: the calculations of a right combination, then the whole of it.
    - ``check``: expressions are guessed (up to 2 wrong ones) and worked out until one is right.

    With ``sweep`` a search of three or four numbers leaves nothing out: see `_sweep`. Where it
    finds nothing (the numbers on the way would be too large) the combination comes after it as in
    ``direct``.

    A slip makes the last calculation of a wrong combination come to the target: it is believed.
    """

    styles: ClassVar[tuple[str, ...]] = ("search", "direct", "check")

    tries: int = field(default=8, kw_only=True)
    sweep: bool = field(default=False, kw_only=True)

    def validate(self) -> None:
        if not 0 <= self.tries <= 1000:
            raise UserError(f"{self.name}: tries is {self.tries}; it must be 0 to 1000.")

    def canonical(self, task: Combination) -> str:
        """The sorted numbers and the target: "7 19 36 55 = 65"."""
        return f"{' '.join(map(str, sorted(task.numbers)))} = {task.target}"

    def answer(self, task: Combination, language: Language) -> str:
        return write(task.solution)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        task = cast(Combination, problem.task)
        return check_combination(answer, task.numbers, task.target)

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """An expression of the right numbers that comes to something else."""
        return write(_wrong_combination(cast(Combination, problem.task), rng))

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "search", slip: float = 0.0
    ) -> Worked:
        task = cast(Combination, problem.task)
        words = _WORDS[problem.language]
        if style == "search" and self.sweep and len(task.numbers) in SIZES:
            return _swept(task, problem.language, rng, slip)
        wrong_ones = {"search": self.tries, "check": _WRONG_GUESSES, "direct": 0}[style]
        tries = _tries(task, rng, rng.randrange(wrong_ones + 1), slip)
        found, _ = tries[-1]
        whole = write(found)
        steps: list[str] = []
        if style == "search":
            steps.append(rng.choice(words.openers))
            steps += [_calculations(one, came_to, task, rng, words) for one, came_to in tries]
            steps.append(words.so.replace("{whole}", whole))
        elif style == "check":
            guess = words.guess
            for one, came_to in tries:
                steps.append(rng.choice(guess).replace("{whole}", write(one)))
                steps.append(_calculations(one, came_to, task, rng, words))
                guess = words.other_guess
        else:
            *inner, last = operations(found)
            steps += [write_calculation(one) + words.stop for one in inner]
            steps.append(write_calculation(last, task.target) + words.stop)
            steps.append(words.so.replace("{whole}", whole))
        target = str(task.target)
        return Worked(tuple(step.replace("{target}", target) for step in steps), whole)


def _swept(task: Combination, language: Language, rng: Random, slip: float) -> Worked:
    """The thought of a search that leaves nothing out. A slip breaks it off at a wrong
    combination, which is believed."""
    words = _WORDS[language]
    found = sweep(task.numbers, task.target, task.operators, language)
    lines, solution = found.lines, found.found or task.solution
    if rng.random() < slip:
        lines = lines[: rng.randrange(1, len(lines) + 1)]
        if found.found is not None and len(lines) == len(found.lines):
            lines = lines[:-1]
        solution = cast(Operation, _wrong_combination(task, rng))
    *inner, last = operations(solution)
    said = [write_calculation(one) for one in inner]
    said.append(write_calculation(last, task.target))
    whole = write(solution)
    opener = rng.choice(words.openers)
    steps = (
        opener,
        *lines,
        words.comma.join(said) + words.stop,
        words.so.replace("{whole}", whole),
    )
    return Worked(tuple(step.replace("{target}", str(task.target)) for step in steps), whole)


def _calculations(
    expression: Expression, came_to: Number, task: Combination, rng: Random, words: _Words
) -> str:
    """One try: "55 - 36 = 19, 19 + 7 = 26, no."."""
    *inner, last = operations(expression)
    said = [write_calculation(one) for one in inner]
    said.append(write_calculation(last, came_to))
    said.append(rng.choice(words.yes if came_to == task.target else words.no))
    return words.comma.join(said) + words.stop


def _tries(
    task: Combination, rng: Random, wrong_ones: int, slip: float
) -> list[tuple[Expression, Number]]:
    """Combinations in the order in which a thought tries them, each with what it takes it to come
    to. Only the last one comes to the target; there are at most ``wrong_ones`` before it."""
    tries: list[tuple[Expression, Number]] = []
    seen = set()
    for _ in range(wrong_ones):
        one = _combination(task, rng)
        # The same sums and products with their sides swapped are no new try.
        done = frozenset((step.operator, step.value) for step in operations(one))
        if done in seen:
            continue
        seen.add(done)
        came_to = task.target if rng.random() < slip else value_of(one)
        tries.append((one, came_to))
        if came_to == task.target:
            return tries
    last = _wrong_combination(task, rng) if rng.random() < slip else task.solution
    tries.append((last, task.target))
    return tries


def _combination(task: Combination, rng: Random) -> Expression:
    """Some combination of all numbers: operations drawn at random, except that the last one comes
    nearest to the target and none leaves the whole numbers or goes far above it."""
    parts: list[Expression] = list(task.numbers)
    rng.shuffle(parts)
    while len(parts) > 2:
        a, b = parts.pop(), parts.pop()
        possible = _together(a, b, task.operators)
        sensible = [one for one in possible if value_of(one) <= _FAR * task.target]
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(sensible or possible))
    a, b = parts
    return min(_together(a, b, task.operators), key=lambda one: abs(value_of(one) - task.target))


def _together(a: Expression, b: Expression, operators: str) -> list[Operation]:
    """Every one of the operations on two parts that gives a non-negative whole number."""
    more, less = (a, b) if value_of(a) >= value_of(b) else (b, a)
    found = [operate("+", a, b), operate("-", more, less)]
    if "*" in operators:
        found.append(operate("*", a, b))
    if "/" in operators and value_of(less) and not value_of(more) % value_of(less):
        found.append(operate("/", more, less))
    return found


def _wrong_combination(task: Combination, rng: Random) -> Expression:
    """A combination of all numbers that does not come to the target."""
    for _ in range(20):
        one = _combination(task, rng)
        if value_of(one) != task.target:
            return one
    # With the smallest number added or taken away: as it is positive, one of the two is wrong.
    least, *others, most = sorted(task.numbers)
    chain: Expression = most
    for number in others:
        chain = operate("+", chain, number)
    total = operate("+", chain, least)
    return operate("-", chain, least) if total.value == task.target else total


@dataclass(frozen=True)
class Countdown(CombiningFamily):
    """Numbers ``smallest`` to ``largest``, drawn evenly with repeats, and a target.

    Level 1 has three numbers, level 2 four. The target is drawn evenly from all values from
    ``lowest_target`` to ``highest_target`` that are reachable with every number used once and
    non-negative whole numbers on the way (sums, differences, products, exact quotients); where
    there is none the numbers are drawn again. With ``operators`` "+-" or "+-*" a target that these
    reach is drawn, and thoughts try these alone; an answer may still use all four. Canonical: the
    sorted numbers and the target, "7 19 36 55 = 65".
    """

    name: ClassVar[str] = "countdown"
    levels: ClassVar[int] = 2

    smallest: int = 1
    largest: int = 99
    lowest_target: int = 10
    highest_target: int = 100
    operators: str = OPERATORS

    def validate(self) -> None:
        super().validate()
        top = 10**MOST_DIGITS - 1
        if not 1 <= self.smallest <= self.largest <= top:
            raise UserError(
                f"countdown: smallest is {self.smallest} and largest {self.largest}; they must be "
                f"1 to {top}, smallest first."
            )
        if self.operators not in ("+-", "+-*", OPERATORS):
            raise UserError(
                f'countdown: operators is "{self.operators}"; it must be "+-", "+-*" or "+-*/".'
            )
        if not 1 <= self.lowest_target <= self.highest_target <= top:
            raise UserError(
                f"countdown: lowest_target is {self.lowest_target} and highest_target "
                f"{self.highest_target}; they must be 1 to {top}, lowest first."
            )

    def draw(self, rng: Random, level: int) -> Combination:
        low, high = self.lowest_target, self.highest_target
        span = self.largest - self.smallest + 1
        for _ in range(_REDRAWS):
            numbers = tuple([self.smallest + int(rng.random() * span) for _ in range(level + 2)])
            table = reachable(numbers, operators=self.operators)
            targets = sorted([value for value in table[-1] if low <= value <= high])
            if targets:
                target = targets[int(rng.random() * len(targets))]
                solution = way_to(target, table, numbers, operators=self.operators)
                return Combination(numbers, target, solution, self.operators)
        raise UserError(
            f"countdown: no target from {low} to {high} is reachable with numbers from "
            f"{self.smallest} to {self.largest}; widen one of the two ranges."
        )

    def phrase(self, task: Combination, rng: Random, language: Language) -> str:
        template, joint = rng.choice(_PHRASINGS[language])
        return template.format(numbers=list_numbers(task.numbers, joint), target=task.target)


def list_numbers(numbers: Sequence[int], joint: tuple[str, str]) -> str:
    """The numbers with ``joint[0]`` between them and ``joint[1]`` before the last."""
    *first, last = map(str, numbers)
    return joint[0].join(first) + joint[1] + last


AND: Final = (", ", " and ")
COMMAS: Final = (", ", ", ")
HE: Final = ("、", " 和 ")
DUN: Final = ("、", "、")
"""Joints for `list_numbers`."""

_PHRASINGS: Final[dict[Language, tuple[tuple[str, tuple[str, str]], ...]]] = {
    "en": (
        ("Use {numbers} to make {target}.", AND),
        ("Make {target} from {numbers}, each used once.", AND),
        (
            "Write an expression that equals {target} and uses each of the numbers {numbers} "
            "exactly once, with + - * / and brackets.",
            COMMAS,
        ),
        (
            "Combine the numbers {numbers} with +, -, * and / to get {target}. Every number must "
            "be used exactly once. Answer with the expression.",
            COMMAS,
        ),
        (
            "Numbers: {numbers}. Target: {target}. Which expression reaches the target, using "
            "every number exactly once?",
            COMMAS,
        ),
    ),
    "zh": (
        ("用 {numbers} 算出 {target}。", HE),
        ("用 {numbers} 得到 {target}，每个数用一次。", DUN),
        ("写一个等于 {target} 的算式，{numbers} 每个数恰好用一次，可以用 + - * / 和括号。", DUN),
        ("用加、减、乘、除把 {numbers} 凑成 {target}，每个数必须恰好用一次。请用算式回答。", HE),
        ("数字：{numbers}。目标：{target}。哪个算式恰好用上每个数一次并得到目标？", DUN),
    ),
}
