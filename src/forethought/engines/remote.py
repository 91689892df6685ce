"""The remote engine: any server with OpenAI-compatible chat completions.

LM Studio, Ollama (``/v1``), vLLM, SGLang, llama-server, DeepSeek's API. The server renders the
template, holds the tokenizer and decides when a thought ends; what it cannot do is refused here
with a sentence (:func:`refusal`), never ignored.
"""

from __future__ import annotations

import difflib
import json
import queue
import random
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from forethought.dialogue.tokenizer import Tokenizer
from forethought.engines.handle import StreamHandle
from forethought.engines.protocol import Capabilities, Finished, Request
from forethought.engines.remote_address import Address, parse_address
from forethought.engines.remote_body import Dialect, RequestBody
from forethought.engines.remote_errors import clean, http_error, message_of_body, unreachable
from forethought.engines.remote_stream import MAX_ERROR_BODY, AbortedError, SampleStream
from forethought.engines.remote_text import DeltaReader, Thinks
from forethought.errors import ForethoughtError, ServerError, UserError

if TYPE_CHECKING:
    import httpx

MAX_PARALLEL = 8
"""Requests of one ``submit`` that are open at the same time."""

MAX_MODELS_BODY = 16 * 1024 * 1024
"""Bytes read of a server's list of models."""

_CAPABILITIES = Capabilities(
    token_ids=False,
    logprobs=False,
    raw_prompt=False,
    min_thought=False,
    templates=False,
    reproducible=False,
    lora=False,
)

_LIMITS = {
    "--ids": "the server sends text, not token ids",
    "--logprobs": "its log-probabilities do not come with token ids",
    "--raw-prompt": "the server renders the prompt itself and does not show it",
    "--template": "the server renders the prompt with its own chat template",
    "--min-thought": "a thought can only be kept open where its tokens are sampled",
    "--reproducible": "nobody can promise it for a server's own batching",
    "--lora": "adapters are loaded where the weights are",
    "continuing a stopped sample": "the server takes messages, not token ids",
    "continuing a thought": "the server starts each answer anew",
    "answer now": "the server cannot be told to end its thought; cancel works",
}


def refusal(option: str, base_url: str) -> UserError:
    """The sentence for an option that no remote server can serve: a key of the table above, or
    any other name."""
    why = _LIMITS.get(option, "the protocol has no such thing")
    return UserError(f"{option} does not work with the server at {base_url}: {why}.")


class RemoteHandle(StreamHandle):
    """A running remote request. ``answer_now`` raises UserError: servers have no such thing."""

    def __init__(
        self, work: Callable[[StreamHandle], None], wake: Callable[[], None], base_url: str
    ) -> None:
        self._base_url = base_url
        super().__init__(work, wake)

    def answer_now(self) -> None:
        raise refusal("answer now", self._base_url)


