"""Where a run's time goes: ``profile/`` in its folder, for a run that was asked for it.

``phases.json`` has every figure, ``phases.txt`` the same as a table, ``trace-STAGE.json.gz`` a few
steps of each stage as torch's profiler saw them. Nothing of it reaches the run's metrics or
weights.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import torch

from forethought.engines.machine import processor
from forethought.engines.phases import SILENT, PhaseName, Phases
from forethought.errors import ModelError
from forethought.models.causal_lm import CausalLM
from forethought.models.costs import CostModel
from forethought.recipes.ceilings import Ceilings, measure_ceilings
from forethought.recipes.phase_clock import PhaseClock, Spent
from forethought.recipes.profile_figures import ProfileFigures, SectionFigures
from forethought.recipes.recipe import Recipe
from forethought.recipes.tracing import Tracer
from forethought.training.run_files import PHASES_JSON, PHASES_TEXT, PROFILE

_STEPS: Final = "steps"
_EVALUATIONS: Final = "evaluations"


class Profiler(Protocol):
    """What a run tells its profile."""

    phases: Phases

    def begin(self, recipe: Recipe, network: CausalLM, vocabulary: int) -> None:
        """Before anything is computed. ``vocabulary``: rows of the head that are tokens."""

    def step(
        self, stage: str, number: int, steps: int, *, whole: bool
    ) -> AbstractContextManager[object]:
        """Within it, the step after ``number`` others of ``steps``. ``whole``: it does not begin
        within a rollout."""

    def evaluation(self, stage: str) -> AbstractContextManager[object]:
        """Within it, a held-out evaluation of a stage."""

    def finish(self) -> None:
        """Write what was found; comes at the end, whatever the end is."""


class NoProfile:
    """Nobody asked."""

    phases: Phases = SILENT

    def begin(self, recipe: Recipe, network: CausalLM, vocabulary: int) -> None: ...

    def step(
        self, stage: str, number: int, steps: int, *, whole: bool
    ) -> AbstractContextManager[object]:
        return nullcontext()

    def evaluation(self, stage: str) -> AbstractContextManager[object]:
        return nullcontext()

    def finish(self) -> None: ...


NO_PROFILE: Final = NoProfile()


@dataclass(slots=True)
class _Section:
    """Seconds of each step of a stage, or of each of its evaluations, and what was spent in all."""

    seconds: list[float] = field(default_factory=list)
    spent: dict[PhaseName, Spent] = field(default_factory=dict)

    def add(self, seconds: float, spent: dict[PhaseName, Spent]) -> None:
        self.seconds.append(seconds)
        for name, one in spent.items():
            self.spent.setdefault(name, Spent()).add(one)


class Profile:
    """Implements :class:`Profiler` for a run in ``folder``. An earlier part of the run that was
    profiled keeps its files, in a folder of another name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PROFILE
        self._began = time.perf_counter()
        self._tracer = Tracer(self.folder)
        self._clock = PhaseClock(self._tracer.watch)
        self.phases: Phases = self._clock
        self._sections: dict[tuple[str, str], _Section] = {}
        self._traced = 0
        self._processes = 1
        self._of: tuple[Recipe, CausalLM, Ceilings] | None = None

    def begin(self, recipe: Recipe, network: CausalLM, vocabulary: int) -> None:
        _make_way(self.folder)
        device, dtype = network.device, network.dtype
        costs = CostModel(network.config, value_bytes=dtype.itemsize, vocabulary=vocabulary)
        self._clock.begin(device, costs)
        self._tracer.begin(device)
        self._processes = _processes()
        self._of = recipe, network, measure_ceilings(device, dtype)

    @contextmanager
    def step(self, stage: str, number: int, steps: int, *, whole: bool) -> Iterator[None]:
        if not self._tracer.due(stage, number, steps, whole=whole):
            with self._timed(stage, _STEPS):
                yield
            return
        # Under the trace everything takes longer: it is seen there, and not counted here.
        self._traced += 1
        self._clock.named = True
        try:
            with self._tracer.step(stage):
                yield
        finally:
            self._clock.named = False
            self._clock.settle()

    def evaluation(self, stage: str) -> AbstractContextManager[object]:
        self._tracer.stop()
        return self._timed(stage, _EVALUATIONS)

    @contextmanager
    def _timed(self, stage: str, part: str) -> Iterator[None]:
        started, aside = time.perf_counter(), self._tracer.aside
        yield
        spent = self._clock.settle()
        seconds = time.perf_counter() - started - (self._tracer.aside - aside)
        self._sections.setdefault((stage, part), _Section()).add(seconds, spent)

    def finish(self) -> None:
        if self._of is None:
            return
        self._tracer.stop()
        found = self._figures(*self._of)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / PHASES_JSON).write_text(found.as_json(), encoding="utf-8")
            (self.folder / PHASES_TEXT).write_text(found.as_text(), encoding="utf-8")
        except OSError as error:
            raise ModelError(
                f"{self.folder}: the profile cannot be written ({error.strerror}); the run itself "
                "does not depend on it."
            ) from error

    def _in_order(self) -> list[tuple[tuple[str, str], _Section]]:
        """Stage by stage, its steps first."""
        stages = [stage for stage, _ in self._sections]
        return sorted(
            self._sections.items(), key=lambda one: (stages.index(one[0][0]), one[0][1] != _STEPS)
        )

    def _figures(self, recipe: Recipe, network: CausalLM, most: Ceilings) -> ProfileFigures:
        device = network.device
        on_cuda = device.type == "cuda"
        return ProfileFigures(
            recipe=recipe.name,
            hardware=torch.cuda.get_device_name(device) if on_cuda else processor(),
            device=str(device),
            dtype=str(network.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            lanes=recipe.lanes,
            processes=self._processes,
            torch=torch.__version__,
            ceilings=most,
            seconds=time.perf_counter() - self._began,
            sections=tuple(
                SectionFigures.of(stage, part, one.seconds, one.spent, most)
                for (stage, part), one in self._in_order()
            ),
            traced_steps=self._traced,
            traces=tuple(self._tracer.files),
            notes=tuple(self._tracer.notes),
        )


def _processes() -> int:
    """How many compute the run together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def _make_way(folder: Path) -> None:
    """What an earlier part of the run left becomes ``profile-1``, ``profile-2`` and so on."""
    if not folder.exists():
        return
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    folder.rename(next(name for name in names if not name.exists()))
