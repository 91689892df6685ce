"""The question: from the argument, a file, stdin, or a file or stdin and then the argument."""

from __future__ import annotations

import sys

from forethought.cli.terminal import is_terminal, size
from forethought.errors import UserError
from forethought.paths import expand

LIMIT = 1024 * 1024
"""Bytes of question that are read. More than any context holds: about 250,000 tokens."""


def read_question(argument: str | None, file: str | None, *, exact: bool = False) -> str:
    """The text to ask.

    With ``-f FILE``, or when stdin is not a terminal, that text comes first and the argument after
    it, a blank line between them: ``cat report.txt | forethought ask "Summarise this."`` An
    argument of ``-`` stands for stdin alone. With ``-f`` stdin is left alone. The line break that
    ends a file is no part of the question, unless ``exact``.

    Raises UserError for no or an empty question, more than 1 MiB, bytes that are not UTF-8.
    """
    parts: list[str] = []
    if file is not None and file != "-":
        parts.append(_decode(_read_file(file), file))
    elif file == "-" or argument == "-" or _stdin_has_text():
        parts.append(_decode(_read_stdin(), "stdin"))
    if argument is not None and argument != "-":
        parts.append(_argument(argument))
    given = [part for part in parts if part.strip()]
    if not given:
        raise UserError(
            "there is no question"
            + (": the text is empty." if parts else ".")
            + ' Ask one like this: forethought ask "What is 17 + 4 * 3?"'
        )
    if not exact:
        given = [part.rstrip("\r\n") for part in given]
    text = given[0] if len(given) == 1 else "\n\n".join(part.rstrip("\r\n") for part in given)
    _check_size(len(text.encode()), "the question")
    return text


def _stdin_has_text() -> bool:
    if sys.stdin is None or sys.stdin.closed or is_terminal(sys.stdin):
        return False
    import os
    import stat

    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    # /dev/null is what cron and service managers give: nothing to read, and no error
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_stdin() -> bytes:
    if is_terminal(sys.stdin):
        sys.stderr.write("Type the question, then Ctrl-D.\n")
        sys.stderr.flush()
    return sys.stdin.buffer.read(LIMIT + 1)


def _read_file(name: str) -> bytes:
    path = expand(name)
    try:
        with path.open("rb") as stream:
            _check_size(path.stat().st_size, name)
            return stream.read(LIMIT + 1)
    except FileNotFoundError:
        raise UserError(f"-f {name}: there is no such file.") from None
    except IsADirectoryError:
        raise UserError(f"-f {name}: that is a folder; give a text file.") from None
    except OSError as error:
        raise UserError(f"-f {name} cannot be read: {error.strerror}.") from error


def _decode(raw: bytes, where: str) -> str:
    _check_size(len(raw), where)
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front, which is no text
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise UserError(
            f"{where} is not UTF-8 text: byte 0x{byte:02x} at offset {error.start}. "
            "Convert it first, for example with iconv."
        ) from None


def _argument(argument: str) -> str:
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        # the interpreter smuggles bytes it cannot decode as lone surrogates
        offset = len(argument[: error.start].encode("utf-8"))
        raise UserError(
            f"the question is not UTF-8 text: a wrong byte at offset {offset}."
        ) from None
    return argument


def _check_size(count: int, where: str) -> None:
    if count > LIMIT:
        shown = f"more than {size(LIMIT)}" if count == LIMIT + 1 else size(count)
        raise UserError(
            f"{where} is {shown} of text; at most 1 MiB is read, and a context of 131,072 tokens, "
            "the longest of the catalogue, holds about half of that. Ask about a part of it."
        )
