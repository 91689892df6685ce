"""Ctrl-C: while a model writes it stops within a token, and before that it is not lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback of the import
system, a ``__del__`` or a library's blanket ``except`` it is printed or swallowed, and the program
would go on as if nobody had pressed anything. So the handler of :func:`remembered` also writes the
press down, and every verb, a chat, a generation and a run ask :func:`raise_if_pressed` before they
begin.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from forethought.engines.protocol import Handle

# Not an Event: its lock would be taken twice by a handler that interrupts itself.
_pressed = False


def press(number: int, frame: FrameType | None) -> NoReturn:
    """The handler: remember, and raise."""
    global _pressed
    _pressed = True
    raise KeyboardInterrupt


@contextmanager
def remembered() -> Iterator[None]:
    """While entered, a Ctrl-C is raised as ever, and remembered until :func:`forget`."""
    forget()
    main_thread = threading.current_thread() is threading.main_thread()
    # whoever started us may have had Ctrl-C ignored (nohup, a shell's background job)
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pressed() -> bool:
    """Was Ctrl-C pressed, and not answered yet?"""
    return _pressed


def forget() -> None:
    """The Ctrl-C was answered, and what comes next is new work."""
    global _pressed
    _pressed = False


@contextmanager
def nothing_made_of_ctrl_c() -> Iterator[None]:
    """While entered, an error that a library made of a Ctrl-C is KeyboardInterrupt again."""
    try:
        yield
    except Exception:
        if _pressed:
            raise KeyboardInterrupt from None
        raise


def raise_if_pressed() -> None:
    """Raise the KeyboardInterrupt that something swallowed; nothing if there was none."""
    if _pressed:
        raise KeyboardInterrupt


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
        raise_if_pressed()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def watch(self, handle: Handle) -> Handle:
        """From now on Ctrl-C cancels ``handle``, which is given back."""
        self._handle = handle
        if pressed():
            handle.cancel()
            raise KeyboardInterrupt
        return handle

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.happened or self._handle is None:
            press(number, frame)
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
