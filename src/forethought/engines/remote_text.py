"""From a server's deltas to thought and answer: separate fields or inline tags; stop strings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from forethought.dialogue.final_answer import final_answer
from forethought.dialogue.reader import ThoughtReader
from forethought.dialogue.tags import ThinkTags
from forethought.engines.stop_strings import StopStrings

Thinks = Literal["native", "prompted", "none", "unknown"]
"""How a model thinks, as far as the caller knows (the catalogue's word, or ``unknown``)."""


def _joined(value: Any) -> str:
    """Text of a field that may be a string, an object with text in it, or a list of either."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_joined(part) for part in value)
    if isinstance(value, dict):
        for key in ("text", "content", "thinking", "summary"):
            if value.get(key):
                return _joined(value[key])
    return ""


def delta_texts(delta: dict[str, Any]) -> tuple[str, str]:
    """Thought and content of one delta or message, in any dialect.

    ``reasoning_content`` (DeepSeek, llama-server, SGLang, LM Studio), ``reasoning`` (vLLM, Ollama,
    OpenRouter: a string or an object), ``thinking``, ``reasoning_details`` (OpenRouter), and
    content given as a list of parts. A server that sends the same thought under two names is read
    once: the first name that has text wins.
    """
    thought = ""
    for key in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
        thought = _joined(delta.get(key))
        if thought:
            break
    content = delta.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        thinking = [p for p in parts if p.get("type") in ("thinking", "reasoning")]
        thought = thought or "".join(_joined(part) for part in thinking)
        return thought, "".join(_joined(p) for p in parts if p not in thinking)
    return thought, _joined(content) or _joined(delta.get("refusal"))


class SurrogateJoiner:
    """Joins characters whose two UTF-16 halves came in two deltas (servers written in JavaScript).

    JSON allows a lone half; printed, it would be an error. A half without its other is U+FFFD.
    """

    def __init__(self) -> None:
        self._high = ""

    def push(self, text: str) -> str:
        if text.isascii() and not self._high:
            return text
        text = self._high + text
        self._high = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._high = text[-1]
            text = text[:-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def finish(self) -> str:
        half, self._high = self._high, ""
        return "\ufffd" if half else ""


class Texts(NamedTuple):
    """More thought and more answer to show."""

    thought: str
    answer: str


@dataclass(frozen=True, slots=True)
class FinalTexts:
    """A finished sample's texts. ``closed``: the end of the thought was seen.

    ``reclassified``: what had been shown as thought was the answer. ``more`` is what was still
    held back; when reclassified, its answer is the whole answer.
    """

    more: Texts
    thought: str
    answer: str
    final_answer: str | None
    text: str
    closed: bool
    reclassified: bool


class DeltaReader:
    """Splits one sample's deltas into thought and answer, trimmed as local engines trim them.

    As soon as a reasoning field has text, the server separates the sides itself and content is
    plain answer: a tag in it is a quotation. Until then content may hold tags, and where the model
    is known to think and its prompt may have opened the thought already (R1 behind a server that
    knows nothing of tags sends only the closing one), it is read as thought until a closing tag
    comes; if none comes and the model ended by itself, all of it was the answer.
    """

    def __init__(
        self,
        thinks: Thinks,
        *,
        stop: tuple[str, ...] = (),
        starts_in_thought: bool = False,
        tags: ThinkTags | None = None,
    ) -> None:
        self._tags = tags if tags is not None else ThinkTags()
        self._reader = ThoughtReader(
            self._tags,
            thinks=thinks != "none",
            starts_in_thought=starts_in_thought,
            assume_thought=thinks == "native" and not starts_in_thought,
        )
        self._fields = False
        self._joiners = (SurrogateJoiner(), SurrogateJoiner())
        # An empty string would stop every answer at its beginning.
        self._stop = StopStrings([s for s in stop if s])
        self._thought: list[str] = []
        self._late: list[str] = []
        self._answer: list[str] = []

    @property
    def in_thought(self) -> bool:
        """Whether text that came last was thought, as far as anyone knows."""
        return self._reader.in_thought

    @property
    def stop_fired(self) -> bool:
        """A stop string has ended the answer."""
        return self._stop.hit is not None

    def push(self, thought: str, content: str) -> Texts:
        """Read one delta; when it holds both sides, the thought came first."""
        thought = self._joiners[0].push(thought)
        content = self._joiners[1].push(content)
        first = self._read_field(thought) if thought else Texts("", "")
        second = self._read_content(content) if content else Texts("", "")
        return self._show(first.thought + second.thought, first.answer + second.answer)

    def _show(self, thought: str, answer: str) -> Texts:
        if answer:
            answer = self._stop.push(answer)
        if thought:
            self._thought.append(thought)
        if answer:
            self._answer.append(answer)
        return Texts(thought, answer)

    def _read_field(self, text: str) -> Texts:
        if not self._fields and not self._reader.text.strip():
            self._fields = True
            self._reader = ThoughtReader(
                self._tags, starts_in_thought=True, match_open=False, match_close=False
            )
        if self._fields and not self._reader.closed:
            return Texts(*self._reader.advance(text))
        # A second thought after the answer began: shown and kept as thought, set apart.
        if not self._late:
            text = "\n\n" + text
        self._late.append(text)
        return Texts(text, "")

    def _read_content(self, text: str) -> Texts:
        held = ""
        if self._fields and not self._reader.closed:
            if not text.strip():
                # Some servers send blank content beside a running thought; at the beginning of
                # an answer it would be trimmed anyway.
                return Texts("", "")
            held = self._reader.close_tag(self._tags.close)
        thought, answer = self._reader.advance(text)
        return Texts(held + thought, answer)

    def finish(self, complete: bool) -> FinalTexts:
        """The stream is over; ``complete`` when the model ended by itself."""
        halves = self._joiners[0].finish(), self._joiners[1].finish()
        first = self._read_field(halves[0]) if halves[0] else Texts("", "")
        second = self._read_content(halves[1]) if halves[1] else Texts("", "")
        shown = self._show(first.thought + second.thought, first.answer + second.answer)
        ending = self._reader.finish(complete)
        reading = ending.reading
        thought = "".join(p.text for p in ending.pieces if p.side == "thought")
        answer = "".join(p.text for p in ending.pieces if p.side == "answer")
        if reading.reclassified:
            self._thought.clear()
        answer = self._stop.push(answer)
        if not self.stop_fired:
            answer += self._stop.finish()
        if thought:
            self._thought.append(thought)
        self._answer.append(answer)
        full_answer = "".join(self._answer)
        late = "".join(self._late).lstrip() if reading.reclassified else ""
        text = self._reader.text
        if self._fields:
            text = self._tags.open + text
        raw = reading.raw_answer
        if self._stop.hit is not None:
            raw = raw.partition(self._stop.hit)[0]
        return FinalTexts(
            more=Texts(shown.thought + thought, shown.answer + answer),
            thought="".join(self._thought) + late,
            answer=full_answer,
            final_answer=final_answer(raw),
            text=text + "".join(self._late),
            closed=reading.closed,
            reclassified=reading.reclassified,
        )
