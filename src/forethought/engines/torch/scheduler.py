"""Many samples at once: one thread computes a step for all of them, and each goes its own way.

A prompt is computed once for all samples that begin together, and forked to them. Samples of all
requests share the steps; a sample that ends leaves its row to the last one. The number of rows
computed is padded to a bucket (1, 2, 4, 8, 16, ...), because the bits of a matrix product depend on
it and on nothing else that neighbours do; a reproducible request has one bucket for all its life.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch

from forethought.engines.protocol import PrefillProgress
from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.job import Job, Vocabulary
from forethought.engines.torch.programs import NetworkProgram, Program
from forethought.engines.torch.row import Row
from forethought.engines.torch.sampler import RowParameters, Sampler
from forethought.engines.torch.speculate import Acceptance, Speculation
from forethought.errors import ForethoughtError, ModelError

PREFILL_CHUNK = 512
"""Prompt tokens computed at once: between two chunks a request can be cancelled. A constant, so
that a prompt's bits do not depend on what else runs."""
REPRODUCIBLE_ROWS = 16
"""The one bucket of reproducible requests. A lone sample of a small model pays for it with about
half of its speed, sixteen with next to none (`benchmarks/cpu_sampling.py`)."""


_all: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread that the interpreter's end meets inside torch takes the process down with it."""
    for scheduler in list(_all):
        scheduler.stop()


