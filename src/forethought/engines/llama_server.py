"""llama.cpp's server inside this process, through the wheel ``xllamacpp``: load, stream, tokenise.

Everything the rest of the package knows of ``xllamacpp`` is in this file. What the wheel can do is
asked by :mod:`forethought.engines.llama_probe`, never assumed from its version.

The server always opens an HTTP port on loopback, with CORS open to every page. It therefore gets a
random key in each process, and we use the port ourselves for the one thing its Python class lacks:
tokenising.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from forethought.errors import ModelError, UserError


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded.

    ``cells``: tokens the cache holds for all slots together; ``slots``: samples side by side.
    ``gpu_layers`` None leaves the choice to llama.cpp. ``reproducible`` makes every token a
    function of the tokens before it alone, whatever n, load, cache and pieces of the prompt: no
    flash attention (it splits long contexts among threads), a part of the cache for each slot (one
    for all makes sums depend on neighbours), one token at a time (several attend by another
    kernel). Each was measured to be needed; prompts are read no faster than text is written then.
    """

    path: Path
    cells: int
    slots: int = 1
    threads: int | None = None
    gpu_layers: int | None = None
    lora: Path | None = None
    reproducible: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message of a completion stream.

    ``bytes_`` is the text this chunk adds; it may stand for several tokens, of which only the last
    has its id here (``token_id``), when a character was spread over them. ``predicted`` counts the
    sample's tokens so far (0 where the server did not say). ``finish`` is set on a sample's last
    chunk.
    """

    index: int
    text: str = ""
    token_id: int | None = None
    raw: bytes = b""
    logprob: float | None = None
    predicted: int = 0
    finish: str | None = None
    cached: int = 0
    prefill: tuple[int, int] | None = None


class LlamaServer:
    """One loaded model. ``complete`` may be called from several threads at once."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self._key = os.urandom(24).hex()  # the secrets module costs 6 ms of imports
        self._native: Any = _start(options, self._key)
        address = str(self._native.listening_address)
        host, _, port = address.rpartition("://")[2].rpartition(":")
        self._address = (host, int(port))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of llama.cpp's own HTTP, always loopback."""
        return self._address

    @property
    def key(self) -> str:
        """The key without which the port answers 401."""
        return self._key

    def close(self) -> None:
        """Free the weights and the port."""
        if self._native is not None:
            # llama.cpp never ends when it is closed before its loop runs; an answer shows it does.
            self.metrics()
        self._native = None

    def complete(self, request: Mapping[str, object], on_chunk: Callable[[Chunk], bool]) -> None:
        """Run one streaming completion; ``on_chunk`` returning True stops it.

        Blocks until the last chunk, or until the server has been told to stop. The GIL is free
        while the server computes. Raises ModelError for what the server refuses, and whatever
        ``on_chunk`` raised (xllamacpp itself swallows it).
        """
        problems: list[BaseException] = []

        def callback(message: object) -> bool:
            try:
                return on_chunk(_read_chunk(message))
            except BaseException as error:
                problems.append(error)
                return True

        native = self._native
        if native is None:
            raise ModelError("the model was closed while it was still asked something.")
        native.handle_completions({**request, "stream": True}, callback)
        if problems:
            raise problems[0]

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """POST to llama.cpp's own port and decode the JSON answer.

        A bare socket: http.client costs 40 ms of imports, a tenth of the time to the first token.
        """
        payload = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.0\r\nHost: {self._address[0]}\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        ).encode("ascii")
        parts = []
        try:
            with socket.create_connection(self._address, timeout=600) as connection:
                connection.sendall(head + payload)
                while part := connection.recv(1 << 16):
                    parts.append(part)
        except OSError as error:
            raise ModelError(f"llama.cpp's own port does not answer ({error}).") from None
        header, _, answer = b"".join(parts).partition(b"\r\n\r\n")
        status = header.split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise ModelError(f"llama.cpp refused {path}: {answer[:300].decode(errors='replace')}")
        return json.loads(answer)

    def metrics(self) -> dict[str, float]:
        """The server's counters: ``tokens_predicted_total``, ``n_decode_total``, ..."""
        found: dict[str, float] = {}
        for line in str(self._native.handle_metrics()).splitlines():
            name, _, value = line.partition(" ")
            if name.startswith("llamacpp:"):
                found[name.removeprefix("llamacpp:")] = float(value)
        return found


