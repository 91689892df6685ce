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


# The parser builds its tables as it meets each kind of expression, and sympy fills its caches.
# A child starts with what is there now, so the kinds of MATH's answers are met once, here, and
# not again in every child.
_KINDS = (
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{3}{4}", r"\dfrac34"),
    (r"\sqrt{51}", "51^{1/2}"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"\frac{2\sqrt{149}}{3}", r"\frac23\sqrt{149}"),
    (r"\sqrt[3]{2}", "2^{1/3}"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    (r"6 - 5i", "-5i+6"),
    (r"1,2,3", "3, 2, 1"),
    (r"(3,\frac{\pi}{2})", r"(3, \pi/2)"),
    (r"(-\infty,1)\cup(2,\infty)", r"(-\infty, 1) \cup (3, \infty)"),
    (r"[-2,7)", "[-2, 7]"),
    (r"x<1", r"x \le 1"),
    (r"y=2x+3", "y = 3 + 2x"),
    (r"x^2+2x-1", "(x+1)^2-2"),
    (r"\{1,2\}", r"\{2,3\}"),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}",
    ),
    (r"2^{10}-1", "1023"),
    (r"10!", "3628800"),
    (r"\log_2 8", "3"),
    (r"\sin 30", r"\cos x"),
    (r"\binom{5}{2}", "10"),
    (r"|x-1|", "x-1"),
    (r"\text{even}", "even"),
    (r"1{,}000", "1000 + 1"),
)
for _gold, _answer in _KINDS:
    compare({"gold": f"${_gold}$", "answer": f"${_answer}$"})

OPS = {"compare": compare}
