"""The process in which foreign chat templates are rendered, seen from ours."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from forethought.errors import ModelError, UserError

RENDER_SECONDS: Final = 2.0
"""Wall-clock cap of one rendering in the worker, its start apart."""

START_SECONDS: Final = 30.0
"""Wall-clock cap of the worker's start: a cold disk, a busy machine."""

MAX_OUTPUT: Final = 8 * 1024 * 1024
"""Characters a rendering may have beyond four times its input."""

_SENTENCES: Final = {
    "syntax": "has an error: {}.",
    "security": "tried something that a template may not do: {}.",
    "undefined": "asks for something that is not there: {}.",
    "memory": "needs too much memory and was stopped.",
    "output": "writes too much text and was stopped.",
    "other": "failed: {}.",
}


class TemplateWorker:
    """One worker process, started when first needed and kept for further renderings.

    Thread-safe: renderings queue. A rendering that fails to end in time takes the process with it;
    the next one starts another.
    """

    def __init__(
        self, render_seconds: float = RENDER_SECONDS, start_seconds: float = START_SECONDS
    ) -> None:
        self._render_seconds = render_seconds
        self._start_seconds = start_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0  # of the process that started it: after a fork the child starts its own

    def render(self, source: str, variables: Mapping[str, object], origin: str) -> str:
        """The rendered text. Errors as :meth:`ChatTemplate.render`."""
        max_chars = MAX_OUTPUT
        for turn in _messages(variables):
            max_chars += 4 * len(turn["content"])
        request = {
            "source": source,
            "variables": variables,
            "max_chars": max_chars,
            "max_seconds": self._render_seconds,
        }
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._started(origin)
            reply = self._exchange(process, line, 12 * max_chars, self._render_seconds)
            if reply is None:
                self._kill()
                raise ModelError(
                    f"The chat template of {origin} took longer than {self._render_seconds:g} s or "
                    "broke down, and was stopped: choose another with --template."
                )
        if "text" in reply:
            return str(reply["text"])
        kind = str(reply.get("error", "other"))
        message = _one_line(str(reply.get("message", "")))
        if kind == "raised":
            raise UserError(f"The chat template of {origin} refuses this conversation: {message}.")
        sentence = _SENTENCES.get(kind, _SENTENCES["other"]).format(message)
        raise ModelError(
            f"The chat template of {origin} {sentence} Choose another with --template."
        )

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process now, so that the first rendering does not wait for it."""
        with self._lock:
            self._started("the model")

    def close(self) -> None:
        """End the process; a later rendering starts another."""
        with self._lock:
            self._kill()

    def _started(self, origin: str) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and self._pid == os.getpid() and process.poll() is None:
            return process
        self._process = None
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    str(Path(__file__).with_name("template_worker.py")),
                    *_folders("jinja2", "markupsafe"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(sys.executable).anchor or None,
                env=_bare_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise ModelError(
                f"The chat template of {origin} needs a second process, which did not start: "
                f"{error.strerror or error}."
            ) from None
        self._process, self._pid = process, os.getpid()
        ready = self._exchange(process, b"", 100, self._start_seconds)
        if ready is None or not ready.get("ready"):
            self._kill()
            raise ModelError(
                f"The chat template of {origin} needs a second Python process with jinja2, which "
                "did not start."
            )
        return process

    @staticmethod
    def _exchange(
        process: subprocess.Popen[bytes], line: bytes, max_bytes: int, seconds: float
    ) -> dict[str, Any] | None:
        """Write a line, read a line; None when that took too long, or anything broke."""
        replies: list[bytes] = []

        def exchange() -> None:
            with suppress(OSError, ValueError):
                assert process.stdin is not None
                assert process.stdout is not None
                if line:
                    process.stdin.write(line)
                    process.stdin.flush()
                replies.append(process.stdout.readline(max_bytes))

        # A thread, because a wait with a limit on a pipe is not to be had on every system.
        thread = threading.Thread(target=exchange, name="chat-template", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive() or not replies or not replies[0].endswith(b"\n"):
            return None
        try:
            reply = json.loads(replies[0])
        except ValueError:
            return None
        return reply if isinstance(reply, dict) else None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None or self._pid != os.getpid():
            return
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()


def _messages(variables: Mapping[str, object]) -> Sequence[Mapping[str, str]]:
    messages = variables["messages"]
    assert isinstance(messages, list)
    return messages


def _folders(*packages: str) -> list[str]:
    """Where the packages lie: the isolated worker sees neither PYTHONPATH nor the user's folder."""
    specs = [find_spec(package) for package in packages]
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]


def _bare_environment() -> dict[str, str]:
    """What a Python needs to start, and no key or token of the user."""
    kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "LANG")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _one_line(message: str) -> str:
    """A model's words, fit to stand in a sentence on a terminal."""
    printable = "".join(c if c.isprintable() else " " for c in message)
    return " ".join(printable.split()).rstrip(".")[:300]


@cache
def shared_worker() -> TemplateWorker:
    """The one worker of this process; not started yet. Ends with the process."""
    worker = TemplateWorker()
    atexit.register(worker.close)
    return worker
