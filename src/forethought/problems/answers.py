"""Small exact readers of final answers that several families share. ASCII digits only, and short
texts only: a model's answer is hostile input."""

from __future__ import annotations

import re
from typing import Final

from forethought.problems.problem import CORRECT, Verdict, wrong

LONGEST: Final = 400
"""Characters of a final answer that are looked at; a longer one is wrong."""

_WHOLE: Final = re.compile(r"[+\-−]?[0-9]{1,30}", re.ASCII)
_SIGNS: Final = {ord("−"): "-", ord("＋"): "+", ord("－"): "-"}


def read_whole(text: str, *, stop: bool = True) -> int | None:
    """The whole number that ``text`` is: nothing else beside it but white space, one final full
    stop (unless ``stop`` is False), and thousands separated by commas ("1,234"). None for anything
    else."""
    if len(text) > LONGEST:
        return None
    text = text.strip().translate(_SIGNS)
    if stop and text.endswith((".", "。")):
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
