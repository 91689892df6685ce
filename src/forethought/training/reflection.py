"""Words with which a thought looks back at itself, counted.

Source: DeepSeek-R1 (arXiv:2501.12948v2) section C.2: the ten English words whose number grows over
R1-Zero's training; the Chinese ones are ours.
"""

from __future__ import annotations

import re
from typing import Final

ENGLISH: Final = (
    "wait",
    "mistake",
    "however",
    "but",
    "retry",
    "error",
    "verify",
    "wrong",
    "evaluate",
    "check",
)
CHINESE: Final = ("等等", "不对", "错", "但是", "不过", "检查", "验证", "重新", "再试", "再算")

_WORDS: Final = re.compile(rf"\b(?:{'|'.join(ENGLISH)})\b|{'|'.join(CHINESE)}", re.IGNORECASE)


def reflection_words(thought: str) -> int:
    """How many such words a thought has."""
    return sum(1 for _ in _WORDS.finditer(thought))
