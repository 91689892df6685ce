"""Whether a question is one that the bundled families ask: for a model that knows nothing else.

A linear model over what a question is made of. Its features are words (pairs of words, characters
in Chinese) with every number, time and date mapped to a placeholder, and the structure around
them: a list of numbers, a calculation, an equation in x, a grid. For each family and for
"anything else" it has a score; the log-odds of the families against the rest decide. The weights
are in `scope.json` beside this, written by ``benchmarks/data/make_scope.py``, which says what they
were fitted on and how often they err. They are read at the first question: importing costs nothing.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

LONGEST: Final = 3000
"""Characters. No family asks in as many as 1000, so a longer text is outside without a look."""

ZERO: Final = ord("?")
MOST: Final = 28
"""A weight is kept as one character: so many steps above or below ZERO, at most MOST."""

WORD_SHARE: Final = 4.0
"""What all words together weigh at most, against one feature of structure."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the detector makes of a question. ``family`` is the nearest one even if outside,
    "" where it can be of none; ``score`` is the log-odds that it is inside, less the threshold, so
    that 0 decides."""

    inside: bool
    family: str
    score: float


_NOWHERE: Final = Scope(False, "", -math.inf)


class Features(NamedTuple):
    """What a question is made of; words count less the more there are."""

    structure: frozenset[str]
    words: frozenset[str]


class Weights(NamedTuple):
    """`scope.json`: for each feature one character for each of ``classes``, "general" last, and the
    words that the families' problems have."""

    classes: tuple[str, ...]
    step: float
    threshold: float
    of: dict[str, str]
    known: frozenset[str]


def in_scope(question: str) -> bool:
    """Whether it is a problem of the bundled families, in English or Chinese, however worded."""
    return scope(question).inside


def scope(question: str) -> Scope:
    """Whether a question is a problem of the families, and the nearest of them."""
    if len(question) > LONGEST:
        return _NOWHERE
    weights = _weights()
    found = features(question, weights.known)
    return judged(found, weights) if possible(found) else _NOWHERE


def possible(found: Features) -> frozenset[str]:
    """The families that a question can be of: it has what their problems cannot do without, and
    nothing that none of them has."""
    if "<never>" in found.structure:
        return frozenset()
    return frozenset(
        name for name, sets in _NEEDS.items() if any(one <= found.structure for one in sets)
    )


def judged(found: Features, weights: Weights) -> Scope:
    """The verdict on a question that some families are possible for."""
    scores = dict(zip(weights.classes, class_scores(found, weights), strict=True))
    general = scores.pop(weights.classes[-1])
    families = possible(found)
    odds = {name: score - general for name, score in scores.items() if name in families}
    family, best = max(odds.items(), key=lambda item: item[1])
    together = best + math.log(sum([math.exp(one - best) for one in odds.values()]))
    return Scope(together >= weights.threshold, family, together - weights.threshold)


def class_scores(found: Features, weights: Weights) -> list[float]:
    """One score for each class; features that the weights do not know add nothing."""
    structure = [0] * len(weights.classes)
    words = [0] * len(weights.classes)
    for names, total in ((found.structure, structure), (found.words, words)):
        for name in names:
            for at, letter in enumerate(weights.of.get(name, "")):
                total[at] += ord(letter) - ZERO
    scale = word_scale(len(found.words))
    return [weights.step * (a + scale * b) for a, b in zip(structure, words, strict=True)]


def word_scale(count: int) -> float:
    """What a word weighs among so many."""
    return WORD_SHARE / math.sqrt(count + 4)


@cache
def _weights() -> Weights:
    kept = json.loads(Path(__file__).with_name("scope.json").read_text(encoding="utf-8"))
    return Weights(
        tuple(kept["classes"]),
        kept["step"],
        kept["threshold"],
        kept["weights"],
        frozenset(kept["known"].split()),
    )


# -- what a question is made of

_MONTHS: Final = (
    "january|february|march|april|may|june|july|august|september|october|november|december"
)
_KIN_WORDS: Final = (
    "mother father mom mum dad parent son daughter child brother sister wife husband uncle aunt "
    "nephew niece cousin grandmother grandfather grandson granddaughter"
)
_KIN: Final = frozenset(_KIN_WORDS.split())
_KNIGHTS: Final = frozenset("骑士无赖")
_CELLS: Final = r"(?:[0-4._?*][ \t|]*){4}"
_JOINT: Final = r" ?(?:, ?and\b|and\b|[,、;和与跟]|\s) ?"

_STRAIGHT: Final = str.maketrans("“”‘’×−–—·。", "\"\"''*---*.")
_SIGNS: Final = {"÷": "/", "²": "^2", "³": "^3"}
"""What NFKC would turn into something else, or what takes more than one character."""


