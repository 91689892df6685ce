"""Work on a GPU captured as CUDA graphs that share one pool of memory.

Graphs of one pool never run at once and leave nothing in it that another may overwrite but what
they return. They hold addresses: values may change, their places may not.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


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


class Captures:
    """Makes graphs on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def forget(self) -> None:
        """The graphs made so far are no longer used: the next begin a pool of their own."""
        self._pool = None

    def capture(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """A graph of what ``work`` does, which is not done by this, and what it returns: tensors
        that each replay fills. Raises what ``work`` raises, RuntimeError for what no graph holds.
        """
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
                result = work()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                self._free_generator()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return graph, result

    def _free_generator(self) -> None:
        """A capture that breaks off leaves torch's generator of the device believing in it, and
        all that draws from it would raise: a copy of its state does not."""
        index = self._device.index
        at = torch.cuda.current_device() if index is None else index
        generator = torch.cuda.default_generators[at]
        generator.graphsafe_set_state(generator.clone_state())
