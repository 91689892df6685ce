"""Decode steps captured as CUDA graphs, one for each batch size and way of drawing.

The first step of a size runs as it is, and is a step like any other: it compiles what has to be
compiled and lets libraries take their workspaces. The second is captured. All graphs share one
pool of memory, since they never run at once and leave nothing in it. They hold addresses: values of
weights may change, their places may not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from forethought.engines.torch.captures import Captures
from forethought.engines.torch.cuda.draw import Mode

_MODES = 4
"""Ways of drawing whose graphs are kept; the longest unused is forgotten first."""
_log = logging.getLogger(__name__)


class Steps:
    """Runs ``step(batch, mode)``, from a graph where it can. Without ``capture``, never."""

    def __init__(
        self, step: Callable[[int, Mode], None], device: torch.device, *, capture: bool = True
    ) -> None:
        self._step = step
        self._capture = capture and device.type == "cuda"
        self._graphs: dict[Mode, dict[int, torch.cuda.CUDAGraph | None]] = {}
        self._captures = Captures(device)

    @property
    def captured(self) -> int:
        """Graphs held now."""
        return sum(
            graph is not None for of_mode in self._graphs.values() for graph in of_mode.values()
        )

    def forget(self) -> None:
        """Drop every graph: what they read or write has moved."""
        self._graphs.clear()
        self._captures.forget()

    def run(self, batch: int, mode: Mode) -> None:
        """One step."""
        if not self._capture:
            self._step(batch, mode)
            return
        of_mode = self._graphs.pop(mode, {})
        self._graphs[mode] = of_mode  # the newest comes last
        if len(self._graphs) > _MODES:
            del self._graphs[next(iter(self._graphs))]
        if batch not in of_mode:
            of_mode[batch] = None
            self._step(batch, mode)
            return
        graph = of_mode[batch]
        if graph is None:
            try:
                graph, _ = self._captures.capture(lambda: self._step(batch, mode))
                of_mode[batch] = graph
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._capture = False
                self.forget()
                reason = str(error).partition("\n")[0]
                _log.warning("Sampling without CUDA graphs, and slower: %s", reason)
                self._step(batch, mode)
                return
        graph.replay()
