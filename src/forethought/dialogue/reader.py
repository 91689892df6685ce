"""The thought reader: splits what a model writes into thought and answer, while it writes.

Three readers of the same grammar::

    ThoughtReader        streaming, over text (servers that send raw text)
    TokenThoughtReader   streaming, over token ids and their bytes or text (local engines)
    parse.parse          one call, over a finished text; written apart, the tests compare them

The grammar is a machine of four states::

    OPENING --opening tag, or (began inside a thought) any text--> THINKING
    OPENING --(did not begin inside a thought) any other text----> ANSWERING
    THINKING --closing tag----> ANSWERING
    PLAIN    everything is answer (``bare``, models that do not think)

Nothing leaves ANSWERING: a ``<think>`` or ``</think>`` there is plain text, because the model may
be quoting, and a reader that went back would hide a part of the answer. For the same reason an
opening tag inside a thought is text of the thought.

What is shown: the thought without whitespace at its ends, the answer without whitespace at its
ends and without ``<answer>`` tags. What is kept: every character (``text``, ``segments``).
Sources: DeepSeek-R1's chat template and README (the opening tag is in the prompt, an empty thought
is ``<think>\\n\\n</think>``); hosted R1 sends ``<think>Okay``, its distillations ``<think>\\n``.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from codecs import getincrementaldecoder
from collections.abc import Sequence
from enum import Enum
from io import StringIO

from forethought.dialogue.reading import Ending, Piece, Reading, Segment, Side, Spans
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.trimming import AnswerFilter, Trimmer

__all__ = [
    "Ending",
    "Piece",
    "Reading",
    "Segment",
    "Spans",
    "State",
    "ThoughtReader",
    "TokenThoughtReader",
]

_DEFAULT_TAGS = ThinkTags()
_Utf8Decoder = getincrementaldecoder("utf-8")


class State(Enum):
    """Where a reader is; see the module's docstring."""

    OPENING = "nothing but whitespace yet; an opening tag may come"
    THINKING = "inside the thought"
    ANSWERING = "after the thought, or without one"
    PLAIN = "everything is answer, unchanged"


