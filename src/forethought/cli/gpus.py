"""``--gpus N``: the same command once for each GPU of this host, as torchrun would start it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import IO, Final

from forethought.cli.terminal import note

_PATIENCE: Final = 20.0
"""Seconds that the others have to end by themselves once one has failed."""
_PAUSE: Final = 0.1


def run_on_each(arguments: Sequence[str], count: int) -> int:
    """Run ``forethought ARGUMENTS`` as ``count`` ranks; the exit code of the first that failed.

    The first rank has this terminal. The others are silent: what they wrote is shown where one of
    them failed before the first did. SIGINT and SIGTERM are theirs to answer.
    """
    with ExitStack() as stack:
        port = _free_port()
        kept = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        ranks = [
            _start(arguments, rank, count, port, kept[rank - 1] if rank else None)
            for rank in range(count)
        ]
        stack.enter_context(_forwarding(ranks))
        failed = _wait(ranks)
        if failed:
            for one in kept if failed > 0 else []:
                one.seek(0)
                text = one.read().decode("utf-8", "replace").strip()
                if text:
                    note(text)
            return ranks[failed].returncode
        return ranks[0].returncode


def _start(
    arguments: Sequence[str], rank: int, count: int, port: int, output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    environment = {name: str(value) for name, value in place.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "forethought", *arguments],
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", **environment},
        stdin=None if rank == 0 else subprocess.DEVNULL,
        stdout=None if rank == 0 else output,
        stderr=None if rank == 0 else output,
        # Ctrl-C of the terminal comes to this process alone, which tells the first rank once.
        process_group=0 if os.name == "posix" else None,
    )


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; the rank that failed first (0 where none did). Those that do not end
    when another has failed are ended."""
    failed: int | None = None
    until = float("inf")
    while None in (codes := [one.poll() for one in ranks]):
        if failed is None:
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is not None:
                until = time.monotonic() + _PATIENCE
        if time.monotonic() > until:
            for one in ranks:
                one.kill()
        time.sleep(_PAUSE)
    return failed or next((rank for rank, code in enumerate(codes) if code), 0)


@contextmanager
def _forwarding(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """SIGINT and SIGTERM go on to the first rank, which agrees with the others on when to stop."""

    def forward(number: int, frame: FrameType | None) -> None:
        ranks[0].send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in ranks:
            if one.poll() is None:
                one.kill()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
