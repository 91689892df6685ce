"""How right answers of each bundled family may look, and answers that are nearly right.

Written apart from the families' verifiers, from what their docstrings promise: an audit that asked
the verifier itself would find nothing. Nothing here reads hostile text, only golds and what was
made of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Final, cast

from forethought.problems.families._story import THINGS
from forethought.problems.families.word_problems import WordTask
from forethought.problems.family import Family
from forethought.problems.problem import Problem

Variants = Callable[[Problem, Random], list[str]]
"""Answers to a problem."""


@dataclass(frozen=True, slots=True)
class AnswerForms:
    """What there is to say of the answers of a family.

    ``means``: what an answer written like a gold says, so that two golds that say the same are
    equal; None for what does not read like one. ``odd`` are right answers in odd forms, ``near``
    texts that look right and are not (those that mean the same as the gold are left out later).
    """

    means: Callable[[Problem, str], object]
    odd: Variants
    near: Variants


def forms_of(family: Family) -> AnswerForms:
    """Those of a bundled family; of another one, what holds for any whole number or text."""
    return _FORMS.get(family.name, _ANY)


# Whole numbers.


def _whole(problem: Problem, text: str) -> object:
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def _odd_number(problem: Problem, rng: Random) -> list[str]:
    value = int(problem.answer)
    forms = [f"{value:,}", f"{value:,}.", f" {value} 。"]
    return [*forms, f"−{-value}"] if value < 0 else [*forms, f"+{value}"]


def _near_number(problem: Problem, rng: Random) -> list[str]:
    value, digits = int(problem.answer), problem.answer.lstrip("-")
    near = [str(value + by) for by in (-10, -1, 1, 10)]
    near += [str(-value), f"{value}0", f"{value}.5", f"{value - 1} + 1", f"{value} - 0"]
    near += [f"±{value}", f"{value}-", f"{value}..", f",{value}", f"{value},"]
    near += [f"{value}/", f"({value}", f"{value}e0", f"0x{value}", f"{value}_000", f"≈{value}"]
    near += [f"{value}..{value}", f"--{value}", f"+-{value}", f"<{value}", f"≥{value}"]
    if len(digits) > 1:
        near += [f"{digits[0]} {digits[1:]}", f"{digits[0]}_{digits[1:]}"]
    if len(digits) != 4 and len(digits) > 1:
        near += [f"{digits[0]},{digits[1:]}"]
    return near


def _number_with(odd: Variants, near: Variants) -> AnswerForms:
    """A whole number with more forms of its own."""
    return AnswerForms(
        _whole,
        lambda problem, rng: [*_odd_number(problem, rng), *odd(problem, rng)],
        lambda problem, rng: [*_near_number(problem, rng), *near(problem, rng)],
    )


def _none(problem: Problem, rng: Random) -> list[str]:
    return []


def _asked_sum(problem: Problem) -> str:
    found = re.search(r"[(0-9][-+*/() 0-9]*[)0-9]", problem.text)
    assert found is not None
    return found[0]


def _odd_sum(problem: Problem, rng: Random) -> list[str]:
    asked, value = _asked_sum(problem), problem.answer
    signs = asked.replace("*", "×").replace("/", "÷").replace("-", "−")
    latex = asked.replace("*", r"\times").replace("/", r"\div")
    return [f"{one} = {value}" for one in (asked, signs, latex, asked.replace(" ", ""))]


def _near_sum(problem: Problem, rng: Random) -> list[str]:
    asked, value = _asked_sum(problem), int(problem.answer)
    near = [asked, f"{asked} = {value + 1}", f"{asked} + 1 = {value}"]
    return [*near, f"{asked} = {value} = {value + 1}", f"{asked} = {asked}", f"= {value + 2}"]


def _odd_unknown(problem: Problem, rng: Random) -> list[str]:
    return [f"{x}{problem.answer}" for x in ("x = ", "x=", "X = ", "x =", "x ＝ ")]


def _near_unknown(problem: Problem, rng: Random) -> list[str]:
    x = int(problem.answer)
    near = [f"x = {x + 1}", f"y = {x}", f"x = {x} or x = {x + 1}", f"x > {x}", f"x ≠ {x}", "x"]
    return [*near, f"{x}x", f"2x = {x}", f"x = {x}, x = {x - 1}", f"x^2 = {x}", "x = x"]


def _asked_divisor(problem: Problem) -> tuple[str, list[str]]:
    kind, *numbers = problem.canonical.partition(":")[2].split()
    return kind, numbers


def _odd_divisor(problem: Problem, rng: Random) -> list[str]:
    kind, numbers = _asked_divisor(problem)
    value = problem.answer
    return [
        f"{kind} = {value}",
        f"{kind.upper()} = {value}",
        f"{kind}({', '.join(numbers)}) = {value}",
        f"{kind}({','.join(reversed(numbers))})={value}",
    ]


def _near_divisor(problem: Problem, rng: Random) -> list[str]:
    kind, numbers = _asked_divisor(problem)
    other = {"gcd": "lcm", "lcm": "gcd"}[kind]
    value, listed = int(problem.answer), ", ".join(numbers)
    near = [f"{kind} = {value + 1}", f"{other} = {value}", f"{other}({listed}) = {value}"]
    return [
        *near,
        f"{kind}({listed}) = {2 * value}",
        f"{kind}({listed})",
        f"{kind} {value}, {other}",
    ]


def _odd_count(problem: Problem, rng: Random) -> list[str]:
    task = cast(WordTask, problem.task)
    words = task.story.words[problem.language]
    unit = words.unit.format(t="".join(THINGS[problem.language][task.things[0]]))
    forms = [f"{problem.answer} {unit}", f"{problem.answer} {unit}."]
    if problem.language == "zh":
        forms.append(f"{problem.answer}{unit}。")
    if task.story.words["en"].unit == "dollars":
        forms += [f"${problem.answer}", f"$ {problem.answer}."]
    return forms


def _near_count(problem: Problem, rng: Random) -> list[str]:
    value = int(problem.answer)
    near = [f"{value} dinosaurs", f"{value}头恐龙", f"£{value}", f"{value} of {value + 5}"]
    return [*near, f"{value} apples and 1 pear", f"{value + 1} apples", f"{value + 1}个苹果"]


# Numbers of other bases.


def _base(problem: Problem) -> int:
    return int(problem.canonical.rpartition(" ")[2])


def _in_base(problem: Problem, text: str) -> object:
    try:
        return int(text, _base(problem))
    except ValueError:
        return None


def _odd_base(problem: Problem, rng: Random) -> list[str]:
    gold, base = problem.answer, _base(problem)
    if base == 10:
        return [gold, f"{int(gold):,}", f"0{gold}"]
    prefix = {2: "0b", 8: "0o", 16: "0x"}[base]
    return [gold.lower(), f"00{gold}", prefix + gold, prefix.upper() + gold.lower()]


def _near_base(problem: Problem, rng: Random) -> list[str]:
    gold, base = problem.answer, _base(problem)
    value = int(gold, base)
    near = [format(other, "X") for other in (value - 1, value + 1, 2 * value)]
    near += [f"{value:b}", f"{value:o}", str(value), f"{value:X}"]
    near = [text for text in near if _in_base(problem, text) != value]
    wrong_prefix = "0b" if base in (8, 10) else "0o"
    near += [wrong_prefix + gold, "0x", "0b", f"-{gold}", f"{gold}.0", " ".join(gold) + " 0"]
    return [*near, f"{gold}_{base}", f"{gold}₍{base}₎", f"{gold}G", f"0x0x{gold}", f"1,{gold}"]


# Expressions.


def _combined(problem: Problem, text: str) -> object:
    """The value and the numbers of an expression of ours, with Python's grammar: another reader
    than the families' own."""
    try:
        tree = ast.parse(text, mode="eval").body
        numbers: list[int] = []
        return _evaluated(tree, numbers), sorted(numbers)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _evaluated(node: ast.AST, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError("no expression of the four operations")
    left, right = _evaluated(node.left, numbers), _evaluated(node.right, numbers)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    raise ValueError("another operation")


def _target(problem: Problem) -> str:
    return problem.canonical.rpartition("= ")[2]


def _odd_expression(problem: Problem, rng: Random) -> list[str]:
    gold, target = problem.answer, _target(problem)
    return [
        f"{gold} = {target}",
        f"{gold}={target}.",
        f"({gold})",
        f"(({gold})) = {target}",
        gold.replace(" ", ""),
        gold.replace("*", "×").replace("/", "÷").replace("-", "−"),
        gold.replace("*", "·").replace("-", "–"),
        gold.replace("*", r"\times").replace("/", r"\div"),
        gold.replace("*", r"\cdot "),
        gold.replace("(", "（").replace(")", "）").replace("+", "＋"),
        f"{gold} ＝ {target}",
    ]


def _near_expression(problem: Problem, rng: Random) -> list[str]:
    gold, target = problem.answer, _target(problem)
    first = re.search(r"[0-9]+", gold)
    assert first is not None
    number, rest = first[0], gold[first.end() :]
    before = gold[: first.start()]
    near = [f"{gold} {tail}" for tail in ("+ 0", "* 1", "/ 1", "- 0", f"= {int(target) + 1}")]
    near += [f"{before}0{number}{rest}", f"{before}{number}.0{rest}", f"{before}{number}0{rest}"]
    near += [f"{before}{int(number) + 1}{rest}", f"{before}{number}_0{rest}", f"-({gold})"]
    near += [
        target,
        number,
        f"1({gold})",
        f"({gold}",
        f"{gold})",
        gold.replace("+", "++").replace("-", "--"),
    ]
    near += [gold.replace("*", "**").replace("/", "//"), f"{'(' * 150}{gold}"]
    near += [f"{gold} + x", f"{gold} % 100", f"{gold} ^ 1", f"{gold} if 1 else 0", "+ - * /"]
    return [text for text in near if text != gold]


# Lists.


def _listed(problem: Problem, text: str) -> object:
    return tuple(text.split(", "))


def _odd_list(problem: Problem, rng: Random) -> list[str]:
    gold = problem.answer
    separators = (",", " ", "  ", "; ", "、", "，", "\n", ",\n", " , ")
    forms = [gold.replace(", ", separator) for separator in separators]
    forms += [f"{left}{gold}{right}" for left, right in ("[]", "()", "{}", "【】")]
    if "-" in gold:
        forms.append(gold.replace("-", "−"))
    return [*forms, gold.upper(), gold.title()]


def _near_list(problem: Problem, rng: Random) -> list[str]:
    items = problem.answer.split(", ")
    at = rng.randrange(len(items) - 1)
    swapped = [*items[:at], items[at + 1], items[at], *items[at + 2 :]]
    lists = [items[::-1], items[:-1], items[1:], [*items, items[-1]], [items[0], *items], swapped]
    near = [", ".join(one) for one in lists]
    changed = f"{items[0]}x" if items[0].isalpha() else str(int(items[0]) + 1)
    near += [", ".join([changed, *items[1:]]), "".join(items), items[0], "asc", "desc"]
    marks = (" < ", " > ", " -> ", ": ", ", , ", " and ", " / ", "|", ". ")
    near += [problem.answer.replace(", ", mark) for mark in marks]
    return [*near, f"{problem.answer},,", f"[{problem.answer}", f"({problem.answer}]"]


# Times and days.


def _text(problem: Problem, text: str) -> object:
    return text


def _odd_date(problem: Problem, rng: Random) -> list[str]:
    gold = problem.answer
    if ":" in gold:
        return _odd_clock(int(gold[:2]), gold[3:])
    if gold.isdecimal():
        minutes = re.search(r"[0-9]:[0-9]{2} to", problem.canonical) is not None
        units = (" minutes", " min", "分钟", " 分钟") if minutes else (" days", "天", " 天")
        return [*_odd_number(problem, rng), *(gold + unit for unit in units)]
    if problem.language == "en":
        return [gold.lower(), gold.upper(), gold[:3], gold[:3].lower()]
    forms = [gold.replace("星期", "周"), gold.replace("星期", "礼拜")]
    return [*forms, "星期天", "周天"] if gold == "星期日" else forms


def _odd_clock(hour: int, minute: str) -> list[str]:
    half, twelve = ("am", "pm")[hour >= 12], (hour + 11) % 12 + 1
    forms = [f"{hour}:{minute}", f"{hour:02d}：{minute}", f"{hour}点{minute}分"]
    forms += [
        f"{hour}时{minute}分",
        f"{twelve}:{minute} {half}",
        f"{twelve}:{minute}{half.upper()}",
    ]
    forms.append(f"{twelve}:{minute} {half[0]}.m.")
    extra = {"00": [f"{hour}点", f"{hour}点整"], "30": [f"{hour}点半"]}
    return forms + extra.get(minute, [])


def _near_date(problem: Problem, rng: Random) -> list[str]:
    gold = problem.answer
    if ":" in gold:
        hour, minute = int(gold[:2]), gold[3:]
        near = [f"{(hour + 12) % 24:02d}:{minute}", f"{(hour + 1) % 24:02d}:{minute}", f"{gold}:30"]
        near += [
            f"{hour + 24}:{minute}",
            f"{hour}:{int(minute) + 60}",
            f"{hour:02d}:",
            f":{minute}",
        ]
        near += [
            f"{gold} {'am' if hour >= 12 else 'pm'}",
            f"-{gold}",
            f"{hour}",
            f"{gold} tomorrow",
        ]
        return [
            *near,
            f"{hour:03d}:{minute}",
            f"{gold} - {gold}",
            f"{gold}pmam",
            f"{hour}点{minute}秒",
        ]
    if gold.isdecimal():
        near = [f"{gold} weeks", f"{gold} hours", f"{gold} 小时", f"{gold} years", f"{gold}星期"]
        return [
            *_near_number(problem, rng),
            *near,
            f"{int(gold) + 1} days",
            f"{int(gold) + 1} 分钟",
        ]
    names = (
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        if problem.language == "en"
        else [f"星期{day}" for day in "一二三四五六日"]
    )
    near = [name for name in names if name != gold]
    near += [gold[:-1], gold[:2], f"next {gold}", f"下{gold}", f"{gold}s", "星期八", "星期7", "day"]
    return [*near, ", ".join(names), f"{gold} morning", "weekend", "T", "S", gold[-1]]


# Knights and knaves.


def _kinds(problem: Problem, text: str) -> object:
    return frozenset(re.split(r", |，", text))


def _clauses(problem: Problem) -> list[tuple[str, str]]:
    parts = [re.split(r": |：", clause) for clause in re.split(r", |，", problem.answer)]
    return [(name, kind) for name, kind in parts]


_OTHER_KIND: Final = {"knight": "knave", "knave": "knight", "骑士": "无赖", "无赖": "骑士"}
_TRANSLATED_KIND: Final = {"knight": "骑士", "knave": "无赖", "骑士": "knight", "无赖": "knave"}


def _odd_kinds(problem: Problem, rng: Random) -> list[str]:
    clauses = _clauses(problem)
    shuffled = rng.sample(clauses, len(clauses))
    translated = [(name, _TRANSLATED_KIND[kind]) for name, kind in clauses]
    forms = [_told(one, ": ", ", ") for one in (shuffled, clauses[::-1], translated)]
    forms += [
        _told(clauses, *how) for how in ((":", ","), ("=", "; "), (" - ", "\n"), ("：", "、"))
    ]
    if problem.language == "zh":
        return [
            *forms,
            _told(clauses, "是", "，"),
            _told(clauses, "是", "，而"),
            _told(clauses, "为", "；"),
        ]
    forms += [_told(clauses, " is a ", ", "), _told(clauses, " is a ", " and ")]
    return [*forms, _told(clauses, " is the ", ", and "), forms[0].upper(), forms[0].lower()]


def _told(clauses: list[tuple[str, str]], between: str, after: str) -> str:
    return after.join(f"{name}{between}{kind}" for name, kind in clauses)


def _near_kinds(problem: Problem, rng: Random) -> list[str]:
    clauses = _clauses(problem)
    at = rng.randrange(len(clauses))
    name, kind = clauses[at]
    flipped = (name, _OTHER_KIND[kind])
    lists = [
        [*clauses[:at], flipped, *clauses[at + 1 :]],
        [(one, _OTHER_KIND[other]) for one, other in clauses],
        clauses[:at] + clauses[at + 1 :],
        [*clauses, flipped],
        [flipped, *clauses],
        [*clauses, clauses[at]],
        [*clauses, ("Zoe", "knight")],
        [*clauses[:at], ("Zoe", kind), *clauses[at + 1 :]],
    ]
    near = [_told(one, ": ", ", ") for one in lists]
    near += [_told(clauses, between, ", ") for between in (" is not a ", " or ", ": not ", "不是")]
    near += [", ".join(kind for _, kind in clauses), ", ".join(name for name, _ in clauses), kind]
    return [*near, f"{problem.answer} or knave", problem.answer.replace(kind, f"{kind}/spy", 1)]


# Kinship.

_SIBLINGS: Final = {"哥哥": "兄弟", "弟弟": "兄弟", "姐姐": "姐妹", "妹妹": "姐妹"}
_ENGLISH: Final = {
    **{"父亲": "father", "母亲": "mother", "儿子": "son", "女儿": "daughter"},
    **{"丈夫": "husband", "妻子": "wife", "爷爷": "grandfather", "外公": "grandfather"},
    **{"奶奶": "grandmother", "外婆": "grandmother", "孙子": "grandson", "外孙": "grandson"},
    **{"孙女": "granddaughter", "外孙女": "granddaughter", "兄弟": "brother", "姐妹": "sister"},
}
_SYNONYMS: Final = {
    **{"father": ("dad",), "mother": ("mum", "mom"), "grandfather": ("grandpa",)},
    **{"grandmother": ("grandma",), "aunt": ("auntie",), "父亲": ("爸爸",), "母亲": ("妈妈",)},
    **{"爷爷": ("祖父",), "奶奶": ("祖母",), "外公": ("姥爷",), "外婆": ("姥姥",)},
}


def _relation(problem: Problem, text: str) -> object:
    """Of a brother or sister whose age is told, the word that leaves it open is right as well."""
    return _SIBLINGS.get(text, text)


def _odd_relation(problem: Problem, rng: Random) -> list[str]:
    word = problem.answer
    synonyms = list(_SYNONYMS.get(word, ()))
    if problem.language == "zh":
        english = _ENGLISH.get(_SIBLINGS.get(word, word))
        forms = [word, *synonyms, *([english] if english else [])]
        if asked := re.search(r"([^。：？]+)是([^。：？]+)的什么人？", problem.text):
            forms += [f"{asked[1]}是{asked[2]}的{word}", f"{asked[2]}的{word}"]
        return forms
    forms = [word.upper(), word.title(), f"the {word}", f"a {word}", *synonyms]
    forms.append(word.replace("-in-law", " in law"))
    if asked := re.search(r"What is (\w+) to (\w+)\?", problem.text):
        forms += [f"{asked[1]} is the {word} of {asked[2]}", f"{asked[2]}'s {word}"]
    return forms


def _near_relation(problem: Problem, rng: Random) -> list[str]:
    word = problem.answer
    near = [f"{start}{word}" for start in ("great-", "step", "ex-", "half-", "not the ", "god")]
    near += [f"{start}{word}" for start in ("曾", "不是", "干", "继", "前")]
    near += [
        f"{word}{end}" for end in ("-in-law-in-law", "s", " figure", "的朋友", "们", "'s friend")
    ]
    near += ["friend", "relative", "朋友", "亲戚", "person", "male", "female", "the", "of", "her"]
    words = ("father mother son daughter husband wife", "父亲 母亲 儿子 女儿 丈夫 妻子")
    return [*near, *words[problem.language == "zh"].split()]


# Grids.


def _odd_grid(problem: Problem, rng: Random) -> list[str]:
    rows = problem.answer.split("\n")
    joints = ("", " ", ", ", " / ", " | ", "；")
    forms = [joint.join(rows) for joint in joints]
    forms += [joint.join(map(" ".join, rows)) for joint in ("\n", " ", "\r\n")]
    forms += ["\n".join(map(", ".join, rows)), "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return [*forms, "\n".join(f"[{', '.join(row)}]" for row in rows), f"{problem.answer}."]


def _near_grid(problem: Problem, rng: Random) -> list[str]:
    rows, cells = problem.answer.split("\n"), problem.answer.replace("\n", "")
    at = rng.randrange(16)
    digit = str(int(cells[at]) % 4 + 1)
    turned = ["".join(column) for column in zip(*rows, strict=True)]
    puzzle = problem.canonical.partition(":")[2]
    near = [cells[:at] + other + cells[at + 1 :] for other in (digit, "5", "0", ".", "x", "")]
    near += ["\n".join(one) for one in (rows[::-1], turned, rows[1:] + rows[:1], rows[:3])]
    near += [puzzle, f"{cells}1", f"0{cells}", f"{cells}\n{puzzle}", cells[::-1], rows[0]]
    near += ["\n".join(f"{n}: {row}" for n, row in enumerate(rows, 1)), f"-{cells}", f"{cells}!"]
    return [text for text in near if text.replace("\n", "") != cells]


_NUMBER: Final = _number_with(_none, _none)
_ANY: Final = AnswerForms(
    lambda problem, text: int(text) if re.fullmatch(r"-?[0-9]+", text) else text,
    lambda problem, rng: [problem.answer],
    lambda problem, rng: [f"{problem.answer}{end}" for end in (" x", "!", "'", "0.", " 1", "?!")],
)
_EXPRESSION: Final = AnswerForms(_combined, _odd_expression, _near_expression)
_FORMS: Final[Mapping[str, AnswerForms]] = {
    "countdown": _EXPRESSION,
    "game24": _EXPRESSION,
    "chained_arithmetic": _number_with(_odd_sum, _near_sum),
    "linear_equations": _number_with(_odd_unknown, _near_unknown),
    "gcd_lcm": _number_with(_odd_divisor, _near_divisor),
    "base_conversion": AnswerForms(_in_base, _odd_base, _near_base),
    "letter_counting": _NUMBER,
    "sorting": AnswerForms(_listed, _odd_list, _near_list),
    "calendar_clock": AnswerForms(_text, _odd_date, _near_date),
    "number_sequences": _NUMBER,
    "knights_knaves": AnswerForms(_kinds, _odd_kinds, _near_kinds),
    "family_relations": AnswerForms(_relation, _odd_relation, _near_relation),
    "word_problems": _number_with(_odd_count, _near_count),
    "sudoku4": AnswerForms(_text, _odd_grid, _near_grid),
}
