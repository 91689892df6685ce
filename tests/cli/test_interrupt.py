"""A Ctrl-C that something swallowed is answered all the same, by whatever begins next."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from forethought.cli import main as program
from forethought.cli.interrupt import StopOnInterrupt, forget, pressed, remembered
from forethought.cli.train import StopAfterStep


def _swallowed_press() -> None:
    """Ctrl-C inside a callback of the import system, say."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


class _Handle:
    cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Run the program with this in the place of what a command line asks for."""

    def run(work: Callable[[], int], parsing: Callable[[], None] = lambda: None) -> int:
        def parsed(arguments: list[str]) -> Any:
            parsing()
            return work

        monkeypatch.setattr(program, "_parsed", parsed)
        return program.main(["ask"])

    return run


def test_swallowed_while_the_verb_is_imported(verb: Any) -> None:
    ran = []
    assert verb(lambda: ran.append(1) or 0, _swallowed_press) == 130
    assert not ran


def test_swallowed_while_a_model_loads(verb: Any) -> None:
    def ask() -> int:
        _swallowed_press()
        with StopOnInterrupt():
            raise AssertionError("nothing may be submitted any more")

    assert verb(ask) == 130


def test_swallowed_while_a_request_is_submitted(verb: Any) -> None:
    handle = _Handle()

    def ask() -> int:
        with StopOnInterrupt() as interrupt:
            _swallowed_press()
            interrupt.watch(handle)  # type: ignore[arg-type]
        raise AssertionError("nothing may be shown any more")

    assert verb(ask) == 130
    assert handle.cancelled == 1


def test_swallowed_before_a_run_begins(verb: Any) -> None:
    def train() -> int:
        _swallowed_press()
        with StopAfterStep():
            raise AssertionError("no step may begin any more")

    assert verb(train) == 130


def test_a_library_that_makes_an_error_of_it(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def ask() -> int:
        _swallowed_press()
        raise ImportError("initialization failed")

    assert verb(ask) == 130
    assert capsys.readouterr().err == ""


def test_the_handler_calls_nothing(verb: Any) -> None:
    """It may interrupt itself, where a wrapper forwards a signal that came here too: a lock taken
    in it would be waited for by its own thread, for ever."""
    called = []

    def trace(frame: Any, event: str, argument: object) -> Any:
        called.append(frame.f_code.co_name)

    def ask() -> int:
        sys.settrace(trace)
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            sys.settrace(None)
        raise AssertionError("it was interrupted")

    assert verb(ask) == 130
    assert called == ["press"]


def test_a_chat_answers_the_question_after_a_swallowed_press(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from forethought.cli import chat, chat_commands

    handle = _Handle()
    answered = []

    def run_line(session: object, line: str) -> None:
        if line == "/model other":
            _swallowed_press()
            raise ImportError("initialization failed")
        with StopOnInterrupt() as interrupt:
            interrupt.watch(handle)  # type: ignore[arg-type]
            answered.append(line)

    lines = ["/model other", "What is 2+2?"]
    monkeypatch.setattr(chat_commands, "run_line", run_line)
    monkeypatch.setattr(chat, "_typed_lines", lambda session: iter(lines))
    with remembered():
        assert chat._converse(object(), interactive=True) == 0  # type: ignore[arg-type]
    assert answered == ["What is 2+2?"]
    told = capsys.readouterr().err
    assert told.count("Stopped.") == 1
    assert "bug" not in told


def test_what_was_answered_does_not_come_again(verb: Any) -> None:
    """In a chat the first Ctrl-C stops one answer, and the next question is answered."""
    handle = _Handle()

    def chat() -> int:
        _swallowed_press()
        forget()
        with StopOnInterrupt() as interrupt:
            interrupt.watch(handle)  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGINT)
            assert interrupt.happened
        with StopOnInterrupt() as interrupt:
            assert not interrupt.happened
        return 0

    assert verb(chat) == 0
    assert handle.cancelled == 1
    # nor does one of an earlier call of the program
    assert verb(lambda: _swallowed_press() or 0) == 0
    assert verb(lambda: 0) == 0


def test_an_ignored_ctrl_c_stays_ignored(verb: Any) -> None:
    """As a shell's background job, or under nohup."""

    def ask() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        assert not pressed()
        return 0

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert verb(ask) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handler_is_given_back() -> None:
    with remembered():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
