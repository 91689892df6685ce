"""Text that others wrote, as HTML: escaped once, and what would be invisible made visible."""

from __future__ import annotations

import html
import unicodedata
from typing import Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories without a shape of their own: controls, formats (bidirectional overrides,
zero-width characters), half surrogates, and the two separators."""


class _Marked(dict[int, str]):
    """What stands for each code point; looked at once, when it is first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char not in "\n\t" and unicodedata.category(char) in _HIDDEN:
            self[code] = f'<span class="hidden">U+{code:04X}</span>'
        else:
            self[code] = html.escape(char)
        return self[code]


class _Plain(dict[int, str]):
    def __missing__(self, code: int) -> str:
        char = chr(code)
        hidden = unicodedata.category(char) in _HIDDEN
        self[code] = f" U+{code:04X} " if hidden else html.escape(char)
        return self[code]


_MARKED: Final = _Marked()
_PLAIN: Final = _Plain()


def as_html(text: str) -> str:
    """Any text as the content of an element: nothing in it is markup, nothing in it is hidden.

    Newline and tab stay; every other control, format character or half surrogate becomes
    ``U+202E`` in a span of the class ``hidden``.
    """
    return text.translate(_MARKED)


def as_attribute(text: str) -> str:
    """Any text as the value of an attribute in quotation marks."""
    return text.translate(_PLAIN)
