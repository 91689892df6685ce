"""One sample from a remote server: one streaming request, its retries, and what came of it.

The thread that reads may be blocked in the network for as long as the model thinks, so everything
another thread may do (:meth:`SampleStream.abort`, :meth:`SampleStream.seal`) takes only a short
lock.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from forethought.engines.protocol import (
    AnswerDelta,
    Event,
    Finished,
    Sample,
    StopReason,
    ThoughtDelta,
    ThoughtEnd,
    Timings,
    Usage,
)
from forethought.engines.remote_address import Address
from forethought.engines.remote_errors import (
    clean,
    died,
    error_message,
    http_error,
    message_of_body,
    not_the_protocol,
    retry_after_seconds,
    unreachable,
)
from forethought.engines.remote_text import DeltaReader, FinalTexts, delta_texts
from forethought.engines.sse import EventTooLargeError, ServerSentEvent, SSEParser
from forethought.errors import ForethoughtError, ServerError

if TYPE_CHECKING:
    import httpx

TRIES = 3
"""Requests made for one sample before its first byte, the first one included."""

RETRY_STATUS = frozenset({429, 500, 502, 503, 504})
"""Answers that may be different a moment later. 503 is also llama-server loading its model."""

MAX_WAIT = 60.0
"""Seconds a Retry-After may ask for; a longer one is reported instead of obeyed."""

MAX_ERROR_BODY = 64 * 1024
"""Bytes read of an error's body."""

MAX_REPLY = 64 * 1024 * 1024
"""Bytes of a whole reply that was not streamed, and characters of one streamed sample."""

BUDGET_SLACK = 16
"""Thought deltas beyond the budget before the stream is stopped: a server that keeps the budget
itself needs room for the closing tag and the sentence before it."""

_FAILED_FINISH = {
    "content_filter": "its content filter stopped the answer",
    "insufficient_system_resource": "it ran out of resources",
    "error": "it reported an error without words",
    "abort": "it aborted the request",
}
_LENGTH_FINISH = ("length", "max_tokens", "model_length")


class AbortedError(Exception):
    """Another thread ended this stream; nobody needs to hear of it."""


class Body(Protocol):
    """The request's body for each try; the engine learns from what a server rejects."""

    @property
    def sends_seed(self) -> bool: ...

    def encode(self) -> bytes: ...

    def rejected(self, status: int, message: str) -> bool:
        """Whether a changed body is worth sending, or an error that names the user's option."""

    def explain(self, status: int, message: str) -> ForethoughtError | None: ...

    def accepted(self) -> None: ...