_NEEDS: Final[dict[str, tuple[frozenset[str], ...]]] = {
    name: tuple(frozenset(one.split(" & ")) for one in any_of)
    for name, any_of in {
        "countdown": ("<list> & 4+ numbers",),
        "game24": ("<list> & 4+ numbers & 24",),
        "chained_arithmetic": ("2+ numbers & <expr>", "2+ numbers & <calculates>"),
        "linear_equations": ("<x> & 1+ numbers",),
        "gcd_lcm": ("2+ numbers & <divides>",),
        "base_conversion": ("<base> & 1+ numbers", "<base> & <hex>", "<hexadecimal>"),
        "letter_counting": ("<letter> & <counts>", "<one letter> & <counts>"),
        "sorting": ("<list> & <orders>", "<listed words> & <orders>"),
        "calendar_clock": (
            "<clock>s",
            "<clock> & 1+ numbers",
            "<date>s",
            "<weekday> & 1+ numbers",
        ),
        "number_sequences": ("<list> & <goes on>", "<list> & <follows>"),
        "knights_knaves": ("<knights> & <told>",),
        "family_relations": ("<kins> & <is>",),
        "word_problems": ("2+ numbers", "1+ numbers & <times>"),
        "sudoku4": ("<grid>",),
    }.items()
}
"""What a problem of a family cannot do without, in any words: one of these sets of structure."""


_GROUNDS: Final = frozenset(
    f"<{one}>"
    for one in (
        *("calculates", "divides", "base", "hexadecimal", "counts", "orders", "follows", "is"),
        *("times", "told", "kins", "knights", "one letter"),
    )
)
"""Too common to tell anything together with others."""


class _Pattern(NamedTuple):
    """Where a text has one, ``token`` is put for it; with ``alone`` it is only noted."""

    token: str
    expression: str
    alone: bool = False


