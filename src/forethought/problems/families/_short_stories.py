"""Stories with one and two calculations."""

from __future__ import annotations

from random import Random
from typing import Final

from forethought.problems.families._story import Story, Words, between


def _two_small(rng: Random) -> tuple[int, ...]:
    return between(rng, 2, 9), between(rng, 2, 9)


def _three_small(rng: Random) -> tuple[int, ...]:
    return between(rng, 2, 9), between(rng, 2, 9), between(rng, 2, 9)


def _larger_first(rng: Random) -> tuple[int, ...]:
    y = between(rng, 2, 9)
    return y + between(rng, 1, 9), y


def _shared(rng: Random) -> tuple[int, ...]:
    y = between(rng, 2, 9)
    return y * between(rng, 2, 9), y


def _part_of_boxes(rng: Random) -> tuple[int, ...]:
    x, y = between(rng, 2, 9), between(rng, 2, 9)
    return x, y, between(rng, 2, x * y - 1)


def _paid(rng: Random) -> tuple[int, ...]:
    x, y = between(rng, 2, 9), between(rng, 2, 9)
    notes = [note for note in (10, 20, 50, 100) if note > x * y]
    return x, y, notes[int(rng.random() * len(notes))]


def _in_and_out(rng: Random) -> tuple[int, ...]:
    x, y = between(rng, 2, 20), between(rng, 2, 20)
    return x, y, between(rng, 2, x + y - 1)


def _two_to_twenty(rng: Random) -> tuple[int, ...]:
    return between(rng, 2, 20), between(rng, 2, 20)


def _pooled(rng: Random) -> tuple[int, ...]:
    z = between(rng, 2, 6)
    total = z * between(rng, 2, 9)
    x = between(rng, 2, total - 2)
    return x, total - x, z


ONE_STEP: Final = (
    Story(
        "more",
        _two_small,
        (("+", 0, 1),),
        {
            "en": Words(
                (
                    "{a} has {x} {t}. {b} gives {a} {y} more.",
                    "{a} had {x} {t} and then found {y} more.",
                ),
                ("How many {t} does {a} have now?", "How many {t} is that in all?"),
                ("{a} now has {calc} {t}.",),
            ),
            "zh": Words(
                ("{a}有{x}{t}，{b}又给了{a}{y}{m}。", "{a}原来有{x}{t}，后来又得到{y}{m}。"),
                ("{a}现在有多少{t}？", "现在一共有多少{t}？"),
                ("{a}现在有 {calc} {t}。",),
            ),
        },
    ),
    Story(
        "fewer",
        _larger_first,
        (("-", 0, 1),),
        {
            "en": Words(
                (
                    "{a} had {x} {t} and gave {b} {y} of them.",
                    "{a} had {x} {t}, but {y} of them got lost.",
                ),
                ("How many {t} does {a} have left?", "How many {t} are left?"),
                ("{a} has {calc} {t} left.",),
            ),
            "zh": Words(
                ("{a}有{x}{t}，送给{b}{y}{m}。", "{a}有{x}{t}，丢了{y}{m}。"),
                ("{a}还剩多少{t}？", "还剩下多少{t}？"),
                ("{a}还剩 {calc} {t}。",),
            ),
        },
    ),
    Story(
        "boxes",
        _two_small,
        (("*", 0, 1),),
        {
            "en": Words(
                (
                    "{a} has {x} boxes with {y} {t} in each.",
                    "There are {x} bags, and each holds {y} {t}.",
                ),
                ("How many {t} are there in all?", "How many {t} is that altogether?"),
                ("In all there are {calc} {t}.",),
            ),
            "zh": Words(
                (
                    "{a}有{x}个盒子，每个盒子里有{y}{t}。",
                    "桌上有{x}个袋子，每个袋子装着{y}{t}。",
                ),
                ("一共有多少{t}？", "总共是多少{t}？"),
                ("一共有 {calc} {t}。",),
            ),
        },
    ),
    Story(
        "share",
        _shared,
        (("/", 0, 1),),
        {
            "en": Words(
                (
                    "{a} shares {x} {t} equally among {y} friends.",
                    "{a} hands out {x} {t} to {y} children, the same number to each.",
                ),
                ("How many {t} does each one get?", "How many {t} is that for each?"),
                ("Each gets {calc} {t}.",),
            ),
            "zh": Words(
                ("{a}把{x}{t}平均分给{y}个朋友。", "{a}把{x}{t}发给{y}个孩子，每人一样多。"),
                ("每人得到多少{t}？", "每人有多少{t}？"),
                ("每人得到 {calc} {t}。",),
            ),
        },
    ),
    Story(
        "together",
        _two_small,
        (("+", 0, 1),),
        {
            "en": Words(
                ("{a} has {x} {t} and {b} has {y}.", "{a} brings {x} {t}, and {b} brings {y}."),
                ("How many {t} do they have together?", "How many {t} is that together?"),
                ("Together they have {calc} {t}.",),
            ),
            "zh": Words(
                ("{a}有{x}{t}，{b}有{y}{m}。", "{a}带来{x}{t}，{b}带来{y}{m}。"),
                ("两人一共有多少{t}？", "合起来是多少{t}？"),
                ("两人一共有 {calc} {t}。",),
            ),
        },
        ((0,), (1,)),
    ),
    Story(
        "difference",
        _larger_first,
        (("-", 0, 1),),
        {
            "en": Words(
                ("{a} has {x} {t} and {b} has {y}.", "{b} has {y} {t}, {a} has {x}."),
                (
                    "How many more {t} does {a} have than {b}?",
                    "How many fewer {t} does {b} have than {a}?",
                ),
                ("The difference is {calc} {t}.",),
            ),
            "zh": Words(
                ("{a}有{x}{t}，{b}有{y}{m}。", "{b}有{y}{t}，{a}有{x}{m}。"),
                ("{a}比{b}多多少{t}？", "{b}比{a}少多少{t}？"),
                ("相差 {calc} {t}。",),
            ),
        },
    ),
)

