"""Traces of a run by torch's profiler: a few steps in the middle of each stage.

A trace under way slows everything down and grows with what it sees, so it ends after so many steps
or seconds, whichever comes first. A file that is too large all the same is not kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

_STEPS: Final = 3
_FEW: Final = 12
"""Of a stage of fewer steps one is traced; of a single one none: its figures matter more."""
_SECONDS: Final = 1.0
_MOST_BYTES: Final = 32 << 20


@dataclass(slots=True)
class _Plan:
    """What is still to be traced of a stage: from step ``first`` on, ``left`` steps."""

    first: int
    left: int


class Tracer:
    """Writes ``trace-STAGE.json.gz`` into ``folder`` (for chrome://tracing or Perfetto).

    ``aside``: seconds that starting, ending and writing took so far. ``notes``: what did not work.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._activities = [ProfilerActivity.CPU]
        self._plans: dict[str, _Plan] = {}
        self._running: profile | None = None
        self._stage = ""
        self._until = 0.0
        self.files: list[str] = []
        self.notes: list[str] = []
        self.aside = 0.0

    def begin(self, device: torch.device) -> None:
        """Trace the device, too."""
        if device.type != "cuda":
            return
        self._activities.append(ProfilerActivity.CUDA)
        version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
        if version < (12, 6):
            # Before, captured graphs crash once the profiler has been torn down; torch.profiler
            # knows it of torch.compile's graphs alone.
            os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
            os.environ.setdefault("TEARDOWN_CUPTI", "0")

    @property
    def running(self) -> bool:
        return self._running is not None

    def due(self, stage: str, number: int, steps: int, *, whole: bool) -> bool:
        """Whether the step after ``number`` others, of ``steps``, is to be traced. The middle is
        that of what this process computes. ``whole``: the step begins with a rollout, if the stage
        has any: that is where a trace begins."""
        if stage not in self._plans:
            ahead = steps - number
            count = _STEPS if ahead >= _FEW else int(ahead > 1)
            self._plans[stage] = _Plan(number + (ahead - count) // 2, count)
        plan = self._plans[stage]
        return plan.left > 0 and number >= plan.first and (whole or self.running)

    @contextmanager
    def step(self, stage: str) -> Iterator[None]:
        """A step that is due."""
        plan = self._plans[stage]
        if not self.running:
            self._start(stage)
        plan.left -= 1
        try:
            yield
        finally:
            if not plan.left:
                self.stop()

    def watch(self) -> None:
        """End the trace if its time is over."""
        if self.running and time.perf_counter() > self._until:
            self.stop()

    def stop(self) -> None:
        """End the trace, if there is one, and write it; there is no other of its stage."""
        running, self._running = self._running, None
        if running is None:
            return
        self._plans[self._stage].left = 0
        started = time.perf_counter()
        name = f"trace-{self._stage}.json.gz"
        try:
            running.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(self._folder / name))
            if (self._folder / name).stat().st_size <= _MOST_BYTES:
                self.files.append(name)
            else:
                (self._folder / name).unlink()
                self.notes.append(f"{name} was larger than {_MOST_BYTES >> 20} MiB: not kept")
        except (RuntimeError, OSError) as error:  # a run is not lost to it
            self.notes.append(f"{name}: {_first_line(error)}")
        self.aside += time.perf_counter() - started

    def _start(self, stage: str) -> None:
        started = time.perf_counter()
        self._stage = stage
        # Its first use reads this; else its start and end would be lines among ours.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        running = profile(activities=self._activities)
        try:
            running.start()
            self._running = running
        except RuntimeError as error:
            self.notes.append(f"no trace of {stage}: {_first_line(error)}")
        self._until = time.perf_counter() + _SECONDS
        self.aside += time.perf_counter() - started


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
