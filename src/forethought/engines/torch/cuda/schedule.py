"""Who decodes where: rows, samples that wait, pages. Arrays on the host, no torch.

R: rows, B: rows of a bucket, S: steps of a chunk, F: fields of a row's state, W: pages of a row.

The device runs chunks of a few steps. While one runs, the host looks at the tokens of the chunk
before it, frees the rows of samples that ended, gives them to samples that wait, and plans the
next chunk. So it is always one chunk behind what the device knows, and needs no more: a row whose
sample is over stands still on the device until it is given away, and what is computed for it
meanwhile is never looked at.

A sample begins with the last token of its prompt: the prompt is computed once, but for that token,
and the sample's first step computes it and draws. So every step of a row is alike.

A sample in a row is a *ticket*. Where pages run out, the youngest sample gives its own back and
begins anew later under another ticket, with the same noise, and draws what it had drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from forethought.engines.torch.cuda.pages import PAGE, IntArray, PagePool, pages_for

LENGTH, DRAWN, NEXT, SEED, INDEX, ALIVE, LIMIT = range(7)
"""Fields of a row's state on the device: tokens stored, tokens drawn, the newest token (not stored
yet), the two numbers of its noise, whether it goes on, and the tokens after which it ends."""
FIELDS = 7
PREFILL_TOKENS = 16384
"""Prompt tokens that are computed at once, at most (a longer prompt has a pass of its own)."""
MOST_STEPS = 8
"""Steps of the longest chunk."""
_MANY = 256
"""From so many rows on a step takes long enough that few of them make a chunk."""
_STEPS_OF_MANY = 2
_STEPS_WHILE_WAITING = 4
"""With few rows, as long as samples wait for one: a row that ends is soon given away."""
_EMPTY: IntArray = np.zeros(0, dtype=np.int64)
_NO_STATE: IntArray = np.zeros((FIELDS, 0), dtype=np.int64)


def buckets(rows: int) -> tuple[int, ...]:
    """Batch sizes that steps are captured for, ascending; the last is ``rows``.

    A third to a half apart: rows that stand still cost their share of the matrix products alone.
    """
    sizes = [1, 2, 4, 8]
    while sizes[-1] < rows:
        sizes.append(sizes[-1] * 3 // 2 if sizes[-1].bit_count() == 1 else sizes[-1] * 4 // 3)
    return (*(size for size in sizes if size < rows), rows)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts that are computed together, each but for its last token, and the pages they fill."""

    prompts: tuple[int, ...]
    pages: tuple[IntArray, ...]


