"""The live display: a thought on stderr, its answer on stdout, as they come.

It writes once for each batch of events and flushes at once, so it is never behind what it was
given. Nothing moves the cursor (so no width has to be known) except the counter that stands in for
a hidden thought.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from forethought.cli import terminal
from forethought.engines.protocol import (
    AnswerDelta,
    Event,
    Finished,
    PrefillProgress,
    Sample,
    ThoughtDelta,
)

MARKER = "thinking:"

# Prompts longer than this take long enough to show how far the model has read.
_LONG_PROMPT = 512


class _Channel:
    """One stream: whether it is a terminal, and how many line breaks it ends with."""

    def __init__(self, stream: TextIO, *, dim: bool) -> None:
        self.stream = stream
        self.terminal = terminal.is_terminal(stream)
        self._dim = dim and terminal.has_style(stream)
        self.breaks = 2  # nothing was written: as good as a blank line

    def write(self, text: str, *, dim: bool = True) -> None:
        """Write and flush ``text``, made safe for a terminal."""
        if not text:
            return
        if self.terminal:
            text = terminal.visible(text)
        trailing = len(text) - len(text.rstrip("\n"))
        self.breaks = trailing + (self.breaks if trailing == len(text) else 0)
        if self._dim and dim:
            # closed again in the same write: whatever stops us, the terminal is not left dim
            text = f"{terminal.DIM}{text}{terminal.RESET}"
        self.stream.write(text)
        self.stream.flush()

    def raw(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class Display:
    """Shows the samples of one request, one after the other, the first unfinished one live.

    ``quiet`` shows no text at all (``--json``); ``hide_thought`` replaces the thought by a counter
    on a terminal and by nothing elsewhere. ``exact`` keeps white space at the start of an answer
    (a bare continuation), which is otherwise dropped with the break that follows ``</think>``.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        samples: int = 1,
        hide_thought: bool = False,
        quiet: bool = False,
        exact: bool = False,
        hint: str = "",
    ) -> None:
        self._out = _Channel(out, dim=False)
        self._err = _Channel(err, dim=True)
        self._same_screen = self._out.terminal and self._err.terminal
        self._count = samples
        self._hide = hide_thought or quiet
        self._quiet = quiet
        self._exact = exact
        self._hint = hint
        self._current = 0
        self._waiting: dict[int, list[ThoughtDelta | AnswerDelta]] = {}
        self._finished: dict[int, Sample] = {}
        self._thought_tokens = 0
        self._counting = False
        self._begin()

    def _begin(self) -> None:
        self._thinking = False
        self._answering = False

    def show(self, batches: Iterable[list[Event]]) -> list[Sample]:
        """Draw batches until they end; the samples by index."""
        for batch in batches:
            self.draw(batch)
        return [self._finished[index] for index in sorted(self._finished)]

    def draw(self, batch: list[Event]) -> None:
        """Draw one batch: at most one write for each change between thought and answer."""
        pieces: list[ThoughtDelta | AnswerDelta] = []
        for event in batch:
            if isinstance(event, PrefillProgress):
                self._prefill(event)
            elif isinstance(event, Finished):
                self._draw_pieces(pieces)
                pieces = []
                self._finished[event.sample.index] = event.sample
                self._advance()
            elif event.index == self._current:
                pieces.append(event)
            else:
                self._waiting.setdefault(event.index, []).append(event)
                self._count_hidden(event)
        self._draw_pieces(pieces)

    def _draw_pieces(self, pieces: list[ThoughtDelta | AnswerDelta]) -> None:
        texts: list[str] = []
        kind: type[ThoughtDelta] | type[AnswerDelta] = ThoughtDelta
        for piece in pieces:
            if type(piece) is not kind:
                self._draw_text(kind, "".join(texts))
                texts, kind = [], type(piece)
            texts.append(piece.text)
            self._count_hidden(piece)
        self._draw_text(kind, "".join(texts))

    def _draw_text(self, kind: type[ThoughtDelta] | type[AnswerDelta], text: str) -> None:
        if not text or self._quiet:
            return
        if kind is ThoughtDelta:
            self._thought(text)
        else:
            self._answer(text)

    def _thought(self, text: str) -> None:
        if self._hide:
            return
        if not self._thinking:
            text = text.lstrip()
            if not text:
                return
            self._thinking = True
            self._clear_counter()
            hint = f" {self._hint}" if self._hint else ""
            text = f"{MARKER}{hint}\n{text}"
        self._err.write(text)

    def _answer(self, text: str) -> None:
        if not self._answering:
            text = text if self._exact else text.lstrip()
            if not text:
                return
            self._answering = True
            self._clear_counter()
            self._end_thought()
        self._out.write(text)

    def _end_thought(self) -> None:
        if self._thinking:
            wanted = 2 if self._same_screen else 1
            self._err.write("\n" * max(0, wanted - self._err.breaks), dim=False)

    def _advance(self) -> None:
        """End the samples that are complete, and catch up with the next one."""
        while self._current in self._finished:
            self._end_sample()
            self._current += 1
            self._begin()
            if self._current < self._count:
                self._draw_pieces(self._waiting.pop(self._current, []))

    def _end_sample(self) -> None:
        self._clear_counter()
        if self._quiet:
            return
        if self._answering:
            self._out.write("\n" * max(0, 1 - self._out.breaks))
        else:
            self._end_thought()
        if self._count > 1:
            if self._answering and self._current + 1 < self._count:
                self._out.write("\n")  # a blank line between the answers
            sample = self._finished[self._current]
            self.note(f"{self._current + 1} of {self._count}: {summary(sample)}")

    def note(self, line: str) -> None:
        """A line of ours on stderr, dimmed, set off from an answer on the same screen."""
        self._clear_counter()
        gap = "\n" if self._same_screen and self._answering and self._count == 1 else ""
        start = "" if self._err.breaks else "\n"
        self._err.write(f"{start}{gap}{line}\n")

    def _prefill(self, event: PrefillProgress) -> None:
        if event.total >= _LONG_PROMPT and event.processed < event.total:
            self._counter(f"reading the prompt: {event.processed} of {event.total} tokens")

    def _count_hidden(self, piece: ThoughtDelta | AnswerDelta) -> None:
        if not self._hide:
            return
        self._thought_tokens += piece.tokens or len(piece.ids) or 1
        if isinstance(piece, ThoughtDelta) or self._quiet:
            word = "thinking" if isinstance(piece, ThoughtDelta) else "answering"
            self._counter(f"{word}: {self._thought_tokens} tokens")

    def _counter(self, text: str) -> None:
        if self._err.terminal and not (self._same_screen and self._answering):
            self._err.raw(f"{terminal.CLEAR_LINE}{text}")
            self._counting = True

    def _clear_counter(self) -> None:
        if self._counting:
            self._err.raw(terminal.CLEAR_LINE)
            self._counting = False


