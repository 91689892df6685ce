"""Small exact readers of final answers that families share, yours too. ASCII digits only, and short
texts only: a model's answer is hostile input."""

from __future__ import annotations

import re
from typing import Final

from forethought.problems.problem import CORRECT, Verdict, wrong

LONGEST: Final = 400
"""Characters of a final answer that are looked at; a longer one is wrong."""

_WHOLE: Final = re.compile(r"[+\-−]?[0-9]{1,30}", re.ASCII)
_SIGNS: Final = {ord("−"): "-", ord("＋"): "+", ord("－"): "-"}

_PAIRS: Final = (
    ("**", "**"),
    ("$", "$"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
    ("「", "」"),
)
_OPENING: Final = frozenset(left[0] for left, _ in _PAIRS)
_STOPS: Final = (".", "。")


def plain(text: str) -> str | None:
    """``text`` without white space around it, one final full stop and one pair of quotes,
    backticks, ``**`` or ``$`` around it (the full stop may stand inside or outside of these).
    None for a text that is too long to be a final answer."""
    if len(text) > LONGEST:
        return None
    text = text.strip()
    if text[:1].isalnum() and text[-1:].isalnum():
        return text
    stopped = text.endswith(_STOPS)
    if stopped:
        text = text[:-1].rstrip()
    if text[:1] not in _OPENING:
        return text
    for left, right in _PAIRS:
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
            break
    else:
        return text
    return text[:-1].rstrip() if text.endswith(_STOPS) and not stopped else text


def read_whole(text: str, *, stop: bool = True) -> int | None:
    """The whole number that ``text`` is: nothing else beside it but white space, one final full
    stop (unless ``stop`` is False), and thousands separated by commas ("1,234"). None for anything
    else."""
    if len(text) > LONGEST:
        return None
    text = text.strip().translate(_SIGNS)
    if stop and text.endswith(_STOPS):
        text = text[:-1].rstrip()
    if "," in text:
        if not re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", text):
            return None
        text = text.replace(",", "")
    return int(text) if _WHOLE.fullmatch(text) else None


def whole_number(text: str, right: int, *, stop: bool = True) -> Verdict:
    """The verdict on an answer that has to be one whole number, read as `read_whole` does."""
    value = read_whole(text, stop=stop)
    if value is None:
        return wrong("not one whole number")
    return CORRECT if value == right else wrong(f"{value} is not right")
