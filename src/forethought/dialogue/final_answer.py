"""The final answer inside an answer: what a problem's verifier and a vote look at.

Model output is hostile input: every function here is linear in the length of its text.
"""

from __future__ import annotations

import re
from typing import Final

ANSWER_OPEN: Final = "<answer>"
"""Opens the final answer in R1-Zero's format (DeepSeek-R1 paper, Table 1)."""

ANSWER_CLOSE: Final = "</answer>"
"""Closes it."""

# One alternative per thing that matters to brace matching, in this order: a box, any escaped
# character (so that ``\{`` is no brace and ``\\`` hides nothing), a bare brace.
_TEX = re.compile(r"(\\(?:boxed|fbox)(?![A-Za-z])\s*)(\{?)|\\.|[{}]", re.DOTALL)
_BARE_ARGUMENT = re.compile(r"[^\s$]+")


def final_answer(raw_answer: str) -> str | None:
    r"""The final answer in ``raw_answer`` (the text after the thought, tags included).

    The content of the last complete ``<answer>...</answer>`` pair, else of the last complete
    ``\boxed{...}`` (or ``\fbox{...}``, ``\boxed 5``), else None. Whitespace around it is dropped.
    """
    tagged = _last_tagged(raw_answer)
    return tagged if tagged is not None else _last_boxed(raw_answer)


def _last_tagged(text: str) -> str | None:
    last_close = text.rfind(ANSWER_CLOSE)
    if last_close < 0:
        return None
    start = text.rfind(ANSWER_OPEN, 0, last_close)
    if start < 0:
        return None
    start += len(ANSWER_OPEN)
    # The last close may be a stray one: the pair ends at the first close after its opening.
    return text[start : text.find(ANSWER_CLOSE, start)].strip()


def _last_boxed(text: str) -> str | None:
    """Content of the complete box that begins last; one pass with a stack of open braces."""
    open_braces: list[int | None] = []  # where the content of a box starts; None: a plain brace
    best: tuple[int, int | None] | None = None  # start and end of content; end None: no braces
    for match in _TEX.finditer(text):
        if match[1] is not None:
            if match[2]:
                open_braces.append(match.end())
            elif _BARE_ARGUMENT.match(text, match.end(), match.end() + 1):
                # The length of the argument is looked at once, at the end: looking now would
                # make a text of nothing but boxes cost its square.
                best = _later(best, (match.end(), None))
            continue
        if match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                best = _later(best, (start, match.start()))
    if best is None:
        return None
    start, end = best
    if end is not None:
        return text[start:end].strip()
    argument = _BARE_ARGUMENT.match(text, start)
    return argument[0].rstrip(".,;:") if argument else None


def _later(
    best: tuple[int, int | None] | None, candidate: tuple[int, int | None]
) -> tuple[int, int | None]:
    return candidate if best is None or candidate[0] > best[0] else best
