"""The SSE parser against the standard's examples and against every chunking."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.engines.sse import EventTooLargeError, ServerSentEvent, SSEParser


def parse(*chunks: bytes) -> list[ServerSentEvent]:
    parser = SSEParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.finish()


def reference(data: bytes) -> list[ServerSentEvent]:
    """The standard's algorithm, over the whole text at once."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    events: list[ServerSentEvent] = []
    name, lines = "", []
    for line in [*re.split("\r\n|\r|\n", text), ""]:
        if not line:
            if lines:
                events.append(ServerSentEvent(name or "message", "\n".join(lines)))
            name, lines = "", []
            continue
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "data":
            lines.append(value)
        elif field == "event":
            name = value
        elif field == "error":
            name = "error"
            lines.append(value)
    return events


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_fields_comments_and_line_ends(end: str) -> None:
    lines = [": ping", "", "event: x", "data: a", "data:b", "data", "id: 7", "", "data:  c", ""]
    data = (end.join(lines) + end).encode()
    assert parse(data) == [ServerSentEvent("x", "a\nb\n"), ServerSentEvent("message", " c")]


def test_an_event_type_without_data_is_no_event_and_does_not_stick() -> None:
    assert parse(b"event: x\n\ndata: a\n\n") == [ServerSentEvent("message", "a")]


def test_the_error_line_of_older_servers() -> None:
    assert parse(b'error: {"code":500}\n\n') == [ServerSentEvent("error", '{"code":500}')]


def test_an_event_is_out_as_soon_as_its_line_ends() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\r\n\r") == [ServerSentEvent("message", "a")]
    assert parser.feed(b"\ndata: b\n\n") == [ServerSentEvent("message", "b")]


def test_the_end_without_a_blank_line() -> None:
    assert parse(b"data: [DONE]") == [ServerSentEvent("message", "[DONE]")]


def test_pings_never_reach_the_limit_but_an_endless_event_does() -> None:
    parser = SSEParser(max_event_bytes=100)
    for _ in range(1000):
        assert parser.feed(b": ping\n") == []
    assert len(parser.feed(b"data: x\n\n" * 1000)) == 1000
    with pytest.raises(EventTooLargeError):
        parser.feed(b"data: " + b"x" * 100)


_pieces = st.sampled_from(
    ["data", ":", " ", "\n", "\r", "\r\n", "event", "error", "é", "思", "🙂", "{}", "\ufeff", "a"]
)
_streams = st.one_of(
    st.binary(max_size=60),
    st.lists(_pieces, max_size=40).map("".join).map(lambda text: text.encode()),
)


@given(_streams, st.lists(st.integers(0, 200), max_size=20))
def test_every_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    chunks = [data[a:b] for a, b in pairwise(at)]
    assert parse(*chunks) == reference(data)


@given(_streams)
def test_byte_by_byte(data: bytes) -> None:
    assert parse(*(data[i : i + 1] for i in range(len(data)))) == reference(data)


@pytest.mark.alone
def test_one_long_line_in_small_chunks_is_linear() -> None:
    def seconds(size: int) -> float:
        parser = SSEParser()
        start = time.process_time()
        parser.feed(b"data: ")
        for _ in range(size):
            parser.feed(b"xxxxxxxxxx")
        assert len(parser.feed(b"\n\n")) == 1
        return time.process_time() - start

    seconds(1000)
    few = min(seconds(20_000) for _ in range(5))
    assert min(seconds(200_000) for _ in range(3)) < 40 * max(few, 0.001)
