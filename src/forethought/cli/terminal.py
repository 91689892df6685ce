"""What we know about the terminal, and what may be written to it.

What a model writes is hostile input: an escape sequence in an answer could retitle the window,
move the cursor over what was printed, or fill the clipboard. Everything that a model, a file or a
server wrote passes :func:`visible` on its way to a terminal. A pipe gets the exact text.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from forethought.errors import UserError

DIM = "\x1b[2m"
BOLD = "\x1b[1m"
RESET = "\x1b[0m"
CLEAR_LINE = "\r\x1b[K"


def _table() -> dict[int, str]:
    # control pictures (U+2400...) stand one to one for the C0 controls
    table = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    table[0x7F] = "\u2421"
    for code in range(0x80, 0xA0):
        table[code] = f"\\x{code:02x}"
    # embeddings, overrides and isolates reorder what is around them, forethought's text included
    for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029):
        table[code] = f"\\u{code:04x}"
    return table


_VISIBLE = _table()


def visible(text: str) -> str:
    """``text`` with every control character but newline and tab written out visibly.

    Works on each character alone, so it is safe however a sequence is split over pieces.
    """
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sees ``stream``; False for a closed one."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def has_style(stream: TextIO) -> bool:
    """Whether ``stream`` may be dimmed: a terminal that is not dumb, and NO_COLOR is not set."""
    return (
        is_terminal(stream)
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") != "dumb"
    )


def can_ask() -> bool:
    """Whether there is a person to answer a question."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def confirm(question: str) -> bool:
    """Ask a yes/no question on stderr; anything but yes is no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def note(text: str) -> None:
    """One line on stderr for the person watching."""
    sys.stderr.write(f"{visible(text) if is_terminal(sys.stderr) else text}\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """Text on stdout: exact in a pipe, without control characters on a terminal."""
    sys.stdout.write(visible(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def print_json(value: object, *, indent: int | None = None, ascii_only: bool = False) -> None:
    """One JSON value on stdout. On a terminal every character but plain ASCII is escaped."""
    import json

    seen = is_terminal(sys.stdout)
    text = json.dumps(value, ensure_ascii=seen or ascii_only, indent=indent, allow_nan=False)
    if seen:
        text = text.replace("\x7f", "\\u007f")  # ASCII, and a control character all the same
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def columns(rows: list[list[str]], right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned plain text, for output that may go through a pipe."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def size(count: int | None) -> str:
    """Bytes for people: 88 MB, 4.7 GB (decimal, as hubs and disks count)."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean X?)`` for the nearest known word, "" when none is near."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with ``sentence`` unless ``condition`` holds."""
    if not condition:
        raise UserError(sentence)
