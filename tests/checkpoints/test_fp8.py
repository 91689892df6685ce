"""FP8 blocks against a plain loop in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.checkpoints.fp8 import dequantize_blocks, grid_shape, quantize_blocks


def by_hand(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    out = weight.to(torch.float32).clone()
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            rows = slice(row * block[0], (row + 1) * block[0])
            columns = slice(column * block[1], (column + 1) * block[1])
            out[rows, columns] = out[rows, columns] * scale[row, column]
    return out


sizes = st.integers(1, 40)
blocks = st.tuples(st.integers(1, 16), st.integers(1, 16))


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, blocks, st.integers(0, 2**31))
def test_dequantised_exactly(rows: int, columns: int, block: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * 100
    weight = values.to(torch.float8_e4m3fn)
    scale = torch.rand(grid_shape(rows, columns, block), generator=generator) + 1e-3
    kept = weight.view(torch.uint8).clone()
    exact = by_hand(weight, scale, block)
    assert torch.equal(dequantize_blocks(weight, scale, block, torch.float32), exact)
    halves = dequantize_blocks(weight, scale, block, torch.bfloat16)
    assert torch.equal(halves, exact.to(torch.bfloat16))
    assert halves.is_contiguous()
    assert torch.equal(weight.view(torch.uint8), kept)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, blocks, st.floats(1e-20, 1e20), st.integers(0, 2**31))
def test_quantised_is_near(
    rows: int, columns: int, block: tuple[int, int], size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * size
    values, scale = quantize_blocks(weight, block)
    assert values.dtype == torch.float8_e4m3fn
    assert scale.dtype == torch.float32
    assert scale.shape == grid_shape(rows, columns, block)
    back = dequantize_blocks(values, scale, block, torch.float32)
    # Three bits of mantissa, and below 2^-6 of the scale steps of 2^-9 of it.
    step = by_hand(torch.ones(rows, columns), scale, block)
    assert torch.all((back - weight).abs() <= weight.abs() / 16 + step * 2**-10 * 1.01)
    assert torch.isfinite(back).all()
    # What was quantised once is the same when quantised again.
    again, same = quantize_blocks(back, block)
    assert torch.allclose(dequantize_blocks(again, same, block, torch.float32), back, rtol=1e-5)


def test_released_shape_with_ragged_edges() -> None:
    weight = torch.randn(300, 257)
    values, scale = quantize_blocks(weight)
    assert scale.shape == (3, 3)
    largest = values.float().abs()
    assert largest[:128, :128].max() == 448
    assert largest[256:, 256:].max() == 448
    back = dequantize_blocks(values, scale, (128, 128), torch.float32)
    assert torch.equal(back, by_hand(values, scale, (128, 128)))


def test_zeros_and_wrong_grids() -> None:
    values, scale = quantize_blocks(torch.zeros(5, 7), (4, 4))
    assert torch.equal(scale, torch.ones(2, 2))
    assert not dequantize_blocks(values, scale, (4, 4), torch.float32).any()
    with pytest.raises(ValueError, match="do not cover"):
        dequantize_blocks(values, torch.ones(1, 2), (4, 4), torch.float32)


def test_scales_of_lower_precision() -> None:
    values, _ = quantize_blocks(torch.randn(6, 6), (4, 4))
    powers = torch.tensor([[0.5, 2.0], [4.0, 0.125]])
    want = by_hand(values, powers, (4, 4))
    for dtype in (torch.bfloat16, torch.float8_e8m0fnu):
        assert torch.equal(dequantize_blocks(values, powers.to(dtype), (4, 4), torch.float32), want)
