"""One key while the model writes, without waiting for Enter."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from forethought.cli.terminal import is_terminal


class KeyWatcher:
    """While entered, calls ``pressed`` (on a thread of its own) each time ``key`` is typed.

    The terminal is put in cbreak mode, which leaves Ctrl-C alone, and back as it was on exit,
    whatever happened. Does nothing when stdin is no terminal.
    """

    def __init__(self, key: str, pressed: Callable[[], None]) -> None:
        self._key = key.encode()
        self._pressed = pressed
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._before: list[Any] | None = None
        self._wake: tuple[int, int] | None = None

    def __enter__(self) -> KeyWatcher:
        if not is_terminal(sys.stdin):
            return self
        watch = self._prepare()
        self._thread = threading.Thread(target=watch, name="forethought-keys", daemon=True)
        self._thread.start()
        return self

    def _prepare(self) -> Callable[[], None]:
        if sys.platform == "win32":
            return self._watch_console
        import termios
        import tty

        terminal = sys.stdin.fileno()
        self._before = termios.tcgetattr(terminal)
        tty.setcbreak(terminal, termios.TCSANOW)
        self._wake = os.pipe()
        return self._watch_terminal

    def _watch_terminal(self) -> None:
        import select

        assert self._wake is not None
        terminal, wake = sys.stdin.fileno(), self._wake[0]
        while not self._done.is_set():
            ready, _, _ = select.select([terminal, wake], [], [])
            if wake in ready:
                return
            try:
                typed = os.read(terminal, 64)
            except OSError:
                return
            if not typed:
                return  # the terminal went away
            if self._key in typed.lower():
                self._pressed()

    def _watch_console(self) -> None:
        if sys.platform == "win32":
            import msvcrt

            # the console has no handle that select takes
            while not self._done.wait(0.05):
                while msvcrt.kbhit():
                    if msvcrt.getwch().lower().encode() == self._key:
                        self._pressed()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._wake is not None:
            os.write(self._wake[1], b"x")
        if self._thread is not None:
            self._thread.join()
        if self._before is not None and sys.platform != "win32":
            import termios

            # what was typed while the model wrote is no part of the next question
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, self._before)
        for end in self._wake or ():
            os.close(end)
        self._wake = self._before = self._thread = None