_STOPS = {
    "stop": "end of answer",
    "length": "token limit",
    "stop_string": "stop string",
    "cancelled": "cancelled",
}


def why_stopped(sample: Sample) -> str:
    """Why a sample stopped, and how its thought ended where that is worth saying."""
    reason = _STOPS[sample.stop_reason]
    if sample.thought_end == "cut":
        return f"{reason}, inside the thought"
    if sample.thought_end == "budget":
        return f"{reason}, thought closed at its budget"
    if sample.thought_end == "asked":
        return f"{reason}, thought closed on request"
    return reason


def summary(sample: Sample) -> str:
    """The last line: tokens of each side, seconds, speed, and why it stopped."""
    return summary_of([sample])


def summary_of(samples: list[Sample], seconds: float | None = None) -> str:
    """As :func:`summary` for several samples that ran side by side for ``seconds``."""
    thought = sum(sample.usage.thought_tokens for sample in samples)
    answer = sum(sample.usage.answer_tokens for sample in samples)
    if seconds is None:
        seconds = max(sample.timings.total for sample in samples)
    if len(samples) == 1:
        speed = samples[0].timings.tokens_per_second
        end = f"stopped: {why_stopped(samples[0])}"
    else:
        speed = (thought + answer) / seconds if seconds > 0 else 0.0
        end = f"{len(samples)} samples"
    return (
        f"thought {_tokens(thought)} · answer {_tokens(answer)} · {seconds:.1f} s · "
        f"{speed:.0f} tokens/s · {end}"
    )


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"
