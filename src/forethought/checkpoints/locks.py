"""A lock file that two processes respect: the system drops it when its holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from forethought.errors import DownloadError

Report = Callable[[str], None]


def _try_lock(stream: BinaryIO) -> bool:
    """Take the lock without waiting; False if another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_current(stream: BinaryIO, path: Path) -> bool:
    """Whether the locked file is still the one under that name (its last holder removes it)."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False


@contextlib.contextmanager
def held(path: Path, *, report: Report | None = None, wait_s: float = 3600.0) -> Iterator[None]:
    """Hold the lock file `path`, waiting for another holder and saying so once.

    Raises DownloadError after `wait_s` seconds.
    """
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        stream = path.open("ab")
        if _try_lock(stream) and _is_current(stream, path):
            break
        stream.close()
        if not told and report is not None:
            report(f"Another process is writing {path.stem}; waiting for it.")
        told = True
        if time.monotonic() > deadline:
            raise DownloadError(
                f"Another process has held {path} for {wait_s:.0f} s: wait for it, or end it."
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        if sys.platform == "win32":
            # An open file cannot be removed there.
            stream.close()
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            with contextlib.suppress(OSError):
                path.unlink()
            stream.close()