TWO_STEPS: Final = (
    Story(
        "boxes_and_single",
        _three_small,
        (("*", 0, 1), ("+", 3, 2)),
        {
            "en": Words(
                (
                    "{a} has {x} bags of {y} {t} and {z} single {t}.",
                    "On the table are {x} boxes with {y} {t} each and {z} more {t}.",
                ),
                ("How many {t} are there in all?", "How many {t} is that altogether?"),
                ("Packed are {calc} {t}.", "With the others that makes {calc} {t}."),
            ),
            "zh": Words(
                (
                    "{a}有{x}袋，每袋{y}{t}，另外还有{z}{m}。",
                    "桌上有{x}个盒子，每个装着{y}{t}，旁边还有{z}{m}。",
                ),
                ("一共有多少{t}？", "总共是多少{t}？"),
                ("装好的有 {calc} {t}。", "加上其余的，一共 {calc} {t}。"),
            ),
        },
    ),
    Story(
        "from_boxes",
        _part_of_boxes,
        (("*", 0, 1), ("-", 3, 2)),
        {
            "en": Words(
                (
                    "{a} has {x} boxes of {y} {t} and gives away {z} {t}.",
                    "There were {x} bags with {y} {t} each. {b} took {z} {t} out.",
                ),
                ("How many {t} are left?", "How many {t} remain?"),
                ("At first there are {calc} {t}.", "Left are {calc} {t}."),
            ),
            "zh": Words(
                (
                    "{a}有{x}盒，每盒{y}{t}，送出了{z}{m}。",
                    "原来有{x}个袋子，每个装着{y}{t}，{b}拿走了{z}{m}。",
                ),
                ("还剩多少{t}？", "还剩下多少{t}？"),
                ("原来有 {calc} {t}。", "还剩 {calc} {t}。"),
            ),
        },
    ),
    Story(
        "change",
        _paid,
        (("*", 0, 1), ("-", 2, 3)),
        {
            "en": Words(
                (
                    "{a} buys {x} {t} for {y} dollars each and pays with {z} dollars.",
                    "In a shop {t} cost {y} dollars each. {a} takes {x} and gives {z} dollars.",
                ),
                ("How many dollars does {a} get back?", "How much change is that in dollars?"),
                ("The {t} cost {calc} dollars.", "{a} gets back {calc} dollars."),
                "dollars",
            ),
            "zh": Words(
                (
                    "{a}买了{x}{t}，每{m}{y}元，付了{z}元。",
                    "商店里的{n}每{m}{y}元，{a}买{x}{m}，给了{z}元。",
                ),
                ("应找回多少元？", "{a}拿回多少元？"),
                ("{n}要 {calc} 元。", "找回 {calc} 元。"),
                "元",
            ),
        },
    ),
    Story(
        "in_and_out",
        _in_and_out,
        (("+", 0, 1), ("-", 3, 2)),
        {
            "en": Words(
                (
                    "{a} has {x} {t}, gets {y} more and then gives {b} {z}.",
                    "{a} had {x} {t}. {b} brought {y} more, and {z} were given away.",
                ),
                ("How many {t} does {a} have now?", "How many {t} are there now?"),
                ("First there are {calc} {t}.", "Then {calc} {t} are left."),
            ),
            "zh": Words(
                (
                    "{a}有{x}{t}，又得到{y}{m}，然后给了{b}{z}{m}。",
                    "{a}原有{x}{t}，{b}又送来{y}{m}，后来送出了{z}{m}。",
                ),
                ("{a}现在有多少{t}？", "现在有多少{t}？"),
                ("先有 {calc} {t}。", "后来剩 {calc} {t}。"),
            ),
        },
    ),
    Story(
        "compare",
        _two_to_twenty,
        (("+", 0, 1), ("+", 0, 2)),
        {
            "en": Words(
                (
                    "{a} has {x} {t}. {b} has {y} more than {a}.",
                    "{a} brings {x} {t}, and {b} brings {y} more than {a}.",
                ),
                ("How many {t} do they have together?", "How many {t} is that together?"),
                ("{b} has {calc} {t}.", "Together they have {calc} {t}."),
            ),
            "zh": Words(
                ("{a}有{x}{t}，{b}比{a}多{y}{m}。", "{a}带来{x}{t}，{b}比{a}多带来{y}{m}。"),
                ("两人一共有多少{t}？", "合起来是多少{t}？"),
                ("{b}有 {calc} {t}。", "两人一共有 {calc} {t}。"),
            ),
        },
    ),
    Story(
        "pooled",
        _pooled,
        (("+", 0, 1), ("/", 3, 2)),
        {
            "en": Words(
                (
                    "{a} has {x} {t} and {b} has {y}. They share them all equally among {z} "
                    "children.",
                    "{a} brings {x} {t}, {b} brings {y}, and {z} friends share them equally.",
                ),
                ("How many {t} does each one get?", "How many {t} is that for each?"),
                ("Together that is {calc} {t}.", "Each gets {calc} {t}."),
            ),
            "zh": Words(
                (
                    "{a}有{x}{t}，{b}有{y}{m}，合起来平均分给{z}个孩子。",
                    "{a}带来{x}{t}，{b}带来{y}{m}，全部平均分给{z}个朋友。",
                ),
                ("每人得到多少{t}？", "每人分到多少{t}？"),
                ("合起来是 {calc} {t}。", "每人得到 {calc} {t}。"),
            ),
        },
        ((0,), (1,)),
    ),
)
