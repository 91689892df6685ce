"""A real local HTTP server that speaks OpenAI's chat completions as a test tells it to.

A test gives it replies; each request takes the next one and the last one is used for ever. Helpers
build the dialects seen in the wild. It records every request, and notices when a client hangs up.
"""

from __future__ import annotations

import json
import select
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Sleep:
    """Silence for so many seconds."""

    seconds: float


class Die:
    """Drop the connection without ending the reply."""


class Hang:
    """Send nothing more and wait until the client hangs up (at most 20 s)."""


Step = bytes | Sleep | Die | Hang


@dataclass(frozen=True)
class Reply:
    """One HTTP reply. ``status`` 0 drops the connection before any header."""

    steps: Sequence[Step] = ()
    status: int = 200
    content_type: str | None = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = True
    before: Step | None = None
    """Done before the headers are sent."""


@dataclass(frozen=True)
class Recorded:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float


def event(payload: Any, end: str = "\n\n") -> bytes:
    """One data event."""
    data = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    return f"data: {data}{end}".encode()


def chunk(delta: dict[str, Any] | None = None, **extra: Any) -> bytes:
    """One chat.completion.chunk."""
    finish = extra.pop("finish", None)
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice], **extra})


def usage(prompt: int, completion: int, reasoning: int | None = None) -> bytes:
    """The extra chunk that include_usage asks for."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if reasoning is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return event({"object": "chat.completion.chunk", "choices": [], "usage": counts})


DONE = event("[DONE]")
PING = b": ping\n\n"


def stream(
    deltas: Iterable[dict[str, Any] | Step],
    finish: str | None = "stop",
    tail: Sequence[Step] = (),
    done: bool = True,
    **reply: Any,
) -> Reply:
    """A whole stream: a role delta, ``deltas`` (steps go in as they are), the finish, [DONE]."""
    steps: list[Step] = [chunk({"role": "assistant", "content": None})]
    steps += [chunk(d) if isinstance(d, dict) else d for d in deltas]
    if finish is not None:
        steps.append(chunk({}, finish=finish))
    steps += tail
    if done:
        steps.append(DONE)
    return Reply(steps, **reply)


def fields(thought: Sequence[str], answer: Sequence[str], name: str = "reasoning_content") -> Any:
    """Deltas of a server that separates the sides itself."""
    return [{name: t} for t in thought] + [{"content": a} for a in answer]


def inline(*pieces: str) -> Any:
    """Deltas of a server that knows nothing of thoughts."""
    return [{"content": piece} for piece in pieces]


def json_reply(payload: Any, status: int = 200, **reply: Any) -> Reply:
    body = json.dumps(payload).encode()
    return Reply([body], status=status, content_type="application/json", **reply)


def error(status: int, message: str, **headers: str) -> Reply:
    payload = {"error": {"message": message, "type": "x", "code": status}}
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return json_reply(payload, status, headers=names)


class OpenAIServer:
    """Use as a context manager; ``replies`` may be set again between requests."""

    def __init__(self, *replies: Reply, models: Sequence[str] | Reply = ("m",)) -> None:
        self.replies = list(replies)
        self.models = models
        self.requests: list[Recorded] = []
        self.hung_up = threading.Event()
        self.open_now = 0
        self.most_open = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of_test = outer

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.port: int = self._http.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def chats(self) -> list[Recorded]:
        return [r for r in self.requests if r.path.endswith("/chat/completions")]

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next_reply(self, recorded: Recorded) -> Reply:
        with self._lock:
            self.requests.append(recorded)
            if recorded.path == "/v1/models":
                if isinstance(self.models, Reply):
                    return self.models
                return json_reply({"object": "list", "data": [{"id": m} for m in self.models]})
            if recorded.path != "/v1/chat/completions":
                return error(404, "no such path")
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def count(self, change: int) -> None:
        with self._lock:
            self.open_now += change
            self.most_open = max(self.most_open, self.open_now)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server_of_test: OpenAIServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Any) -> None:
        self.close_connection = True
        headers = {key.lower(): value for key, value in self.headers.items()}
        reply = self.server_of_test.next_reply(
            Recorded(self.command, self.path, headers, body, time.monotonic())
        )
        self.server_of_test.count(1)
        try:
            self._answer(reply)
        except OSError:
            self.server_of_test.hung_up.set()
        finally:
            self.server_of_test.count(-1)

    def _answer(self, reply: Reply) -> None:
        if reply.before is not None:
            self._step(reply.before, False)
        if reply.status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(reply.status)
        if reply.content_type is not None:
            self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for step in reply.steps:
            if not self._step(step, reply.chunked):
                return
        if reply.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _step(self, step: Step, chunked: bool) -> bool:
        if isinstance(step, bytes):
            if chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(step), step))
            else:
                self.wfile.write(step)
            self.wfile.flush()
        elif isinstance(step, Sleep):
            time.sleep(step.seconds)
        elif isinstance(step, Die):
            self.connection.shutdown(socket.SHUT_RDWR)
            return False
        else:
            self._wait_for_hang_up()
            return False
        return True

    def _wait_for_hang_up(self) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            readable, _, _ = select.select([self.connection], [], [], 0.02)
            if readable and self.connection.recv(1) == b"":
                self.server_of_test.hung_up.set()
                return


def free_port() -> int:
    """A loopback port on which nothing listens."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        return int(server.server_address[1])
