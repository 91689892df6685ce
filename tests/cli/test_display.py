"""The live display against a recorded stream, into streams that say they are terminals."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import replace

import pytest

from forethought.cli.display import MARKER, Display, summary, summary_of
from forethought.cli.terminal import DIM, RESET
from forethought.engines.handle import StreamHandle
from forethought.engines.protocol import (
    AnswerDelta,
    Event,
    Finished,
    Sample,
    ThoughtDelta,
    Timings,
    Usage,
)


class Screen(io.StringIO):
    """A stream that may be a terminal, and remembers when what was flushed."""

    def __init__(self, terminal: bool, log: list[tuple[float, str]] | None = None) -> None:
        super().__init__()
        self._terminal = terminal
        self._log = log
        self.writes = 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.writes += 1
        if self._log is not None:
            self._log.append((time.perf_counter(), text))
        return super().write(text)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def sample(thought: str, answer: str, index: int = 0) -> Sample:
    return Sample(
        index=index,
        seed=1,
        thought=thought,
        answer=answer,
        final_answer=None,
        text=f"{thought}</think>{answer}",
        stop_reason="stop",
        thought_end="closed",
        usage=Usage(5, 128, 42),
        timings=Timings(0.5, 1.5, 3.2, 53.1),
    )


def events(thought: list[str], answer: list[str], index: int = 0) -> list[Event]:
    done = Finished(sample("".join(thought), "".join(answer), index))
    return [
        *(ThoughtDelta(index, text, (7,), 1) for text in thought),
        *(AnswerDelta(index, text, (8,), 1) for text in answer),
        done,
    ]


def show(batches: list[list[Event]], *, out: bool, err: bool, **options) -> tuple[str, str]:
    stdout, stderr = Screen(out), Screen(err)
    Display(stdout, stderr, **options).show(batches)
    return stdout.getvalue(), stderr.getvalue()


def test_pipes_get_the_plain_sides() -> None:
    stream = events(["\nHm", ", yes.\n"], ["\n\n", "Ye", "s."])
    for batches in ([stream], [[event] for event in stream]):
        out, err = show(batches, out=False, err=False)
        assert out == "Yes.\n"
        assert err == f"{MARKER}\nHm, yes.\n"


def test_a_terminal_gets_a_dim_thought_and_a_blank_line() -> None:
    out, err = show([[e] for e in events(["Hm."], ["\n\nYes."])], out=True, err=True)
    assert out == "Yes.\n"
    assert err == f"{DIM}{MARKER}\nHm.{RESET}\n\n"


def test_no_color_and_dumb_terminals_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in show([events(["Hm."], ["Y"])], out=True, err=True)[1]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in show([events(["Hm."], ["Y"])], out=True, err=True)[1]


def test_hostile_text_is_shown_on_a_terminal_and_kept_in_a_pipe() -> None:
    stream = [[e] for e in events(["\x1b]0;t\x07"], ["\x1b", "[2J\u202e"])]
    out, err = show(stream, out=True, err=True)
    assert out == "␛[2J\\u202e\n"
    assert "\x1b]" not in err
    assert "\x07" not in err
    out, _ = show(stream, out=False, err=True)
    assert out == "\x1b[2J\u202e\n"


def test_a_hidden_thought_leaves_a_counter_only_on_a_terminal() -> None:
    stream = [[e] for e in events(["a", "b", "c"], ["Yes."])]
    assert show(stream, out=False, err=False, hide_thought=True) == ("Yes.\n", "")
    out, err = show(stream, out=True, err=True, hide_thought=True)
    assert out == "Yes.\n"
    assert "thinking: 3 tokens" in err
    assert err.endswith("\r\x1b[K")
    assert "\n" not in err


def test_quiet_writes_no_text() -> None:
    assert show([events(["a"], ["b"])], out=False, err=False, quiet=True) == ("", "")


def test_a_bare_continuation_keeps_its_space() -> None:
    assert show([events([], [" world\n"])], out=False, err=False, exact=True)[0] == " world\n"


def test_no_answer_gives_no_output() -> None:
    assert show([events(["a"], [])], out=False, err=False)[0] == ""


def test_several_samples_come_one_after_the_other() -> None:
    first, second = events(["t0"], ["A", "0"], 0), events(["t1"], ["A", "1"], 1)
    mixed = [event for pair in zip(second, first, strict=True) for event in pair]
    out, err = show([[event] for event in mixed], out=False, err=False, samples=2)
    assert out == "A0\n\nA1\n"
    assert err.index("t0") < err.index("1 of 2: ") < err.index("t1") < err.index("2 of 2: ")


def test_one_write_for_each_batch() -> None:
    stream = events([f"t{i} " for i in range(100)], [f"a{i} " for i in range(100)])
    out, err = Screen(False), Screen(False)
    Display(out, err).show([stream])
    assert out.writes == 2  # the text, and the line break at its end
    assert err.writes == 2


def test_never_more_than_eight_tokens_behind() -> None:
    """Tokens every 2 ms and a terminal that takes 5 ms a write: batches grow, the lag does not."""
    log: list[tuple[float, str]] = []
    emitted: list[float] = []

    class Slow(Screen):
        def flush(self) -> None:
            time.sleep(0.005)

    def work(handle: StreamHandle) -> None:
        for _ in range(200):
            emitted.append(time.perf_counter())
            handle.emit(ThoughtDelta(0, "x", (7,), 1))
            time.sleep(0.002)
        handle.emit(Finished(sample("x" * 200, "")))

    screen = Slow(False, log)
    Display(Screen(False), screen).show(StreamHandle(work).batches())
    shown = 0
    behind = []
    for moment, text in log:
        behind.append(sum(t <= moment for t in emitted) - shown)
        shown += text.count("x")
    assert shown == 200
    # tokens that were there when a write began, and were not yet written: those of one batch
    assert sorted(behind)[int(len(behind) * 0.9)] <= 8


def test_the_summary_is_one_line_in_words() -> None:
    assert summary(sample("", "")) == (
        "thought 128 tokens · answer 42 tokens · 3.2 s · 53 tokens/s · stopped: end of answer"
    )
    cut = replace(sample("", ""), stop_reason="length", thought_end="cut", usage=Usage(5, 1, 0))
    assert summary(cut).startswith("thought 1 token · answer 0 tokens")
    assert summary(cut).endswith("stopped: token limit, inside the thought")
    for end, words in {"budget": "at its budget", "asked": "on request"}.items():
        assert words in summary(replace(sample("", ""), thought_end=end))
    for reason, words in {"cancelled": "cancelled", "stop_string": "stop string"}.items():
        assert words in summary(replace(sample("", ""), stop_reason=reason))
    assert "256 tokens" in summary_of([sample("", ""), sample("", "", 1)])


def test_an_error_of_the_engine_comes_through() -> None:
    def work(handle: StreamHandle) -> None:
        handle.emit(ThoughtDelta(0, "Hm", (7,), 1))
        raise RuntimeError("boom")

    err = Screen(False)
    with pytest.raises(RuntimeError, match="boom"):
        Display(Screen(False), err).show(StreamHandle(work).batches())
    assert "Hm" in err.getvalue()
    assert threading.active_count() < 20
