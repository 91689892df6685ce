"""What a model puts around a short final answer, taken off."""

from __future__ import annotations

from typing import Final

from forethought.problems.answers import LONGEST

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
