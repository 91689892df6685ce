"""What an everyday story with a few calculations in it is."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, Literal, NamedTuple

from forethought.problems.problem import Language

Operator = Literal["+", "-", "*", "/"]


class Words(NamedTuple):
    """A story in one language. A text is one of ``told`` and one of ``asked``.

    Fields: {x} {y} {z} {v} {w} are the numbers in their order; {a} {b} {c} persons; {t} and {u} two
    kinds of things, in Chinese with their measure words, which alone are {m} and {k}; {n} is the
    first thing without, {o} the second. ``steps`` says for each calculation what it is good for,
    {calc} being "3 + 4 = 7". ``unit`` is what is counted.
    """

    told: tuple[str, ...]
    asked: tuple[str, ...]
    steps: tuple[str, ...]
    unit: str = "{t}"


class Story(NamedTuple):
    """What happens, without words. Calculation number i is (operator, left, right), where left and
    right are places in the list of the numbers followed by the results so far."""

    name: str
    numbers: Callable[[Random], tuple[int, ...]]
    plan: tuple[tuple[Operator, int, int], ...]
    words: dict[Language, Words]
    alike: tuple[tuple[int, ...], ...] = ()
    """Groups of places: to exchange all numbers of a group for those of another changes nothing."""


def between(rng: Random, low: int, high: int) -> int:
    """A whole number of low .. high, uniformly."""
    return low + int(rng.random() * (high - low + 1))


_THINGS_EN: Final = (
    "apples pencils books eggs stamps marbles candies cookies stickers balls flowers cards cups "
    "toys oranges buttons"
)
_THINGS_ZH: Final = (
    "个苹果 支铅笔 本书 个鸡蛋 张邮票 颗弹珠 颗糖 块饼干 张贴纸 个球 朵花 张卡片 个杯子 "
    "件玩具 个橙子 颗纽扣"
)
THINGS: Final[dict[Language, tuple[tuple[str, str], ...]]] = {
    "en": tuple(("", thing) for thing in _THINGS_EN.split()),
    "zh": tuple((thing[0], thing[1:]) for thing in _THINGS_ZH.split()),
}
"""Measure word (in Chinese) and thing, in the same order in both languages."""

_NAMES_EN: Final = (
    "Amy Bill Clara Dennis Eva Felix Grace Harry Isla Joe Kim Luke Maya Ned Polly Ruth"
)
_NAMES_ZH: Final = "小明 小红 小刚 小丽 小华 小强 小芳 小军 小梅 小龙 小燕 小东 小玉 小伟 小雪 小杰"
NAMES: Final[dict[Language, tuple[str, ...]]] = {
    "en": tuple(_NAMES_EN.split()),
    "zh": tuple(_NAMES_ZH.split()),
}