def _start(options: LoadOptions, key: str) -> Any:
    """Load, and turn a failure into the sentence that llama.cpp wrote to its log."""
    import xllamacpp

    if not options.path.is_file():
        raise UserError(f"there is no model file {options.path}.")
    if options.lora is not None and not options.lora.is_file():
        raise UserError(f"there is no LoRA file {options.lora}.")
    try:
        return xllamacpp.Server(_parameters(xllamacpp, options, key, verbosity=-1))
    except RuntimeError:
        reason = _why_it_failed(xllamacpp, options, key)
    raise ModelError(f"llama.cpp cannot load {options.path}: {reason}")


def _parameters(xllamacpp: Any, options: LoadOptions, key: str, verbosity: int) -> Any:
    p = xllamacpp.CommonParams()
    p.model.path = str(options.path)
    p.n_ctx = options.cells
    p.n_parallel = options.slots
    p.kv_unified = not options.reproducible
    p.fit_params = False  # loads twice otherwise
    p.warmup = False
    p.verbosity = verbosity
    p.api_keys = [key]
    p.cors_origins = ""
    p.ui = False
    p.endpoint_slots = False
    p.endpoint_metrics = True
    p.n_threads_http = 2
    p.cache_ram_mib = 0  # up to 8 GiB of old prompts otherwise
    p.cache_idle_slots = False
    p.n_batch = 512  # also the grain at which a long prompt can be cancelled
    if options.threads is not None:
        p.cpuparams.n_threads = options.threads
        p.cpuparams_batch.n_threads = options.threads
    if options.gpu_layers is not None:
        p.n_gpu_layers = options.gpu_layers
    if options.lora is not None:
        p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(options.lora), 1.0)]
    if options.reproducible:
        p.n_ubatch = 1
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return p


def _why_it_failed(xllamacpp: Any, options: LoadOptions, key: str) -> str:
    """Load once more with the log on, and read the reason from it."""
    quiet = _parameters(xllamacpp, options, key, verbosity=-1)
    quiet.model.path = f"{options.path}.none"
    with _captured_stderr() as log:
        with contextlib.suppress(RuntimeError):
            xllamacpp.Server(_parameters(xllamacpp, options, key, verbosity=1))
        with contextlib.suppress(RuntimeError):
            xllamacpp.Server(quiet)  # the log's level is global: loading nothing lowers it again
    text = log.read_text(errors="replace")
    log.unlink(missing_ok=True)
    found = re.search(r"unknown model architecture: '([^']*)'", text)
    if found:
        return (
            f"it does not know the architecture '{found[1]}'; "
            "a newer xllamacpp may (pip install -U xllamacpp)."
        )
    if "lora" in text.lower() and options.lora is not None:
        return f"the LoRA {options.lora} does not fit this model."
    lines = [re.sub(r"^[\d.]+ E\s+", "", line) for line in text.splitlines() if " E " in line]
    for line in lines:
        if "failed to allocate" in line or "out of memory" in line.lower():
            return "there is not enough memory; take a smaller model or a smaller --ctx."
    reason = lines[0].rpartition(": error ")[2] if lines else "it gave no reason"
    return f"{reason[:300]}."


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Path]:
    """File descriptor 2 goes to a file: llama.cpp logs from C++."""
    import tempfile

    handle, name = tempfile.mkstemp(prefix="forethought-", suffix=".log")
    saved = os.dup(2)
    try:
        os.dup2(handle, 2)
        yield Path(name)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(handle)


def _read_chunk(message: object) -> Chunk:
    """Decode one message; the shapes are the wheel's OpenAI-style completion chunks."""
    data = cast("dict[str, Any]", message)
    choices = data.get("choices")
    if not choices:
        error = data.get("error") or {}
        raise ModelError(f"llama.cpp: {error.get('message', 'an answer of unknown shape')}")
    choice = choices[0]
    timings = data.get("timings") or {}
    progress = data.get("prompt_progress")
    if progress is not None:
        return Chunk(choice["index"], prefill=(progress["processed"], progress["total"]))
    logprobs = choice["logprobs"]
    predicted = timings.get("predicted_n", 0)
    if not logprobs:
        return Chunk(
            choice["index"],
            choice["text"],
            predicted=predicted,
            finish=choice["finish_reason"],
            cached=timings.get("cache_n", 0),
        )
    entry = logprobs["content"][0]
    logprob = entry.get("logprob")
    if logprob is None:
        logprob = _log(entry["prob"])
    return Chunk(
        choice["index"],
        choice["text"],
        entry["id"],
        bytes(entry["bytes"]),
        logprob,
        predicted,
        choice["finish_reason"],
    )


def _log(probability: float) -> float:
    from math import inf, log

    return log(probability) if probability > 0 else -inf