@dataclass(frozen=True, slots=True)
class Orders:
    """What the device does next, in this order: rows move, the table and the state are written,
    prompts are computed, pages copied, and ``steps`` steps run on the first ``bucket`` rows."""

    moved_from: IntArray
    moved_to: IntArray
    table_places: IntArray
    """Places in the flat block table [R * W]."""
    table_pages: IntArray
    rows: IntArray
    """Rows whose state is written."""
    state_FN: IntArray
    prefills: tuple[Prefill, ...]
    copied_from: IntArray
    copied_to: IntArray
    bucket: int
    steps: int
    tickets_B: IntArray
    """Whose tokens the steps draw; -1 where nobody's."""


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What a chunk brought: for each ticket that drew, where its tokens stand in the chunk."""

    columns: IntArray
    tickets: IntArray
    before: IntArray
    """Tokens each had drawn earlier."""
    counts: IntArray
    """Tokens each drew now: the first so many steps of its column."""
    over: IntArray
    """Tickets that ended."""


@dataclass(slots=True)
class _Prompt:
    tokens: int
    last: int
    to_start: int
    pages: IntArray | None = None
    """Of all its tokens but the last, once they are computed and until no sample needs them."""


@dataclass(slots=True)
class _Patch:
    """Writes to the device that are being collected."""

    rows: list[IntArray] = field(default_factory=list)
    state: list[IntArray] = field(default_factory=list)
    places: list[IntArray] = field(default_factory=list)
    pages: list[IntArray] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    copied_from: list[IntArray] = field(default_factory=list)
    copied_to: list[IntArray] = field(default_factory=list)


class Schedule:
    """The samples of one call.

    ``limits``: for each prompt and sample the tokens after which it ends. ``width``: pages of a row
    at most. ``is_end_V``: ids that end a sample. ValueError where one sample alone needs more pages
    than there are.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        limits: Sequence[Sequence[int]],
        *,
        rows: int,
        pages: int,
        width: int,
        is_end_V: npt.NDArray[np.bool_],
    ) -> None:
        self._prompts = [
            _Prompt(len(prompt), prompt[-1], len(limits[at])) for at, prompt in enumerate(prompts)
        ]
        self._seeds = list(seeds)
        self._limits = limits
        self._is_end_V = is_end_V
        self._pool = PagePool(pages)
        self._width = width
        for prompt, own in zip(self._prompts, limits, strict=True):
            most = pages_for(prompt.tokens - 1 + max(own, default=0))
            if most > width or most + pages_for(prompt.tokens) >= pages:
                raise ValueError(f"a sample needs {most} pages, of {pages} and {width} a row")
        self._waiting = deque((prompt, 0, len(own)) for prompt, own in enumerate(limits) if own)
        """Prompt, index of the first sample, and how many of them wait."""
        self._patch = _Patch()
        self._buckets = buckets(rows)
        self.rows = rows

        self._ticket_R: IntArray = np.full(rows, -1, dtype=np.int64)
        self._pages_R: IntArray = np.zeros(rows, dtype=np.int64)
        """Pages of each row."""
        self._issued_R: IntArray = np.zeros(rows, dtype=np.int64)
        """Tokens that each row has stored once all steps that were ordered are done, at most."""
        self._most_R: IntArray = np.zeros(rows, dtype=np.int64)
        """Tokens that each row will ever store."""
        self._table_RW: IntArray = np.zeros((rows, width), dtype=np.int64)

        tickets = sum(len(own) for own in limits) + 1
        self.samples: list[tuple[int, int]] = []
        """Prompt and index of each ticket."""
        self._drawn: IntArray = np.zeros(tickets, dtype=np.int64)
        self._limit: IntArray = np.zeros(tickets, dtype=np.int64)
        self._row: IntArray = np.zeros(tickets, dtype=np.int64)
        self._done: npt.NDArray[np.bool_] = np.zeros(tickets, dtype=np.bool_)
        self.taken_back: list[int] = []
        """Tickets that gave their pages back since the last look; the caller clears it."""

    @property
    def alive(self) -> int:
        """Rows with a sample, as far as the host knows."""
        return int((self._ticket_R >= 0).sum())

    @property
    def waiting(self) -> int:
        """Samples without a row."""
        return sum(count for _, _, count in self._waiting)

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return self._pool.free

    # -- planning

    def plan(self) -> Orders | None:
        """The next chunk; None where nothing can be ordered before more is known."""
        moved_from, moved_to = self._compact()
        self._fill()
        steps = self._steps()
        if not steps:
            return None
        live = self._grow(steps)
        patch, self._patch = self._patch, _Patch()
        bucket = self._bucket(int(live[-1]) + 1)
        return Orders(
            moved_from,
            moved_to,
            _joined(patch.places),
            _joined(patch.pages),
            _joined(patch.rows),
            np.concatenate(patch.state, axis=1) if patch.state else _NO_STATE,
            tuple(patch.prefills),
            _joined(patch.copied_from),
            _joined(patch.copied_to),
            bucket,
            steps,
            self._ticket_R[:bucket].copy(),
        )

    def _bucket(self, rows: int) -> int:
        return next(size for size in self._buckets if size >= rows)

    def _steps(self) -> int:
        """Steps of the next chunk: none that no row could use."""
        live = self._ticket_R >= 0
        if not live.any():
            return 0
        useful = int((self._most_R - self._issued_R)[live].max())
        if live.sum() >= _MANY:
            return min(useful, _STEPS_OF_MANY)
        return min(useful, _STEPS_WHILE_WAITING if self._waiting else MOST_STEPS)

    def _fill(self) -> None:
        """Give free rows to samples that wait, as long as there are pages."""
        free = np.flatnonzero(self._ticket_R < 0)
        alive = self.rows - len(free)
        dropped: list[IntArray] = []
        while self._waiting and len(free):
            prompt, first, count = self._waiting[0]
            it = self._prompts[prompt]
            if it.pages is None and not self._prefill(alive):
                break
            assert it.pages is not None
            # A page of its own, one to grow into, and one that is left for each who is there.
            roomy = (self._pool.free - alive) // 3
            some = min(count, len(free), max(roomy, 0 if alive else 1))
            if not some:
                break
            self._waiting.popleft()
            if some < count:
                self._waiting.appendleft((prompt, first + some, count - some))
            self._begin(free[:some], prompt, first)
            it.to_start -= some
            if not it.to_start:
                # Not yet: what is computed next must not overwrite what is still to be copied.
                dropped.append(it.pages)
                it.pages = None
            free, alive = free[some:], alive + some
        for pages in dropped:
            self._pool.drop(pages)

    def _prefill(self, alive: int) -> bool:
        """Compute the next prompt that waits and, while there are pages, those that follow it;
        whether there was room."""
        chosen: dict[int, int] = {}
        tokens = wanted = 0
        for prompt, _, _ in self._waiting:
            it = self._prompts[prompt]
            if it.pages is not None or prompt in chosen:
                continue
            more = pages_for(it.tokens - 1)
            if chosen and (
                tokens + it.tokens > PREFILL_TOKENS
                or self._pool.free < 4 * (wanted + more) + 2 * alive
            ):
                break
            if not chosen and self._pool.free < more + alive + 3:
                if alive:
                    return False
                self._forget_prompts()
            chosen[prompt] = more
            tokens, wanted = tokens + it.tokens, wanted + more
        held = []
        for prompt, count in chosen.items():
            pages = self._pool.take(count)
            self._prompts[prompt].pages = pages
            held.append(pages)
        longer = [at for at, prompt in enumerate(chosen) if self._prompts[prompt].tokens > 1]
        if longer:
            numbers = list(chosen)
            self._patch.prefills.append(
                Prefill(tuple(numbers[at] for at in longer), tuple(held[at] for at in longer))
            )
        return True

    def _forget_prompts(self) -> None:
        """Give back the pages of prompts that were computed ahead; they are computed again."""
        for it in self._prompts:
            if it.pages is not None:
                self._pool.drop(it.pages)
                it.pages = None

    def _begin(self, rows: IntArray, prompt: int, first: int) -> None:
        """Samples ``first`` and on of a prompt begin in these rows."""
        it, patch, count = self._prompts[prompt], self._patch, len(rows)
        assert it.pages is not None
        stored = it.tokens - 1
        shared = it.pages[: stored // PAGE]
        self._pool.share(shared, count)
        pages = np.broadcast_to(shared, (count, len(shared)))
        if stored % PAGE:
            own = self._pool.take(count)
            patch.copied_from.append(np.full(count, it.pages[-1]))
            patch.copied_to.append(own)
            pages = np.concatenate((pages, own[:, None]), axis=1)
        held = pages.shape[1]

        tickets = self._new_tickets(prompt, first, rows)
        limits = self._limit[tickets]
        self._ticket_R[rows] = tickets
        self._pages_R[rows] = held
        self._issued_R[rows] = stored
        self._most_R[rows] = stored + limits
        self._table_RW[rows, :held] = pages
        patch.places.append((rows[:, None] * self._width + np.arange(held)).ravel())
        patch.pages.append(pages.ravel())
        patch.rows.append(rows)
        state = np.zeros((FIELDS, count), dtype=np.int64)
        state[LENGTH], state[NEXT] = stored, it.last
        state[SEED], state[INDEX] = self._seeds[prompt], first + np.arange(count)
        state[ALIVE], state[LIMIT] = 1, limits
        patch.state.append(state)

    def _new_tickets(self, prompt: int, first: int, rows: IntArray) -> IntArray:
        start, count = len(self.samples), len(rows)
        self.samples.extend((prompt, first + at) for at in range(count))
        while len(self.samples) > len(self._drawn):
            self._drawn, self._limit, self._row = (
                np.concatenate((old, np.zeros_like(old)))
                for old in (self._drawn, self._limit, self._row)
            )
            self._done = np.concatenate((self._done, np.zeros_like(self._done)))
        tickets = np.arange(start, start + count)
        self._limit[tickets] = self._limits[prompt][first : first + count]
        self._row[tickets] = rows
        return tickets

    def _grow(self, steps: int) -> IntArray:
        """Pages for the tokens of the coming steps; the rows that are alive."""
        while True:
            live = np.flatnonzero(self._ticket_R >= 0)
            after = np.minimum(self._issued_R[live] + steps, self._most_R[live])
            short = -(-after // PAGE) - self._pages_R[live]
            wanted = int(short.sum())
            if wanted <= self._pool.free:
                break
            self._make_room(live)
        self._issued_R[live] = after
        if wanted:
            rows = np.repeat(live, short)
            # The number of each new page within its row.
            first = np.repeat(short.cumsum() - short, short)
            column = self._pages_R[rows] + np.arange(wanted) - first
            pages = self._pool.take(wanted)
            self._table_RW[rows, column] = pages
            self._pages_R[live] += short
            self._patch.places.append(rows * self._width + column)
            self._patch.pages.append(pages)
        return live

    def _make_room(self, live: IntArray) -> None:
        """Prompts that were computed ahead are forgotten; after them the youngest sample leaves
        its row and waits again, behind the others."""
        if any(it.pages is not None and len(it.pages) for it in self._prompts):
            self._forget_prompts()
            return
        tickets = self._ticket_R[live]
        drawn = self._drawn[tickets]
        ticket = int(tickets[np.flatnonzero(drawn == drawn.min())[-1]])
        row = self._row[ticket : ticket + 1].copy()
        self._release(np.array([ticket]))
        self.taken_back.append(ticket)
        prompt, index = self.samples[ticket]
        self._prompts[prompt].to_start += 1
        self._waiting.append((prompt, index, 1))
        # Of several writes to a row the last must hold, which a scatter does not promise.
        for rows, state in zip(self._patch.rows, self._patch.state, strict=True):
            state[:, rows == row] = 0
        if not any((rows == row).any() for rows in self._patch.rows):
            self._patch.rows.append(row)
            self._patch.state.append(np.zeros((FIELDS, 1), dtype=np.int64))

    def _compact(self) -> tuple[IntArray, IntArray]:
        """Where nobody waits and a smaller bucket would do, the last rows move into the gaps."""
        live = np.flatnonzero(self._ticket_R >= 0)
        if self._waiting or not len(live):
            return _EMPTY, _EMPTY
        count = len(live)
        if self._bucket(count) >= self._bucket(int(live[-1]) + 1):
            return _EMPTY, _EMPTY
        gaps = np.flatnonzero(self._ticket_R[:count] < 0)
        movers = live[live >= count]
        for array in (self._ticket_R, self._pages_R, self._issued_R, self._most_R, self._table_RW):
            array[gaps] = array[movers]
        self._ticket_R[movers] = -1
        self._row[self._ticket_R[gaps]] = gaps
        return movers, gaps

    # -- learning

    def absorb(self, tickets_B: IntArray, ids_SB: npt.NDArray[np.int32]) -> Absorbed:
        """Learn what a chunk drew; rows of samples that ended are free."""
        columns = np.flatnonzero(tickets_B >= 0)
        columns = columns[~self._done[tickets_B[columns]]]
        tickets = tickets_B[columns]
        ends_SN = self._is_end_V[ids_SB[:, columns]]
        ended = ends_SN.any(axis=0)
        first = np.where(ended, ends_SN.argmax(axis=0) + 1, len(ids_SB))
        before = self._drawn[tickets].copy()
        counts = np.minimum(first, self._limit[tickets] - before)
        self._drawn[tickets] = before + counts
        over = tickets[(ended & (first <= counts)) | (before + counts >= self._limit[tickets])]
        self._release(over)
        return Absorbed(columns, tickets, before, counts, over)

    def _release(self, tickets: IntArray) -> None:
        """Rows and pages of these tickets are free."""
        if not len(tickets):
            return
        rows = self._row[tickets]
        self._done[tickets] = True
        held_NW = np.arange(self._width) < self._pages_R[rows, None]
        self._pool.drop(self._table_RW[rows][held_NW])
        self._ticket_R[rows] = -1

    def drawn(self, ticket: int) -> int:
        """Tokens that a ticket has drawn so far."""
        return int(self._drawn[ticket])


def _joined(parts: list[IntArray]) -> IntArray:
    return np.concatenate(parts) if parts else _EMPTY
