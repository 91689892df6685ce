"""What a rank beside the first has in place of a run's folder and monitor: it reads, and is still.

Every rank goes the same way through a run; the first alone writes, and tells what happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from forethought.checkpoints.folder import JSON
from forethought.training.monitor import Monitor, Silent
from forethought.training.run_folder import MARKS, RunFolder
from forethought.training.state_store import SavedState


class FollowedFolder(RunFolder):
    """The folder of a run that another process owns. What is appended or saved is left out."""

    def append_metrics(self, line: Mapping[str, JSON]) -> None: ...

    def append_timing(self, line: Mapping[str, JSON]) -> None: ...

    def append_film(self, line: Mapping[str, JSON]) -> None: ...

    def save(
        self,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        facts: Mapping[str, JSON],
        *,
        pinned: bool = False,
    ) -> Path:
        return self.path

    def restore(self) -> SavedState | None:
        """The newest verified state: that of the owner, who has looked before."""
        state = self.states.latest()
        if state is None:
            return None
        facts = {key: value for key, value in state.facts.items() if key != MARKS}
        return replace(state, facts=facts)

    def finish(self) -> None: ...


class Follower(Silent):
    """Tells ``monitor`` nothing, but asks it whether to stop: a rank that is asked asks all."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def stopping(self) -> bool:
        return self._monitor.stopping()