class SampleStream:
    """Sample ``index`` of a request. ``run`` blocks until it is finished; call it once.

    Raises ServerError or UserError from ``run``, AbortedError after :meth:`abort`.
    """

    def __init__(
        self,
        index: int,
        *,
        address: Address,
        client: httpx.Client,
        body: Body,
        reader: DeltaReader,
        emit: Callable[[Event], None],
        seed: int,
        max_thought: int | None,
        timeouts: tuple[float, float],
        backoff: float,
    ) -> None:
        self.index = index
        self._address = address
        self._url = f"{address.base_url}/chat/completions"
        self._client = client
        self._body = body
        self._reader = reader
        self._emit = emit
        self._seed = seed
        self._max_thought = max_thought
        self._connect_timeout, self._read_timeout = timeouts
        self._backoff = backoff
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._sealed = False
        self._socket: socket.socket | None = None
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._first_answer: float | None = None
        self._got_body = False
        self._thought_length = 0
        self._answer_length = 0
        self._thought_deltas = 0
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None

    # -- from other threads

    def abort(self) -> None:
        """Hang up at once. The reading thread ends as soon as it notices."""
        self._aborted.set()
        self._hang_up()

    def seal(self) -> Sample | None:
        """End the sample with what came, as cancelled; None when it was finished already."""
        with self._lock:
            if self._sealed:
                return None
            return self._seal("cancelled")

    # -- the reading thread

    def run(self) -> None:
        """Ask, stream, finish."""
        tries = 0
        while True:
            if self._aborted.is_set():
                raise AbortedError
            tries += 1
            try:
                wait = self._attempt(tries)
            except ForethoughtError:
                # An aborted connection looks like a server that died.
                if self._aborted.is_set():
                    raise AbortedError from None
                raise
            if wait is None:
                return
            if wait < 0:
                tries -= 1
            elif self._aborted.wait(wait):
                raise AbortedError

    def _attempt(self, tries: int) -> float | None:
        """One request: None when the sample is finished, else seconds to wait before the next
        (negative: at once, and not counted, with a changed body)."""
        import httpx

        pause = self._backoff * 2.0 ** (tries - 1)
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=self._body.encode(),
                extensions={"trace": self._trace},
            ) as response:
                if response.status_code == 200:
                    self._body.accepted()
                    self._consume(response)
                    return None
                return self._refused(response, tries, pause)
        except httpx.TransportError as error:
            if self._aborted.is_set():
                raise AbortedError from None
            if self._got_body:
                raise self._broken(error) from None
            # A question that was taken and not answered for minutes is not asked again.
            slow = isinstance(error, httpx.ReadTimeout)
            if tries >= TRIES or slow:
                silent = self._read_timeout if slow else self._connect_timeout
                raise unreachable(error, self._address, silent) from None
            return pause
        except (httpx.DecodingError, EventTooLargeError, RecursionError) as error:
            # RecursionError: JSON nested thousands deep.
            raise ServerError(
                f"the server at {self._address.place} sent what cannot be read: "
                f"{clean(str(error), self._address)}."
            ) from None
        except (ValueError, RuntimeError, OSError, httpx.StreamError):
            # Closing a socket under a blocked read surfaces as any of these.
            if self._aborted.is_set():
                raise AbortedError from None
            raise
        finally:
            self._socket = None

    def _refused(self, response: httpx.Response, tries: int, pause: float) -> float:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_ERROR_BODY:
                break
        status = response.status_code
        message = message_of_body(bytes(body[:MAX_ERROR_BODY]), self._address)
        if status in (400, 422) and self._body.rejected(status, message):
            return -1.0
        asked: float | None = retry_after_seconds(response.headers.get("retry-after"))
        if status in RETRY_STATUS and tries < TRIES and (asked is None or asked <= MAX_WAIT):
            return pause if asked is None else asked
        better = self._body.explain(status, message)
        if better is not None:
            raise better
        location = response.headers.get("location")
        raise http_error(status, message, self._address, asked, location)

    def _broken(self, error: httpx.TransportError) -> ServerError:
        import httpx

        if isinstance(error, httpx.TimeoutException):
            why = f"silent for {self._read_timeout:g} s"
        else:
            why = "the connection was lost"
        return died(self._address, self._thought_length, self._answer_length, why)

    # -- the connection

    def _trace(self, name: str, info: dict[str, Any]) -> None:
        """httpx's trace extension: learns the socket as soon as there is one, so that a cancel can
        hang up even while the server has not answered yet."""
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._aborted.is_set():
                self._hang_up()

    def _hang_up(self) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            # shutdown wakes a thread blocked in recv, close does not. The plain socket's method:
            # SSLSocket.shutdown would drop the TLS object that the other thread is using.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return

    # -- the body

    def _consume(self, response: httpx.Response) -> None:
        chunks = self._first_bytes(response)
        content_type = response.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        head = next(chunks, b"")
        start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if "html" in kind or start.startswith(b"<"):
            raise not_the_protocol(self._url, content_type, self._address)
        if kind == "text/event-stream" or start.startswith((b"data:", b":", b"event:", b"id:")):
            self._consume_events(head, chunks)
        elif "json" in kind or start.startswith(b"{"):
            self._consume_json(head, chunks, content_type)
        elif not start:
            raise died(self._address, 0, 0, "an empty answer")
        else:
            raise not_the_protocol(self._url, content_type, self._address)

    def _first_bytes(self, response: httpx.Response) -> Iterator[bytes]:
        for chunk in response.iter_bytes():
            if chunk:
                self._got_body = True
                yield chunk
            if self._aborted.is_set():
                raise AbortedError

    def _consume_json(self, head: bytes, chunks: Iterator[bytes], content_type: str) -> None:
        """A server that does not stream answers with one object."""
        body = bytearray(head)
        for chunk in chunks:
            body += chunk
            if len(body) > MAX_REPLY:
                raise not_the_protocol(self._url, "an endless reply", self._address)
        try:
            payload = json.loads(body)
        except ValueError:
            raise not_the_protocol(
                self._url, f"{content_type} that is no JSON", self._address
            ) from None
        self._payload(payload, final=True)
        with self._lock:
            if self._finish is None and not self._thought_length and not self._answer_length:
                raise not_the_protocol(self._url, content_type, self._address)
            self._end()

    def _consume_events(self, head: bytes, chunks: Iterator[bytes]) -> None:
        parser = SSEParser()
        ended = self._handle(parser.feed(head))
        if not ended:
            try:
                for chunk in chunks:
                    if self._handle(parser.feed(chunk)):
                        ended = True
                        break
            except Exception:
                # All of the text is here once a reason came; only the usage is lost.
                if self._finish is None or self._aborted.is_set():
                    raise
        if not ended and self._finish is None:
            ended = self._handle(parser.finish(), cut=True)
        if not ended and self._finish is None:
            raise died(
                self._address, self._thought_length, self._answer_length, "the stream just ended"
            )
        with self._lock:
            self._end()

    def _handle(self, events: list[ServerSentEvent], cut: bool = False) -> bool:
        """Read events; True when nothing more is wanted. ``cut``: the last one may be half."""
        for event in events:
            data = event.data.strip()
            if data == "[DONE]":
                return True
            if not data:
                continue
            try:
                payload = json.loads(data)
            except ValueError:
                if cut:
                    return False
                if event.event == "error":
                    payload = {"error": data}
                else:
                    raise ServerError(
                        f"the server at {self._address.place} sent an event that is no JSON: "
                        f"{clean(data, self._address)}."
                    ) from None
            if event.event == "error" and error_message(payload) is None:
                payload = {"error": payload if isinstance(payload, dict) else data}
            if self._payload(payload):
                return True
        return False

    def _payload(self, payload: Any, final: bool = False) -> bool:
        """One chunk (or, ``final``, one whole reply); True when the rest is not wanted."""
        message = error_message(payload)
        if message is not None:
            text = clean(message, self._address)
            where = "" if not self._answer_length + self._thought_length else " in the middle"
            raise ServerError(
                f"the server at {self._address.place} reported an error{where}: {text}."
            )
        if not isinstance(payload, dict):
            raise not_the_protocol(self._url, "JSON that is no object", self._address)
        usage = payload.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        choices = payload.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            # Only one was asked for; a second choice would be interleaved with the first.
            if not isinstance(choice, dict) or choice.get("index") not in (0, None):
                continue
            delta = choice.get("message" if final else "delta") or choice.get("message")
            if isinstance(delta, dict) and self._delta(delta, final):
                return True
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:
                failed = _FAILED_FINISH.get(reason)
                if failed:
                    raise ServerError(f"the server at {self._address.place} gave up: {failed}.")
                self._finish = reason
        return False

    def _delta(self, delta: dict[str, Any], whole: bool) -> bool:
        thought, content = delta_texts(delta)
        if not thought and not content:
            return False
        now = time.monotonic() - self._started
        with self._lock:
            if self._sealed:
                raise AbortedError
            shown = self._reader.push(thought, content)
            if self._first_token is None:
                self._first_token = now
            self._show(shown.thought, shown.answer, now)
            if self._reader.in_thought or thought:
                self._thought_deltas += 1
            if self._thought_length + self._answer_length > MAX_REPLY:
                raise ServerError(f"the server at {self._address.place} sent a reply without end.")
            if self._reader.stop_fired:
                return True
            return not whole and self._over_budget()

    def _show(self, thought: str, answer: str, now: float) -> None:
        if thought:
            self._thought_length += len(thought)
            self._emit(ThoughtDelta(self.index, thought))
        if answer:
            if self._first_answer is None:
                self._first_answer = now
            self._answer_length += len(answer)
            self._emit(AnswerDelta(self.index, answer))

    # -- the end; the lock is held

    def _end(self) -> None:
        if self._sealed:
            raise AbortedError
        if self._reader.stop_fired:
            reason: StopReason = "stop_string"
        elif self._finish in _LENGTH_FINISH or (self._finish is None and self._over_budget()):
            reason = "length"
        else:
            reason = "stop"
        self._emit(Finished(self._seal(reason)))

    def _over_budget(self) -> bool:
        # How many tokens a thought has is not on the wire. A delta holds at least one, so more
        # deltas than the budget are proof that the server does not keep it.
        return (
            self._max_thought is not None
            and self._reader.in_thought
            and self._thought_deltas > self._max_thought + BUDGET_SLACK
        )

    def _seal(self, reason: StopReason) -> Sample:
        self._sealed = True
        now = time.monotonic() - self._started
        final = self._reader.finish(complete=reason in ("stop", "stop_string"))
        if self._reader.stop_fired and reason == "stop":
            reason = "stop_string"
        self._show(final.more.thought, final.more.answer, now)
        usage = count_usage(self._usage, final.thought, final.answer)
        seconds = now - self._first_token if self._first_token is not None else 0.0
        return Sample(
            index=self.index,
            seed=self._seed if self._body.sends_seed else None,
            thought=final.thought,
            answer=final.answer,
            final_answer=final.final_answer,
            text=final.text,
            stop_reason=reason,
            thought_end=self._thought_end(final, reason, usage),
            usage=usage,
            timings=Timings(
                first_token=self._first_token,
                first_answer=self._first_answer,
                total=now,
                # The first token's time is the prompt's, not a token's.
                tokens_per_second=(usage.completion_tokens - 1) / seconds
                if usage.completion_tokens > 1 and seconds > 0
                else 0.0,
            ),
        )

    def _thought_end(self, final: FinalTexts, reason: StopReason, usage: Usage) -> ThoughtEnd:
        if not final.closed and not final.thought:
            return "none"
        if not final.closed:
            return "ended" if reason == "stop" else "cut"
        if self._max_thought is None:
            return "closed"
        # Whether server or model closed it is not on the wire: at the budget, it was the server
        # (llama-server closes two deltas early: a leading line break and the tag have none).
        tokens = usage.thought_tokens if reasoning_tokens(self._usage) else self._thought_deltas
        return "budget" if tokens + 2 >= self._max_thought else "closed"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def reasoning_tokens(usage: dict[str, Any] | None) -> int:
    """Tokens of thought as the server counted them; 0 when it does not say."""
    details = (usage or {}).get("completion_tokens_details")
    return _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0


def count_usage(usage: dict[str, Any] | None, thought: str, answer: str) -> Usage:
    """Token counts of a remote sample.

    Totals are the server's; all are 0 when it sent none (cancelled, stopped early by a stop string
    or a budget): deltas are not tokens, and a guess would look like a count. Where the server does
    not say how many tokens were thought (or says 0 beside a thought, as Ollama does) its total is
    split in proportion to the characters of both sides: that split, and only it, is an estimate.
    """
    usage = usage or {}
    total = _count(usage.get("completion_tokens"))
    thought_tokens = min(reasoning_tokens(usage), total)
    if not thought_tokens and thought:
        thought_tokens = round(total * len(thought) / (len(thought) + len(answer)))
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        thought_tokens=thought_tokens,
        answer_tokens=total - thought_tokens,
    )
