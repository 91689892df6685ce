"""The clock of a profiled run: seconds, calls and counted work of each phase.

On the CPU a phase takes what the clock says. On CUDA the host is ahead of the device: phases are
bounded by events there, which are read when a step is over, so nothing waits meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import torch

from forethought.engines.phases import PhaseName, Work
from forethought.models.costs import Cost, CostModel

_ON_THE_HOST: Final[frozenset[PhaseName]] = frozenset({"verdicts"})


@dataclass(slots=True)
class Spent:
    """What a phase took: ``seconds`` in all threads together, ``own`` in the thread that drives
    the run, and the work that was counted."""

    seconds: float = 0.0
    own: float = 0.0
    calls: int = 0
    cost: Cost = field(default_factory=Cost)

    def add(self, other: Spent) -> None:
        self.seconds += other.seconds
        self.own += other.own
        self.calls += other.calls
        self.cost += other.cost


class PhaseClock:
    """Implements :class:`forethought.engines.phases.Phases`. Made by the thread that drives the
    run; :meth:`begin` comes before the first phase.

    ``on_phase`` is called where that thread enters a phase.
    """

    def __init__(self, on_phase: Callable[[], None] | None = None) -> None:
        self._costs: CostModel | None = None
        self._events: _Events | None = None
        self._on_phase = on_phase
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._spent: dict[PhaseName, Spent] = {}
        self.named = False
        """Whether phases are spans of a trace, too."""

    def begin(self, device: torch.device, costs: CostModel) -> None:
        """What is computed where."""
        self._costs = costs
        self._events = _Events(device) if device.type == "cuda" else None

    def phase(
        self, name: PhaseName, work: Work | None = None, *, calls: int = 1
    ) -> AbstractContextManager[object]:
        """See the protocol."""
        if self._on_phase is not None and threading.get_ident() == self._owner:
            self._on_phase()
        return _Phase(self, name, work, calls)

    def count(self, name: PhaseName, work: Work) -> None:
        """See the protocol."""
        assert self._costs is not None
        self._add(name, Spent(cost=work(self._costs)))

    def settle(self) -> dict[PhaseName, Spent]:
        """What was spent since the last time. Waits for the device."""
        if self._events is not None:
            for name, seconds in self._events.read():
                self._add(name, Spent(seconds, seconds))
        with self._lock:
            spent, self._spent = self._spent, {}
        return spent

    def _add(self, name: PhaseName, spent: Spent) -> None:
        with self._lock:
            self._spent.setdefault(name, Spent()).add(spent)

    # What a phase asks.

    def events_of(self, name: PhaseName) -> _Events | None:
        """The device's clock, where it is the one that counts."""
        return None if name in _ON_THE_HOST else self._events

    def ended(self, name: PhaseName, seconds: float, work: Work | None, calls: int) -> None:
        own = seconds if threading.get_ident() == self._owner else 0.0
        cost = Cost()
        if work is not None:
            assert self._costs is not None
            cost = work(self._costs)
        self._add(name, Spent(seconds, own, calls, cost))


class _Phase:
    """One phase, while it lasts. Its work is counted when its time is over."""

    def __init__(self, clock: PhaseClock, name: PhaseName, work: Work | None, calls: int) -> None:
        self._clock, self._name, self._work, self._calls = clock, name, work, calls
        self._span = ExitStack()
        self._started = 0.0
        self._begun: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        if self._clock.named:
            self._span.enter_context(torch.profiler.record_function(self._name))
        events = self._clock.events_of(self._name)
        if events is not None:
            self._begun = events.mark()
        self._started = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._started
        events = self._clock.events_of(self._name)
        if events is not None and self._begun is not None:
            events.add(self._name, self._begun, events.mark())
            seconds = 0.0  # the device will tell
        self._span.close()
        self._clock.ended(self._name, seconds, self._work, self._calls)


class _Events:
    """Pairs of events on the device's current stream. Those that were read are used again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[torch.cuda.Event] = []
        self._pairs: list[tuple[PhaseName, torch.cuda.Event, torch.cuda.Event]] = []

    def mark(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def add(self, name: PhaseName, begun: torch.cuda.Event, ended: torch.cuda.Event) -> None:
        self._pairs.append((name, begun, ended))

    def read(self) -> list[tuple[PhaseName, float]]:
        """Seconds of each pair, once the device has come by the last."""
        if self._pairs:
            self._pairs[-1][2].synchronize()
        found = [(name, begun.elapsed_time(ended) / 1e3) for name, begun, ended in self._pairs]
        for _, begun, ended in self._pairs:
            self._free += [begun, ended]
        self._pairs.clear()
        return found
