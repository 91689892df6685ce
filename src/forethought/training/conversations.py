"""Conversations to fine-tune on: a .jsonl file, one ``{"messages": [...]}`` a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from forethought.checkpoints.folder import no_duplicates, printable
from forethought.dialogue.messages import Message
from forethought.errors import UserError

MAX_LINE_BYTES: Final = 16 << 20
_SHAPE: Final = '{"messages": [{"role": ..., "content": ...}]}'


def read_conversations(path: Path) -> Iterator[list[Message]]:
    """The conversations of a file, one after the other; blank lines are passed over.

    A message has ``role``, ``content`` and perhaps the assistant's ``thought``; further keys are
    left alone. Raises UserError that names the file, and the line and what is wrong with it.
    """
    found = False
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if not line.strip():
                    continue
                try:
                    messages = parse_conversation(line)
                except ValueError as error:
                    raise UserError(f"{path} line {number}: {error}.") from None
                found = True
                yield messages
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: correct the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    if not found:
        raise UserError(f"{path} holds no conversation: write {_SHAPE} on every line.")


def parse_conversation(line: bytes) -> list[Message]:
    """The messages of one line. ValueError says what is wrong with it, without a full stop."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"more than {MAX_LINE_BYTES >> 20} MiB, which no conversation has")
    try:
        value: object = json.loads(line.decode("utf-8"), object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON (column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise ValueError("this is not JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"this is not JSON ({printable(str(error), 100)})") from None
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"there are no messages; write {_SHAPE}")
    found = [_message(number, message) for number, message in enumerate(messages, 1)]
    if not any(message.role == "assistant" for message in found):
        raise ValueError("no message is the assistant's, so there is nothing to learn")
    return found


def _message(number: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is no object with role and content")
    role, content, thought = (message.get(key) for key in ("role", "content", "thought"))
    if role not in ("system", "user", "assistant"):
        shown = printable(repr(role), 40)
        raise ValueError(
            f"message {number} has the role {shown}; there are system, user, assistant"
        )
    if not isinstance(content, str):
        raise ValueError(f"message {number} has no content that is a text")
    if not isinstance(thought, str | None):
        raise ValueError(f"message {number} has a thought that is no text")
    return Message(role, content, thought)
