"""Server-sent events: bytes in, events out, whatever the chunking.

The format is the WHATWG HTML standard's ("9.2.6 Interpreting an event stream"). Comments, which
servers send as pings while a model thinks for an hour, produce no event. Two leniencies: a line
``error: {...}`` (older llama-server) is an event of type ``error``, and an event whose blank line
is missing at the end of the stream is still handed out by :meth:`SSEParser.finish`.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""One event may hold this many bytes: far above any real delta, far below what would hurt."""

_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """A single event grew beyond the limit; the stream is not the protocol."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its type (``message`` when none was named) and its data, lines joined by LF."""

    event: str
    data: str


class SSEParser:
    """Incremental parser; cost is linear in the bytes fed, and memory is one event.

    Lines are split as bytes, before decoding: CR and LF never occur inside a UTF-8 sequence, so a
    character cut in two by the network is whole again when its line is. Undecodable bytes become
    U+FFFD. Raises EventTooLargeError past ``max_event_bytes``.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._line = bytearray()
        self._after_cr = False
        self._first_line = True
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that ``chunk`` completes."""
        if self._after_cr and chunk:
            # A CR ends its line at once; an LF that follows in the next chunk belongs to it.
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        events: list[ServerSentEvent] = []
        # bytes.splitlines knows CR, LF and CRLF only, which are exactly this format's line ends.
        for piece in chunk.splitlines(keepends=True):
            self._size += len(piece)
            if self._size > self._max:
                raise EventTooLargeError(f"an event of more than {self._max} bytes")
            body = piece.rstrip(b"\r\n")
            self._line += body
            if len(body) < len(piece):
                self._end_line(events)
        self._after_cr = chunk.endswith(b"\r")
        return events

    def finish(self) -> list[ServerSentEvent]:
        """The event that the end of the stream left without its blank line, if any.

        Its last line may be cut; whoever parses the data finds out.
        """
        events: list[ServerSentEvent] = []
        if self._line:
            self._end_line(events)
        self._dispatch(events)
        return events

    def _end_line(self, events: list[ServerSentEvent]) -> None:
        raw = bytes(self._line)
        self._line.clear()
        if self._first_line:
            self._first_line = False
            raw = raw.removeprefix(_BOM)
        if not raw:
            self._dispatch(events)
            return
        name, _, value = raw.decode("utf-8", errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "error":
            self._event = "error"
            self._data.append(value)
        else:
            # A comment (empty name), id or retry: counted until the next event, it would let an
            # hour of pings reach the limit.
            self._size -= min(self._size, len(raw) + 2)

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        if self._data:
            events.append(ServerSentEvent(self._event or "message", "\n".join(self._data)))
        self._event = ""
        self._data.clear()
        self._size = 0
