"""Stories with three and four calculations."""

from __future__ import annotations

from random import Random
from typing import Final

from forethought.problems.families._story import Story, Words, between


def _two_goods(rng: Random) -> tuple[int, ...]:
    return between(rng, 2, 9), between(rng, 2, 12), between(rng, 2, 9), between(rng, 2, 12)


def _rest_shared(rng: Random) -> tuple[int, ...]:
    x, y, w = between(rng, 3, 12), between(rng, 3, 9), between(rng, 2, 4)
    rest = w * between(rng, 1, (x * y - 2) // w)
    return x, y, x * y - rest, w


def _stops(rng: Random) -> tuple[int, ...]:
    x, y = between(rng, 20, 60), between(rng, 2, 9)
    return x, y, between(rng, 2, 20), between(rng, 2, 9)


def _pages(rng: Random) -> tuple[int, ...]:
    y, z, w = between(rng, 5, 20), between(rng, 2, 7), between(rng, 2, 20)
    return y * z + w + between(rng, 1, 50), y, z, w


def _trip(rng: Random) -> tuple[int, ...]:
    x, w = between(rng, 2, 5), between(rng, 10, 30)
    total = w * between(rng, 2, 6)
    z = between(rng, 2, 9)
    z += (total - z) % x
    return x, (total - z) // x, z, w


def _three_persons(rng: Random) -> tuple[int, ...]:
    x, y = between(rng, 3, 12), between(rng, 2, 6)
    return x, y, between(rng, 2, x * y - 1)


def _two_goods_paid(rng: Random) -> tuple[int, ...]:
    x, y, z, w = _two_goods(rng)
    cost = x * y + z * w
    notes = [note for note in (50, 100, 200, 500) if note > cost]
    return x, y, z, w, notes[int(rng.random() * min(2, len(notes)))]


def _trip_paid(rng: Random) -> tuple[int, ...]:
    return (*_trip(rng), between(rng, 11, 50))


def _wages(rng: Random) -> tuple[int, ...]:
    x, y, z, v = between(rng, 5, 15), between(rng, 2, 8), between(rng, 2, 6), between(rng, 2, 9)
    total = x * y * z
    most = (total - 2) // v
    return x, y, z, total - v * between(rng, max(1, most - 9), most), v


def _orchard(rng: Random) -> tuple[int, ...]:
    x, y, z, v = between(rng, 2, 9), between(rng, 2, 9), between(rng, 5, 12), between(rng, 2, 9)
    total = x * y * z
    most = (total - 2) // v
    return x, y, z, total - v * between(rng, max(1, most - 9), most), v


THREE_STEPS: Final = (
    Story(
        "two_goods",
        _two_goods,
        (("*", 0, 1), ("*", 2, 3), ("+", 4, 5)),
        {
            "en": Words(
                (
                    "{a} buys {x} {t} at {y} dollars each and {z} {u} at {v} dollars each.",
                    "In a shop {t} cost {y} dollars each and {u} cost {v} dollars each. "
                    "{a} takes {x} {t} and {z} {u}.",
                ),
                ("How many dollars does {a} pay?", "What does it all cost in dollars?"),
                (
                    "The {t} cost {calc} dollars.",
                    "The {u} cost {calc} dollars.",
                    "In all that is {calc} dollars.",
                ),
                "dollars",
            ),
            "zh": Words(
                (
                    "{a}买了{x}{t}，每{m}{y}元，又买了{z}{u}，每{k}{v}元。",
                    "商店里{n}每{m}{y}元，{o}每{k}{v}元。{a}买了{x}{t}和{z}{u}。",
                ),
                ("一共要付多少元？", "{a}总共花了多少元？"),
                ("{n}要 {calc} 元。", "{o}要 {calc} 元。", "一共 {calc} 元。"),
                "元",
            ),
        },
        ((0, 1), (2, 3)),
    ),
    Story(
        "rest_shared",
        _rest_shared,
        (("*", 0, 1), ("-", 4, 2), ("/", 5, 3)),
        {
            "en": Words(
                (
                    "{a} collects {x} {t} a day for {y} days, gives {b} {z} and shares the rest "
                    "equally among {v} friends.",
                    "For {y} days {a} gets {x} {t} a day. {z} get lost, and {v} children share "
                    "the others equally.",
                ),
                ("How many {t} does each one get?", "How many {t} is that for each?"),
                (
                    "At first there are {calc} {t}.",
                    "The rest is {calc} {t}.",
                    "Each gets {calc} {t}.",
                ),
            ),
            "zh": Words(
                (
                    "{a}每天收集{x}{t}，收集了{y}天，给{b}{z}{m}，剩下的平均分给{v}个朋友。",
                    "{y}天里{a}每天得到{x}{t}。丢了{z}{m}，其余的平均分给{v}个孩子。",
                ),
                ("每人得到多少{t}？", "每人分到多少{t}？"),
                ("开始有 {calc} {t}。", "剩下 {calc} {t}。", "每人得到 {calc} {t}。"),
            ),
        },
    ),
    Story(
        "bus",
        _stops,
        (("-", 0, 1), ("+", 4, 2), ("-", 5, 3)),
        {
            "en": Words(
                (
                    "A bus has {x} passengers. First {y} get off and {z} get on; at the next stop "
                    "{v} get off.",
                    "There are {x} people on a bus. {y} leave it and {z} join, then {v} leave it.",
                ),
                ("How many people are on the bus now?", "How many passengers are there then?"),
                (
                    "After the first got off: {calc} people.",
                    "After the others got on: {calc} people.",
                    "In the end: {calc} people.",
                ),
                "people",
            ),
            "zh": Words(
                (
                    "公共汽车上有{x}人。第一站下去{y}人，上来{z}人；第二站又下去{v}人。",
                    "车上原有{x}人，先下车{y}人，再上车{z}人，然后又下车{v}人。",
                ),
                ("现在车上有多少人？", "这时车上有多少人？"),
                ("先下车后有 {calc} 人。", "上车后有 {calc} 人。", "最后有 {calc} 人。"),
                "人",
            ),
        },
    ),
    Story(
        "book",
        _pages,
        (("*", 1, 2), ("-", 0, 4), ("-", 5, 3)),
        {
            "en": Words(
                (
                    "A book has {x} pages. {a} reads {y} pages a day for {z} days and then {v} "
                    "more.",
                    "{a} wants to read {x} pages. On each of {z} days {a} reads {y} pages, and "
                    "on the day after that {v}.",
                ),
                ("How many pages are left to read?", "How many pages does {a} still have to read?"),
                (
                    "In the first days: {calc} pages.",
                    "Left are {calc} pages.",
                    "In the end {calc} pages are left.",
                ),
                "pages",
            ),
            "zh": Words(
                (
                    "一本书有{x}页。{a}每天读{y}页，读了{z}天，然后又读了{v}页。",
                    "{a}要读{x}页。前{z}天每天读{y}页，再下一天读{v}页。",
                ),
                ("还剩多少页没读？", "{a}还要读多少页？"),
                ("前几天读了 {calc} 页。", "剩 {calc} 页。", "最后剩 {calc} 页。"),
                "页",
            ),
        },
    ),
    Story(
        "trip",
        _trip,
        (("*", 0, 1), ("+", 4, 2), ("/", 5, 3)),
        {
            "en": Words(
                (
                    "{x} classes of {y} pupils each and {z} teachers fill buses of {v} seats.",
                    "On a trip are {x} classes with {y} pupils each and {z} teachers. "
                    "They go in full buses of {v} seats.",
                ),
                ("How many buses are there?", "How many buses do they need?"),
                ("That is {calc} pupils.", "In all {calc} people.", "They need {calc} buses."),
                "buses",
            ),
            "zh": Words(
                (
                    "{x}个班每班{y}名学生，还有{z}名老师，坐满了若干辆{v}座的客车。",
                    "{x}个班去旅行，每班{y}名学生，另有{z}名老师。每辆客车{v}座，全部坐满。",
                ),
                ("有多少辆客车？", "需要多少辆客车？"),
                ("学生有 {calc} 人。", "一共 {calc} 人。", "需要 {calc} 辆。"),
                "辆客车",
            ),
        },
    ),
)

FOUR_STEPS: Final = (
    Story(
        "three_persons",
        _three_persons,
        (("*", 0, 1), ("-", 3, 2), ("+", 0, 3), ("+", 5, 4)),
        {
            "en": Words(
                (
                    "{a} has {x} {t}. {b} has {y} times as many as {a}, and {c} has {z} fewer "
                    "than {b}.",
                    "{a} brings {x} {t}, {b} brings {y} times as many, and {c} brings {z} fewer "
                    "than {b}.",
                ),
                ("How many {t} do the three have in all?", "How many {t} is that altogether?"),
                (
                    "{b} has {calc} {t}.",
                    "{c} has {calc} {t}.",
                    "{a} and {b} have {calc} {t}.",
                    "All three have {calc} {t}.",
                ),
            ),
            "zh": Words(
                (
                    "{a}有{x}{t}，{b}的数量是{a}的{y}倍，{c}比{b}少{z}{m}。",
                    "{a}带来{x}{t}，{b}带来的是{a}的{y}倍，{c}比{b}少带{z}{m}。",
                ),
                ("三人一共有多少{t}？", "总共是多少{t}？"),
                (
                    "{b}有 {calc} {t}。",
                    "{c}有 {calc} {t}。",
                    "{a}和{b}有 {calc} {t}。",
                    "三人一共有 {calc} {t}。",
                ),
            ),
        },
    ),
    Story(
        "two_goods_change",
        _two_goods_paid,
        (("*", 0, 1), ("*", 2, 3), ("+", 5, 6), ("-", 4, 7)),
        {
            "en": Words(
                (
                    "{a} buys {x} {t} at {y} dollars each and {z} {u} at {v} dollars each, and "
                    "pays with {w} dollars.",
                    "In a shop {t} cost {y} dollars each and {u} cost {v} dollars each. "
                    "{a} takes {x} {t} and {z} {u} and gives {w} dollars.",
                ),
                ("How many dollars does {a} get back?", "How much change is that in dollars?"),
                (
                    "The {t} cost {calc} dollars.",
                    "The {u} cost {calc} dollars.",
                    "In all that is {calc} dollars.",
                    "{a} gets back {calc} dollars.",
                ),
                "dollars",
            ),
            "zh": Words(
                (
                    "{a}买了{x}{t}，每{m}{y}元，又买了{z}{u}，每{k}{v}元，付了{w}元。",
                    "商店里{n}每{m}{y}元，{o}每{k}{v}元。{a}买了{x}{t}和{z}{u}，给了{w}元。",
                ),
                ("应找回多少元？", "{a}拿回多少元？"),
                ("{n}要 {calc} 元。", "{o}要 {calc} 元。", "一共 {calc} 元。", "找回 {calc} 元。"),
                "元",
            ),
        },
        ((0, 1), (2, 3)),
    ),
    Story(
        "trip_cost",
        _trip_paid,
        (("*", 0, 1), ("+", 5, 2), ("/", 6, 3), ("*", 7, 4)),
        {
            "en": Words(
                (
                    "{x} classes of {y} pupils each and {z} teachers fill buses of {v} seats. "
                    "A bus costs {w} dollars.",
                    "On a trip are {x} classes with {y} pupils each and {z} teachers. "
                    "They go in full buses of {v} seats for {w} dollars a bus.",
                ),
                ("How many dollars do the buses cost?", "What do they pay in dollars?"),
                (
                    "That is {calc} pupils.",
                    "In all {calc} people.",
                    "They need {calc} buses.",
                    "The buses cost {calc} dollars.",
                ),
                "dollars",
            ),
            "zh": Words(
                (
                    "{x}个班每班{y}名学生，还有{z}名老师，坐满了若干辆{v}座的客车，每辆车{w}元。",
                    "{x}个班去旅行，每班{y}名学生，另有{z}名老师。每辆客车{v}座，全部坐满，"
                    "一辆车{w}元。",
                ),
                ("车费一共多少元？", "他们要付多少元？"),
                (
                    "学生有 {calc} 人。",
                    "一共 {calc} 人。",
                    "需要 {calc} 辆。",
                    "车费是 {calc} 元。",
                ),
                "元",
            ),
        },
    ),
    Story(
        "wages",
        _wages,
        (("*", 0, 1), ("*", 5, 2), ("-", 6, 3), ("/", 7, 4)),
        {
            "en": Words(
                (
                    "{a} earns {x} dollars an hour and works {y} hours a day for {z} days. "
                    "{a} spends {v} dollars and shares the rest equally among {w} friends.",
                    "For {z} days {a} works {y} hours a day at {x} dollars an hour, then pays "
                    "{v} dollars in rent. {w} children share the rest equally.",
                ),
                ("How many dollars does each one get?", "How many dollars is that for each?"),
                (
                    "A day brings {calc} dollars.",
                    "All days bring {calc} dollars.",
                    "The rest is {calc} dollars.",
                    "Each gets {calc} dollars.",
                ),
                "dollars",
            ),
            "zh": Words(
                (
                    "{a}每小时挣{x}元，每天工作{y}小时，工作了{z}天。花掉{v}元后，"
                    "剩下的平均分给{w}个朋友。",
                    "{z}天里{a}每天工作{y}小时，每小时{x}元，再付{v}元房租，"
                    "其余的平均分给{w}个孩子。",
                ),
                ("每人得到多少元？", "每人分到多少元？"),
                (
                    "一天挣 {calc} 元。",
                    "总共挣 {calc} 元。",
                    "剩下 {calc} 元。",
                    "每人得到 {calc} 元。",
                ),
                "元",
            ),
        },
    ),
    Story(
        "orchard",
        _orchard,
        (("*", 0, 1), ("*", 5, 2), ("-", 6, 3), ("/", 7, 4)),
        {
            "en": Words(
                (
                    "A garden has {x} rows of {y} trees with {z} pears on each. {v} pears are "
                    "eaten, and the others are packed into boxes of {w}.",
                    "{a} has {x} rows of {y} trees and picks {z} pears from each tree. "
                    "{a} gives {b} {v} pears and packs the rest into boxes of {w}.",
                ),
                ("How many boxes are filled?", "How many boxes of pears is that?"),
                (
                    "There are {calc} trees.",
                    "They bear {calc} pears.",
                    "Packed are {calc} pears.",
                    "That fills {calc} boxes.",
                ),
                "boxes",
            ),
            "zh": Words(
                (
                    "果园里有{x}行树，每行{y}棵，每棵结{z}个梨。吃掉{v}个，其余的每{w}个装一箱。",
                    "{a}有{x}行梨树，每行{y}棵，每棵摘下{z}个梨。{a}给{b}{v}个，"
                    "剩下的每{w}个装一箱。",
                ),
                ("能装满多少箱？", "一共装了多少箱？"),
                (
                    "一共 {calc} 棵树。",
                    "结了 {calc} 个梨。",
                    "装箱的有 {calc} 个梨。",
                    "装满 {calc} 箱。",
                ),
                "箱",
            ),
        },
    ),
)