class Scheduler:
    """Runs jobs on a thread that lives while there are any.

    ``rows``: samples side by side; more wait. ``most_tokens``: tokens a row may hold.
    ``room``: says, from rows and tokens a row, whether memory allows them.
    """

    def __init__(
        self,
        program: Program,
        vocabulary: Vocabulary,
        *,
        rows: int,
        threads: int | None,
        room: Callable[[int, int], bool],
        speculate: bool = False,
    ) -> None:
        self._program = program
        self._vocabulary = vocabulary
        self._most_rows = rows
        self._threads = threads
        self._room = room
        self._cache = RowCache(program.layers, program.device)
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._rows: list[Row] = []
        self._sampler: Sampler | None = None
        self._leaving = False
        self._closed = False
        self.acceptance = Acceptance()
        self._speculate = speculate
        self._speculation: Speculation | None = None
        _all.add(self)
        self.steps = 0
        """Steps computed since the engine was made; for benchmarks and tests."""

    def add(self, job: Job) -> None:
        """Queue a job; its `ended` is set when all its samples are finished, or on an error."""
        with self._lock:
            if self._closed or self._leaving:
                job.error = ModelError("the model was closed; load it again to ask it something.")
                job.ended.set()
                return
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="forethought-torch", daemon=True
                )
                self._thread.start()

    @property
    def cache_bytes(self) -> int:
        """What the cache holds of memory now."""
        return self._cache.bytes

    def stop(self) -> None:
        """End the thread after its step, whatever is under way."""
        with self._lock:
            self._leaving = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Let go of the cache once nothing runs (whoever calls has cancelled everything)."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()
        self._cache = RowCache(0)
        self._sampler = self._speculation = None
        del self._program

    # -- the thread

    def _run(self) -> None:
        if self._threads is not None and self._program.device.type == "cpu":
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while True:
                with self._lock:
                    if self._leaving or not (self._jobs or self._rows):
                        self._thread = None
                        return
                try:
                    self._admit()
                    self._step()
                except BaseException as error:
                    self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Nothing that was under way can go on; whoever waits is told."""
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in str(error)
        ):
            error = ModelError("there is not enough memory to go on; take a smaller n or --ctx.")
        with self._lock:
            jobs = {id(row.job): row.job for row in self._rows}
            jobs.update((id(job), job) for job in self._jobs)
            self._jobs.clear()
        self._rows.clear()
        self._sampler = self._speculation = None
        # It may have grown by halves.
        self._cache = RowCache(self._program.layers, self._program.device)
        for job in jobs.values():
            job.error = error
            job.ended.set()

    # -- taking up work

    def _admit(self) -> None:
        """Start waiting samples while there are rows and memory for them, in order of arrival."""
        with self._lock:
            waiting = list(self._jobs)
        full = False
        for job in waiting:
            try:
                if job.handle.cancelled:
                    self._start(job, job.waiting, compute=False)
                elif not full:
                    count = self._free_rows(job)
                    if count:
                        self._start(job, count, compute=True)
            except ForethoughtError as error:  # of this job alone
                job.error = error
                job.next_index = job.request.n
                job.running = sum(row.job is job for row in self._rows)
                if not job.running:
                    job.ended.set()
            # Whoever came later does not overtake.
            full = full or bool(job.waiting)
            if not job.waiting:
                with self._lock:
                    self._jobs.remove(job)

    def _free_rows(self, job: Job) -> int:
        assert job.request.prompt.ids is not None
        tokens = len(job.request.prompt.ids) + job.limits.max_tokens
        tokens = max([tokens, *(row.most_tokens for row in self._rows)])
        fixed = job.request.reproducible or any(row.job.request.reproducible for row in self._rows)
        most = REPRODUCIBLE_ROWS if fixed else self._most_rows
        count = min(job.waiting, most - len(self._rows))
        # While samples run, storage keeps its shape in both directions.
        rows, width = (self._cache.rows, self._cache.capacity) if self._rows else (0, 0)
        while count > 0 and not self._room(
            max(rows, self._bucket(len(self._rows) + count, fixed)), max(width, tokens)
        ):
            count -= 1
        if count <= 0 and not self._rows:
            raise ModelError(
                f"there is not enough memory for one sample of {tokens} tokens; "
                "take a smaller --max-tokens or --ctx, or free some."
            )
        return max(count, 0)

    @staticmethod
    def _bucket(rows: int, fixed: bool) -> int:
        return REPRODUCIBLE_ROWS if fixed else 1 << (rows - 1).bit_length()

    def _start(self, job: Job, count: int, *, compute: bool) -> None:
        """Compute the prompt once and begin ``count`` samples with it."""
        rows = [
            Row(job, index, self._vocabulary)
            for index in range(job.next_index, job.next_index + count)
        ]
        job.next_index += count
        job.running += count
        if not compute or not self._prefill(job, rows):
            for row in rows:
                row.sample.done = "cancelled"
                self._end(row)
            return
        for row in rows:
            if row.sample.done is not None:
                self._end(row)
            else:
                self._rows.append(row)
        self._sampler = None

    def _prefill(self, job: Job, rows: list[Row]) -> bool:
        """Fill the cache and draw the first token of each row; False when cancelled."""
        first = len(self._rows)
        ids = rows[0].known
        if job.request.reproducible and job.request.prompt.ids is not None:
            # What was sampled once is computed token by token as it was then: only so has a
            # continued sample the bits of the uninterrupted one.
            ids = list(job.request.prompt.ids)
        fixed = job.request.reproducible or any(row.job.request.reproducible for row in self._rows)
        bucket, tokens = self._bucket(first + len(rows), fixed), self._tokens_to_reserve(rows)
        grown = max(bucket, self._cache.rows) * max(tokens, self._cache.capacity)
        if not first and grown > 4 * bucket * tokens:
            # Many short samples once, and one long one later: not the product of both.
            self._cache = RowCache(self._program.layers, self._program.device)
        cache = self._cache
        cache.reserve(bucket, tokens)
        hidden_ND = torch.empty(0)
        self._speculation = self._may_speculate(rows)
        for start in range(0, len(ids), PREFILL_CHUNK):
            if job.handle.cancelled:
                return False
            part = ids[start : start + PREFILL_CHUNK]
            ids_BT = torch.tensor([part], device=self._program.device)
            positions_BT = torch.arange(start, start + len(part), device=self._program.device)
            cache.prefill(first, start, len(part))
            hidden_ND = self._program.hidden(ids_BT, positions_BT[None], cache)
            if self._speculation is not None:
                self._speculation.observe(start, hidden_ND)
            if len(ids) >= PREFILL_CHUNK:
                job.handle.emit(PrefillProgress(start + len(part), len(ids)))
        for row in rows:
            row.stored = len(ids)
        if rows[0].wants_token:
            logits_BV = self._program.logits(hidden_ND[-1:]).expand(len(rows), -1)
            self._draw(
                rows,
                Sampler(self._parameters(rows), self._program.device, self._vocabulary.size),
                logits_BV,
            )
        alive = [at for at, row in enumerate(rows) if row.sample.done is None]
        # Rows that are over already leave no gap; the first one holds the prompt in any case.
        cache.fork(first, range(first + 1, first + len(alive)), len(ids))
        return True

    def _tokens_to_reserve(self, rows: list[Row]) -> int:
        """Half as much again as is filled, up to what the samples may become: storage grows with
        them, and a request that could be long costs no more than it is."""
        need = max(len(row.known) for row in (*rows, *self._rows)) + 1
        most = max(row.most_tokens for row in (*rows, *self._rows))
        return min(most, max(256, need + need // 2))

    @staticmethod
    def _parameters(rows: Sequence[Row]) -> list[RowParameters]:
        return [
            RowParameters(
                row.job.request.sampling, row.job.seed, row.sample.index, row.job.request.logprobs
            )
            for row in rows
        ]

    # -- one step

    def _step(self) -> None:
        self._leave([row for row in self._rows if row.over()])
        rows = self._rows
        if not rows:
            return
        if self._speculation is not None:
            if len(rows) == 1 and self._speculated(rows[0]):
                return
            self._speculation = None
        fixed = any(row.job.request.reproducible for row in rows)
        bucket = self._bucket(len(rows), fixed)
        longest = max(row.stored for row in rows)
        if longest >= self._cache.capacity or bucket > self._cache.rows:
            self._cache.reserve(bucket, self._tokens_to_reserve(rows))
        device, padding = self._program.device, bucket - len(rows)
        ids_B1 = torch.tensor([row.next_id() for row in rows] + [0] * padding, device=device)
        lengths_B = torch.tensor([row.stored for row in rows] + [0] * padding, device=device)
        self._cache.decode(lengths_B, longest, self._program.dtype)
        hidden_ND = self._program.hidden(ids_B1[:, None], lengths_B[:, None], self._cache)
        logits_BV = self._program.logits(hidden_ND)[: len(rows)]
        self.steps += 1
        for row in rows:
            row.stored += 1
        if self._sampler is None:
            self._sampler = Sampler(self._parameters(rows), device, self._vocabulary.size)
        self._draw(rows, self._sampler, logits_BV)

    def _may_speculate(self, rows: list[Row]) -> Speculation | None:
        alone = self._speculate and len(rows) == 1 and not self._rows
        program = self._program
        if alone and isinstance(program, NetworkProgram) and Speculation.suits(rows[0]):
            return Speculation(program, self.acceptance, self._vocabulary.size)
        return None

    def _speculated(self, row: Row) -> bool:
        """Compute one step of a lone row with a guess; False if it has to be done plainly.

        Tokens that were forced stand in no guess: a row that has some goes on plainly to its end.
        """
        assert self._speculation is not None
        if row.stored + 2 > row.most_tokens:
            return False
        if row.stored + 2 > self._cache.capacity:
            self._cache.reserve(1, self._tokens_to_reserve([row]) + 1)
        done = self._speculation.step(row, 0, self._cache)
        self.steps += done
        return done

    def _draw(self, rows: Sequence[Row], sampler: Sampler, logits_BV: torch.Tensor) -> None:
        """Give every row that is not being forced its next token."""
        position_B = torch.tensor(
            [len(row.sample.ids) for row in rows], dtype=torch.int64, device=self._program.device
        )
        drawn = sampler.sample(logits_BV, position_B)
        ids = drawn.ids_B.tolist()
        logprobs = [None] * len(ids) if drawn.logprobs_B is None else drawn.logprobs_B.tolist()
        for row, token, logprob in zip(rows, ids, logprobs, strict=True):
            if row.wants_token:
                row.take(token, None if row.job.request.logprobs is None else logprob)

    # -- leaving

    def _leave(self, over: list[Row]) -> None:
        """End these rows; the last ones take the places that become free."""
        for row in over:
            at = self._rows.index(row)
            last = self._rows.pop()
            if last is not row:
                self._cache.fork(len(self._rows), [at], last.stored)
                self._rows[at] = last
            self._end(row)
        if over:
            self._sampler = None

    def _end(self, row: Row) -> None:
        row.sample.finish()
        row.job.running -= 1
        if not row.job.running and not row.job.waiting:
            row.job.ended.set()


def raise_error(job: Job) -> None:
    """Raise again what ended a job, in the thread of its handle."""
    if job.error is not None:
        if isinstance(job.error, ForethoughtError):
            raise job.error
        raise ModelError(f"the torch engine stopped: {job.error}") from job.error
