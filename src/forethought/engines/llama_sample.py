"""One sample on its way: what came, what may still come, what is put in by force.

llama.cpp is asked in phases. A phase is one completion request with a token limit; between phases
the sample may get tokens that nobody sampled (a sentence and the closing tag when the thought's
budget is spent, "Wait," when it closed too early). Most samples are done in one phase. The cache
of the slot holds all but the newest token, so that a further phase costs one or two tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forethought.dialogue.final_answer import final_answer
from forethought.dialogue.reader import Piece, State, TokenThoughtReader
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.trimming import AnswerFilter
from forethought.engines.llama_server import Chunk
from forethought.engines.llama_tokenizer import LlamaTokenizer
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

WAIT = "Wait,"
CLOSING = "\nThat is enough thinking, I will answer now.\n{close}\n\n"
SHORT_CLOSING = "\n{close}\n\n"


@dataclass(frozen=True, slots=True)
class Forced:
    """Ids that are put into a sample without sampling, with their text."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Token limits of one sample, resolved: ``closing`` fits into ``max_thought``."""

    max_tokens: int
    max_thought: int
    min_thought: int
    closing: Forced
    wait: Forced


class SampleRun:
    """The state of one sample. Fed by one thread at a time."""

    def __init__(
        self,
        index: int,
        seed: int,
        request: Request,
        limits: Limits,
        tags: ThinkTags,
        tokenizer: LlamaTokenizer,
        emit: Callable[[Event], None],
        started: float,
    ) -> None:
        self.index = index
        self.seed = seed
        self.request = request
        self.limits = limits
        self.ids: list[int] = []
        self.done: StopReason | None = None
        self.phases = 0
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
        self._silent: tuple[int, float | None] | None = None
        self._phase_start = 0
        self._predicted = 0
        self._early_close = False
        self._stuck = False
        self._reader = self._new_reader()
        for token, piece in zip(
            request.prefix_ids, tokenizer.pieces(request.prefix_ids), strict=True
        ):
            for shown in self._reader.push(token, piece):
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

    # -- planning

    @property
    def in_thought(self) -> bool:
        return self.done is None and self._reader.in_thought

    @property
    def settled(self) -> bool:
        """Nothing that still arrives in this phase is wanted."""
        return self.done is not None or self._early_close

    def plan(self) -> int:
        """Tokens of the next phase; 0 when the sample is done. Forces what is due first."""
        limits = self.limits
        if self.done is None and self._reader.in_thought:
            cap = limits.max_thought - len(limits.closing.ids)
            used = len(self.ids)
            if used >= cap or self._stuck:
                self.close_thought("budget")
            else:
                until = cap
                if used < limits.min_thought:
                    until = min(cap, limits.min_thought)
                return until - used
        if self.done is not None:
            return 0
        left = limits.max_tokens - len(self.ids)
        if left <= 0 or self._stuck:
            self.done = "length"
            return 0
        if self._reader.state is State.OPENING and self.request.prompt.thinks:
            # It may still open a thought by itself, which then must not eat the answer's share.
            return max(1, min(left, limits.max_thought - len(limits.closing.ids) - len(self.ids)))
        return left

    def begin_phase(self) -> None:
        self._phase_start = len(self.ids)
        self._predicted = 0
        self._silent = None
        self._early_close = False

    def close_thought(self, why: ThoughtEnd) -> None:
        """Put the closing sentence and tag behind the thought."""
        self._ended_by = why
        self._force(self.limits.closing)

    def _think_on(self) -> None:
        """It wanted to stop before the minimum: "Wait,", or the end where that does not fit."""
        limits = self.limits
        if len(self.ids) + len(limits.wait.ids) > limits.max_thought - len(limits.closing.ids):
            self.close_thought("budget")
        else:
            self._force(limits.wait)

    def _force(self, forced: Forced) -> None:
        start = len(self.ids)
        self.ids.extend(forced.ids)
        self._logprobs.extend([None] * len(forced.ids))
        self._forced.append((start, len(self.ids)))
        self._show(self._reader.feed(forced.ids, forced.text))
        self._stuck = False

    # -- what comes

    def accept(self, chunk: Chunk) -> None:
        """Take one chunk of the running phase."""
        if self.settled:
            return
        if chunk.token_id is not None:
            self._take(chunk, chunk.token_id)
        if chunk.finish is not None and self.done is None:
            self._finish_phase(chunk.finish)

    def _take(self, chunk: Chunk, token: int) -> None:
        if self._silent is not None:
            self._add(*self._silent, "")
            self._silent = None
        gap = chunk.predicted - self._predicted - 1 if chunk.predicted else 0
        self._predicted = chunk.predicted
        if not chunk.text:
            # An end-of-sequence token has no text; whether this is one, the finish tells.
            self._silent = (token, chunk.logprob)
            return
        if gap > 0:
            before = self._tokenizer.fill_gap(chunk.raw, token, gap)
            if before is not None:
                for missing in before:
                    self.ids.append(missing)
                    self._logprobs.append(None)
                    self._show(self._reader.feed((missing,), ""))
        self._add(token, chunk.logprob, chunk.text)

    def _add(self, token: int, logprob: float | None, text: str) -> None:
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

    def _finish_phase(self, reason: str) -> None:
        silent, self._silent = self._silent, None
        if reason == "stop":
            if self._reader.in_thought:
                # The model ended its turn inside the thought. That token is not kept: a thought
                # without an answer is what nobody wants.
                if len(self.ids) < self.limits.min_thought:
                    self._think_on()
                else:
                    self.close_thought("ended")
                return
            ended = silent is not None and self._tokenizer.is_control(silent[0])
            if silent is not None:
                self._add(*silent, "")
            # Without a thought llama.cpp looks for the stop strings itself, and hides them.
            by_string = bool(self.request.stop) and not self.request.prompt.thinks and not ended
            self.done = self.done or ("stop_string" if by_string else "stop")
            return
        if silent is not None:
            self._add(*silent, "")
        # A phase can end inside a character, whose tokens llama.cpp then keeps to itself.
        self._stuck = len(self.ids) == self._phase_start

    def end_phase(self) -> None:
        """The phase is over, on its own or because we stopped it."""
        self.phases += 1
        if self._early_close:
            self._early_close = False
            self._undo_close()
            self._think_on()

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
        if self._silent is not None:
            self._add(*self._silent, "")
            self._silent = None
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