_PATTERNS: Final = (
    # The grounds of each family, by the stems of words that one or other of them is there.
    _Pattern("<calculates>", r"plus|minus|times|divid|multipl|add|subtract|sum|[加减乘除]", True),
    _Pattern(
        "<divides>", r"\b(?:gcd|lcm|hcf|gcf)|divi[ds]|common|multipl|factor|整除|除尽|公|倍数", True
    ),
    _Pattern("<base>", r"\bbase\b|\bbin|decimal|\bocta|\bhex|进制", True),
    _Pattern("<hexadecimal>", r"\bhex|十六进制", True),
    _Pattern(
        "<counts>", r"how (?:many|often)|count|number|time|occur|frequen|amount|[几数次]|多少", True
    ),
    _Pattern(
        "<orders>",
        r"sort|order|arrang|rank|ascend|descend|increas|decreas|alphabet|est\b|dictionary|line|least"
        r"|a to z|z to a|[排序]|[从由][大小低高]|词典|字典",
        True,
    ),
    _Pattern(
        "<follows>",
        r"next|com[ei]|follow|continu|sequence|pattern|series|term|then|after|missing|complete"
        r"|extend|go(?:es)? on|predict|下一|规律|列|接|后|填|往下|然后|第.个|继续",
        True,
    ),
    _Pattern("<is>", r"\b(?:is|was|are|has|have)\b|'s\b|是|有", True),
    _Pattern("<times>", r"twice|half|doubl|tripl|thrice|times|each|倍|半|每", True),
    _Pattern("<told>", r"\bsa(?:y|id)|claim|\btell|\btold|state|\"|:|说|讲", True),
    # And what none of them has.
    _Pattern(
        "<other mathematics>",
        r"%|percent|probab|chance|likel|\broots?\b|sqrt|\bsin\b|\bcos\b|\btan\b|\blog\b|\bln\b|area"
        r"|volume|perimeter|circum|radius|diameter|circle|triang|angle|square|cube|mean|average"
        r"|median|\bmode\b|varian|deviat|integra|deriv|differen|matri|prime|factorial|ratio|speed"
        r"|km/h|mph|discount|interest|fraction|graph|slope|limit|inequal|\bpower|f\(x\)|prove"
        r"|logarithm|vector|polynom|quadrat|roman num"
        r"|概率|面积|体积|周长|半径|直径|圆|三角|角形|正方|长方|平方|立方|平均数|中位|众数|方差|积分|导|极限|矩阵|质数|素数"
        r"|阶乘|百分|打.?折|利率|利息|比例|速度|千米|函数|图像|不等式|次方|根号|分数|小数|因式|约数有|余数|浓度|概",
        True,
    ),
    _Pattern(
        "<never>",
        r"[%^]|\d ?<|< ?\d|\d ?>|(?<![-=])> ?\d|\d!|sqrt|percent|probab|\blog\b|\bsin\b|\bcos\b"
        r"|f\(x\)|integral|derivative|概率|百分|平方根|面积|体积|打.?折",
        True,
    ),
    _Pattern(
        "<units>",
        r"\b(?:km|kg|cm|mm|ml|mg|mph|gb|mb|tb|lbs?|oz|kilomet\w+|kilogra\w+|gra?ms?|lit(?:er|re)s?"
        r"|gallons?|inch(?:es)?|feet|foot|miles?|yards?|celsius|fahrenheit|degrees?|euros?|yen|usd|eur"
        r"|pounds?|calories|watts?|volts?|acres?|cups|teaspoons?)\b"
        r"|公里|千克|公斤|厘米|毫升|平方米|摄氏|华氏|美元|欧元|人民币|英里|英尺|加仑|热量",
        True,
    ),
    _Pattern(
        "<talk>",
        r"\bwhy\b|\bwhere\b|\bshould\b|recommend|suggest|advice|translat|explain|descri|summar"
        r"|\bmean\b|\bmeans\b|meaning|histor|\bbest\b|\bbetter\b|differen|\bwho (?:was|were|wrote"
        r"|invented|sang|directed|made|won|said)"
        r"|\bcode\b|python|java|program|function|print|error"
        r"|recipe|\bcook|\bstory about|poem|\bsong|\bemail|\bessay|\bideas?\b|\btips?\b"
        r"|\bmy\b"
        r"|为什么|怎么办|哪里|推荐|建议|应该|翻译|解释|介绍|意思|区别|意义|历史|哪个好|什么好|代码|程序|函数|报错|作文|故事"
        r"|写一|吗|如何|谁发明|是谁|哪一年",
        True,
    ),
    _Pattern("<grid>", rf"(?:^|\n)\s*{_CELLS}(?:[\n/,;]\s*{_CELLS}){{3}}(?=\s|$)"),
    _Pattern("<4x4>", r"\b4\s*(?:x|\*|by)\s*4\b|\b2\s*(?:x|\*)\s*2\b(?=\D*$|\s*(?:box|宫))"),
    _Pattern("<pow>", r"\^", True),
    _Pattern("<pure>", r"^[\d\s+*/()=?.-]+$", True),
    _Pattern(
        "<date>",
        rf"\b\d{{1,2}}(?:st|nd|rd|th)? (?:{_MONTHS})(?:,? \d{{4}})?\b"
        rf"|\b(?:{_MONTHS}) \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?\b"
        r"|\d{1,4}\s*年\s*\d{1,2}\s*月\s*\d{1,2}\s*[日号]|\b\d{4}-\d\d-\d\d\b",
    ),
    _Pattern("<clock>", r"\b\d{1,2}:\d\d\b"),
    _Pattern(
        "<weekday>",
        r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b"
        r"|(?:星期|周|礼拜)[一二三四五六日天]",
    ),
    _Pattern("<eq>", r"[\dx)]\s*=\s*[-\dx(]", True),
    _Pattern("<x>", r"\d\s*x\b|\bx\s*[-+=]|[-+=]\s*x\b|\d\(x\s*[-+]", True),
    _Pattern("<expr2>", r"\d\)*\s*[-+*/]\s*\(*\d+\)*\s*[-+*/]\s*\(*\d", True),
    _Pattern("<expr>", r"\d\)*\s*[-+*/]\s*\(*\d", True),
    _Pattern("<goes on>", r"(?:\d{1,20} ?[,、 ] ?){2,}(?:\.{2,}|\?|_+|\( *\))", True),
    _Pattern("<listed words>", r"[a-z]+(?:,\s*(?:and )?[a-z]+){3,}"),
    _Pattern("<bits>", r"\b[01]{4,}\b"),
    _Pattern("<decimal>", r"\b\d+\.\d+\b"),
    _Pattern("<hex>", r"\b(?:0x)?(?=[0-9a-f]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{2,}\b"),
    _Pattern("<letter>", r"(?<![\w'])[b-hj-wyz](?:'?s)?(?![\w'])|(?<![\w'])[aix]'s\b"),
)


@cache
def _compiled() -> tuple[tuple[str, re.Pattern[str], bool], ...]:
    return tuple((one.token, re.compile(one.expression, re.ASCII), one.alone) for one in _PATTERNS)


