"""Stop strings, looked for in the answer alone."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string; holds back what may be the beginning of one.

    The engine's own stop strings would also fire inside a thought, so they are not used there.
    """

    __slots__ = ("_held", "_longest", "_stops", "hit")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """What may be shown. After a hit, nothing."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        self._held = ""
        first = len(text)
        for stop in self._stops:
            at = text.find(stop)
            if 0 <= at < first:
                first, self.hit = at, stop
        if self.hit is not None:
            return text[:first]
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                self._held = end
                return text[:-size]
        return text

    def finish(self) -> str:
        """What was held is text after all."""
        held, self._held = self._held, ""
        return held
