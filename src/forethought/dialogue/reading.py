"""What the thought readers give: pieces while a text arrives, and the reading of all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Side = Literal["thought", "answer"]
SegmentKind = Literal["thought", "tag", "answer"]


class Piece(NamedTuple):
    """More of one side. Texts of a side joined give that side; ``ids`` of all pieces joined give
    every token fed, in order, each on the side it counts to (the text may lag behind)."""

    side: Side
    text: str
    ids: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


class Segment(NamedTuple):
    """A stretch of the text as it came; all segments joined give it back exactly.

    A ``tag`` segment holds the whitespace before an opening tag too.
    """

    kind: SegmentKind
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A finished text, read.

    ``raw_answer`` is the answer with its ``<answer>`` tags and whitespace: what ``final_answer``
    takes. ``closed``: a closing tag came. ``reclassified``: it was read as a thought
    (``assume_thought``) but no closing tag came, so that all of it was the answer.
    """

    thought: str
    answer: str
    raw_answer: str
    closed: bool
    reclassified: bool
    segments: tuple[Segment, ...]


class Ending(NamedTuple):
    """What ``finish`` returns: the pieces that were held back, and the whole reading.

    When ``reading.reclassified`` the pieces carry the whole answer, and what was shown as thought
    is to be forgotten.
    """

    pieces: list[Piece]
    reading: Reading


class Spans(NamedTuple):
    """Half-open ranges of token indices; together they cover all tokens, in this order.

    A token that holds a character of a tag belongs to the tag. An absent tag is an empty range.
    """

    opening: tuple[int, int]
    thought: tuple[int, int]
    closing: tuple[int, int]
    answer: tuple[int, int]
