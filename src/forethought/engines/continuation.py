"""One sample on its way: what came, what is put in by force, and what of it is shown.

Engines feed it tokens; it reads thought and answer apart, emits the events, looks for stop strings
in the answer, closes a thought whose budget is spent, answers an early close with "Wait,", and
builds the finished :class:`Sample`. It knows no engine.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence

from forethought.dialogue.final_answer import final_answer
from forethought.dialogue.reader import Piece, TokenThoughtReader
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.tokenizer import Tokenizer
from forethought.dialogue.trimming import AnswerFilter
from forethought.engines.limits import Forced, Limits
from forethought.engines.protocol import (
    AnswerDelta,
    Event,
    Finished,
    Request,
    Sample,
    StopReason,
    ThoughtDelta,
    ThoughtEnd,
    Timings,
    Usage,
)
from forethought.engines.stop_strings import StopStrings


class Continuation:
    """The state of one sample. Fed by one thread at a time."""

    def __init__(
        self,
        index: int,
        seed: int,
        request: Request,
        limits: Limits,
        tags: ThinkTags,
        tokenizer: Tokenizer,
        emit: Callable[[Event], None],
        started: float,
    ) -> None:
        self.index = index
        self.seed = seed
        self.request = request
        self.limits = limits
        self.ids: list[int] = []
        self.done: StopReason | None = None
        self.asked_at = 0
        self._tags = tags
        self._tokenizer = tokenizer
        self._emit = emit
        self._started = started
        self._logprobs: list[float | None] = []
        self._forced: list[tuple[int, int]] = []
        self._ended_by: ThoughtEnd | None = None
        self._stops = StopStrings(request.stop)
        # The answer's own tags are not part of what is shown, so stops at them look at what came.
        self._tag_stops = StopStrings([stop for stop in request.stop if "answer>" in stop])
        prompt = request.prompt
        self._filter = AnswerFilter() if not (prompt.thinks or prompt.exact) else None
        self._shown_thought: list[str] = []
        self._shown_answer: list[str] = []
        self._first: float | None = None
        self._first_answer: float | None = None
        self._sampled = 0
        self._early_close = False
        self._reader = self._new_reader()
        # The engine goes on with a character that the prefix leaves unfinished, not the reader.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token, piece in zip(
            request.prefix_ids, tokenizer.pieces(request.prefix_ids), strict=True
        ):
            for shown in self._reader.feed((token,), decoder.decode(piece)):
                if shown.side == "answer":
                    self._shown_answer.append(self._visible(shown.text))
                else:
                    self._shown_thought.append(shown.text)
            self.ids.append(token)
            self._logprobs.append(None)
        if request.prefix_ids:
            self._forced.append((0, len(request.prefix_ids)))

    def _new_reader(self) -> TokenThoughtReader:
        prompt = self.request.prompt
        return TokenThoughtReader(
            self._tags,
            starts_in_thought=prompt.starts_in_thought,
            thinks=prompt.thinks,
            mid_thought=prompt.mid_thought,
        )

    # -- where it stands

    @property
    def in_thought(self) -> bool:
        return self.done is None and self._reader.in_thought

    @property
    def settled(self) -> bool:
        """Nothing that still arrives in this phase is wanted."""
        return self.done is not None or self._early_close

    def undo_early_close(self) -> bool:
        """If it closed before the minimum: take the close back, think on. True if it was so."""
        if not self._early_close:
            return False
        self._early_close = False
        self._undo_close()
        self._think_on()
        return True

    def ended_in_thought(self) -> None:
        """The model ended its turn inside the thought: go on, or let it answer.

        Its end-of-sequence token is not kept: a thought without an answer is what nobody wants.
        """
        if len(self.ids) < self.limits.min_thought:
            self._think_on()
        else:
            self.close_thought("ended")

    def enforce_limits(self) -> None:
        """Close a thought whose budget is spent; end what has no tokens left. Between tokens."""
        limits = self.limits
        if self.in_thought and len(self.ids) >= limits.max_thought - len(limits.closing.ids):
            self.close_thought("budget")
        if self.done is None and len(self.ids) >= limits.max_tokens:
            self.done = "length"

    # -- forcing

    def close_thought(self, why: ThoughtEnd) -> None:
        """Put the closing sentence and tag behind the thought."""
        self._ended_by = why
        self.force(self.limits.closing)

    def _think_on(self) -> None:
        """It wanted to stop before the minimum: "Wait,", or the end where that does not fit."""
        limits = self.limits
        if len(self.ids) + len(limits.wait.ids) > limits.max_thought - len(limits.closing.ids):
            self.close_thought("budget")
        else:
            self.force(limits.wait)

    def force(self, forced: Forced) -> None:
        """Put ids behind the sample that nobody sampled."""
        start = len(self.ids)
        self.ids.extend(forced.ids)
        self._logprobs.extend([None] * len(forced.ids))
        self._forced.append((start, len(self.ids)))
        self._show(self._reader.feed(forced.ids, forced.text))

    # -- what comes

    def add(self, token: int, logprob: float | None, text: str) -> None:
        """Take one sampled token with its text (what of it completes characters)."""
        if self._first is None:
            self._first = time.perf_counter() - self._started
        self.ids.append(token)
        self._logprobs.append(logprob)
        self._sampled += 1
        thinking = self._reader.in_thought
        if not thinking and self._tag_stops.hit is None:
            self._tag_stops.push(text)
            if self._tag_stops.hit is not None:
                text = text[: text.find(">") + 1] or text
                self.done = "stop_string"
        pieces = self._reader.feed((token,), text)
        if (
            thinking
            and not self._reader.in_thought
            and self._reader.spans.closing[0] < self.limits.min_thought
        ):
            self._early_close = True
            return
        self._show(pieces)

    def add_text(self, text: str) -> None:
        """Text of the newest token that became known late (an unfinished character)."""
        self._show(self._reader.feed((), text))

    def _show(self, pieces: Sequence[Piece]) -> None:
        for side, text, ids in pieces:
            if side == "thought":
                if text:
                    self._shown_thought.append(text)
                self._emit(ThoughtDelta(self.index, text, ids, len(ids)))
                continue
            text = self._visible(text)
            if text:
                self._shown_answer.append(text)
                if self._first_answer is None:
                    self._first_answer = time.perf_counter() - self._started
            self._emit(AnswerDelta(self.index, text, ids, len(ids)))
            if self._stops.hit is not None:
                self.done = "stop_string"

    def _visible(self, text: str) -> str:
        """What of the answer's text is shown: no answer tags, nothing from a stop string on."""
        if self._filter is not None:
            text = self._filter.push(text)
        return self._stops.push(text)

    def _undo_close(self) -> None:
        """Forget the closing tag and all after it; the reader reads the rest again."""
        keep = self._reader.spans.closing[0]
        del self.ids[keep:], self._logprobs[keep:]
        shown = len("".join(self._shown_thought))
        self._reader = self._new_reader()
        pieces: list[Piece] = []
        for token, raw in zip(self.ids, self._tokenizer.pieces(self.ids), strict=True):
            pieces += self._reader.push(token, raw)
        # Whitespace before the tag was held back and is still: what was shown is a beginning.
        text = "".join(piece.text for piece in pieces)
        if len(text) > shown:
            self._show([Piece("thought", text[shown:], ())])

    # -- the end

    def _before_stop(self, raw_answer: str) -> str:
        """What counts of the answer; a stop at ``</answer>`` leaves the pair whole."""
        hit = self._stops.hit
        if hit is None or self._tag_stops.hit is not None:
            return raw_answer
        return raw_answer.partition(hit)[0]

    def finish(self) -> Sample:
        """Flush, build the sample and hand it on. ``done`` must be set."""
        assert self.done is not None
        was_thinking = self._reader.in_thought
        ending = self._reader.finish(complete=self.done in ("stop", "stop_string"))
        done = self.done
        self._show(ending.pieces)
        held = self._filter.finish() if self._filter is not None else ""
        held = self._stops.push(held) + self._stops.finish()
        if held:
            self._shown_answer.append(held)
            self._emit(AnswerDelta(self.index, held))
        reading = ending.reading
        answer = "".join(self._shown_answer)
        total = time.perf_counter() - self._started
        since_first = total - (self._first or 0.0)
        if not self.request.prompt.thinks or not (
            reading.thought or reading.closed or was_thinking
        ):
            thought_end: ThoughtEnd = "none"
        elif reading.closed:
            thought_end = self._ended_by or "closed"
        else:
            thought_end = "cut"
        sample = Sample(
            index=self.index,
            seed=self.seed,
            thought=reading.thought,
            answer=answer,
            final_answer=final_answer(self._before_stop(reading.raw_answer)),
            text=self._reader.text,
            stop_reason=done,
            thought_end=thought_end,
            usage=Usage(
                len(self.request.prompt.ids or ()),
                self._reader.thought_tokens,
                self._reader.answer_tokens,
            ),
            timings=Timings(
                first_token=self._first,
                first_answer=self._first_answer,
                total=total,
                tokens_per_second=(self._sampled - 1) / since_first
                if self._sampled > 1 and since_first > 0
                else 0.0,
            ),
            ids=tuple(self.ids),
            logprobs=tuple(self._logprobs) if self.request.logprobs else None,
            forced=tuple(self._forced),
        )
        self._emit(Finished(sample))
        return sample
