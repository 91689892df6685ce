"""Relations of kinship and their words in English and Chinese."""

from __future__ import annotations

from functools import cache
from typing import Final, Literal, NamedTuple

from forethought.problems.problem import Language

# A relation is a way from one person to another: steps to a parent, child, sibling or spouse.

StepKind = Literal["parent", "child", "sibling", "spouse"]
Gender = Literal["m", "f", ""]
Age = Literal["older", "younger", ""]
"""Of a sibling; "" where nothing tells it (and for all others)."""


class Step(NamedTuple):
    """One step, and what is known of the person whom it reaches."""

    kind: StepKind
    gender: Gender
    age: Age = ""


Way = tuple[Step, ...]

_SHORTER: Final[dict[tuple[StepKind, StepKind], StepKind]] = {
    ("parent", "child"): "sibling",
    ("parent", "spouse"): "parent",
    ("child", "sibling"): "child",
    ("sibling", "parent"): "parent",
    ("sibling", "sibling"): "sibling",
    ("spouse", "child"): "child",
}
"""Two steps that come to one: all persons differ, siblings share both parents, and the children of
one spouse are the other's."""

KINDS: Final[dict[tuple[StepKind, ...], tuple[str, str]]] = {
    ("parent",): ("father", "mother"),
    ("child",): ("son", "daughter"),
    ("sibling",): ("brother", "sister"),
    ("spouse",): ("husband", "wife"),
    ("parent", "parent"): ("grandfather", "grandmother"),
    ("child", "child"): ("grandson", "granddaughter"),
    ("parent", "sibling"): ("uncle", "aunt"),
    ("sibling", "child"): ("nephew", "niece"),
    ("parent", "sibling", "child"): ("cousin", "cousin"),
    ("parent", "sibling", "spouse"): ("uncle", "aunt"),
    ("spouse", "parent"): ("father-in-law", "mother-in-law"),
    ("child", "spouse"): ("son-in-law", "daughter-in-law"),
    ("spouse", "sibling"): ("brother-in-law", "sister-in-law"),
    ("sibling", "spouse"): ("brother-in-law", "sister-in-law"),
}
"""The English words for a man and for a woman."""

_ALSO: Final = {
    "father": ("dad", "daddy"),
    "mother": ("mum", "mom", "mummy", "mommy"),
    "grandfather": ("grandpa", "granddad", "grandad"),
    "grandmother": ("grandma", "granny", "grandmom", "grandmum"),
    "aunt": ("auntie", "aunty"),
    "cousin": ("first cousin",),
}


@cache
def joined(first: Step, rest: Way) -> Way:
    """The way that takes one step and goes on by a way, as short as it gets."""
    if not rest:
        return (first,)
    second = rest[0]
    kind = _SHORTER.get((first.kind, second.kind))
    if kind is None:
        return (first, *rest)
    age: Age = first.age if first.age == second.age else ""
    return joined(Step(kind, second.gender, age), rest[1:])


@cache
def english_names(way: Way) -> tuple[str, ...]:
    """The English words for whom a way reaches, the usual one first; () if there is none."""
    pair = KINDS.get(tuple(step.kind for step in way))
    if pair is None or not way[-1].gender:
        return ()
    word = pair[way[-1].gender == "f"]
    names = [word, *_ALSO.get(word, ())]
    if way[-1].kind == "sibling" and len(way) == 1 and way[0].age:
        ages = ("older", "elder", "big") if way[0].age == "older" else ("younger", "little")
        names += [f"{age} {word}" for age in ages]
    if way[0].kind == "parent" and len(way) > 1 and way[0].gender:
        side = "paternal" if way[0].gender == "m" else "maternal"
        names += [f"{side} {name}" for name in tuple(names)]
    return tuple(names)


