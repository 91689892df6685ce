"""The one protocol between whoever wants text and whatever computes it.

A :class:`Request` gives a :class:`Handle`: iterate its typed events, cancel it within one token,
tell it to answer now, or wait for its samples. Strategies, evaluation, the server and the command
line know only this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from forethought.dialogue.messages import Prompt
from forethought.dialogue.tokenizer import Tokenizer

StopReason = Literal["stop", "length", "stop_string", "cancelled"]
"""Why a sample ended: end-of-sequence token, token limit, a stop string in the answer, cancel."""

ThoughtEnd = Literal["none", "closed", "budget", "asked", "ended", "cut"]
"""How the thought ended: there was none; the model closed it; the budget closed it; someone asked
for the answer now; the model ended its turn inside it, so that it was closed for it; or it was cut
off inside (cancelled, or no tokens left)."""

LogprobKind = Literal["sampling", "raw"]


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is drawn. Order: temperature, top-k, top-p, min-p (as vLLM and HF).

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filter off.
    Defaults are DeepSeek-R1's (model card, usage recommendations).
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Token limits of one sample, forced tokens included.

    ``max_tokens``: thought + answer; None fills the context.
    ``max_thought``: at this many thought tokens (the closing sentence and tag included) the thought
    is closed and the answer begins; min(256, a quarter) of ``max_tokens`` is always left for it.
    ``min_thought``: before this many thought tokens a close becomes "Wait,".
    """

    max_tokens: int | None = None
    max_thought: int | None = None
    min_thought: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an engine. ``seed`` None means the engine draws one and reports it.

    ``prefix_ids`` continues a stopped sample: they count as already generated (budget, thought
    reader) and are not streamed again. ``stop`` strings act in the answer only, never in a thought.
    """

    prompt: Prompt
    n: int = 1
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    budget: Budget = field(default_factory=Budget)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: LogprobKind | None = None
    reproducible: bool = False
    prefix_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts. Tags and forced tokens count to the side they belong to; an
    end-of-sequence token counts to the side it ended."""

    prompt_tokens: int = 0
    thought_tokens: int = 0
    answer_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        return self.thought_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds on the wall clock, from the submission of the request.

    ``first_token`` and ``first_answer`` are None when there was no such token.
    """

    first_token: float | None = None
    first_answer: float | None = None
    total: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated continuation.

    ``ids`` are all generated ids in order, tags, forced and end-of-sequence tokens included (None
    on engines without ids). ``logprobs`` matches ``ids``, with None at forced tokens and where the
    engine did not say. ``forced`` holds the half-open ranges of ``ids`` that were put there, not
    sampled. ``text`` is the whole continuation, tags included; ``thought`` and ``answer`` are its
    two sides without tags.
    """

    index: int
    seed: int | None
    thought: str
    answer: str
    final_answer: str | None
    text: str
    stop_reason: StopReason
    thought_end: ThoughtEnd
    usage: Usage
    timings: Timings
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    forced: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """More of the thought of sample ``index``. Joined texts equal ``Sample.thought``.

    ``ids`` joined over all deltas equal ``Sample.ids``, but for a closing tag that was taken back
    because it came before ``min_thought``.
    """

    index: int
    text: str
    ids: tuple[int, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """More of the answer of sample ``index``. Joined texts equal ``Sample.answer``."""

    index: int
    text: str
    ids: tuple[int, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """``processed`` of ``total`` prompt tokens are in the cache."""

    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Sample ``sample.index`` is complete; its texts are final."""

    sample: Sample


Event = ThoughtDelta | AnswerDelta | PrefillProgress | Finished


class Handle(Protocol):
    """A running request. One consumer iterates; every method may be called from any thread."""

    def __iter__(self) -> Iterator[Event]:
        """Events in order of arrival, to the last Finished. Raises what the engine raised."""

    def batches(self) -> Iterator[list[Event]]:
        """As iteration, but all events that wait at once, so that a slow display never lags."""

    def cancel(self) -> None:
        """Stop. When this returns at most one further token is computed; what came is kept as
        samples with stop_reason ``cancelled``."""

    def answer_now(self) -> None:
        """Close the thought of every sample that still thinks and let it answer."""

    def wait(self) -> list[Sample]:
        """Consume what is left and return the samples by index."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. What is False is refused with a sentence, never ignored."""

    token_ids: bool
    logprobs: bool
    raw_prompt: bool
    min_thought: bool
    templates: bool
    reproducible: bool
    lora: bool


class Engine(Protocol):
    """Turns requests into samples. Thread-safe; ``close`` frees the weights."""

    name: str

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def context_length(self) -> int | None:
        """Tokens one sample may hold, prompt included; None when unknown (remote)."""

    def submit(self, request: Request) -> Handle:
        """Start a request. Raises UserError for what the engine cannot do or does not fit."""

    def close(self) -> None: ...
