"""How a run looks while it trains: a live panel on a terminal, lines of text elsewhere.

What a model writes is hostile: everything that is not ours passes `visible` and becomes a plain
`rich.text.Text`, never markup. The panel redraws itself from a thread of its own, a few times a
second at most, so that telling it something costs the run a few assignments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, TextIO

from forethought.cli.terminal import is_terminal, visible
from forethought.training.monitor import FilmFrame, Number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REFRESH_PER_SECOND: Final = 4
LINE_EVERY: Final = 10.0
"""Seconds between two lines where there is no terminal."""
THOUGHT_EVERY: Final = 15.0
"""Seconds that a sample thought stays in the panel, so that it can be read."""
THOUGHT_LINE_EVERY: Final = 60.0
"""Seconds between two thoughts where there is no terminal."""
_THOUGHT_CHARACTERS: Final = 600

# What is shown of the metrics, in this order: label, key, format.
_STEP_METRICS: Final = (
    ("loss", "loss", "{:.3f}"),
    ("reward", "reward", "{:.3f}"),
    ("thought", "thought_tokens", "{:.0f} tokens"),
    ("entropy", "entropy", "{:.3f}"),
)
_EVALUATION_METRICS: Final = (("pass@1", "pass_at_1", "{:.1%}"),)
_SMOOTHING: Final = 0.9


@dataclass(slots=True)
class _Stage:
    """Where a stage is. ``first``: the step at which this process took it up, at ``began``."""

    name: str
    step: int
    steps: int
    began: float
    first: int
    tokens_per_second: float = 0.0

    def left(self, now: float) -> float | None:
        """Seconds until it ends at the pace so far, None before the first step."""
        done = self.step - self.first
        return (now - self.began) / done * (self.steps - self.step) if done else None


class TrainDisplay:
    """Implements :class:`forethought.training.monitor.Monitor`; a context manager.

    ``stop``: whether somebody asked to stop. ``clock``: seconds, for tests.
    """

    def __init__(
        self,
        err: TextIO,
        name: str,
        stop: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._err = err
        self._name = visible(name)
        self._stop = stop
        self._clock = clock
        self._began = clock()
        self._stage: _Stage | None = None
        self._metrics: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}
        self._thought: tuple[str, str, float] | None = None
        self._thought_at: float | None = None
        self._line_at = self._began
        self._saved: int | None = None
        self._live: Live | None = None

    def __enter__(self) -> TrainDisplay:
        if is_terminal(self._err) and os.environ.get("TERM", "") != "dumb":
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self._err, highlight=False),
                get_renderable=self._panel,
                refresh_per_second=REFRESH_PER_SECOND,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    # What a run says (Monitor).

    def begin(self, stage: str, first: int, steps: int) -> None:
        """A stage begins at step ``first`` of ``steps``."""
        name = visible(stage)
        self._stage = _Stage(name, first, steps, self._clock(), first)
        self._metrics = {}
        self._line(f"{name}: begins at step {first} of {steps}")

    def step(
        self,
        stage: str,
        step: int,
        metrics: Mapping[str, Number],
        *,
        seconds: float,
        tokens: int,
        phases: Mapping[str, float] | None = None,
    ) -> None:
        """A step is done."""
        now = self._clock()
        if self._stage is None:
            self._stage = _Stage(visible(stage), step, step, now, step)
        at = self._stage
        at.step = step
        speed = tokens / seconds if seconds > 0 else 0.0
        before = at.tokens_per_second or speed
        at.tokens_per_second = _SMOOTHING * before + (1 - _SMOOTHING) * speed
        self._metrics |= {key: float(value) for key, value in metrics.items() if value is not None}
        if now - self._line_at >= LINE_EVERY:
            self._line(self._summary())

    def evaluation(
        self,
        stage: str,
        step: int,
        metrics: Mapping[str, Number],
        frames: list[FilmFrame],
        *,
        seconds: float,
    ) -> None:
        """A held-out evaluation is done."""
        found = {key: float(value) for key, value in metrics.items() if value is not None}
        self._evaluated |= found
        shown = _shown(found, _EVALUATION_METRICS)
        text = "  ".join(f"{label} {value}" for label, value in shown)
        self._line(f"{visible(stage)} {step}: held out  {text}".rstrip())

    def thought(self, stage: str, step: int, question: str, text: str, reward: float) -> None:
        """A sample worth showing; one that came too soon after the last one is not shown."""
        now = self._clock()
        every = THOUGHT_LINE_EVERY if self._live is None else THOUGHT_EVERY
        if self._thought_at is not None and now - self._thought_at < every:
            return
        self._thought_at = now
        self._thought = (_short(question), _short(text), reward)
        if self._live is None:
            said = " ".join(_short(text).split())
            self._line(f"{visible(stage)} {step}: a thought (reward {reward:g}): {said}")

    def saved(self, stage: str, step: int, seconds: float) -> None:
        """The state of this step is on disk."""
        self._saved = step

    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop()

    # Lines.

    def _line(self, text: str) -> None:
        """One line, unless there is a panel, which shows all of it."""
        if self._live is None:
            self._line_at = self._clock()
            self._err.write(f"{text}\n")
            self._err.flush()

    def _summary(self) -> str:
        assert self._stage is not None
        at, now = self._stage, self._clock()
        parts = [f"{at.name} {at.step}/{at.steps}"]
        parts += [f"{label} {value}" for label, value in _shown(self._metrics, _STEP_METRICS)]
        parts += [f"{at.tokens_per_second:,.0f} tokens/s", f"elapsed {duration(now - self._began)}"]
        left = at.left(now)
        if left is not None:
            parts.append(f"left {duration(left)}")
        return "  ".join(parts)

    # The panel. It is drawn by a thread of rich's: it reads what the methods above assigned.

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        at, now = self._stage, self._clock()
        rows: list[RenderableType] = []
        if at is None:
            rows.append(Text(f"preparing  {duration(now - self._began)}"))
        else:
            head = Table.grid(padding=(0, 1))
            done = ProgressBar(total=max(1, at.steps), completed=at.step, width=32)
            head.add_row(Text(at.name), done, Text(f"{at.step}/{at.steps}"))
            left = at.left(now)
            times = f"elapsed {duration(now - self._began)}"
            times += "" if left is None else f"  left of this stage {duration(left)}"
            facts = _shown(self._evaluated, _EVALUATION_METRICS)
            facts += _shown(self._metrics, _STEP_METRICS)
            facts.append(("speed", f"{at.tokens_per_second:,.0f} tokens/s"))
            rows += [head, Text("  ".join(f"{label} {value}" for label, value in facts))]
            rows.append(Text(times + ("" if self._saved is None else f"  saved at {self._saved}")))
        if self._thought is not None:
            question, text, reward = self._thought
            rows += [Text(""), Text(question, style="bold"), Text(text, style="dim")]
            rows.append(Text(f"reward {reward:g}"))
        if self._stop():
            rows.append(Text("stopping after this step; once more leaves at once", style="bold"))
        return Panel(Group(*rows), title=Text(self._name), title_align="left")


def _shown(
    metrics: Mapping[str, float], wanted: Sequence[tuple[str, str, str]]
) -> list[tuple[str, str]]:
    return [(label, form.format(metrics[key])) for label, key, form in wanted if key in metrics]


def _short(text: str) -> str:
    """Foreign text, safe for a terminal, tabs too, and not too long."""
    text = visible(text).replace("\t", " ").strip()
    return text if len(text) <= _THOUGHT_CHARACTERS else text[: _THOUGHT_CHARACTERS - 3] + "..."


def duration(seconds: float) -> str:
    """Seconds for people: 0:07, 12:34, 1:02:03."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
