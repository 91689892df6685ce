"""Sorting numbers and words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Final, NamedTuple

from forethought.problems.answers import plain
from forethought.problems.families._common_words import COMMON_WORDS
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong

Item = int | str


class SortingTask(NamedTuple):
    """``items`` in the order in which they are shown: all whole numbers or all words."""

    items: tuple[Item, ...]
    descending: bool


_PHRASES: Final[dict[tuple[Language, bool, bool], tuple[str, ...]]] = {
    # (language, words, descending)
    ("en", False, False): (
        "Sort from smallest to largest: {}",
        "Put these numbers in ascending order: {}",
        "Write the numbers {} in order, the smallest first, separated by commas.",
        "What are the numbers {} in ascending order? Separate them with commas.",
        "Arrange in increasing order: {}.",
    ),
    ("en", False, True): (
        "Sort from largest to smallest: {}",
        "Put these numbers in descending order: {}",
        "Write the numbers {} in order, the largest first, separated by commas.",
        "What are the numbers {} in descending order? Separate them with commas.",
        "Arrange in decreasing order: {}.",
    ),
    ("en", True, False): (
        "Sort alphabetically: {}",
        "Put these words in alphabetical order: {}",
        "Write the words {} from A to Z, separated by commas.",
        "How are the words {} ordered in a dictionary? Separate them with commas.",
    ),
    ("en", True, True): (
        "Sort in reverse alphabetical order: {}",
        "Put these words in alphabetical order, from Z to A: {}",
        "Write the words {} from Z to A, separated by commas.",
        "How are the words {} ordered in a dictionary read backwards? Separate them with commas.",
    ),
    ("zh", False, False): (
        "从小到大排列：{}",
        "把这些数按升序排列：{}",
        "请将 {} 从小到大排序，用逗号隔开。",
        "下面的数从小到大是怎样的顺序？{}（用逗号隔开）",
    ),
    ("zh", False, True): (
        "从大到小排列：{}",
        "把这些数按降序排列：{}",
        "请将 {} 从大到小排序，用逗号隔开。",
        "下面的数从大到小是怎样的顺序？{}（用逗号隔开）",
    ),
    ("zh", True, False): (
        "按字母顺序排列：{}",
        "把这些单词按字母顺序从 A 到 Z 排列：{}",
        "请将单词 {} 按字母顺序排序，用逗号隔开。",
        "这些单词在词典中的先后顺序是什么？{}（用逗号隔开）",
    ),
    ("zh", True, True): (
        "按字母逆序排列：{}",
        "把这些单词按字母顺序从 Z 到 A 排列：{}",
        "请将单词 {} 按字母逆序排序，用逗号隔开。",
        "倒着翻词典，这些单词的先后顺序是什么？{}（用逗号隔开）",
    ),
}

_SEPARATOR: Final = r"(?:\s*[,，、;；]\s*|\s+)"
_NUMBER: Final = r"[+\-−]?[0-9]{1,9}"
_WORD: Final = r"[A-Za-z]{1,40}"
_NUMBERS: Final = re.compile(f"{_NUMBER}(?:{_SEPARATOR}{_NUMBER})*")
_WORDS: Final = re.compile(f"{_WORD}(?:{_SEPARATOR}{_WORD})*")
_ONE_NUMBER: Final = re.compile(_NUMBER)
_ONE_WORD: Final = re.compile(_WORD)
_BRACKETS: Final = {"[": "]", "(": ")", "{": "}", "【": "】", "（": "）"}


def _read(text: str, words: bool) -> list[Item] | None:
    """The list of numbers or words that ``text`` is, None where it is none."""
    bare = plain(text)
    if not bare:
        return None
    if _BRACKETS.get(bare[0]) == bare[-1]:
        bare = bare[1:-1].strip()
    if words:
        return list(_ONE_WORD.findall(bare.lower())) if _WORDS.fullmatch(bare) else None
    if not _NUMBERS.fullmatch(bare):
        return None
    return [int(number) for number in _ONE_NUMBER.findall(bare.replace("−", "-"))]


@dataclass(frozen=True)
class Sorting(Family):
    """Put numbers or words in order, ascending or descending with equal chance.

    Level 1: 3 to 5 different digits. Level 2: 3 to 5 numbers of 0 .. 99, repeats possible.
    Level 3: 6 to 8 of 0 .. 999. Level 4: with equal chance 4 to 6 different common English words,
    or 5 to 7 whole numbers of -99 .. 99. Counts and items are uniform.

    Canonical: the items in ascending order, and "asc" or "desc". A final answer is the items with
    commas (also Chinese ones), semicolons or white space between them, perhaps in brackets.

    Styles: "steps" picks the first of what is left again and again; a slip picks another one or
    loses one. "check" then counts the items and compares neighbours, and repairs whatever is wrong.
    """

    name: ClassVar[str] = "sorting"
    levels: ClassVar[int] = 4
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> SortingTask:
        descending = rng.random() < 0.5
        items: list[Any]
        if level == 1:
            items = rng.sample(range(10), rng.choice((3, 4, 5)))
        elif level == 2:
            items = [int(rng.random() * 100) for _ in range(rng.choice((3, 4, 5)))]
        elif level == 3:
            items = [int(rng.random() * 1000) for _ in range(rng.choice((6, 7, 8)))]
        elif rng.random() < 0.5:
            items = rng.sample(COMMON_WORDS, rng.choice((4, 5, 6)))
        else:
            items = [int(rng.random() * 199) - 99 for _ in range(rng.choice((5, 6, 7)))]
        return SortingTask(tuple(items), descending)

    def canonical(self, task: SortingTask) -> str:
        return f"{'desc' if task.descending else 'asc'} {_listed(_in_order(task.items))}"

    def phrase(self, task: SortingTask, rng: Random, language: Language) -> str:
        phrases = _PHRASES[language, isinstance(task.items[0], str), task.descending]
        return phrases[int(rng.random() * len(phrases))].format(_listed(task.items))

    def answer(self, task: SortingTask, language: Language) -> str:
        return _listed(_in_order(task.items, task.descending))

    def verify(self, problem: Problem, answer: str) -> Verdict:
        task = _task(problem)
        items = _read(answer, isinstance(task.items[0], str))
        if items is None:
            return wrong("not one list of the items")
        if items == _in_order(task.items, task.descending):
            return CORRECT
        return wrong("not these items in this order")

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """Two neighbours swapped, or one item lost."""
        order = problem.answer.split(", ")
        at = rng.randrange(len(order) - 1)
        if order[at] != order[at + 1] and rng.random() < 0.7:
            order[at], order[at + 1] = order[at + 1], order[at]
        else:
            del order[at]
        return ", ".join(order)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = _task(problem)
        says = _Says(problem, 0 if problem.level == 1 else rng.randrange(2))
        steps: list[str] = []
        order = _select(task, rng, slip, says, steps)
        if style == "check":
            order = _check(task, order, says, steps)
        return Worked(tuple(steps), _listed(order))


def _task(problem: Problem) -> SortingTask:
    assert isinstance(problem.task, SortingTask)
    return problem.task


def _listed(items: list[Item] | tuple[Item, ...]) -> str:
    return ", ".join(map(str, items))


def _in_order(items: tuple[Item, ...] | list[Item], descending: bool = False) -> list[Item]:
    return sorted(items, reverse=descending)


def _select(
    task: SortingTask, rng: Random, slip: float, says: _Says, steps: list[str]
) -> list[Item]:
    """Selection sort aloud: the order that it arrives at."""
    left: list[Item] = list(task.items)
    order: list[Item] = []
    while len(left) > 1:
        shown, first = tuple(left), _in_order(left, task.descending)[0]
        slips = slip > 0.0 and rng.random() < slip
        loses = slips and rng.random() < 0.3
        if slips and not loses:
            first = rng.choice([item for item in left if item != first] or left)
        steps.append(says.first_of(shown, first))
        order.append(first)
        left.remove(first)
        if loses and len(left) > 1:
            del left[rng.randrange(len(left))]
    steps.append(says.last(left[0]))
    return [*order, *left]


def _check(task: SortingTask, order: list[Item], says: _Says, steps: list[str]) -> list[Item]:
    """Counts the items and compares neighbours; what is missing or out of place is put right."""
    missing = list(task.items)
    for item in order:
        missing.remove(item)
    steps.append(says.counted(len(order), len(task.items)))
    if missing:
        order = [*order, *missing]
        steps.append(says.missing(missing, order))
    at = 1
    while at < len(order):
        before, after = order[at - 1], order[at]
        if _in_order([before, after], task.descending) == [before, after]:
            steps.append(says.right(before, after))
        else:
            # All before ``after`` has been compared already, so that its place is found at once.
            order = _in_order(order[: at + 1], task.descending) + order[at + 1 :]
            steps.append(says.misplaced(before, after, order))
        at += 1
    return order


class _Says:
    """The words of a thought about one problem, in one of two wordings."""

    def __init__(self, problem: Problem, wording: int) -> None:
        task = _task(problem)
        self._zh = problem.language == "zh"
        self._words = isinstance(task.items[0], str)
        self._descending = task.descending
        self._wording = wording
        self._thing = ("", "词" if self._words else "数")[wording]
        self._brief = problem.level == 1
        self._count = len(task.items)

    def first_of(self, left: tuple[Item, ...], first: Item) -> str:
        if self._brief:
            return self._brief_first(len(left), first)
        if self._zh:
            most = "最靠后" if self._descending else "最靠前"
            if not self._words:
                most = "最大" if self._descending else "最小"
            return f"{_listed(left)} 中{most}的{self._thing}是 {first}。"
        most = "last" if self._descending else "first"
        if not self._words:
            most = "largest" if self._descending else "smallest"
        if self._wording:
            return f"The {most} of {_listed(left)} is {first}."
        return f"{most.capitalize()} of {_listed(left)}: {first}."

    def _brief_first(self, left: int, first: Item) -> str:
        """Digits are seen at a glance: what is left is not told again."""
        begins = left == self._count
        if self._zh:
            most = "最大" if self._descending else "最小"
            return f"{most}的是 {first}。" if begins else f"接着 {first}。"
        most = "Largest" if self._descending else "Smallest"
        return f"{most}: {first}." if begins else f"Then {first}."

    def last(self, item: Item) -> str:
        if self._zh:
            return f"剩下 {item}。" if self._wording else f"最后是 {item}。"
        return f"{item} is left." if self._wording else f"Then {item}."

    def counted(self, found: int, asked: int) -> str:
        if self._zh:
            return f"检查：应有 {asked} 个，现有 {found} 个。"
        return f"Check: {found} of {asked} are there."

    def missing(self, missing: list[Item], order: list[Item]) -> str:
        if self._zh:
            return f"等等，漏了 {_listed(missing)}。补上：{_listed(order)}。"
        return f"Wait, {_listed(missing)} is missing: {_listed(order)}."

    def right(self, before: Item, after: Item) -> str:
        if self._words:
            return f"{before} 在 {after} 前。" if self._zh else f"{before}, then {after}."
        sign = "=" if before == after else ">" if self._descending else "<"
        return f"{before} {sign} {after}{'。' if self._zh else '.'}"

    def misplaced(self, before: Item, after: Item, order: list[Item]) -> str:
        if self._zh:
            return f"等等，{after} 应在 {before} 前面：{_listed(order)}。"
        return f"Wait, {after} comes before {before}: {_listed(order)}."
