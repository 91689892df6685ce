"""The display of a run: lines at their time, a panel on a terminal, and nothing that drives it."""

from __future__ import annotations

import io
import time

import pytest

from forethought.cli.train_display import LINE_EVERY, THOUGHT_LINE_EVERY, TrainDisplay, duration

EVIL = "\x1b]0;taken\x07 [bold red]x[/] \x9b2J\u202e"


class Screen(io.StringIO):
    """A stream that may say it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self.frames = 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.frames += "╭" in text
        return super().write(text)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def step(display: TrainDisplay, number: int, **metrics: float) -> None:
    display.step("rl", number, metrics, seconds=0.5, tokens=1000)


def test_lines_come_every_ten_seconds_and_at_evaluations() -> None:
    screen, clock = Screen(False), Clock()
    with TrainDisplay(screen, "tiny", lambda: False, clock=clock) as display:
        display.begin("rl", 0, 100)
        for number in range(1, 41):
            clock.now += 1
            step(display, number, reward=0.25, entropy=1.5, thought_tokens=33.4)
        display.evaluation("rl", 40, {"pass_at_1": 0.375}, [], seconds=1)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "rl: begins at step 0 of 100"
    assert lines[1] == (
        "rl 10/100  reward 0.250  thought 33 tokens  entropy 1.500  2,000 tokens/s  elapsed 0:10  "
        "left 1:30"
    )
    assert len(lines) == 1 + 40 // LINE_EVERY + 1
    assert lines[-1] == "rl 40: held out  pass@1 37.5%"


def test_a_resumed_stage_counts_the_time_of_its_own_steps() -> None:
    screen, clock = Screen(False), Clock()
    display = TrainDisplay(screen, "tiny", lambda: False, clock=clock)
    display.begin("rl", 90, 100)
    clock.now += 10
    step(display, 91)
    assert screen.getvalue().splitlines()[-1].endswith("left 1:30")


def test_thoughts_are_few_and_harmless_in_lines() -> None:
    screen, clock = Screen(False), Clock()
    display = TrainDisplay(screen, "tiny", lambda: False, clock=clock)
    for _ in range(int(THOUGHT_LINE_EVERY)):
        display.thought("rl", 3, EVIL, f"{EVIL}\nsecond", 0.5)
        clock.now += 1
    assert screen.getvalue() == (
        "rl 3: a thought (reward 0.5): ␛]0;taken␇ [bold red]x[/] \\x9b2J\\u202e second\n"
    )


def test_a_panel_shows_all_of_it_and_nothing_drives_the_terminal() -> None:
    screen = Screen(True)
    with TrainDisplay(screen, EVIL, lambda: True) as display:
        display.begin("rl", 0, 100)
        step(display, 50, reward=0.25)
        display.evaluation("rl", 50, {"pass_at_1": 0.375}, [], seconds=1)
        display.thought("rl", 50, EVIL, EVIL + "说" * 700, 1.0)
        display.saved("rl", 50, 0.1)
    shown = screen.getvalue()
    for text in ("50/100", "reward 0.250", "pass@1 37.5%", "saved at 50", "stopping after this"):
        assert text in shown
    for drives in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert drives not in shown
    assert "[bold red]x[/]" in shown
    assert "␛]0;taken␇" in shown


def test_a_panel_is_drawn_a_few_times_a_second() -> None:
    screen = Screen(True)
    with TrainDisplay(screen, "tiny", lambda: False) as display:
        display.begin("rl", 0, 1_000_000)
        began, number = time.monotonic(), 0
        while time.monotonic() - began < 1.0:
            number += 1
            step(display, number, reward=0.1)
    assert 1 <= screen.frames <= 4 + 3  # and one at the start and the end
    assert number > 1000


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen(True)
    with TrainDisplay(screen, "tiny", lambda: False) as display:
        display.begin("rl", 0, 10)
    assert screen.getvalue() == "rl: begins at step 0 of 10\n"


def test_a_metric_that_is_not_there_is_not_shown() -> None:
    screen, clock = Screen(False), Clock()
    display = TrainDisplay(screen, "tiny", lambda: False, clock=clock)
    display.begin("rl", 0, 10)
    clock.now += LINE_EVERY
    display.step("rl", 1, {"reward": None, "loss": 2}, seconds=0.0, tokens=0)
    assert "reward" not in screen.getvalue()
    assert "loss 2.000" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3725, "1:02:05"), (-1, "0:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
