"""The thought reader's grammar over a finished text, in one call.

Written apart from the streaming readers, with ``str.find`` and ``str.strip`` alone, so that the
tests can hold the one against the other.
"""

from __future__ import annotations

import re

from forethought.dialogue.final_answer import ANSWER_CLOSE, ANSWER_OPEN
from forethought.dialogue.reading import Reading, Segment, SegmentKind
from forethought.dialogue.tags import ThinkTags

_ANSWER_TAG = re.compile(f"({ANSWER_OPEN}|{ANSWER_CLOSE})")


def parse(
    text: str,
    tags: ThinkTags | None = None,
    *,
    starts_in_thought: bool = False,
    thinks: bool = True,
    assume_thought: bool = False,
    mid_thought: bool = False,
    complete: bool = True,
) -> Reading:
    """Thought and answer of ``text``; tags are found by their text, never by id.

    Parameters as :class:`~forethought.dialogue.reader.ThoughtReader` and its ``finish``.
    """
    tags = tags or ThinkTags()
    if not thinks:
        return Reading("", text, text, False, False, _segments([("answer", text)]))
    inside = starts_in_thought or assume_thought or mid_thought
    sure = starts_in_thought or mid_thought
    opening, body = "", text
    stripped = text.lstrip()
    if not mid_thought and stripped.startswith(tags.open):
        body = stripped[len(tags.open) :]
        opening = text[: len(text) - len(body)]
        inside = sure = True
    if not inside:
        return Reading("", _shown(text), text, False, False, _segments([("answer", text)]))
    raw_thought, closing, raw_answer = body.partition(tags.close)
    if not closing and not sure and complete:
        return Reading("", _shown(text), text, False, True, _segments([("answer", text)]))
    thought = raw_thought if mid_thought else raw_thought.lstrip()
    return Reading(
        thought=thought.rstrip() if closing else thought,
        answer=_shown(raw_answer),
        raw_answer=raw_answer,
        closed=bool(closing),
        reclassified=False,
        segments=_segments(
            [("tag", opening), ("thought", raw_thought), ("tag", closing), ("answer", raw_answer)]
        ),
    )


def _shown(raw_answer: str) -> str:
    parts: list[str] = []
    inside_start = False
    for part in _ANSWER_TAG.split(raw_answer):
        if part == ANSWER_OPEN:
            inside_start = True
        elif part == ANSWER_CLOSE:
            inside_start = False
            while parts and not parts[-1].strip():
                parts.pop()
            if parts:
                parts[-1] = parts[-1].rstrip()
        else:
            kept = part.lstrip() if inside_start else part
            inside_start = inside_start and not kept
            parts.append(kept)
    return "".join(parts).strip()


def _segments(parts: list[tuple[SegmentKind, str]]) -> tuple[Segment, ...]:
    return tuple(Segment(kind, text) for kind, text in parts if text)
