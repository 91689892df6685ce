"""Decode steps captured as CUDA graphs, one for each batch size and way of drawing.

The first step of a size runs as it is, and is a step like any other: it compiles what has to be
compiled and lets libraries take their workspaces. The second is captured. All graphs share one
pool of memory, since they never run at once and leave nothing in it. They hold addresses: values of
weights may change, their places may not.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from forethought.engines.torch.cuda.draw import Mode

_MODES = 4
"""Ways of drawing whose graphs are kept; the longest unused is forgotten first."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without garbage collection: to destroy another graph meanwhile would end the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Steps:
    """Runs ``step(batch, mode)``, from a graph where it can. Without ``capture``, never."""

    def __init__(
        self, step: Callable[[int, Mode], None], device: torch.device, *, capture: bool = True
    ) -> None:
        self._step = step
        self._capture = capture and device.type == "cuda"
        self._graphs: dict[Mode, dict[int, torch.cuda.CUDAGraph | None]] = {}
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @property
    def captured(self) -> int:
        """Graphs held now."""
        return sum(
            graph is not None for of_mode in self._graphs.values() for graph in of_mode.values()
        )

    def forget(self) -> None:
        """Drop every graph: what they read or write has moved."""
        self._graphs.clear()
        self._pool = None

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
                graph = of_mode[batch] = self._captured(batch, mode)
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

    def _captured(self, batch: int, mode: Mode) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _no_collection():
            # Other threads may go on using the device (a verifier's, a logger's).
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(batch, mode)
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return graph
