"""TensorBoard files beside metrics.jsonl, for those who look at their runs there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from forethought.errors import UserError
from forethought.training.monitor import Number
from forethought.training.run_files import TENSORBOARD


class Board(Protocol):
    """Where figures go."""

    def write(self, stage: str, step: int, metrics: Mapping[str, Number]) -> None:
        """Figures of one step; ``step`` counts over the whole run."""


class NoBoard:
    """Nowhere."""

    def write(self, stage: str, step: int, metrics: Mapping[str, Number]) -> None: ...


class _Files:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, stage: str, step: int, metrics: Mapping[str, Number]) -> None:
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


@contextmanager
def open_board(run: Path, wanted: bool) -> Iterator[Board]:
    """A board in the run's folder if it is wanted. UserError where tensorboard is not installed.

    A resumed run writes a further file; TensorBoard shows the newest value of a step.
    """
    if not wanted:
        yield NoBoard()
        return
    try:
        board = _Files(run / TENSORBOARD)
    except ModuleNotFoundError:
        raise UserError(
            "--tensorboard needs the package tensorboard; install it with: pip install tensorboard"
        ) from None
    try:
        yield board
    finally:
        board.close()
