"""The rows' cache against the plain one: ragged batches, forks, growth, chunks, masked places."""

from __future__ import annotations

import itertools

import pytest
import torch

from forethought.engines.torch.cache import BLOCK, RowCache
from forethought.models.attention import causal_attention
from forethought.models.cache import PlainCache

HEADS, GROUPS, KEY, VALUE = 6, 2, 20, 12
SCALE = KEY**-0.5


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Sequence:
    """Queries, keys and values of one row, as many as are wanted, and what attention gives."""

    def __init__(self, seed: int, length: int, value: int | None = VALUE) -> None:
        self.q = numbers(1, HEADS, length, KEY, seed=3 * seed)
        self.k = numbers(1, GROUPS, length, KEY, seed=3 * seed + 1)
        self.v = None if value is None else numbers(1, GROUPS, length, value, seed=3 * seed + 2)

    def part(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        cut = slice(start, end)
        return (
            self.q[:, :, cut],
            self.k[:, :, cut],
            None if self.v is None else self.v[:, :, cut],
        )

    def expected(self, start: int, end: int) -> torch.Tensor:
        """Attention of the whole in float64, at places start .. end."""
        values = self.k if self.v is None else self.v
        whole = causal_attention(
            self.q[:, :, :end].double(),
            self.k[:, :, :end].double(),
            values[:, :, :end].double(),
            SCALE,
        )
        return whole[:, :, start:]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6)


def prefill(cache: RowCache, row: int, of: Sequence, start: int, end: int) -> torch.Tensor:
    cache.prefill(row, start, end - start)
    return cache.attend(0, *of.part(start, end), SCALE)


def decode(cache: RowCache, rows: list[Sequence], lengths: list[int]) -> torch.Tensor:
    """One token of each row: the one at its length."""
    cache.decode(torch.tensor(lengths), max(lengths), torch.float32)
    parts = [of.part(length, length + 1) for of, length in zip(rows, lengths, strict=True)]
    q, k = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    values = [part[2] for part in parts if part[2] is not None]
    return cache.attend(0, q, k, torch.cat(values) if values else None, SCALE)


@pytest.mark.parametrize("value", [VALUE, KEY, None])
def test_ragged_rows_are_each_what_they_are_alone(value: int | None) -> None:
    lengths = [1, 40, 63, 64, 130]
    rows = [Sequence(seed, 200, value) for seed in range(len(lengths))]
    cache = RowCache(1)
    cache.reserve(8, 200)
    for row, (of, length) in enumerate(zip(rows, lengths, strict=True)):
        assert_close(prefill(cache, row, of, 0, length), of.expected(0, length))
    for step in range(5):
        now = [length + step for length in lengths]
        out = decode(cache, rows, now)
        for row, (of, length) in enumerate(zip(rows, now, strict=True)):
            assert_close(out[row : row + 1], of.expected(length, length + 1))


@pytest.mark.parametrize("cuts", [(0, 1, 90), (0, 64, 128, 150), (0, 17, 18, 140)])
@pytest.mark.parametrize("row", [0, 3])
def test_a_prompt_in_chunks_is_the_prompt(cuts: tuple[int, ...], row: int) -> None:
    of, other = Sequence(1, 160), Sequence(2, 160)
    cache = RowCache(1)
    cache.reserve(4, 160)
    prefill(cache, 1, other, 0, 160)
    for start, end in itertools.pairwise(cuts):
        assert_close(prefill(cache, row, of, start, end), of.expected(start, end))


def test_equals_the_plain_cache_step_by_step() -> None:
    of = Sequence(5, 90)
    rows, plain = RowCache(1), PlainCache(1, 90, 1)
    rows.reserve(1, 90)
    torch.testing.assert_close(
        prefill(rows, 0, of, 0, 50), plain.attend(0, *of.part(0, 50), SCALE), rtol=0, atol=0
    )
    for at in range(50, 90):
        torch.testing.assert_close(
            decode(rows, [of], [at]),
            plain.attend(0, *of.part(at, at + 1), SCALE),
            rtol=1e-5,
            atol=2e-6,
        )


@pytest.mark.parametrize("value", [VALUE, None])
def test_a_fork_sees_the_prefix_and_goes_its_own_way(value: int | None) -> None:
    first, second = Sequence(1, 120, value), Sequence(2, 120, value)
    second.q[:, :, :70], second.k[:, :, :70] = first.q[:, :, :70], first.k[:, :, :70]
    if first.v is not None and second.v is not None:
        second.v[:, :, :70] = first.v[:, :, :70]
    cache = RowCache(1)
    cache.reserve(2, 120)
    prefill(cache, 0, first, 0, 70)
    cache.fork(0, [1], 70)
    for at in range(70, 80):
        out = decode(cache, [first, second], [at, at])
        assert_close(out[:1], first.expected(at, at + 1))
        assert_close(out[1:], second.expected(at, at + 1))


def test_a_row_that_ends_gives_its_place_to_the_last() -> None:
    """As the scheduler does it: what the place held before is not seen."""
    gone, long, last = Sequence(1, 200), Sequence(2, 200), Sequence(3, 200)
    cache = RowCache(1)
    cache.reserve(4, 200)
    for row, (of, length) in enumerate([(gone, 150), (long, 90), (last, 20)]):
        prefill(cache, row, of, 0, length)
    cache.fork(2, [0], 20)
    out = decode(cache, [last, long], [20, 90])
    assert_close(out[:1], last.expected(20, 21))
    assert_close(out[1:], long.expected(90, 91))


