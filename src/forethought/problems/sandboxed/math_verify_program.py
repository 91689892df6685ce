"""The program that compares mathematical answers with math-verify."""

from __future__ import annotations

import logging
from typing import Any

import math_verify

# It warns at each use that its own time-out is off. The sandbox has one.
logging.disable(logging.CRITICAL)


def compare(payload: Any) -> dict[str, bool]:
    """Whether "answer" equals "gold", each one expression in ``$..$``, and which could be read."""
    gold = math_verify.parse(payload["gold"], parsing_timeout=None)
    answer = math_verify.parse(payload["answer"], parsing_timeout=None)
    # The order matters: a gold of x<1 accepts (-oo,1), but not the other way round.
    equal = bool(gold and answer) and math_verify.verify(gold, answer, timeout_seconds=None)
    return {"equal": bool(equal), "gold_read": bool(gold), "answer_read": bool(answer)}


# The first use builds the parsers: better once here than in each child.
compare({"gold": r"$\frac{1}{2}$", "answer": "$x<0.5$"})

OPS = {"compare": compare}
