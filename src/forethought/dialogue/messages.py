"""Conversations, and the prompts they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
HistoryPolicy = Literal["strip", "keep"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    ``thought`` is the assistant's text up to ``</think>`` and is None where there was none;
    ``content`` is the answer (or what the user wrote), never with tags of ours in it.
    """

    role: Role
    content: str
    thought: str | None = None


Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine continues.

    ``text`` is the exact rendered prompt and ``ids`` its token ids, both None for an engine
    without a tokenizer (a remote server), which sends ``conversation`` instead.
    ``starts_in_thought`` says whether generation begins inside a thought.
    ``mid_thought``: it begins in the middle of one (an edited thought that goes on).
    ``thinks`` is False where every token is answer (``bare``, models that do not think);
    ``exact`` where that answer is the continuation itself, nothing trimmed or removed (``bare``).
    ``system_left_out``: there is a system text, and the template has no place for it.
    """

    conversation: tuple[Message, ...]
    text: str | None = None
    ids: tuple[int, ...] | None = None
    starts_in_thought: bool = False
    thinks: bool = True
    mid_thought: bool = False
    exact: bool = False
    system_left_out: bool = False