def test_growth_keeps_what_is_stored() -> None:
    lengths = [BLOCK - 4, 2 * BLOCK - 9]
    rows = [Sequence(1, 4 * BLOCK), Sequence(2, 4 * BLOCK)]
    cache = RowCache(1)
    cache.reserve(1, BLOCK - 9)
    assert (cache.rows, cache.capacity) == (1, BLOCK)
    prefill(cache, 0, rows[0], 0, lengths[0])
    before = cache.bytes
    cache.reserve(2, BLOCK + 1)
    assert (cache.rows, cache.capacity) == (2, 2 * BLOCK)
    assert cache.bytes == 4 * before == 4 * BLOCK * GROUPS * (KEY + VALUE) * 4
    prefill(cache, 1, rows[1], 0, lengths[1])
    out = decode(cache, rows, lengths)
    cache.reserve(1, 1)  # less than there is changes nothing
    cache.reserve(2, 4 * BLOCK - 1)
    assert torch.equal(out, decode(cache, rows, lengths))
    for row, length in enumerate(lengths):
        assert_close(out[row : row + 1], rows[row].expected(length, length + 1))


@pytest.mark.parametrize("heads", [(6, 2, 20), (9, 3, 64), (2, 2, 128), (4, 1, 32)])
def test_a_longer_neighbour_changes_no_bit(heads: tuple[int, int, int]) -> None:
    """Lengths are padded with masked places, which add exact zeros: across blocks of any kernel."""
    queries, groups, width = heads
    short = 50
    q = numbers(2, queries, 1, width, seed=1)
    k, v = numbers(2, groups, 1, width, seed=2), numbers(2, groups, 1, width, seed=3)
    stored = numbers(2, 2100, 2 * groups * width, seed=4)
    results = []
    for neighbour in (3, 63, 64, 127, 300, 511, 512, 700, 1030, 2050):
        cache = RowCache(1)
        cache.reserve(2, 2112)
        cache.decode(torch.tensor([0, 0]), 0, torch.float32)
        cache.attend(0, q, k, v, 0.1)  # makes the storage
        layer = cache._layers[0]
        assert layer is not None
        layer[:, :2100] = stored
        lengths = torch.tensor([short, neighbour])
        cache.decode(lengths, max(short, neighbour), torch.float32)
        results.append(cache.attend(0, q, k, v, 0.1)[0].clone())
    for at, result in enumerate(results):
        assert torch.equal(result, results[0]), at


def test_what_a_masked_place_holds_is_not_seen() -> None:
    of = Sequence(1, 100)
    results = []
    for junk in (0.0, 1.0, 1e30, -1e30):
        cache = RowCache(1)
        cache.reserve(2, 128)
        prefill(cache, 0, of, 0, 30)
        layer = cache._layers[0]
        assert layer is not None
        layer[0, 31:] = junk
        layer[1] = junk
        results.append(decode(cache, [of, of], [30, 0])[0])
    assert all(torch.equal(result, results[0]) for result in results)
    assert_close(results[0][None], of.expected(30, 31))


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 32])
def test_a_rows_bits_do_not_depend_on_its_place(rows: int) -> None:
    of = Sequence(1, 80)
    others = [Sequence(seed + 2, 80) for seed in range(rows)]
    seen = None
    for at in sorted({0, rows // 2, rows - 1}):
        batch = [*others]
        batch[at] = of
        cache = RowCache(1)
        cache.reserve(rows, 80)
        for row, each in enumerate(batch):
            prefill(cache, row, each, 0, 40)
        result = decode(cache, batch, [40] * rows)[at]
        seen = result if seen is None else seen
        assert torch.equal(result, seen)


def test_the_flat_form_is_the_same_attention() -> None:
    """Keys and values side by side, tokens in a row: prompt, further chunk and decode."""
    lengths = [33, 70]
    rows = [Sequence(seed, 100, KEY) for seed in (1, 2)]

    def flat(parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        q = torch.cat([part[0].transpose(1, 2).flatten(0, 1) for part in parts])
        k = torch.cat([part[1].transpose(1, 2).flatten(0, 1).flatten(1) for part in parts])
        v = torch.cat(
            [
                part[2].transpose(1, 2).flatten(0, 1).flatten(1)
                for part in parts
                if part[2] is not None
            ]
        )
        return cache.attend_flat(0, q, torch.cat((k, v), dim=1), GROUPS, SCALE)

    def by_tokens(out_BHTV: torch.Tensor) -> torch.Tensor:
        return out_BHTV.transpose(1, 2).flatten(0, 1).flatten(1)

    cache = RowCache(1)
    cache.reserve(2, 100)
    for row, (of, length) in enumerate(zip(rows, lengths, strict=True)):
        for start, end in ((0, 20), (20, length)):
            cache.prefill(row, start, end - start)
            out = flat([of.part(start, end)])
            assert_close(out, by_tokens(of.expected(start, end)))
    cache.decode(torch.tensor(lengths), max(lengths), torch.float32)
    out = flat([of.part(length, length + 1) for of, length in zip(rows, lengths, strict=True)])
    expected = [of.expected(n, n + 1) for of, n in zip(rows, lengths, strict=True)]
    assert_close(out, by_tokens(torch.cat(expected)))
