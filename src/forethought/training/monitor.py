"""What a run says while it works: one protocol, between the stages and whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Number: TypeAlias = "float | int | None"


@dataclass(frozen=True, slots=True)
class FilmFrame:
    """One fixed held-out problem as the model of one moment answers it."""

    stage: str
    step: int
    number: int
    """Which problem of the film, from 0."""
    question: str
    reference: str
    family: str
    level: int
    language: str
    text: str
    """The whole continuation, tags included."""
    correct: bool
    truncated: bool
    tokens: int


class Monitor(Protocol):
    """Receives what happens, in order. Implementations must not slow training down."""

    def begin(self, stage: str, first: int, steps: int) -> None:
        """A stage begins (or goes on) at step ``first`` of ``steps``."""

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
        """An optimiser step is done: its metrics (no clock times), and what it took: ``seconds``
        in all, ``tokens`` trained or sampled, seconds of each phase by name."""

    def evaluation(
        self,
        stage: str,
        step: int,
        metrics: Mapping[str, Number],
        frames: list[FilmFrame],
        *,
        seconds: float,
    ) -> None:
        """A held-out evaluation is done; ``frames`` are the film's."""

    def thought(self, stage: str, step: int, question: str, text: str, reward: float) -> None:
        """A sample worth showing now and then."""

    def saved(self, stage: str, step: int, seconds: float) -> None:
        """The state of this step is on disk."""

    def stopping(self) -> bool:
        """Whether somebody asked to stop (Ctrl-C, SIGTERM): finish the step, save, leave."""


class Silent:
    """A monitor that shows nothing and never stops."""

    def begin(self, stage: str, first: int, steps: int) -> None: ...
    def step(self, *args: object, **named: object) -> None: ...
    def evaluation(self, *args: object, **named: object) -> None: ...
    def thought(self, *args: object) -> None: ...
    def saved(self, *args: object) -> None: ...
    def stopping(self) -> bool:
        return False
