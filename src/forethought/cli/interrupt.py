"""Ctrl-C while a model writes: stop within a token, lose nothing of what came."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from forethought.engines.protocol import Handle


class StopOnInterrupt:
    """While entered, the first Ctrl-C cancels the watched handle; the second one raises.

    Cancelling in the handler, instead of catching KeyboardInterrupt around the loop, lets the
    loop end by itself: no event is lost between the queue and the screen.
    """

    def __init__(self) -> None:
        self._handle: Handle | None = None
        self._before: Any = None
        self.happened = False

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def watch(self, handle: Handle) -> Handle:
        """From now on Ctrl-C cancels ``handle``, which is given back."""
        self._handle = handle
        return handle

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.happened or self._handle is None:
            raise KeyboardInterrupt
        self.happened = True
        self._handle.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
