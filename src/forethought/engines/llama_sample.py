"""One sample of llama.cpp, which is asked in phases.

A phase is one completion request with a token limit; between phases the sample may get tokens that
nobody sampled (a sentence and the closing tag when the thought's budget is spent, "Wait," when it
closed too early). Most samples are done in one phase. The cache of the slot holds all but the
newest token, so that a further phase costs one or two tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from forethought.dialogue.reader import State
from forethought.dialogue.tags import ThinkTags
from forethought.engines.continuation import Continuation
from forethought.engines.limits import Forced, Limits
from forethought.engines.llama_server import Chunk
from forethought.engines.llama_tokenizer import LlamaTokenizer
from forethought.engines.protocol import Event, Request, Sample


class SampleRun(Continuation):
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
        super().__init__(index, seed, request, limits, tags, tokenizer, emit, started)
        self.phases = 0
        self._llama_tokenizer = tokenizer
        self._silent: tuple[int, float | None] | None = None
        self._phase_start = 0
        self._predicted = 0
        self._stuck = False

    # -- planning

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
            self.add(*self._silent, "")
            self._silent = None
        gap = chunk.predicted - self._predicted - 1 if chunk.predicted else 0
        self._predicted = chunk.predicted
        if not chunk.text:
            # An end-of-sequence token has no text; whether this is one, the finish tells.
            self._silent = (token, chunk.logprob)
            return
        if gap > 0:
            before = self._llama_tokenizer.fill_gap(chunk.raw, token, gap)
            if before is not None:
                for missing in before:
                    self.ids.append(missing)
                    self._logprobs.append(None)
                    self._show(self._reader.feed((missing,), ""))
        self.add(token, chunk.logprob, chunk.text)

    def _finish_phase(self, reason: str) -> None:
        silent, self._silent = self._silent, None
        if reason == "stop":
            if self._reader.in_thought:
                self.ended_in_thought()
                return
            ended = silent is not None and self._llama_tokenizer.is_control(silent[0])
            if silent is not None:
                self.add(*silent, "")
            # Without a thought llama.cpp looks for the stop strings itself, and hides them.
            by_string = bool(self.request.stop) and not self.request.prompt.thinks and not ended
            self.done = self.done or ("stop_string" if by_string else "stop")
            return
        if silent is not None:
            self.add(*silent, "")
        # A phase can end inside a character, whose tokens llama.cpp then keeps to itself.
        self._stuck = len(self.ids) == self._phase_start

    def end_phase(self) -> None:
        """The phase is over, on its own or because we stopped it."""
        self.phases += 1
        self.undo_early_close()

    def force(self, forced: Forced) -> None:
        """Put ids behind the sample that nobody sampled."""
        super().force(forced)
        self._stuck = False

    def finish(self) -> Sample:
        """Flush, build the sample and hand it on. ``done`` must be set."""
        if self._silent is not None:
            self.add(*self._silent, "")
            self._silent = None
        return super().finish()
