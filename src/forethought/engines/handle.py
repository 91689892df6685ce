"""The handle every engine returns: a worker thread that emits events, and one consumer.

The queue between them is unbounded and the consumer takes all that waits at once
(:meth:`StreamHandle.batches`), so a slow display draws fewer, larger pieces instead of lagging.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from forethought.engines.protocol import Event, Finished, Sample


class StreamHandle:
    """Runs ``work(handle)`` on a thread of its own and hands its events to one consumer.

    ``work`` calls :meth:`emit` for each event, looks at :attr:`cancelled` and :attr:`asked` (how
    often ``answer_now`` was called) between tokens, and returns when it has emitted one
    ``Finished`` for each sample. What it raises is raised again in the consumer.

    ``wake`` is called by :meth:`cancel` and :meth:`answer_now` to interrupt a blocking read of the
    worker (closing a socket); it must be safe from any thread.
    """

    def __init__(
        self, work: Callable[[StreamHandle], None], wake: Callable[[], None] | None = None
    ) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._work = work
        self._wake = wake
        self._error: BaseException | None = None
        self._samples: dict[int, Sample] = {}
        self._ended = False
        self.cancelled = False
        self.asked = 0
        self._thread = threading.Thread(target=self._run, name="forethought-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        finally:
            self._events.put(None)

    # -- producer

    def emit(self, event: Event) -> None:
        """Hand one event to the consumer. Never blocks."""
        self._events.put(event)

    # -- consumer

    def __iter__(self) -> Iterator[Event]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Event]]:
        """All waiting events at once, at least one. Raises what the engine raised."""
        while not self._ended:
            batch: list[Event] = []
            event = self._events.get()
            while True:
                if event is None:
                    self._ended = True
                    break
                if isinstance(event, Finished):
                    self._samples[event.sample.index] = event.sample
                batch.append(event)
                try:
                    event = self._events.get_nowait()
                except queue.Empty:
                    break
            if batch:
                yield batch
        self._thread.join()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Stop. When this returns, the engine computes at most one further token."""
        self.cancelled = True
        if self._wake is not None and self._thread.is_alive():
            self._wake()
        self._thread.join()

    def answer_now(self) -> None:
        """Close the thought of every sample that still thinks and let it answer."""
        self.asked += 1

    def wait(self) -> list[Sample]:
        """Consume what is left; the samples, by index."""
        for _ in self.batches():
            pass
        return [self._samples[index] for index in sorted(self._samples)]

    def __enter__(self) -> StreamHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._ended:
            self.cancel()
