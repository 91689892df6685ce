"""Odd strings on which two tokenizers are compared: the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

_WORDS: Final = (
    "the", "of", "Wait", "I'll", "don't", "WE'RE", "it's", "he'd", "think", "naïve", "Straße",
    "hello", "World", "x", "ab", "__init__", "camelCase", "e.g.", "A.B.C", "3rd", "mc²", "O'Neil",
    "'s", "'LL", "rock'n'roll", "answer:", "\\boxed{42}", "$x^2$", "re-do", "“quoted”", "…", "—",
)  # fmt: skip
_SPACES: Final = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n ", "\t\t", "    ", "\u00a0",
    "\u3000", "\u2003", "\u200a", "\u2028", "\u1680", "\x0b", "\x0c", " " * 17, "\n" * 9,
)  # fmt: skip
_CODE: Final = (
    "def f(x):\n    return x**2  # square\n", "if (a[i] != b->c) { i++; }\n", "for i in r:\n\t",
    "SELECT * FROM t WHERE a='b';", "<div class=\"x\">&amp;</div>", "a=>b;//c", "#!/bin/sh", "0x1F",
    "print(f\"{x!r:>10}\")", "C:\\dir\\file.txt", "https://example.org/?q=1&r=2", "\\frac{a}{b}",
)  # fmt: skip
_SCRIPTS: Final = (
    (0x21, 0x7E), (0xA1, 0x17F), (0x180, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF), (0x400, 0x52F),
    (0x531, 0x586), (0x5D0, 0x5EA), (0x620, 0x64A), (0x660, 0x669), (0x905, 0x939), (0x966, 0x96F),
    (0x993, 0x9A8), (0xE01, 0xE30), (0xE50, 0xE59), (0x10D0, 0x10F0), (0x1200, 0x1248),
    (0x1E00, 0x1EFF), (0x1F00, 0x1F15), (0x2010, 0x2027), (0x2030, 0x205E), (0x2070, 0x2079),
    (0x20A0, 0x20BF), (0x2100, 0x214F), (0x2150, 0x2188), (0x2190, 0x21FF), (0x2200, 0x22FF),
    (0x2460, 0x249B), (0x2500, 0x25FF), (0x2600, 0x26FF), (0x3001, 0x3011), (0x3041, 0x3096),
    (0x30A1, 0x30FA), (0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xE000, 0xF8FF),
    (0xFB00, 0xFB06), (0xFF01, 0xFF5E), (0x10400, 0x1044F), (0x1D400, 0x1D454), (0x20000, 0x2A6D6),
)  # fmt: skip
_MARKS: Final = ((0x300, 0x36F), (0x591, 0x5BD), (0x64B, 0x652), (0x93E, 0x94D), (0x20D0, 0x20DC))
_EMOJI: Final = (
    "🎉", "👩‍🚀", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🏴‍☠️", "😀", "\U0001fae0", "☃",
)  # fmt: skip
_CONTROLS: Final = (
    "\x01",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\x85",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\ufffd",
)


def comparison_strings(
    count: int, seed: int = 0, tags: Sequence[str] = (), without: str = ""
) -> list[str]:
    """``count`` strings of many kinds; about every sixth holds one of ``tags`` as a user's text.

    No string holds a character of ``without``.
    """
    draw = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        text = _string(draw, tags)
        if not any(character in text for character in without):
            found.append(text)
    return found


def _string(draw: random.Random, tags: Sequence[str]) -> str:
    parts = [_part(draw) for _ in range(draw.randint(1, 8))]
    if tags and draw.random() < 0.17:
        # Never two side by side: which of two overlapping tags wins is a question of its own.
        parts.insert(draw.randrange(len(parts) + 1), f"{_part(draw)}{draw.choice(tags)} ")
    return "".join(parts)


def _part(draw: random.Random) -> str:
    kind = draw.randrange(9)
    if kind == 0:
        return " ".join(draw.choices(_WORDS, k=draw.randint(1, 5)))
    if kind == 1:
        return draw.choice(_SPACES) * draw.randint(1, 3)
    if kind == 2:
        digits = "".join(draw.choices("0123456789", k=draw.randint(1, 12)))
        return draw.choice((digits, f" {digits}", f"{digits}.5", f"-{digits},000", f"{digits}e-3"))
    if kind == 3:
        return draw.choice(_CODE)
    if kind == 4:
        return draw.choice(("", " ")) + _run(draw, draw.choice(_SCRIPTS), draw.randint(1, 6))
    if kind == 5:
        # A few letters that all carry marks, written apart (never composed).
        base = _run(draw, draw.choice(_SCRIPTS[:6]), 3)
        return "".join(
            letter + _run(draw, draw.choice(_MARKS), draw.randint(0, 2)) for letter in base
        )
    if kind == 6:
        return draw.choice(_EMOJI) * draw.randint(1, 2)
    if kind == 7:
        return draw.choice(_CONTROLS)
    return "".join(
        chr(draw.choice((32, draw.randint(33, 126)))) for _ in range(draw.randint(1, 12))
    )


def _run(draw: random.Random, span: tuple[int, int], length: int) -> str:
    return "".join(chr(draw.randint(*span)) for _ in range(length))
