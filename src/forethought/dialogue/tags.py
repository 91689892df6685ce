"""The tags around a thought, as data: text, and the one id a vocabulary may have for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """Opening and closing tag of a thought.

    ``open_id`` and ``close_id`` are set when the vocabulary has one token for the tag: then only
    that id is the tag, and the same characters spelled by other tokens are text. When they are
    None the tag is several tokens and is found in their text.
    """

    open: str = "<think>"
    close: str = "</think>"
    open_id: int | None = None
    close_id: int | None = None
