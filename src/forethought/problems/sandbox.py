"""Graders that run code on a model's text, kept in a sandboxed worker process.

reasoning-gym's verifiers and math-verify give model text to ``eval`` or to sympy's parser, which
evaluates it. They run here or not at all: `Sandbox` starts a worker under bubblewrap, proves with
probes that it is isolated, and refuses otherwise (rules R20 to R22). Only JSON of builtin types
comes back, under a fresh nonce for each request; nothing is ever unpickled.

The reference answer has to go into the sandbox with the candidate's, because the grader is a
library that compares inside. So a candidate that breaks the library could forge its own verdict,
but no other: every request has a child process to itself.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from forethought.errors import ForethoughtError, ModelError, UserError
from forethought.problems import sandbox_runner
from forethought.problems.sandbox_runner import UNSAFE_OPTION, Limits

OutcomeKind = Literal["ok", "raised", "timeout", "sandbox_error"]

HEALTH_JOBS: Final = 200
"""Jobs before the share of sandbox errors means something."""
HEALTH_SHARE: Final = 0.01
"""The share of sandbox errors above which a run has to pause (rule R22)."""
_GRACE_SECONDS: Final = 5.0
"""How much longer than the request's own time the worker has to answer that it ran out."""
_MAX_START_OUTPUT: Final = 4096
_REASONS: Final = {
    "died": "the grader's process died",
    "output": "the grader wrote too much",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request. ``value`` (JSON) where it is "ok"; else ``reason``, one sentence.

    "raised" is an exception of the program inside, whose type's name is ``error``;
    "sandbox_error" a failure of the sandbox or a death of the process.
    """

    kind: OutcomeKind
    value: object = None
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """Requests so far, by outcome, and how often the worker was started."""

    ok: int = 0
    raised: int = 0
    timeout: int = 0
    sandbox_error: int = 0
    starts: int = 0

    @property
    def jobs(self) -> int:
        """All requests."""
        return self.ok + self.raised + self.timeout + self.sandbox_error


class _BrokenError(Exception):
    """The worker is of no use any more; the text says why."""


class Sandbox:
    """One worker process that runs a program's operations on JSON values, one at a time.

    ``program`` is a Python file with ``OPS``, a dict of name -> function of one JSON value that
    returns one; it imports nothing of forethought. The worker starts at the first call and again
    after a failure. Thread-safe: calls queue. ``unsafe_no_sandbox`` runs it as a plain subprocess,
    with limits but without isolation; only a user may ask for that, in so many words.
    """

    def __init__(
        self, program: Path, limits: Limits | None = None, *, unsafe_no_sandbox: bool = False
    ) -> None:
        self._program = program
        self._limits = limits or Limits()
        self._isolated = not unsafe_no_sandbox
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it: after a fork the child starts its own
        self._buffer = bytearray()
        self._serial = 0
        self._stats = SandboxStats()

    @property
    def isolated(self) -> bool:
        """Whether it is a sandbox; False for the unsafe mode, which every report has to say."""
        return self._isolated

    @property
    def stats(self) -> SandboxStats:
        """The counts so far."""
        return self._stats

    @property
    def pid(self) -> int | None:
        """The worker's process id (bwrap's), None while there is none."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker and prove its isolation, unless it is running.

        Raises UserError where there is no bwrap, where it may not make namespaces, where a probe
        gets through, or where the program's library is not installed.
        """
        with self._lock:
            self._ensure()

    def close(self) -> None:
        """End the worker; a later call starts another."""
        with self._lock:
            self._kill()

    def call(self, op: str, payload: object, timeout: float | None = None) -> Outcome:
        """Run one operation, in at most ``timeout`` seconds (default: the limits').

        Raises what `start` raises while the worker has never run, and ValueError for a payload
        beyond ``input_bytes``; whatever happens later is an outcome.
        """
        seconds = self._limits.seconds if timeout is None else timeout
        with self._lock:
            try:
                self._ensure()
                outcome = self._ask(op, payload, seconds)
            except _BrokenError as error:
                self._kill()
                outcome = Outcome("sandbox_error", reason=str(error))
            except ForethoughtError as error:
                if self._stats.starts == 0:
                    raise
                outcome = Outcome("sandbox_error", reason=str(error))
            self._count(outcome.kind)
        return outcome

    def check_health(self) -> None:
        """Raise ModelError when more than 1 % of at least 200 jobs were sandbox errors."""
        stats = self._stats
        if stats.jobs >= HEALTH_JOBS and stats.sandbox_error > HEALTH_SHARE * stats.jobs:
            raise ModelError(
                f"{stats.sandbox_error} of {stats.jobs} gradings by {self._program.stem} failed in "
                "the sandbox itself, more than 1 in 100, so the run pauses: look at the reasons of "
                "its unscorable samples, and at the machine's memory."
            )

    def _count(self, kind: OutcomeKind) -> None:
        stats = self._stats
        match kind:
            case "ok":
                self._stats = replace(stats, ok=stats.ok + 1)
            case "raised":
                self._stats = replace(stats, raised=stats.raised + 1)
            case "timeout":
                self._stats = replace(stats, timeout=stats.timeout + 1)
            case "sandbox_error":
                self._stats = replace(stats, sandbox_error=stats.sandbox_error + 1)

    # Starting.

    def _ensure(self) -> None:
        if self._process is not None and self._owner != os.getpid():
            self._process = None  # our parent's, who goes on using it
        if self._process is not None and self._process.poll() is None:
            return
        self._kill()
        arguments = sandbox_runner.command(self._program, self._limits, isolated=self._isolated)
        process = sandbox_runner.spawn(arguments)
        self._process, self._owner = process, os.getpid()
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        try:
            self._check_ready(process)
            if self._isolated:
                self._prove()
        except BaseException:
            self._kill()
            raise
        self._stats = replace(self._stats, starts=self._stats.starts + 1)

    def _check_ready(self, process: subprocess.Popen[bytes]) -> None:
        try:
            first = self._exchange(b"", time.monotonic() + self._limits.start_seconds)
        except _BrokenError:
            raise self._no_start(process) from None
        missing = first.get("missing")
        if missing is not None:
            raise UserError(
                f"The package {missing} is not installed: pip install 'forethought[problems]'."
            )

    def _no_start(self, process: subprocess.Popen[bytes]) -> UserError:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        said = process.stderr.read(_MAX_START_OUTPUT) or b""
        lines = said.decode(errors="replace").strip().splitlines() or ["no answer"]
        what = "bwrap (Debian package bubblewrap)" if self._isolated else "The grader's process"
        advice = (
            f"allow user namespaces on this machine, or type {UNSAFE_OPTION} to run it unprotected"
            if self._isolated
            else "check the installation"
        )
        return UserError(f"{what} could not start {self._program.stem} ({lines[-1]}): {advice}.")

    def _prove(self) -> None:
        with sandbox_runner.Witness() as witness:
            try:
                outcome = self._ask("probe", witness.payload(), self._limits.start_seconds)
            except _BrokenError as error:
                outcome = Outcome("sandbox_error", reason=str(error))
        report = outcome.value
        if isinstance(report, dict):
            found = sandbox_runner.leaks(report)
        else:
            found = [outcome.reason or "the probes gave no report"]
        if found:
            raise UserError(
                f"The sandbox does not isolate on this machine ({'; '.join(found)}), so nothing "
                f"was run in it: use a machine where bubblewrap works, or type {UNSAFE_OPTION}."
            )

    def _kill(self) -> None:
        process, self._process = self._process, None
        self._buffer.clear()
        if process is not None and self._owner == os.getpid():
            sandbox_runner.kill(process)

    # Asking.

    def _ask(self, op: str, payload: object, seconds: float) -> Outcome:
        self._serial += 1
        stamp = {"id": self._serial, "nonce": secrets.token_hex(16)}
        request = {**stamp, "op": op, "payload": payload, "seconds": seconds}
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        if len(line) > self._limits.input_bytes:
            raise ValueError(f"a request of {len(line)} bytes is longer than input_bytes")
        reply = self._exchange(line, time.monotonic() + seconds)
        if any(reply.get(name) != value for name, value in stamp.items()):
            raise _BrokenError("the worker answered something else than was asked")
        status = reply.get("status")
        if status == "ok":
            return Outcome("ok", value=reply.get("value"))
        if status == "raised":
            error, message = str(reply.get("error")), _one_line(str(reply.get("message")))
            return Outcome("raised", reason=f"{error}: {message}", error=error)
        if status == "timeout":
            return Outcome("timeout", reason="timed out")
        reason = _REASONS.get(str(status), "the worker answered nonsense")
        return Outcome("sandbox_error", reason=reason)

    def _exchange(self, line: bytes, deadline: float) -> dict[str, object]:
        """Write a line, read a line. Raises _BrokenError."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        most = self._limits.output_bytes + 1024
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if line:
                selector.register(process.stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._buffer:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                # A machine that stood still passes every deadline at once: ask again before
                # calling the worker dead.
                if not ready and not (ready := selector.select(_GRACE_SECONDS)):
                    raise _BrokenError("the worker did not answer in time")
                for key, _ in ready:
                    try:
                        if key.fileobj is process.stdin:
                            line = line[os.write(key.fd, line) :]
                            if not line:
                                selector.unregister(process.stdin)
                            continue
                        block = os.read(key.fd, 1 << 16)
                    except OSError:
                        block = b""
                    if not block:
                        raise _BrokenError("the worker died")
                    self._buffer += block
                    if len(self._buffer) > most:
                        raise _BrokenError("the worker wrote too much")
        text, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise _BrokenError("the worker answered nonsense") from None
        if not isinstance(reply, dict):
            raise _BrokenError("the worker answered nonsense")
        return reply


def _one_line(message: str) -> str:
    """A foreign text, fit to stand in a sentence on a terminal."""
    printable = "".join(letter if letter.isprintable() else " " for letter in message)
    return " ".join(printable.split()).rstrip(".")[:300]
