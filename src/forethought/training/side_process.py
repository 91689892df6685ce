"""A process beside this one that answers requests, one after the other.

It runs this module and imports nothing of the caller's program: a script that trains need not guard
itself against being imported again, as multiprocessing's spawn would ask of it. It ends with its
caller, also where that is killed: then the other end of its pipe is gone.

POSIX only: elsewhere `available` is False, and whoever wants help does the work itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

Request = TypeVar("Request")
Answer = TypeVar("Answer")

_MODULE = "forethought.training.side_process"


def available() -> bool:
    """Whether this system can have them: they inherit a descriptor."""
    return os.name == "posix"


def packed(function: Callable[[Request], Answer]) -> bytes:
    """A function as it travels. Raises what its parts raise that cannot be copied."""
    return bytes(ForkingPickler.dumps(function))


class SideProcess(Generic[Request, Answer]):
    """Answers requests by a copy of a function (see `packed`), in order.

    Requests wait in the pipe: a few small ones may be sent ahead of their answers. Used from one
    thread. `receive` raises EOFError where the process has ended, `send` OSError.
    """

    def __init__(self, function: bytes) -> None:
        self._calls, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()  # So that the end of the process is the end of the pipe.
        with suppress(OSError):  # It has ended already: `receive` says so.
            self._calls.send_bytes(function)

    def send(self, request: Request) -> None:
        self._calls.send(request)

    def receive(self) -> Answer:
        """The answer to the oldest request without one; waits for it."""
        return cast(Answer, self._calls.recv())

    def close(self) -> int:
        """End it, and its exit code. What it has not answered is lost."""
        self._calls.close()
        try:
            # It may be in the middle of an answer that nobody reads any more.
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> SideProcess[Request, Answer]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(calls: Connection) -> None:
    """The process: the function first, then requests until there are no more."""
    # Ctrl-C is for the caller to answer, who ends this process when it is time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function: Callable[[Any], object] = calls.recv()
        while True:
            calls.send(function(calls.recv()))


if __name__ == "__main__":
    # What travels are the module's classes, not those of `__main__`.
    from forethought.training.side_process import serve as serve_requests

    with Connection(int(sys.argv[1])) as calls:
        serve_requests(calls)
