"""Verdicts on other cores, while the GPU samples on.

Verifiers are pure Python and would hold up the thread that feeds the GPU. Workers are processes of
their own that run this module: they import nothing of the caller's program, which need not be
written for being imported again. A judge that cannot be sent to them (an own reward of somebody's
script, an adapter with an open sandbox) is asked here, and so is whatever a worker could not do.

What comes back is in the order of the samples and does not depend on how many workers there are.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Final

from forethought.engines.machine import cores
from forethought.engines.phases import SILENT, Phases
from forethought.problems.problem import Problem
from forethought.training.judging import Judge, Judged

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

    `submit` samples as they are finished, then `results`. Workers start with the first sample and
    live until `close`. Used from one thread. ``phases`` hear of verdicts that are given here, and
    of waiting for those of workers.
    """

    def __init__(self, judge: Judge, workers: int, phases: Phases = SILENT) -> None:
        self._judge = judge
        self._workers = workers
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
        if self._workers and not self._sent:
            self._start()
        if self._threads:
            self._tasks.put(tasks)
        else:
            with self._phases.phase("verdicts", calls=0):
                self._done.put(_judged_by(self._judge, tasks))

    def _start(self) -> None:
        self._sent = True
        try:
            packed = bytes(ForkingPickler.dumps(self._judge))
        except Exception as error:  # What a part of a judge raises is its own affair.
            warnings.warn(f"verdicts are given in this process, one by one: {error}", stacklevel=3)
            return
        for _ in range(self._workers):
            thread = threading.Thread(target=self._serve, args=(packed,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, packed: bytes) -> None:
        """One worker's thread: waits without holding the interpreter."""
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "forethought.training.judge_pool", str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (
            subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment) as process,
            ours,
        ):
            theirs.close()  # So that the end of the worker is the end of the pipe.
            greeted = False
            while (tasks := self._tasks.get()) is not None:
                try:
                    if self._failed:
                        self._done.put(_judged_by(self._judge, tasks))
                        continue
                    if not greeted:
                        ours.send_bytes(packed)
                        greeted = True
                    ours.send(tasks)
                    reply: list[tuple[int, Judged]] = ours.recv()
                except (OSError, EOFError) as error:
                    if not self._failed:
                        warnings.warn(
                            "a judging process failed "
                            f"({error or f'it ended with {process.wait()}'}): "
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


def _judged_by(judge: Judge, tasks: Sequence[_Task]) -> list[tuple[int, Judged]]:
    return [(task.number, judge.judge(task.problem, task.ids)) for task in tasks]


def _work(calls: Connection) -> None:
    """A worker: the judge first, then samples until there are no more."""
    with suppress(EOFError):
        judge: Judge = calls.recv()
        while True:
            calls.send(_judged_by(judge, calls.recv()))


if __name__ == "__main__":
    # The classes that travel are those of the module, not of `__main__`.
    from forethought.training.judge_pool import _work as work

    with Connection(int(sys.argv[1])) as calls:
        work(calls)