class RemoteEngine:
    """An engine behind an HTTP address; thread-safe, and memory is bounded by the texts it returns.

    ``base_url`` with or without ``/v1``; ``model`` None takes the only one the server has.
    ``thinks`` says how the model thinks, if the caller knows: ``native`` reads text without an
    opening tag as thought until ``</think>`` comes. In that case only, when no closing tag comes
    and the model ended by itself, the deltas streamed as thought were the answer: the texts in
    ``Finished`` are right, and the answer has been emitted once more as answer.
    ``timeout``: seconds of complete silence, pings included, after which a server counts as dead
    (thoughts of an hour are fine as long as something comes); ``connect_timeout``: seconds for the
    connection; ``backoff``: seconds before the second try, doubled before the third.

    Token counts are the server's; see ``remote_stream.count_usage`` for what is 0 or estimated.
    ``Budget.max_thought`` is sent to servers that know it; others are stopped by hanging up
    (thought_end ``cut``, stop_reason ``length``): a remote model cannot be forced to answer.

    Raises UserError for a bad address or key and for an unknown model, ServerError when ``model``
    is None and the server cannot be asked.
    """

    name = "remote"

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        thinks: Thinks = "unknown",
        timeout: float = 600.0,
        connect_timeout: float = 4.0,
        backoff: float = 0.5,
    ) -> None:
        self.address: Address = parse_address(base_url, api_key)
        self.thinks: Thinks = thinks
        self._timeouts = (connect_timeout, timeout)
        self._backoff = backoff
        self._lock = threading.Lock()
        self._closed = False
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()
        self.dialect = Dialect()
        self.client = self._new_client()
        try:
            self.model = model or self._only_model()
        except BaseException:
            self.client.close()
            raise

    def _new_client(self) -> httpx.Client:
        import httpx

        try:
            httpx.URL(self.address.base_url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise UserError(
                f"{self.address.base_url!r} is not a server address: {error}."
            ) from None
        connect, silence = self._timeouts
        # Compression is not asked for: it would hold small deltas back.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.address.api_key is not None:
            headers["Authorization"] = f"Bearer {self.address.api_key}"
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(silence, connect=connect, write=60.0),
            # A connection for each request: a reused one may have died unnoticed, and a cancel
            # must hang up exactly its own.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            # A proxy in the environment must not get what is meant for this machine.
            mounts={f"all://{host}": None} if self.address.loopback else None,
        )

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    @property
    def tokenizer(self) -> Tokenizer | None:
        return None

    @property
    def context_length(self) -> int | None:
        return None

    def models(self) -> list[str]:
        """Names of the models the server offers. Raises ServerError, or UserError for the key."""
        import httpx

        url = f"{self.address.base_url}/models"
        body = bytearray()
        timeout = httpx.Timeout(15.0, connect=self._timeouts[0])
        try:
            with self.client.stream("GET", url, timeout=timeout) as r:
                for chunk in r.iter_bytes():
                    body += chunk
                    if len(body) > (MAX_MODELS_BODY if r.status_code == 200 else MAX_ERROR_BODY):
                        break
                status, headers = r.status_code, r.headers
        except httpx.TransportError as error:
            silent = 15.0 if isinstance(error, httpx.ReadTimeout) else self._timeouts[0]
            raise unreachable(error, self.address, silent) from None
        except httpx.DecodingError:
            status, headers, body = 200, httpx.Headers(), bytearray()
        if status != 200:
            message = message_of_body(bytes(body), self.address)
            raise http_error(status, message, self.address, None, headers.get("location"))
        try:
            data = json.loads(body)["data"]
            return [str(entry["id"]) for entry in data]
        except (ValueError, KeyError, TypeError, RecursionError):
            kind = clean(headers.get("content-type", ""), self.address) or "no content type"
            raise ServerError(
                f"{url} answered with {kind} instead of a list of models: "
                "is this the address of an OpenAI-compatible API?"
            ) from None

    def _only_model(self) -> str:
        names = self.models()
        if len(names) == 1:
            return names[0]
        if not names:
            raise UserError(
                f"the server at {self.address.place} has no model loaded: load one there first."
            )
        raise UserError(
            f"the server at {self.address.place} has {len(names)} models, name one after #: "
            f"{self._listed(names)}."
        )

    def _listed(self, names: list[str], most: int = 20) -> str:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return ", ".join(clean(name, self.address) for name in names[:most]) + more

    def unknown_model(self, status: int, message: str) -> UserError | None:
        """The sentence with the nearest names, when that is what an HTTP error was about."""
        words = message.lower()
        said = "model" in words and any(
            phrase in words
            for phrase in ("not found", "not exist", "unknown", "no such", "invalid")
        )
        if status not in (400, 404, 422) or (status != 404 and not said):
            return None
        try:
            names = self.models()
        except ForethoughtError:
            return None
        if not names or self.model in names:
            return None
        near = difflib.get_close_matches(self.model, names, n=3, cutoff=0.4)
        hint = f"nearest: {self._listed(near)}" if near else f"it has {self._listed(names)}"
        return UserError(
            f"the server at {self.address.place} has no model {clean(self.model, self.address)!r}; "
            f"{hint}."
        )

    def submit(self, request: Request) -> RemoteHandle:
        """Start a request. Raises UserError for what a remote server cannot do."""
        self._check(request)
        run = _Run(self, request)
        with self._lock:
            if self._closed:
                raise UserError("this engine is closed.")
            self._runs.add(run)
        return RemoteHandle(run.work, run.wake, self.address.base_url)

    def _check(self, request: Request) -> None:
        url = self.address.base_url
        prompt = request.prompt
        if prompt.text is not None or prompt.ids is not None:
            raise refusal("--template", url)
        if request.prefix_ids:
            raise refusal("continuing a stopped sample", url)
        if request.logprobs is not None:
            raise refusal("--logprobs", url)
        if request.reproducible:
            raise refusal("--reproducible", url)
        if request.budget.min_thought > 0:
            raise refusal("--min-thought", url)
        if not prompt.conversation:
            raise UserError("there is no question to send.")
        if prompt.starts_in_thought or prompt.conversation[-1].role == "assistant":
            raise refusal("continuing a thought", url)
        if request.n < 1:
            raise UserError(f"-n must be at least 1, not {request.n}.")
        for option, value, least in (
            ("--max-tokens", request.budget.max_tokens, 1),
            ("--max-thought", request.budget.max_thought, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"{option} must be at least {least}, not {value}.")

    def close(self) -> None:
        """Hang up whatever still runs (as cancelled) and free the connections."""
        with self._lock:
            self._closed = True
            runs = list(self._runs)
        for run in runs:
            run.wake()
        self.client.close()


class _Run:
    """One submitted request: its samples, spread over at most MAX_PARALLEL threads.

    The handle's own thread only waits. A thread stuck where nothing can wake it (a name look-up, a
    connection being made) is left behind by a cancel: it sees the flag and ends by itself.
    """

    GRACE = 0.3
    """Seconds that reading threads get to end by themselves after a hang-up."""

    def __init__(self, engine: RemoteEngine, request: Request) -> None:
        self._engine = engine
        self._request = request
        # 31 bits: servers keep seeds in 32, some signed.
        self._seed = request.seed if request.seed is not None else random.getrandbits(31)
        self._changed = threading.Condition()
        self._running = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._streams: list[SampleStream] = []

    def wake(self) -> None:
        """Hang up all connections now. From any thread, any number of times."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            streams = list(self._streams)
        for stream in streams:
            stream.abort()

    def work(self, handle: StreamHandle) -> None:
        """The handle's thread."""
        streams = [self._stream(handle, index) for index in range(self._request.n)]
        waiting: queue.SimpleQueue[SampleStream] = queue.SimpleQueue()
        for stream in streams:
            waiting.put(stream)
        with self._changed:
            self._streams = streams
            stopped = self._stopped
            self._running = 0 if stopped else min(len(streams), MAX_PARALLEL)
            threads = self._running
        for _ in range(threads):
            threading.Thread(
                target=self._read, args=(waiting,), name="forethought-remote", daemon=True
            ).start()
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._error or not self._running)
            failed = self._error is not None
        if failed or self._stopped:
            for stream in streams:
                stream.abort()
            with self._changed:
                self._changed.wait_for(lambda: not self._running, timeout=self.GRACE)
        if self._error is not None and not handle.cancelled:
            raise self._error
        for stream in streams:
            sample = stream.seal()
            if sample is not None:
                handle.emit(Finished(sample))

    def _stream(self, handle: StreamHandle, index: int) -> SampleStream:
        engine, request = self._engine, self._request
        seed = self._seed + index
        return SampleStream(
            index,
            address=engine.address,
            client=engine.client,
            body=RequestBody(
                request,
                model=engine.model,
                seed=seed,
                address=engine.address,
                dialect=engine.dialect,
                explain=engine.unknown_model,
            ),
            reader=DeltaReader(
                engine.thinks if request.prompt.thinks else "none", stop=request.stop
            ),
            emit=handle.emit,
            seed=seed,
            max_thought=request.budget.max_thought,
            timeouts=engine._timeouts,
            backoff=engine._backoff,
        )

    def _read(self, waiting: queue.SimpleQueue[SampleStream]) -> None:
        try:
            while not self._stopped and self._error is None:
                try:
                    stream = waiting.get_nowait()
                except queue.Empty:
                    return
                stream.run()
        except AbortedError:
            return
        except BaseException as error:
            with self._changed:
                if self._error is None:
                    self._error = error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
