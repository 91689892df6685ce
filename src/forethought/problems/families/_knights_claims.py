"""What knights and knaves say: claims about persons, when they are true, and their words."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations
from typing import Final, Literal, NamedTuple

from forethought.problems.problem import Language

# Persons are 0 .. n - 1. Who is a knight is a bit mask over them, and a set of such possibilities a
# bit mask over the 2**n of them.

Form = Literal["is", "same", "differ", "and", "or", "if", "count"]


class Claim(NamedTuple):
    """What is claimed of persons ``one`` and ``other``, each with a knight (True) or knave.

    "is": one is that. "same", "differ": their kinds. "and", "or", "if": of the two "is". "count":
    exactly ``one`` of all the persons are knights.
    """

    form: Form
    one: int
    knight: bool = True
    other: int = 0
    other_knight: bool = True


class Saying(NamedTuple):
    """Who claims what."""

    speaker: int
    claim: Claim


def holds(claim: Claim, knights: int) -> bool:
    """Whether a claim is true if just these persons are knights."""
    if claim.form == "count":
        return knights.bit_count() == claim.one
    one = bool(knights >> claim.one & 1) == claim.knight
    other = bool(knights >> claim.other & 1) == claim.other_knight
    match claim.form:
        case "is":
            return one
        case "same":
            return one == other
        case "differ":
            return one != other
        case "and":
            return one and other
        case "or":
            return one or other
        case _:
            return other or not one


def _claims(persons: int) -> Iterator[Claim]:
    """All the claims about so many persons, of each two equal ones one."""
    for one in range(persons):
        for knight in (True, False):
            yield Claim("is", one, knight)
    for one, other in combinations(range(persons), 2):
        yield Claim("same", one, other=other)
        yield Claim("differ", one, other=other)
        for knight in (True, False):
            for other_knight in (True, False):
                yield Claim("and", one, knight, other, other_knight)
                yield Claim("or", one, knight, other, other_knight)
    for one, other in permutations(range(persons), 2):
        for knight in (True, False):
            for other_knight in (True, False):
                yield Claim("if", one, knight, other, other_knight)
    for count in range(1, persons):
        yield Claim("count", count)


def _renamed(saying: Saying, order: tuple[int, ...]) -> Saying:
    """The same saying when person p is called ``order[p]``."""
    form, one, knight, other, other_knight = saying.claim
    speaker = order[saying.speaker]
    if form == "count":
        return Saying(speaker, saying.claim)
    if form == "is":
        return Saying(speaker, Claim("is", order[one], knight))
    one, other = order[one], order[other]
    if form != "if" and one > other:
        one, knight, other, other_knight = other, other_knight, one, knight
    return Saying(speaker, Claim(form, one, knight, other, other_knight))


class Village(NamedTuple):
    """All that so many persons can say, in an order of its own, without what says nothing or
    cannot be said. Each tuple has one entry for each saying."""

    sayings: tuple[Saying, ...]
    true: tuple[int, ...]
    """The possibilities in which the claim is true."""
    sayable: tuple[int, ...]
    """The possibilities in which the claim is true if and only if the speaker is a knight."""
    renamed: tuple[tuple[int, ...], ...]
    """For each order of the persons what each saying becomes."""
    least: tuple[int, ...]
    """The first saying that it becomes in any order."""
    to_least: tuple[tuple[int, ...], ...]
    """The orders in which it becomes that."""


@cache
def village(persons: int) -> Village:
    """What so many persons can say."""
    possibilities = range(1 << persons)
    sayings, true, sayable = [], [], []
    for speaker in range(persons):
        for claim in _claims(persons):
            holding = sum(1 << one for one in possibilities if holds(claim, one))
            fitting = sum(
                1 << one for one in possibilities if holds(claim, one) == bool(one >> speaker & 1)
            )
            if 0 < fitting < (1 << len(possibilities)) - 1:
                sayings.append(Saying(speaker, claim))
                true.append(holding)
                sayable.append(fitting)
    place = {saying: at for at, saying in enumerate(sayings)}
    renamed = tuple(
        tuple(place[_renamed(saying, order)] for saying in sayings)
        for order in permutations(range(persons))
    )
    least = tuple(map(min, zip(*renamed, strict=True)))
    to_least = tuple(
        tuple(order for order, row in enumerate(renamed) if row[at] == least[at])
        for at in range(len(sayings))
    )
    return Village(tuple(sayings), tuple(true), tuple(sayable), renamed, least, to_least)


@cache
def code(persons: int, at: int) -> str:
    """A saying as the canonical form writes it."""
    speaker, (form, one, knight, other, other_knight) = village(persons).sayings[at]
    if form == "count":
        return f"{speaker} count {one}"
    code = f"{speaker} {form} {one}{'+' if knight else '-'}"
    return code if form == "is" else f"{code} {other}{'+' if other_knight else '-'}"


# Words.

_NUMBERS: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("no", "one", "two", "three"),
    "zh": ("零", "一", "两", "三"),
}


def kind_word(knight: bool, language: Language) -> str:
    """What a knight or a knave is called."""
    if language == "zh":
        return "骑士" if knight else "无赖"
    return "knight" if knight else "knave"


def _english(claim: Claim, names: list[str], speaker: int | None) -> str:
    if claim.form == "count":
        of_us = "" if speaker is None else " of us"
        are = "is a knight" if claim.one == 1 else "are knights"
        return f"exactly {_NUMBERS['en'][claim.one]}{of_us} {are}"
    if claim.form == "if":
        one = _english_is(claim.one, claim.knight, names, speaker)
        return f"if {one}, then {_english_is(claim.other, claim.other_knight, names, speaker)}"
    if claim.form == "is":
        return _english_is(claim.one, claim.knight, names, speaker)
    _, one_at, knight, other_at, other_knight = claim
    if one_at == speaker:
        one_at, knight, other_at, other_knight = other_at, other_knight, one_at, knight
    kind = kind_word(knight, "en")
    pair = f"{names[one_at]} and {'I' if other_at == speaker else names[other_at]}"
    if claim.form in ("same", "differ"):
        return f"{pair} are of {'the same kind' if claim.form == 'same' else 'different kinds'}"
    if knight == other_knight:
        if claim.form == "and":
            return f"{pair} are both {kind}s"
        last = "me" if other_at == speaker else names[other_at]
        return f"at least one of {names[one_at]} and {last} is a {kind}"
    one = _english_is(one_at, knight, names, speaker)
    other = _english_is(other_at, other_knight, names, speaker)
    return f"{one} and {other}" if claim.form == "and" else f"{one} or {other}, or both"


def _english_is(person: int, knight: bool, names: list[str], speaker: int | None) -> str:
    return f"{'I am' if person == speaker else f'{names[person]} is'} a {kind_word(knight, 'en')}"


def _chinese(claim: Claim, names: list[str], speaker: int | None) -> str:
    if claim.form == "count":
        of_us = "" if speaker is None else "我们当中"
        return f"{of_us}恰好有{_NUMBERS['zh'][claim.one]}个骑士"
    _, one_at, knight, other_at, other_knight = claim
    if one_at == speaker and claim.form not in ("is", "if"):
        one_at, knight, other_at, other_knight = other_at, other_knight, one_at, knight
    first = "我" if one_at == speaker else names[one_at]
    second = "我" if other_at == speaker else names[other_at]
    kind = kind_word(knight, "zh")
    one, other = f"{first}是{kind}", f"{second}是{kind_word(other_knight, 'zh')}"
    match claim.form:
        case "is":
            return one
        case "if":
            return f"如果{one}，那么{other}"
        case "same":
            return f"{first}和{second}是同一种人"
        case "differ":
            return f"{first}和{second}不是同一种人"
        case "and":
            return f"{first}和{second}都是{kind}" if knight == other_knight else f"{one}，{other}"
        case _:
            if knight == other_knight:
                return f"{first}和{second}中至少有一个是{kind}"
            return f"{one}或{other}，或两者都对"


def claimed(claim: Claim, names: list[str], speaker: int | None, language: Language) -> str:
    """A claim in words: as the speaker says it ("I am a knave"), or (None) as somebody else does;
    without a capital letter and a full stop."""
    return (_english if language == "en" else _chinese)(claim, names, speaker)
