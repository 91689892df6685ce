"""Who decodes where: rows, pages and chunks, driven by a device that is a few lines of Python."""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.engines.torch.cuda.pages import NOBODYS, PAGE, PagePool, pages_for
from forethought.engines.torch.cuda.schedule import (
    ALIVE,
    DRAWN,
    INDEX,
    LENGTH,
    LIMIT,
    NEXT,
    SEED,
    Orders,
    Schedule,
    buckets,
)

VOCABULARY, END = 50, 1


def token(seed: int, index: int, place: int) -> int:
    """What the device would draw: a function of its arguments, now and then an end (the more rarely
    the later the prompt)."""
    rng = Random(f"{seed} {index} {place}")
    return END if rng.random() * (15 + 10 * seed * seed) < 1 else rng.randrange(2, VOCABULARY)


class Device:
    """Rows, a table and pages that remember which token was stored where."""

    def __init__(self, rows: int, pages: int, width: int, prompts: list[list[int]]) -> None:
        self.state = np.zeros((7, rows), dtype=np.int64)
        self.table = np.zeros((rows, width), dtype=np.int64)
        self.pages = np.full((pages, PAGE), -1, dtype=np.int64)
        self.prompts = prompts
        self.prefilled: Counter[int] = Counter()

    def run(self, orders: Orders) -> np.ndarray:
        """Everything in the order of the contract; ids [S, B]."""
        of, to = orders.moved_from, orders.moved_to
        self.state[:, to], self.table[to] = self.state[:, of], self.table[of]
        self.state[ALIVE, of] = 0
        self.table.reshape(-1)[orders.table_places] = orders.table_pages
        assert len(set(orders.rows.tolist())) == len(orders.rows)
        self.state[:, orders.rows] = orders.state_FN
        for prefill in orders.prefills:
            for prompt, pages in zip(prefill.prompts, prefill.pages, strict=True):
                self.prefilled[prompt] += 1
                for at, one in enumerate(self.prompts[prompt][:-1]):
                    self.pages[pages[at // PAGE], at % PAGE] = one
        self.pages[orders.copied_to] = self.pages[orders.copied_from]
        ids = np.zeros((orders.steps, orders.bucket), dtype=np.int32)
        for step in range(orders.steps):
            for row in range(orders.bucket):
                ids[step, row] = self.step(row)
        return ids

    def step(self, row: int) -> int:
        state = self.state[:, row]
        if not state[ALIVE]:
            return END
        at = state[LENGTH]
        page = self.table[row, at // PAGE]
        assert page != NOBODYS
        self.pages[page, at % PAGE] = state[NEXT]
        stored = [int(self.pages[self.table[row, i // PAGE], i % PAGE]) for i in range(at + 1)]
        prompt = self.prompts[int(state[SEED])]
        drawn = [token(state[SEED], state[INDEX], place) for place in range(state[DRAWN])]
        assert stored == [*prompt, *drawn]  # no page was anybody else's
        new = token(state[SEED], state[INDEX], state[DRAWN])
        state[LENGTH] += 1
        state[DRAWN] += 1
        state[NEXT] = new
        state[ALIVE] = new != END and state[DRAWN] < state[LIMIT]
        return new


def sampled(
    prompts: list[list[int]], n: int, limit: int, *, rows: int, pages: int, ahead: int = 1
) -> tuple[dict[tuple[int, int], list[int]], Schedule, Device, list[Orders]]:
    """Every sample's tokens, learnt ``ahead`` chunks late."""
    width = pages_for(max(map(len, prompts)) + limit)
    is_end = np.zeros(VOCABULARY, dtype=np.bool_)
    is_end[END] = True
    schedule = Schedule(
        prompts,
        list(range(len(prompts))),
        [[limit] * n for _ in prompts],
        rows=rows,
        pages=pages,
        width=width,
        is_end_V=is_end,
    )
    device = Device(rows, pages, width, prompts)
    under_way: deque[tuple[Orders, np.ndarray]] = deque()
    parts: dict[int, list[int]] = {}
    done: dict[tuple[int, int], list[int]] = {}
    history = []
    for _ in range(20_000):
        orders = schedule.plan()
        if orders is not None:
            history.append(orders)
            under_way.append((orders, device.run(orders)))
        for ticket in schedule.taken_back:
            parts.pop(ticket, None)
        schedule.taken_back.clear()
        if orders is None and not under_way:
            break
        if orders is None or len(under_way) > ahead:
            orders, ids = under_way.popleft()
            absorbed = schedule.absorb(orders.tickets_B, ids)
            for column, ticket, before, count in zip(
                absorbed.columns, absorbed.tickets, absorbed.before, absorbed.counts, strict=True
            ):
                own = parts.setdefault(int(ticket), [])
                assert len(own) == before
                own += ids[:count, column].tolist()
            for ticket in absorbed.over.tolist():
                key = schedule.samples[ticket]
                assert key not in done
                done[key] = parts.pop(ticket)
                assert len(done[key]) == schedule.drawn(ticket)
    assert not parts
    return done, schedule, device, history


def expected(prompts: list[list[int]], n: int, limit: int) -> dict[tuple[int, int], list[int]]:
    found = {}
    for prompt in range(len(prompts)):
        for index in range(n):
            ids: list[int] = []
            while len(ids) < limit and not (ids and ids[-1] == END):
                ids.append(token(prompt, index, len(ids)))
            found[prompt, index] = ids
    return found


def prompts_of(lengths: list[int]) -> list[list[int]]:
    return [[100 * at + place for place in range(length)] for at, length in enumerate(lengths)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    n=st.integers(1, 5),
    limit=st.integers(1, 50),
    rows=st.integers(1, 12),
    spare=st.integers(0, 40),
    ahead=st.integers(0, 2),
)
def test_every_sample_is_drawn_once_from_its_own_pages(lengths, n, limit, rows, spare, ahead):
    prompts = prompts_of(lengths)
    most = max(map(len, prompts))
    pages = 2 + pages_for(most + limit) + pages_for(most) + spare
    done, schedule, _, _ = sampled(prompts, n, limit, rows=rows, pages=pages, ahead=ahead)
    assert done == expected(prompts, n, limit)
    assert schedule.alive == schedule.waiting == 0
    assert schedule.free_pages == pages - 1


def test_with_room_a_prompt_is_computed_once_and_rows_stay_full():
    prompts = prompts_of([20] * 12)
    done, _, device, history = sampled(prompts, 4, 60, rows=8, pages=400)
    assert set(device.prefilled.values()) == {1}
    assert len(device.prefilled) == 12
    waiting = len(done)
    busy = []
    for orders in history:
        waiting -= len(orders.rows)
        if waiting:
            busy.append(float((orders.tickets_B >= 0).mean()))
    assert min(busy) == 1.0


@pytest.mark.parametrize("pages", [14, 24, 40])
def test_short_pools_take_samples_back(pages):
    prompts = prompts_of([3] * 4)
    done, schedule, _, _ = sampled(prompts, 8, 120, rows=16, pages=pages)
    assert done == expected(prompts, 8, 120)
    assert len(schedule.samples) > len(done)  # tickets: some samples had two


def test_the_batch_shrinks_towards_the_end_and_nobody_steps_beyond_the_limit():
    _, _, _, history = sampled(prompts_of([5] * 2), 32, 100, rows=64, pages=2000)
    sizes = [orders.bucket for orders in history]
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 8
    assert sum(orders.steps for orders in history) <= 100


def test_buckets_are_near_each_other():
    assert buckets(1) == (1,)
    assert buckets(48) == (1, 2, 4, 8, 12, 16, 24, 32, 48)
    assert buckets(100)[-2:] == (96, 100)
    sizes = buckets(4096)
    assert all(b <= 1.5 * a for a, b in pairwise(sizes[3:]))


def test_a_sample_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="a sample needs"):
        sampled(prompts_of([10]), 1, 100, rows=2, pages=7)


def test_pages_are_free_when_the_last_holder_has_gone():
    pool = PagePool(6)
    assert pool.free == 5
    pages = pool.take(3)
    assert NOBODYS not in pages
    pool.share(pages, 2)
    pool.drop(np.concatenate((pages, pages)))
    assert pool.free == 2
    pool.drop(pages)
    assert pool.free == 5
    with pytest.raises(ValueError, match="6 pages wanted, 5 are free"):
        pool.take(6)
