"""What of a thought and of an answer is shown: no whitespace at the ends, no ``<answer>`` tags.

Both work on a stream, and cost O(1) a character however it is cut up.
"""

from __future__ import annotations

from forethought.dialogue.final_answer import ANSWER_CLOSE, ANSWER_OPEN


class Trimmer:
    """Passes text on without whitespace at its start; holds trailing whitespace until more comes.

    Held whitespace is a list, so that a model stuck on newlines costs no more than any other.
    """

    __slots__ = ("_held", "_passed", "_skipping")

    def __init__(self, *, skip_start: bool = True) -> None:
        self._held: list[str] = []
        self._passed = not skip_start
        self._skipping = skip_start

    def push(self, text: str) -> str:
        if self._skipping:
            text = text.lstrip()
            if not text:
                return ""
            self._skipping = False
        body = text.rstrip()
        if not body:
            if text:
                self._held.append(text)
            return ""
        self._passed = True
        if not self._held and len(body) == len(text):
            return text
        self._held.append(body)
        out = "".join(self._held)
        self._held = [text[len(body) :]] if len(body) < len(text) else []
        return out

    def skip_whitespace(self) -> None:
        """Drop the whitespace that comes next."""
        self._skipping = True

    def drop_held(self) -> None:
        """Drop the whitespace that came last; what comes next is text again."""
        self._held.clear()
        self._skipping = not self._passed

    def take_held(self) -> str:
        held = "".join(self._held)
        self._held.clear()
        return held


class AnswerFilter:
    """Removes ``<answer>`` and ``</answer>``, the whitespace right inside them and at both ends."""

    __slots__ = ("_partial", "_trimmer")

    def __init__(self) -> None:
        self._trimmer = Trimmer()
        self._partial = ""

    def push(self, text: str) -> str:
        if not self._partial and "<" not in text:
            return self._trimmer.push(text)
        text = self._partial + text
        self._partial = ""
        out: list[str] = []
        done = 0
        at = text.find("<")
        while at >= 0:
            if text.startswith(ANSWER_OPEN, at):
                out.append(self._trimmer.push(text[done:at]))
                self._trimmer.skip_whitespace()
                done = at = at + len(ANSWER_OPEN)
            elif text.startswith(ANSWER_CLOSE, at):
                out.append(self._trimmer.push(text[done:at]))
                self._trimmer.drop_held()
                done = at = at + len(ANSWER_CLOSE)
            elif len(text) - at < len(ANSWER_CLOSE) and (
                ANSWER_OPEN.startswith(text[at:]) or ANSWER_CLOSE.startswith(text[at:])
            ):
                self._partial = text[at:]
                text = text[:at]
                break
            else:
                at += 1
            at = text.find("<", at)
        out.append(self._trimmer.push(text[done:]))
        return "".join(out)

    def finish(self) -> str:
        """What was held as the beginning of a tag is text after all; trailing space is dropped."""
        partial, self._partial = self._partial, ""
        return self._trimmer.push(partial)