def _held_suffix(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``tag``."""
    at = text.find(tag[0], max(0, len(text) - len(tag) + 1))
    while at >= 0:
        if tag.startswith(text[at:]):
            return len(text) - at
        at = text.find(tag[0], at + 1)
    return 0


class ThoughtReader:
    """Reads a stream of text chunks; each character costs O(1) however the text is cut up.

    ``starts_in_thought``: the prompt ended inside a thought; an opening tag that comes first all
    the same (hosted R1) is swallowed. ``mid_thought``: the prompt ended in the middle of one (an
    edited thought goes on): no opening tag is looked for and leading whitespace is kept.
    ``assume_thought``: nobody knows (a server that sends raw text): read as thought, and let
    ``finish`` decide. ``thinks`` False: everything is answer, nothing trimmed or removed.

    ``match_open`` and ``match_close`` are False where the caller tells tags by id and calls
    ``open_tag`` and ``close_tag``. After ``finish`` feeding raises RuntimeError.
    ``state`` and ``length`` (characters fed) are to be read, not set.
    """

    def __init__(
        self,
        tags: ThinkTags = _DEFAULT_TAGS,
        *,
        starts_in_thought: bool = False,
        thinks: bool = True,
        assume_thought: bool = False,
        mid_thought: bool = False,
        match_open: bool = True,
        match_close: bool = True,
    ) -> None:
        if not tags.open or not tags.close:
            raise ValueError("a think tag has no text")
        self._tags = tags
        self._inside = starts_in_thought or assume_thought or mid_thought
        self._assumed = assume_thought and not starts_in_thought and not mid_thought
        self._match_open = match_open
        self._match_close = match_close
        self.state = State.OPENING if thinks else State.PLAIN
        if thinks and mid_thought:
            self.state = State.THINKING
        self._trimmer = Trimmer(skip_start=not mid_thought)
        self._filter = AnswerFilter()
        self._partial = ""  # the end of the text so far that may become a tag
        # Buffers, not lists of chunks: a hundred thousand small strings would outgrow the
        # processor's cache, and the last token would cost more than the first.
        self._text = StringIO()
        self.length = 0
        self._thought = StringIO()
        self._answer = StringIO()
        # Character offsets in the text; None until the tag is seen.
        self._opening_end: int | None = None
        self._closing: tuple[int, int] | None = None
        self._ending: Ending | None = None

    @property
    def in_thought(self) -> bool:
        """Whether text that comes now would be thought, as far as anyone knows."""
        return self.state is State.THINKING or (self.state is State.OPENING and self._inside)

    @property
    def closed(self) -> bool:
        return self._closing is not None

    @property
    def opened(self) -> bool:
        """Whether an opening tag came."""
        return self._opening_end is not None

    @property
    def closing_offsets(self) -> tuple[int, int] | None:
        """Where the closing tag is in ``text``, half-open, in characters; None before it came."""
        return self._closing

    @property
    def text(self) -> str:
        """Everything fed."""
        return self._text.getvalue()

    @property
    def thought(self) -> str:
        """The thought shown so far."""
        return self._thought.getvalue()

    @property
    def answer(self) -> str:
        """The answer shown so far."""
        return self._answer.getvalue()

    @property
    def raw_answer(self) -> str:
        return "".join(s.text for s in self.segments if s.kind == "answer")

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The text so far in stretches; a tag not yet complete counts to its side."""
        return _segments(self.text, self._opening_end, self._closing, self.in_thought)

    def feed(self, text: str) -> list[Piece]:
        """Read more; returns what can be shown of it, at most one piece a side."""
        thought, answer = self.advance(text)
        return _pieces(thought, answer)

    def advance(self, text: str) -> tuple[str, str]:
        """As ``feed``, as a pair: more of the thought, and then more of the answer."""
        if self._ending is not None:
            raise RuntimeError("this reader is finished")
        if not text:
            return "", ""
        self._text.write(text)
        self.length += len(text)
        if self.state is State.THINKING:
            return self._think(text)
        if self.state is State.ANSWERING:
            return "", self._reply(text)
        if self.state is State.OPENING:
            return self._open(text)
        self._answer.write(text)
        return "", text

    def open_tag(self, text: str) -> None:
        """An opening tag told by id came first, with this text. Only in OPENING."""
        self._text.write(text)
        self.length += len(text)
        self._opening_end = self.length
        self.state = State.THINKING

    def close_tag(self, text: str) -> str:
        """The closing tag told by id came, with this text. Only inside a thought; returns what
        was held of the thought."""
        start = self.length
        held = self._show_partial_thought()
        self._text.write(text)
        self.length += len(text)
        self._close(start, self.length)
        return held

    def finish(self, complete: bool = True) -> Ending:
        """The text is over; ``complete`` False when it was cut off (length, cancel).

        Idempotent. Held text comes out: the whitespace at the end of a thought that was cut off is
        part of it (it may be continued), the whitespace at the end of an answer is not shown.
        """
        if self._ending is not None:
            return self._ending
        thought = answer = ""
        reclassified = False
        if self.state is State.OPENING:
            self.state = State.THINKING if self._inside else State.ANSWERING
        if self.state is State.THINKING:
            if complete and self._assumed and self._opening_end is None:
                reclassified = True
                self._thought = StringIO()
                self._partial = self.text
                self.state = State.ANSWERING
            else:
                thought = self._show_partial_thought()
                held = self._trimmer.take_held()
                self._thought.write(held)
                thought += held
        if self.state is State.ANSWERING:
            partial, self._partial = self._partial, ""
            answer = self._reply(partial)
            held = self._filter.finish()
            self._answer.write(held)
            answer += held
        reading = Reading(
            thought=self.thought,
            answer=self.answer,
            raw_answer=self.raw_answer,
            closed=self.closed,
            reclassified=reclassified,
            segments=self.segments,
        )
        self._ending = Ending(_pieces(thought, answer), reading)
        return self._ending

    def _open(self, text: str) -> tuple[str, str]:
        text = self._partial + text
        stripped = text.lstrip()
        if not stripped:
            return "", ""
        tag = self._tags.open
        if self._match_open:
            if stripped.startswith(tag):
                self._partial = ""
                rest = stripped[len(tag) :]
                self._opening_end = self.length - len(rest)
                self.state = State.THINKING
                return self._think(rest)
            if tag.startswith(stripped):
                self._partial = stripped
                return "", ""
        self._partial = ""
        if self._inside:
            self.state = State.THINKING
            return self._think(text)
        self.state = State.ANSWERING
        return "", self._reply(text)

    def _think(self, text: str) -> tuple[str, str]:
        tag = self._tags.close
        if self._match_close and (self._partial or tag[0] in text):
            text = self._partial + text
            at = text.find(tag)
            if at >= 0:
                self._partial = ""
                thought = self._show_thought(text[:at])
                rest = text[at + len(tag) :]
                end = self.length - len(rest)
                self._close(end - len(tag), end)
                return thought, self._reply(rest)
            held = len(text) - _held_suffix(text, tag)
            self._partial = text[held:]
            text = text[:held]
        return self._show_thought(text), ""

    def _reply(self, text: str) -> str:
        shown = self._filter.push(text) if text else ""
        if shown:
            self._answer.write(shown)
        return shown

    def _show_thought(self, text: str) -> str:
        shown = self._trimmer.push(text) if text else ""
        if shown:
            self._thought.write(shown)
        return shown

    def _show_partial_thought(self) -> str:
        partial, self._partial = self._partial, ""
        return self._show_thought(partial)

    def _close(self, start: int, end: int) -> None:
        self._closing = (start, end)
        self.state = State.ANSWERING


def _pieces(thought: str, answer: str) -> list[Piece]:
    pieces = [Piece("thought", thought)] if thought else []
    if answer:
        pieces.append(Piece("answer", answer))
    return pieces


def _segments(
    text: str, opening_end: int | None, closing: tuple[int, int] | None, in_thought: bool
) -> tuple[Segment, ...]:
    start = opening_end or 0
    segments = [Segment("tag", text[:start])]
    if closing is not None:
        segments.append(Segment("thought", text[start : closing[0]]))
        segments.append(Segment("tag", text[closing[0] : closing[1]]))
        segments.append(Segment("answer", text[closing[1] :]))
    else:
        segments.append(Segment("thought" if in_thought else "answer", text[start:]))
    return tuple(segment for segment in segments if segment.text)


class TokenThoughtReader:
    """Reads a stream of tokens, and counts them exactly on each side.

    A tag that has an id in ``tags`` is that id and nothing else; a tag without is found in the
    text of the tokens, across their borders (``>\\n`` may be one token). UTF-8 characters split
    over tokens come out with the token that completes them, invalid bytes as U+FFFD.

    The tokens up to and including the one that completes the closing tag are thought, the rest
    answer. Feed with ``push`` (id and bytes) or ``feed`` (ids and decoded text); parameters as
    :class:`ThoughtReader`.
    """

    def __init__(
        self,
        tags: ThinkTags = _DEFAULT_TAGS,
        *,
        starts_in_thought: bool = False,
        thinks: bool = True,
        mid_thought: bool = False,
    ) -> None:
        self._core = ThoughtReader(
            tags,
            starts_in_thought=starts_in_thought,
            thinks=thinks,
            mid_thought=mid_thought,
            match_open=tags.open_id is None,
            match_close=tags.close_id is None,
        )
        self._tags = tags
        self._tag_ids = (tags.open_id, tags.close_id)
        self._decode = _Utf8Decoder("replace").decode
        self._bytes = bytearray()
        self._ids = array("q")
        self._ends = array("q")  # length of the text after each token, in characters
        self._given = 0  # tokens that have left in a piece; behind only until a side is decided
        self._opening: tuple[int, int] | None = None
        self._closing: tuple[int, int] | None = None  # its start is refined by ``spans``
        self._answer_from = None if thinks else 0

    @property
    def state(self) -> State:
        return self._core.state

    @property
    def in_thought(self) -> bool:
        return self._core.in_thought

    @property
    def closed(self) -> bool:
        return self._core.closed

    @property
    def text(self) -> str:
        """Everything fed, decoded."""
        return self._core.text

    @property
    def data(self) -> bytes:
        """Everything fed through ``push``, byte for byte."""
        return bytes(self._bytes)

    @property
    def thought(self) -> str:
        return self._core.thought

    @property
    def answer(self) -> str:
        return self._core.answer

    @property
    def raw_answer(self) -> str:
        return self._core.raw_answer

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids)

    @property
    def thought_tokens(self) -> int:
        """Tokens of the thought so far, tags included."""
        if self._answer_from is not None:
            return self._answer_from
        return len(self._ids) if self._core.in_thought else 0

    @property
    def answer_tokens(self) -> int:
        return len(self._ids) - self.thought_tokens

    @property
    def spans(self) -> Spans:
        """Which tokens are what, so far; costs a binary search when asked, nothing before."""
        n = len(self._ids)
        opening = self._opening or (0, 0)
        if self._closing is None:
            side = n if self._core.in_thought or self._opening else 0
            return Spans(opening, (opening[1], side), (side, side), (side, n))
        start, end = self._closing
        offsets = self._core.closing_offsets
        if self._tags.close_id is None and offsets is not None:
            # The first token that reaches beyond the offset holds the tag's first character.
            start = min(bisect_right(self._ends, offsets[0]), start)
        start = max(start, opening[1])
        return Spans(opening, (opening[1], start), (start, end), (end, n))

    def push(self, token_id: int, piece: bytes) -> list[Piece]:
        """Read one token, given its bytes; b"" for one that shows nothing (end of sequence)."""
        self._bytes += piece
        if token_id not in self._tag_ids or not self._is_tag(token_id):
            return self._step((token_id,), self._decode(piece))
        # A character the model left unfinished before the tag stays on its side of it.
        pieces = self._step((), self._decode(b"", True))
        if self._is_tag(token_id):
            return pieces + self._tag(token_id, piece.decode("utf-8", "replace"))
        return pieces + self._step((token_id,), self._decode(piece))

    def feed(self, ids: Sequence[int], text: str) -> list[Piece]:
        """Read tokens given their decoded text (llama.cpp's stream).

        Exact for one id a call. Where several come at once the text between them is unknown:
        tags with an id still split them exactly, a tag found in the text counts all of them as
        thought. Text without ids belongs to the token before.
        """
        pieces: list[Piece] = []
        done = 0
        for at, token_id in enumerate(ids):
            if not self._is_tag(token_id):
                continue
            tag = self._tags.open if token_id == self._tags.open_id else self._tags.close
            last = at == len(ids) - 1
            found = text.rfind(tag) if last and at > done else text.find(tag)
            if found >= 0:
                before, shown, after = text[:found], tag, text[found + len(tag) :]
            elif len(ids) == 1:
                before, shown, after = "", text, ""
            else:  # a control token whose text the engine does not send
                before, shown, after = (text, "", "") if at > done else ("", "", text)
            if before or at > done:
                pieces += self._step(tuple(ids[done:at]), before)
            if not self._is_tag(token_id):  # what came before it has decided otherwise
                done, text = at, text[len(before) :]
                continue
            pieces += self._tag(token_id, shown)
            done, text = at + 1, after
        if text or done < len(ids):
            pieces += self._step(tuple(ids[done:]), text)
        return pieces

    def finish(self, complete: bool = True) -> Ending:
        """As :meth:`ThoughtReader.finish`; tokens whose side was open join a piece here."""
        pieces = self._step((), self._decode(b"", True))
        ending = self._core.finish(complete)
        pieces += ending.pieces
        if self._answer_from is None and self._core.state is not State.THINKING:
            self._answer_from = 0
        rest = self._take_ids()
        if rest:
            side: Side = "thought" if self._core.state is State.THINKING else "answer"
            pieces.insert(0, Piece(side, "", rest))
        return Ending(pieces, ending.reading)

    def _is_tag(self, token_id: int) -> bool:
        state = self._core.state
        if state is State.ANSWERING or state is State.PLAIN:
            return False
        if token_id == self._tags.open_id:
            return state is State.OPENING
        return token_id == self._tags.close_id and self._core.in_thought

    def _tag(self, token_id: int, text: str) -> list[Piece]:
        index = len(self._ids)
        shown = ""
        if token_id == self._tags.open_id:
            self._core.open_tag(text)
            self._opening = (0, index + 1)
        else:
            shown = self._core.close_tag(text)
            self._closing = (index, index + 1)
            self._answer_from = index + 1
        self._ids.append(token_id)
        self._ends.append(self._core.length)
        return [Piece("thought", shown, self._take_ids())]

    def _step(self, ids: tuple[int, ...], text: str) -> list[Piece]:
        """Ordinary text, which may hold a tag that has no id."""
        core = self._core
        before = core.state
        thought, answer = core.advance(text)
        end = core.length
        if len(ids) == 1:
            self._ids.append(ids[0])
            self._ends.append(end)
        elif ids:
            self._ids.extend(ids)
            self._ends.extend([end - len(text)] * (len(ids) - 1))
            self._ends.append(end)
        elif self._ends:
            self._ends[-1] = end
        state = core.state
        if state is not before or state is State.OPENING:
            return self._changed(thought, answer)
        self._given += len(ids)
        if state is State.THINKING:
            return [Piece("thought", thought, ids)] if thought or ids else []
        return [Piece("answer", answer, ids)] if answer or ids else []

    def _changed(self, thought: str, answer: str) -> list[Piece]:
        """The rest of ``_step`` where the state changes, or is still open: a few times a text."""
        core = self._core
        n = len(self._ids)
        if core.opened and self._opening is None:
            self._opening = (0, n)
        if core.in_thought:
            ids = self._take_ids()
            return [Piece("thought", thought, ids)] if thought or ids else []
        if core.state is State.OPENING:
            return []
        if not core.closed:
            self._answer_from = 0
            return [Piece("answer", answer, self._take_ids())]
        self._closing = (n, n)
        self._answer_from = n
        pieces = [Piece("thought", thought, self._take_ids())]
        if answer:
            pieces.append(Piece("answer", answer))
        return pieces

    def _take_ids(self) -> tuple[int, ...]:
        ids = tuple(self._ids[self._given :])
        self._given = len(self._ids)
        return ids
