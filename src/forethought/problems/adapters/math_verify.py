r"""Whether a mathematical answer equals a reference, by math-verify in a sandbox.

Numbers are compared here, exactly and without a sandbox, and so are answers that are the same text.
What is left goes to math-verify, behind guards for what it accepts although it differs (measured
for math-verify 0.9.0):

- The base of a numeral (``4210_5``) has to be the same on both sides; math-verify ignores it.
- ``%`` and degrees are marks that either side may leave out, as in the official grading of MATH
  (Hendrycks et al. 2021): the bare values are compared, so that 0.5 is not 50%.
- A reference in words (``\text{Evelyn}``) is compared as text.
- Words after a number are its unit and do not matter, unless they multiply it ("5 million").
- Several numbers among words, several lines, and "1 = 2" are no final answer: math-verify would
  take the last.
- Code, markup, JSON and "not equal" are no answer: math-verify would take the number in them.
- Neither is what holds characters that nobody sees, or letters that only look like ASCII.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Final

from forethought.problems.problem import CORRECT, Verdict, unscorable, wrong
from forethought.problems.sandbox import Sandbox
from forethought.problems.sandbox_runner import Limits, bundled_program

LONGEST: Final = 1000
"""Characters of a final answer that are looked at; a longer one is wrong."""

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,60}|[0-9]{1,3}(?:,[0-9]{3}){1,20})(?:\.[0-9]{0,60})?")
_CURRENCY: Final = re.compile(r"^\\?[$£€¥]\s*")
_FRACTION: Final = re.compile(
    r"(?P<sign>[+-]?)(?:\\[dt]?frac\{(?P<a>[0-9]{1,60})\}\{(?P<b>[0-9]{1,60})\}"
    r"|\\[dt]?frac(?P<c>[0-9])(?P<d>[0-9])|(?P<e>[0-9]{1,60})/(?P<f>[0-9]{1,60}))"
)
_BASE: Final = re.compile(r"[0-9A-Z]_(?:\{?(?:\\text\{)?)([0-9]{1,3}|[a-z]{3,12})")
_BRACED_INDEX: Final = re.compile(r"_\{([A-Za-z0-9]+)\}")
_DEGREES: Final = re.compile(r"\^\{?\\circ\}?|°|\\degree(?![A-Za-z])")
_PERCENT: Final = re.compile(r"\\?%|％")
_TEXT: Final = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}")
_COMMAND: Final = re.compile(r"\\[A-Za-z]+")
_WORD: Final = re.compile(r"[^\W\d_]{2,}|[\u4e00-\u9fff]")
# Python, HTML and JSON around a number, and marks that say that it is another one.
_CODE: Final = re.compile(r"\blambda\b|\*\*|__|</?[A-Za-z]+/?>|<!--|&#?[A-Za-z0-9]+;|\"")
# What separates values where it stands between digits, and pairs in brackets.
_BETWEEN: Final = re.compile(r"[|;，、；→]|->|\\to(?![A-Za-z])")
_PAIR: Final = re.compile(r"[\[(][^()\[\]]*,[^()\[\]]*[\])]")
_THOUSANDS: Final = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_OTHERWISE: Final = re.compile(r"≠|≈|\\n(?:e|eq|ot)(?![A-Za-z])|\\approx|^\s*(?:~|!)")
# "18 dollars", "18\\text{ dollars}": what the number counts.
_UNIT: Final = re.compile(
    r"\s*(?:\\(?:text|mathrm|mbox)\{[^{}0-9]*\}|\s[A-Za-z]{2,}(?: [A-Za-z]+)*)$"
)
_MULTIPLIER: Final = re.compile(
    r"hundred|thousand|million|billion|trillion|dozen|score|half|halves"
)
_DIGITS: Final = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
# Spacing and sizes that TeX allows anywhere, and that change no value.
_SPACING: Final = re.compile(r"\\[,;:! ]|\\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])|~")
_LETTER: Final = re.compile(r"[^\W\d_]")
_CHOICE: Final = re.compile(r"\(?([a-z])\)?")
_SIGNS: Final = {ord("−"): "-", ord("＋"): "+", ord("－"): "-"}


def math_verify_sandbox(
    limits: Limits | None = None, *, unsafe_no_sandbox: bool = False
) -> Sandbox:
    """A sandbox with math-verify in it; not started yet."""
    return Sandbox(bundled_program("math_verify"), limits, unsafe_no_sandbox=unsafe_no_sandbox)


def number(text: str) -> Fraction | None:
    r"""The number that ``text`` is: whole, decimal, ``a/b`` or ``\frac{a}{b}``; else None.

    A currency sign before it, dollars around it and one full stop after it do not matter.
    """
    text = _CURRENCY.sub("", tidy(text)).replace("{,}", ",")
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    above, below = (next(part for part in match.group(*names) if part) for names in ("ace", "bdf"))
    return Fraction(int(match["sign"] + above), int(below)) if int(below) else None


def tidy(text: str) -> str:
    """``text`` without surrounding dollars, a final full stop and TeX's spacing."""
    text = _SPACING.sub("", text.translate(_SIGNS)).strip()
    text = text.removesuffix("。").removesuffix(".").rstrip()
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text.strip("$").strip()
    return text