_CHINESE: Final = {
    "father": "父亲 爸爸 爸",
    "mother": "母亲 妈妈 妈",
    "son": "儿子",
    "daughter": "女儿",
    "brother": "兄弟",
    "sister": "姐妹 姊妹",
    "older brother": "哥哥 兄长 兄弟",
    "younger brother": "弟弟 兄弟",
    "older sister": "姐姐 姐妹 姊妹",
    "younger sister": "妹妹 姐妹 姊妹",
    "husband": "丈夫 老公 先生",
    "wife": "妻子 老婆 太太",
    "father's father": "爷爷 祖父",
    "father's mother": "奶奶 祖母",
    "mother's father": "外公 外祖父 姥爷",
    "mother's mother": "外婆 外祖母 姥姥",
    "son's son": "孙子",
    "son's daughter": "孙女",
    "daughter's son": "外孙 外孙子",
    "daughter's daughter": "外孙女",
    "father's older brother": "伯父 伯伯 大伯",
    "father's younger brother": "叔叔 叔父",
    "father's sister": "姑姑 姑妈 姑母",
    "mother's brother": "舅舅 舅父",
    "mother's sister": "姨妈 姨母 阿姨",
    "brother's son": "侄子 侄儿",
    "brother's daughter": "侄女",
    "sister's son": "外甥",
    "sister's daughter": "外甥女",
    "father's brother's son": "堂兄弟",
    "father's brother's daughter": "堂姐妹 堂姊妹",
    "father's sister's son": "表兄弟 姑表兄弟",
    "father's sister's daughter": "表姐妹 表姊妹 姑表姐妹",
    "mother's brother's son": "表兄弟 舅表兄弟",
    "mother's brother's daughter": "表姐妹 表姊妹 舅表姐妹",
    "mother's sister's son": "表兄弟 姨表兄弟",
    "mother's sister's daughter": "表姐妹 表姊妹 姨表姐妹",
    "father's older brother's wife": "伯母",
    "father's younger brother's wife": "婶婶 婶母 婶子",
    "father's sister's husband": "姑父 姑丈 姑夫",
    "mother's brother's wife": "舅妈 舅母",
    "mother's sister's husband": "姨父 姨丈 姨夫",
    "husband's father": "公公",
    "husband's mother": "婆婆",
    "wife's father": "岳父 丈人",
    "wife's mother": "岳母 丈母娘",
    "son's wife": "儿媳 儿媳妇 媳妇",
    "daughter's husband": "女婿",
    "older brother's wife": "嫂子 嫂嫂",
    "younger brother's wife": "弟媳 弟妹 弟媳妇",
    "older sister's husband": "姐夫",
    "younger sister's husband": "妹夫",
    "husband's older brother": "大伯子 大伯哥 大伯",
    "husband's younger brother": "小叔子 小叔",
    "husband's older sister": "大姑子 大姑姐",
    "husband's younger sister": "小姑子 小姑",
    "wife's older brother": "大舅子 大舅哥 内兄",
    "wife's younger brother": "小舅子 内弟",
    "wife's older sister": "大姨子 大姨姐",
    "wife's younger sister": "小姨子",
}
"""Chinese words for whom a way reaches, the usual one first. Where the ages of siblings make no
difference they are left out; where they do and are not known, Chinese has no exact word. Of a
brother "兄弟" is true as well; "哥哥" only if he is known to be older."""


@cache
def chinese_names(way: Way) -> tuple[str, ...]:
    """The Chinese words for whom a way reaches, the usual one first; () if none is exact."""
    if not all(step.gender for step in way):
        return ()
    words = [KINDS[step.kind,][step.gender == "f"] for step in way]
    aged = [f"{step.age} {word}".strip() for step, word in zip(way, words, strict=True)]
    return tuple((_CHINESE.get("'s ".join(aged)) or _CHINESE.get("'s ".join(words), "")).split())


@cache
def right_answers(way: Way) -> frozenset[str]:
    """All the words of both languages for whom a way reaches."""
    return frozenset((*english_names(way), *chinese_names(way)))


@cache
def usual_names(language: Language) -> tuple[str, ...]:
    """The usual words for all relations that have one."""
    if language == "zh":
        return tuple(sorted({names.split()[0] for names in _CHINESE.values()}))
    return tuple(sorted({word for pair in KINDS.values() for word in pair}))


def usual_name(way: Way, language: Language) -> str:
    """The usual word for whom a way reaches, which has to have one."""
    return (english_names(way) if language == "en" else chinese_names(way))[0]
