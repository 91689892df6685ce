"""A chat on disk: one JSON file that says what was said, thought, and how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

from forethought.cli.chat_session import ChatSession, Origin, Turn
from forethought.cli.terminal import size
from forethought.dialogue.messages import Message, Role
from forethought.engines.protocol import StopReason, ThoughtEnd
from forethought.errors import ForethoughtError, UserError

FORMAT = "forethought-chat"
VERSION = 1
LIMIT = 64 * 1024 * 1024

_PARAMETERS: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "min_p": (int, float),
    "max_tokens": (int,),
    "max_thought": (int,),
    "min_thought": (int,),
    "system": (str,),
    "template": (str,),
}


def save(session: ChatSession, path: Path) -> None:
    """Write the chat; the file has its final name only when it is complete."""
    if not path.name or path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file.")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": session.model.name,
        "seed": session.seed,
        "parameters": {
            name: value for name, value in session.options.items() if name in _PARAMETERS
        },
        "messages": [_turn_object(turn) for turn in session.turns],
    }
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ForethoughtError(f"{path} cannot be written: {error.strerror}.") from error
    except UnicodeEncodeError as error:
        part.unlink(missing_ok=True)
        raise ForethoughtError(f"{path} cannot be written: {error}.") from None


def _turn_object(turn: Turn) -> dict[str, Any]:
    message, origin = turn.message, turn.origin
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "assistant":
        result["thought"] = message.thought
    if origin is not None:
        result |= {
            "model": origin.model,
            "seed": origin.seed,
            "stop_reason": origin.stop_reason,
            "thought_end": origin.thought_end,
            "opening": origin.opening,
            "ids": None if origin.ids is None else list(origin.ids),
        }
    return result


def load(path: Path) -> dict[str, Any]:
    """Read a chat: ``model``, ``seed``, ``parameters`` and ``turns``.

    Raises UserError saying what is wrong and where; nothing of a wrong file is taken over.
    """
    try:
        length = path.stat().st_size
        _expect(length <= LIMIT, path, f"it is {size(length)} long; a chat has at most 64 MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    _expect(
        isinstance(content, dict) and content.get("format") == FORMAT,
        path,
        "it is not a chat saved by forethought",
    )
    _expect(
        content.get("version") == VERSION,
        path,
        f"it has version {content.get('version')!r}; this program reads {VERSION}",
    )
    messages = content.get("messages")
    if not isinstance(messages, list):
        raise UserError(f"{path}: messages is not a list.")
    return {
        "model": _text(path, content, "model"),
        "seed": _integer(path, content, "seed"),
        "parameters": _parameters(path, content.get("parameters", {})),
        "turns": [_turn(path, index, raw) for index, raw in enumerate(messages)],
    }


def _expect(condition: bool, path: Path, what: str) -> None:
    if not condition:
        raise UserError(f"{path}: {what}.")


def _text(path: Path, table: dict[str, Any], key: str) -> str | None:
    value = table.get(key)
    _expect(value is None or isinstance(value, str), path, f"{key} is not a text")
    return value if isinstance(value, str) else None


def _integer(path: Path, table: dict[str, Any], key: str) -> int | None:
    value = table.get(key)
    whole = isinstance(value, int) and not isinstance(value, bool)
    _expect(value is None or whole, path, f"{key} is not a whole number")
    return value if isinstance(value, int) else None


def _parameters(path: Path, raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise UserError(f"{path}: parameters is not an object.")
    for name, value in raw.items():
        kinds = _PARAMETERS.get(name)
        if kinds is None:
            raise UserError(f"{path}: unknown parameter {name!r}.")
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        _expect(fits, path, f"parameter {name} is {value!r}")
    # the same bounds as everywhere else
    from forethought.cli.settings import load_settings

    load_settings(raw, environ={}, file=Path(os.devnull))
    return raw


def _turn(path: Path, index: int, raw: object) -> Turn:
    where = f"message {index + 1}"
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {where} is not an object.")
    role, content = raw.get("role"), raw.get("content")
    _expect(role in get_args(Role), path, f"{where}: role is {role!r}")
    _expect(isinstance(content, str), path, f"{where}: content is not a text")
    thought = _text(path, raw, "thought")
    message = Message(role, content, thought)  # type: ignore[arg-type]  # both checked above
    if raw.get("stop_reason") is None:
        return Turn(message)
    _expect(raw["stop_reason"] in get_args(StopReason), path, f"{where}: stop_reason is unknown")
    _expect(
        raw.get("thought_end") in get_args(ThoughtEnd), path, f"{where}: thought_end is unknown"
    )
    ids = raw.get("ids")
    whole = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    _expect(ids is None or whole, path, f"{where}: ids is not a list of token ids")
    return Turn(
        message,
        Origin(
            model=_text(path, raw, "model") or "",
            seed=_integer(path, raw, "seed"),
            stop_reason=raw["stop_reason"],
            thought_end=raw["thought_end"],
            ids=None if ids is None else tuple(ids),
            opening=_text(path, raw, "opening"),
        ),
    )