class MathVerifier:
    """Compares answers with references; thread-safe. The sandbox starts when first needed."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def verify(self, gold: str, answer: str) -> Verdict:
        """The verdict on a final answer. Raises UserError where there is no sandbox to be had."""
        if len(answer) > LONGEST:
            return wrong("too long for a final answer")
        refused = _refuse(gold, answer) if _squeezed(gold) != _squeezed(answer) else None
        if refused is not None:
            return refused
        gold, answer = tidy(gold), tidy(answer)
        if not answer:
            return wrong("empty")
        decided = _decide(gold, answer)
        return decided if decided is not None else self._compare(gold, answer)

    def _compare(self, gold: str, answer: str) -> Verdict:
        wrapped = answer if "$" in answer else f"${_bare(answer)}$"
        payload = {"gold": f"${_bare(gold)}$", "answer": wrapped}
        outcome = self._sandbox.call("compare", payload)
        if outcome.kind != "ok":
            return unscorable(outcome.reason)
        match outcome.value:
            case {"gold_read": False}:
                return unscorable("math-verify cannot read the reference")
            case {"equal": True}:
                return CORRECT
            case {"answer_read": False}:
                return wrong("not a mathematical expression")
            case {"equal": False}:
                return wrong("not equal to the reference")
            case _:
                return unscorable("the grader answered nonsense")


def _bare(text: str) -> str:
    return _DEGREES.sub("", _PERCENT.sub("", text)).strip()


def _refuse(gold: str, answer: str) -> Verdict | None:
    """The verdict on what is no final answer at all, whatever value stands in it; else None."""
    text = answer.strip()
    if any(_is_unseen(letter) for letter in text):
        return wrong("has characters that cannot be seen or only look like others")
    if _CODE.search(text) and not _CODE.search(gold):
        return wrong("reads like code or markup, not like an answer")
    if "\n" in text and "\\begin" not in text:
        return wrong("several lines")
    if _OTHERWISE.search(text) and not _OTHERWISE.search(gold):
        return wrong("says what the answer is not, or about what it is")
    sides = [number(_bare(side)) for side in text.split("=")]
    if len({side for side in sides if side is not None}) > 1:
        return wrong("several values")
    if number(_bare(gold)) is not None and _has_several(_THOUSANDS.sub("", text)):
        return wrong("several values")
    return None


def _has_several(text: str) -> bool:
    digits = [match.start() for match in _DIGITS.finditer(text)]
    apart = bool(digits) and _BETWEEN.search(text, digits[0], digits[-1]) is not None
    return apart or _PAIR.search(text) is not None


def _is_unseen(letter: str) -> bool:
    if letter.isascii():
        return unicodedata.category(letter) == "Cc" and letter not in "\t\n\r"
    plain = unicodedata.normalize("NFKC", letter)
    return unicodedata.category(letter) in {"Cc", "Cf", "Mn", "Me"} or (
        plain != letter and plain.isascii() and plain.isalpha()
    )


def _decide(gold: str, answer: str) -> Verdict | None:
    """The verdict where the two texts alone decide it, else None."""
    if _squeezed(gold) == _squeezed(answer):
        return CORRECT
    if _BASE.findall(gold) != _BASE.findall(answer):
        return wrong("not in the base of the reference")
    right, value = number(_bare(gold)), number(_UNIT.sub("", _bare(answer)))
    if _MULTIPLIER.findall(gold) != _MULTIPLIER.findall(answer):
        return wrong("not in the units of the reference")
    if right is not None and value is not None:
        if right == value:
            return CORRECT
        if right.denominator == 1:
            return wrong("not equal to the reference")
    word = _word(gold)
    if word is not None:
        return CORRECT if word == _spoken(answer) else wrong("not the word of the reference")
    if not _has_words(gold) and _has_words(answer) and len(_DIGITS.findall(answer)) > 1:
        return wrong("several numbers among words")
    return None


def _has_words(text: str) -> bool:
    return _WORD.search(_COMMAND.sub(" ", text)) is not None


def _squeezed(text: str) -> str:
    text = "".join(text.split()).replace("dfrac", "frac").replace("tfrac", "frac")
    return _BRACED_INDEX.sub(r"_\1", text)


def _word(text: str) -> str | None:
    r"""What a text says that is all ``\text{...}``, with letters and no digits; else None."""
    spoken = _spoken(text)
    if _TEXT.sub("", text).strip() or _DIGITS.search(spoken) or not _LETTER.search(spoken):
        return None
    return spoken


def _spoken(text: str) -> str:
    r"""``\text{(C)}``, ``(C)``, ``c.`` -> c; ``\text{Evelyn}``, ``Evelyn`` -> evelyn."""
    spoken = " ".join(_TEXT.sub(r"\1", text).split()).casefold().rstrip(".")
    choice = _CHOICE.fullmatch(spoken)
    return choice[1] if choice else spoken
