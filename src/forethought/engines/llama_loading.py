"""The loaded model behind the llama.cpp engine: reloads, reservations, closing; thread-safe.

A request reserves the cells of the cache it may need before it starts, and waits while others hold
them: llama.cpp fails a sample in the middle when they run out. A reload waits until nothing runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from forethought.checkpoints.gguf_header import GGUFHeader
from forethought.checkpoints.gguf_memory import kv_bytes_per_token
from forethought.engines.llama_server import LlamaServer, LoadOptions
from forethought.engines.machine import available_memory
from forethought.errors import ForethoughtError, ModelError

MAX_SLOTS = 16
CELL_GRAIN = 256


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How a model is run.

    ``context``: tokens one sample may hold as loaded at first; ``most_context``: what a reload may
    raise it to.
    """

    path: Path
    header: GGUFHeader
    context: int
    most_context: int
    slots: int = 1
    threads: int | None = None
    gpu_layers: int | None = None
    lora: Path | None = None
    reproducible: bool = False


class LoadedLlama:
    """One model in memory, reloaded when a request needs another shape of it."""

    def __init__(self, options: LlamaOptions, report: Callable[[str], None]) -> None:
        self.options = options
        self.context = options.context
        self._report = report
        self._each = max(1, kv_bytes_per_token(options.header))
        self._lock = threading.Condition()
        self._active = 0
        self._reserved = 0
        self._reloading = False
        self._closed = False
        slots = max(1, min(options.slots, MAX_SLOTS))
        slots, cells = self._layout(
            slots, options.context, slots * options.context, options.reproducible
        )
        self._server = LlamaServer(
            LoadOptions(
                path=options.path,
                cells=cells,
                slots=slots,
                threads=options.threads,
                gpu_layers=options.gpu_layers,
                lora=options.lora,
                reproducible=options.reproducible,
            )
        )

    @property
    def server(self) -> LlamaServer:
        """The running llama.cpp; hold it with :meth:`use` or :meth:`reserve` to talk to it."""
        return self._server

    def affordable_context(self) -> int:
        """Tokens one sample could have if the cache took half of the free memory."""
        fits = self._server.options.cells + int(available_memory() * 0.5) // self._each
        return max(self.context, min(self.options.most_context, fits))

    @contextmanager
    def use(self) -> Iterator[LlamaServer]:
        """Hold the server for something that needs no cache. Not from inside ``reserve``."""
        with self._lock:
            self._lock.wait_for(lambda: not self._reloading)
            self._check_open()
            self._active += 1
        try:
            yield self._server
        finally:
            self._release(0)

    @contextmanager
    def reserve(
        self, prompt: int, tokens_each: int, n: int, reproducible: bool, stop: Callable[[], bool]
    ) -> Iterator[int]:
        """Hold the server for a request; gives how many of its samples run side by side.

        Waits for cells that others hold, unless ``stop`` says the request is not wanted any more.
        """
        with self._lock:
            while True:
                self._lock.wait_for(lambda: not self._reloading)
                self._check_open()
                self._make_room(prompt, tokens_each, n, reproducible)
                loaded = self._server.options
                together = min(n, loaded.slots)
                if not loaded.reproducible:
                    together = min(together, (loaded.cells - prompt) // max(1, tokens_each))
                together = max(1, together)
                need = min(loaded.cells, prompt + together * tokens_each)
                if self._reserved + need <= loaded.cells or stop():
                    break
                self._lock.wait(timeout=0.1)
            self._active += 1
            self._reserved += need
        try:
            yield together
        finally:
            self._release(need)

    def close(self) -> None:
        """Free the weights once nothing runs; whoever waits gets an error."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            self._lock.wait_for(lambda: self._active == 0 and not self._reloading)
            self._server.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ModelError("the model was closed; load it again to ask it something.")

    def _release(self, cells: int) -> None:
        with self._lock:
            self._active -= 1
            self._reserved -= cells
            self._lock.notify_all()

    def _layout(self, slots: int, context: int, wanted: int, reproducible: bool) -> tuple[int, int]:
        """Slots and cells of the cache: what is wanted, within half of the free memory.

        Where each slot has a part of its own (reproducible) every part holds a whole context, and
        memory limits the slots; in one unified cache it limits the cells.
        """
        affordable = max(context, int(available_memory() * 0.5) // self._each)
        part = -(-context // CELL_GRAIN) * CELL_GRAIN
        if reproducible:
            slots = max(1, min(slots, affordable // part))
            return slots, slots * part
        cells = max(context, min(wanted, affordable))
        return slots, -(-cells // CELL_GRAIN) * CELL_GRAIN

    def _make_room(self, prompt: int, tokens_each: int, n: int, reproducible: bool) -> None:
        """Reload with more slots, a longer context or for reproducible samples, if need be."""
        loaded = self._server.options
        slots, cells = max(loaded.slots, min(n, MAX_SLOTS)), loaded.cells
        context = max(self.context, prompt + tokens_each)
        reproducible = loaded.reproducible or reproducible
        if (context, slots, reproducible) != (self.context, loaded.slots, loaded.reproducible):
            wanted = max(cells, prompt + min(n, slots) * tokens_each)
            slots, cells = self._layout(slots, context, wanted, reproducible)
        shape = replace(loaded, slots=slots, cells=cells, reproducible=reproducible)
        if shape == loaded:
            self.context = context
            return
        self._report(
            f"loading again for {slots} side by side, {cells} tokens of cache"
            + (", reproducible" if reproducible else "")
        )
        self._reloading = True
        try:
            self._lock.wait_for(lambda: self._active == 0)
            self._check_open()
            self._reload(loaded, shape)
            self.context = context
        finally:
            self._reloading = False
            self._lock.notify_all()

    def _reload(self, loaded: LoadOptions, shape: LoadOptions) -> None:
        """The old load is freed first: two would not fit. If the new one fails it comes back."""
        self._server.close()
        try:
            self._server = LlamaServer(shape)
        except ForethoughtError:
            try:
                self._server = LlamaServer(loaded)
            except ForethoughtError:
                self._closed = True
            raise