@cache
def _readers() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Lists of numbers, quotations, kinship in Chinese, and tokens."""
    return (
        re.compile(rf"-?\d{{1,20}}(?:{_JOINT}-?\d{{1,20}}){{2,}}", re.ASCII),
        re.compile(r'"([^"\n]{1,80})"'),
        re.compile(r"父亲|母亲|爸爸|妈妈|儿子|女儿|哥哥|弟弟|姐姐|妹妹|丈夫|妻子|爷爷|奶奶"),
        re.compile(r"<[a-z0-9 ]+>|[a-z]+|[\u4e00-\u9fff]+|\d+", re.ASCII),
    )


def folded(text: str) -> str:
    """Without what two people type differently: case, full-width forms, quotes, signs."""
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = unicodedata.normalize("NFKC", text).translate(_STRAIGHT).casefold()
    return "\n".join([" ".join(line.split()) for line in text.splitlines() if line.strip()])


def features(question: str, known: frozenset[str]) -> Features:
    """What a question is made of. ``known`` are the words that the families' problems have."""
    structure, tokens = _read(question)
    if any(len(token) == 1 and token.isascii() and token.isalpha() for token in tokens):
        structure.add("<one letter>")
    numbers = sum(token.isdigit() or token in ("<bits>", "<decimal>") for token in tokens)
    if "24" in tokens:
        structure.add("24")
    structure.add(f"{min(numbers, 5)} numbers")
    structure.add(f"strange {_strange(tokens, known)}")
    structure.add(f"length {sum(len(spelled(tokens)) > limit for limit in (1, 3, 6, 10, 16, 30))}")
    ordered = sorted(structure - _GROUNDS)
    for at, one in enumerate(ordered):
        structure.update([f"{one} & {other}" for other in ordered[at + 1 :]])
    structure.update([f"{at}+ numbers" for at in range(1, min(numbers, 5) + 1)])
    structure.add("")  # the bias
    return Features(frozenset(structure), frozenset(_words(tokens, "n" if numbers else "0")))


def _read(question: str) -> tuple[set[str], list[str]]:
    """What stands out in a question, and its tokens."""
    text = folded(question)
    lists, quotations, kin_zh, tokens_of = _readers()
    structure: set[str] = set()
    text = quotations.sub(_quotation, text)
    for token, pattern, alone in _compiled():
        if token == "<bits>":
            structure |= _lists(text, lists)
        if alone:
            if pattern.search(text):
                structure.add(token)
        else:
            text, count = pattern.subn(f" {token} ", text)
            if count:
                structure.add(token)
            if count > 1:
                structure.add(f"{token}s")
    tokens = tokens_of.findall(text)
    kin = sum(token in _KIN for token in tokens) + len(kin_zh.findall(text))
    if kin:
        structure.add("<kin>" if kin == 1 else "<kins>")
    if "<quoted>" in tokens:
        structure.add("<quoted>")
    if any(token.startswith(("knight", "knave", "liar")) for token in tokens) or _KNIGHTS & set(
        text
    ):
        structure.add("<knights>")
    return structure, tokens


def _quotation(match: re.Match[str]) -> str:
    """What knights and knaves say is read; anything else is only a thing that is asked about."""
    said = match[1]
    read = "knight" in said or "knave" in said or "liar" in said or _KNIGHTS & set(said)
    return f" <quoted> {said} " if read or " and i " in f"{said} " or "我" in said else " <quoted> "


def _lists(text: str, lists: re.Pattern[str]) -> set[str]:
    """How long the longest list of numbers is."""
    longest = max((len(re.findall(r"\d+", one)) for one in lists.findall(text)), default=0)
    return {"<list>", f"list {min(longest, 5)}"} if longest else set()


def spelled(tokens: list[str]) -> list[str]:
    """The words and the Chinese characters among the tokens."""
    found: list[str] = []
    for token in tokens:
        if token > "\u3fff":
            found += token
        elif len(token) > 1 and token.isalpha():
            found.append(token)
    return found


def tokens_in(question: str) -> list[str]:
    """The tokens of a question, those that stand for something longer among them."""
    return _read(question)[1]


def _strange(tokens: list[str], known: frozenset[str]) -> int:
    """How large the share of words is that the families' problems do not have: 0 to 5."""
    words = spelled(tokens)
    share = sum(word not in known for word in words) / max(len(words), 4)
    return sum(share > limit for limit in (0.0, 0.08, 0.17, 0.3, 0.5))


def _words(tokens: list[str], numbers: str) -> set[str]:
    """Words, their beginnings and pairs; characters, pairs and threes of them in Chinese. Each word
    also with whether there are numbers: "sort" of five numbers, and "sort" of one's life."""
    found: set[str] = set()
    before = "^"
    for token in tokens:
        if token.isdigit():
            token = "<n>"
        if token > "\u3fff":
            for size in (1, 2, 3):
                found.update([token[at : at + size] for at in range(len(token) - size + 1)])
            found.update([f"{token[at : at + 2]}|{numbers}" for at in range(len(token) - 1)])
        elif token[0] != "<":
            found.update((token, f"{token}|{numbers}"))
            if len(token) > 4:
                found.add(f"{token[:4]}-")
        if before[0] != "<" or token[0] != "<":
            found.add(f"{_edge(before, -2, None)} {_edge(token, 0, 2)}")
        before = token
    return found


def _edge(token: str, start: int, stop: int | None) -> str:
    """A word, or the two characters at the end of a run of Chinese."""
    return token[start:stop] if token > "\u3fff" else token
