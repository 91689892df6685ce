"""One sample as the scheduler sees it: which tokens are known, and which are in the cache."""

from __future__ import annotations

import codecs

from forethought.engines.continuation import Continuation
from forethought.engines.torch.job import Job, Vocabulary


class Row:
    """A sample, its place in the cache, and the tokens that are still to be computed.

    ``stored`` tokens of ``known`` (prompt and sample) are in the cache. Where more than one is not,
    the sample was forced: those tokens are computed one a step and nothing is drawn.
    """

    __slots__ = (
        "_asked",
        "_decoder",
        "_ends",
        "_pieces",
        "_prompt",
        "job",
        "most_tokens",
        "sample",
        "stored",
    )

    def __init__(self, job: Job, index: int, vocabulary: Vocabulary) -> None:
        request = job.request
        assert request.prompt.ids is not None
        self.job = job
        self.stored = 0
        self.sample = Continuation(
            index,
            job.seed,
            request,
            job.limits,
            vocabulary.tags,
            vocabulary.tokenizer,
            job.handle.emit,
            job.started,
        )
        self._prompt = request.prompt.ids
        self.most_tokens = len(self._prompt) + job.limits.max_tokens
        self._pieces = vocabulary.pieces
        self._ends = vocabulary.ends
        self._asked = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in request.prefix_ids:  # they may end inside a character
            self._decoder.decode(self._pieces[token])
        self._advance()

    @property
    def known(self) -> list[int]:
        """Prompt and sample, all tokens so far."""
        return [*self._prompt, *self.sample.ids]

    @property
    def wants_token(self) -> bool:
        """Whether what was computed last is the newest token, so that the next may be drawn."""
        return self.stored == len(self._prompt) + len(self.sample.ids)

    def follows(self, position: int, token: int) -> bool:
        """Whether ``token`` is known to stand at ``position`` of prompt and sample."""
        at = position - len(self._prompt)
        return 0 <= at < len(self.sample.ids) and self.sample.ids[at] == token

    def next_id(self) -> int:
        """The token to compute."""
        prompt = len(self._prompt)
        return (
            self._prompt[self.stored]
            if self.stored < prompt
            else self.sample.ids[self.stored - prompt]
        )

    def over(self) -> bool:
        """Look at what the outside wants; whether the sample is done."""
        handle = self.job.handle
        if self.sample.done is None:
            if handle.cancelled:
                self.sample.done = "cancelled"
            elif handle.asked != self._asked:
                self._asked = handle.asked
                if self.sample.in_thought:
                    self._flush()
                    self.sample.close_thought("asked")
                    self._advance()
        return self.sample.done is not None

    def take(self, token: int, logprob: float | None) -> None:
        """The next token, drawn."""
        sample = self.sample
        if token in self._ends:
            self._flush()
            if sample.in_thought:
                sample.ended_in_thought()
            else:
                sample.add(token, logprob, "")
                sample.done = sample.done or "stop"
        else:
            sample.add(token, logprob, self._decoder.decode(self._pieces[token]))
            if sample.settled and sample.done is None:
                self._take_back_close()
        self._advance()

    def _take_back_close(self) -> None:
        """Think on after a closing tag that came too early; the cache forgets all of the tag."""
        before = list(self.sample.ids)
        self.sample.undo_early_close()
        self._decoder.reset()
        pairs = zip(before, self.sample.ids, strict=False)
        kept = next((at for at, (old, new) in enumerate(pairs) if old != new), len(before))
        self.stored = min(self.stored, len(self._prompt) + kept)

    def _advance(self) -> None:
        """Close a thought whose budget is spent; the newest token is still to be computed."""
        sampled = len(self.sample.ids)
        self.sample.enforce_limits()
        if len(self.sample.ids) > sampled:
            self._decoder.reset()  # a character that the close cut in two is not shown
        self.stored = min(self.stored, len(self._prompt) + len(self.sample.ids) - 1)

    def _flush(self) -> None:
        """A character that the model left unfinished becomes the replacement character."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        if text:
            self.sample.add_text(text)
