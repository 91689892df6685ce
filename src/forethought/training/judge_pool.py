"""Verdicts on other cores, while the GPU samples on.

Verifiers are pure Python and would hold up the thread that feeds the GPU. Workers are processes of
their own (`forethought.training.side_process`). A judge that cannot be sent to them (an own reward
of somebody's script, an adapter with an open sandbox) is asked here, and so is whatever a worker
could not do.

What comes back is in the order of the samples and does not depend on how many workers there are.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from forethought.engines.machine import cores
from forethought.engines.phases import SILENT, Phases
from forethought.problems.problem import Problem
from forethought.training.judging import Judge, Judged
from forethought.training.side_process import SideProcess, available, packed

_TOGETHER: Final = 32
"""Samples that a worker gets at once."""
_MOST_WORKERS: Final = 6


@dataclass(frozen=True, slots=True)
class _Task:
    number: int
    problem: Problem
    ids: tuple[int, ...]


def judging_workers() -> int:
    """How many processes judge beside a GPU: some of the cores that this one leaves free."""
    return max(1, min(_MOST_WORKERS, cores()[1] - 2))


class JudgePool:
    """``workers`` processes that judge with copies of ``judge``; 0: nothing is started.

    `submit` samples as they are finished, then `results`. Workers start with the first sample, or
    ahead of it by `start`, and live until `close`. Used from one thread. ``phases`` hear of
    verdicts that are given here, and of waiting for those of workers.
    """

    def __init__(self, judge: Judge, workers: int, phases: Phases = SILENT) -> None:
        self._judge = judge
        self._workers = workers if available() else 0
        self._phases = phases
        self._threads: list[threading.Thread] = []
        self._tasks: queue.SimpleQueue[list[_Task] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[list[tuple[int, Judged]]] = queue.SimpleQueue()
        self._held: list[_Task] = []
        self._submitted = 0
        self._sent = False
        self._failed = False
        """A worker could not do it: the rest is judged here."""

    def submit(self, problem: Problem, ids: Sequence[int]) -> int:
        """Have a sample judged; its number, counted from 0 since the last `results`."""
        number = self._submitted
        self._submitted += 1
        self._held.append(_Task(number, problem, tuple(ids)))
        if len(self._held) >= _TOGETHER:
            self._send()
        return number

    def results(self) -> list[Judged]:
        """What was submitted, judged, in the order of numbers; waits for the last. Raises what the
        judge raised, were it asked here."""
        self._send()
        found: dict[int, Judged] = {}
        with self._phases.phase("verdicts", calls=self._submitted):
            while len(found) < self._submitted:
                found.update(self._done.get())
        self._submitted = 0
        return [found[number] for number in range(len(found))]

    def _send(self) -> None:
        if not self._held:
            return
        tasks, self._held = self._held, []
        self.start()
        if self._threads:
            self._tasks.put(tasks)
        else:
            with self._phases.phase("verdicts", calls=0):
                self._done.put(_judged_by(self._judge, tasks))

    def start(self) -> None:
        """Have workers ready: they take seconds to import what they need."""
        if self._sent or not self._workers:
            return
        self._sent = True
        try:
            function = packed(_Judges(self._judge))
        except Exception as error:  # What a part of a judge raises is its own affair.
            warnings.warn(f"verdicts are given in this process, one by one: {error}", stacklevel=3)
            return
        for _ in range(self._workers):
            thread = threading.Thread(target=self._serve, args=(function,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, function: bytes) -> None:
        """One worker's thread: waits without holding the interpreter."""
        with SideProcess[list[_Task], list[tuple[int, Judged]]](function) as worker:
            while (tasks := self._tasks.get()) is not None:
                if self._failed:
                    self._done.put(_judged_by(self._judge, tasks))
                    continue
                try:
                    worker.send(tasks)
                    reply = worker.receive()
                except (OSError, EOFError):
                    if not self._failed:
                        warnings.warn(
                            f"a judging process ended with code {worker.close()}: "
                            "verdicts are given in this one",
                            stacklevel=1,
                        )
                    self._failed = True
                    reply = _judged_by(self._judge, tasks)
                self._done.put(reply)

    def close(self) -> None:
        """End the workers. The pool can be used again, and starts new ones."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads, self._sent = [], False

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Judges:
    """What a worker does with tasks."""

    judge: Judge

    def __call__(self, tasks: Sequence[_Task]) -> list[tuple[int, Judged]]:
        return _judged_by(self.judge, tasks)


def _judged_by(judge: Judge, tasks: Sequence[_Task]) -> list[tuple[int, Judged]]:
    return [(task.number, judge.judge(task.problem, task.ids)) for task in tasks]
