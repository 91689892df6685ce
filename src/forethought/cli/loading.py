"""Loading a model beside the main thread, so that Ctrl-C works and imports go on meanwhile.

llama.cpp's loader does not return to an interrupted main thread: it hangs. On a thread of its own
it never sees the interrupt, and the process can be left at once.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What is loaded: a model, or a tokenizer of llama.cpp."""

    def close(self) -> None:
        """Let go of it."""


T = TypeVar("T", bound=Closable)

LOADER = "forethought-load"
"""The name of the thread that loads."""


class Loading(Generic[T]):
    """Runs ``load`` at once; :meth:`wait` gives the model, or raises what loading raised."""

    def __init__(self, load: Callable[[], T]) -> None:
        self._load = load
        self._model: T | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=LOADER, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            model = self._load()
        except BaseException as error:  # raised again by wait()
            self._error = error
            return
        with self._lock:
            abandoned = self._abandoned
            if not abandoned:
                self._model = model
        if abandoned:
            model.close()

    def abandon(self) -> None:
        """Nobody wants the model any more: it is closed, now or as soon as it is loaded."""
        with self._lock:
            self._abandoned = True
            model, self._model = self._model, None
        if model is not None:
            model.close()

    def wait(self) -> T:
        """The model. Ctrl-C comes through, and abandons it."""
        try:
            self._thread.join()
        except BaseException:
            self.abandon()
            raise
        if self._error is not None:
            raise self._error
        assert self._model is not None
        return self._model


def leave_if_busy(code: int, prefix: str = "forethought-") -> None:
    """End the process at once if a thread of ours still runs whose name begins with ``prefix``.

    The interpreter would stop such a thread inside llama.cpp, which ends in an abort or a hang.
    """
    if any(thread.name.startswith(prefix) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code)
