"""Drawn tokens put together into samples: every token of every sample, whatever rows it was in."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.engines.torch.cuda.collect import Collector
from forethought.engines.torch.cuda.schedule import Schedule
from forethought.errors import ModelError

END = 1
IS_END = np.arange(64) == END


def token(ticket: int, place: int) -> int:
    return 2 + (7 * ticket + 3 * place) % 60


@pytest.mark.parametrize(("rows", "pages"), [(3, 60), (40, 200), (8, 14)])
@pytest.mark.parametrize("experts", [None, (2, 3)])
def test_samples_are_what_was_drawn(rows: int, pages: int, experts: tuple[int, int] | None) -> None:
    """Few rows, so that steps are many more than a sample's and the oldest are forgotten; many
    rows, which are moved together; few pages, so that samples are taken back and begin again."""
    rng = np.random.default_rng(5)
    limits = [rng.integers(1, 60, size=8).tolist() for _ in range(6)]
    prompts = [list(range(2, 2 + length)) for length in (5, 17, 30, 2, 9, 21)]
    schedule = Schedule(
        prompts, list(range(6)), limits, rows=rows, pages=pages, width=6, is_end_V=IS_END
    )
    collector = Collector(min(rows, 48), 60, 48, IS_END, experts)
    prompt_experts = None if experts is None else np.full((2, 4, 3), 9, dtype=np.int16)
    found, steps, moves, taken_back = {}, 0, 0, 0
    while (orders := schedule.plan()) is not None:
        moves += len(orders.moved_to)
        for ticket in schedule.taken_back:
            collector.drop(ticket)
            taken_back += 1
        schedule.taken_back.clear()
        shape = (orders.steps, rows)
        ids = np.zeros(shape, dtype=np.int32)
        logprobs = np.full(shape, np.nan, dtype=np.float32)  # of rows that nobody is in
        chosen = None if experts is None else np.zeros((*shape, *experts), dtype=np.int16)
        for column, ticket in enumerate(orders.tickets_B.tolist()):
            if ticket < 0:
                continue
            prompt, index = schedule.samples[ticket]
            first, limit = schedule.drawn(ticket), limits[prompt][index]
            for step in range(min(orders.steps, limit - first)):
                place = first + step
                ids[step, column] = END if place + 1 == limit else token(ticket, place)
                logprobs[step, column] = -float(place)
                if chosen is not None:
                    chosen[step, column] = place + 100 * (ticket % 50)
        steps += orders.steps
        absorbed = schedule.absorb(orders.tickets_B, ids)
        collector.add(absorbed, ids, logprobs, chosen)
        for ticket in absorbed.over.tolist():
            sample = collector.sample(ticket, schedule.drawn(ticket), prompt_experts)
            found[schedule.samples[ticket]] = ticket, sample
    assert len(found) == 48
    for (prompt, index), (ticket, sample) in found.items():
        count = limits[prompt][index]
        assert sample.ids == (*(token(ticket, at) for at in range(count - 1)), END)
        assert sample.logprobs.tolist() == [-float(at) for at in range(count)]
        assert not sample.truncated
        if experts is not None:
            assert sample.experts is not None
            assert bool((sample.experts[:, :4] == 9).all())
            own = sample.experts[:, 4:].numpy()
            assert (own == (np.arange(count) + 100 * (ticket % 50))[None, :, None]).all()
    assert (steps > 200) == (rows < 40)
    assert moves > 0 or rows == 3
    assert (taken_back > 0) == (pages == 14)


def test_a_token_of_no_numbers_is_noticed_and_only_where_it_is_somebodys() -> None:
    schedule = Schedule([[2, 3]], [0], [[4, 2]], rows=2, pages=9, width=3, is_end_V=IS_END)
    collector = Collector(2, 8, 2, IS_END, None)
    orders = schedule.plan()
    assert orders is not None
    assert orders.steps >= 3
    ids = np.full((orders.steps, 2), 5, dtype=np.int32)
    logprobs = np.zeros((orders.steps, 2), dtype=np.float32)
    logprobs[2:, 1] = np.nan  # the second sample is over after two tokens
    absorbed = schedule.absorb(orders.tickets_B, ids)
    collector.add(absorbed, ids, logprobs, None)
    logprobs[1, 1] = np.nan
    with pytest.raises(ModelError, match="without a finite maximum"):
        collector.add(absorbed, ids, logprobs, None)
