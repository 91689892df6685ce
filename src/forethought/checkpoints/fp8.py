"""FP8 weights in blocks, as DeepSeek-V3 releases them: e4m3 values, one fp32 scale a block.

`X.weight` is float8_e4m3fn [M, N], `X.weight_scale_inv` fp32 [ceil(M / m), ceil(N / n)] for blocks
of m x n (128 x 128 as released); a weight is value * scale, despite the name. Blocks at the right
and lower edge may be ragged. Source: DeepSeek-V3 (arXiv:2412.19437) section 3.3 and the README of
its weights.

M, N: rows and columns of a weight; R, C: rows and columns of its grid of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

E4M3_MAX = 448.0


def grid_shape(rows: int, columns: int, block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks cover a weight of rows x columns: (R, C)."""
    return -(-rows // block[0]), -(-columns // block[1])


def _regions(
    x_MN: torch.Tensor, grid_RC: torch.Tensor, block: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The weight as at most four regions of equal blocks: the inside, two edges, the corner.

    Each is a view [R', m, C', n] with the view [R', 1, C', 1] of its part of the grid.
    """

    def spans(size: int, step: int) -> list[tuple[slice, slice, int]]:
        whole = size // step
        found = [(slice(0, whole * step), slice(0, whole), step)] if whole else []
        if size % step:
            found.append((slice(whole * step, size), slice(whole, whole + 1), size % step))
        return found

    for rows, grid_rows, m in spans(x_MN.shape[0], block[0]):
        for columns, grid_columns, n in spans(x_MN.shape[1], block[1]):
            grid = grid_RC[grid_rows, grid_columns]
            part = x_MN[rows, columns].view(grid.shape[0], m, grid.shape[1], n)
            yield part, grid[:, None, :, None]


def dequantize_blocks(
    weight_MN: torch.Tensor,
    scale_inv_RC: torch.Tensor,
    block: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The weights [M, N] that FP8 blocks stand for: value * scale in fp32, rounded to `dtype`.

    Holds one fp32 copy, and the result where `dtype` is another. Raises ValueError if the grid of
    scales does not cover the weight.
    """
    rows, columns = weight_MN.shape
    if tuple(scale_inv_RC.shape) != grid_shape(rows, columns, block):
        raise ValueError(
            f"scales of shape {list(scale_inv_RC.shape)} do not cover [{rows}, {columns}] in "
            f"blocks of {block[0]} x {block[1]}"
        )
    out_MN = weight_MN.to(torch.float32)
    for part, scale in _regions(out_MN, scale_inv_RC.to(torch.float32), block):
        part.mul_(scale)
    return out_MN.to(dtype)


def quantize_blocks(
    weight_MN: torch.Tensor, block: tuple[int, int] = (128, 128)
) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values [M, N] and fp32 scales [R, C] of a weight; the largest of a block becomes 448.

    A block of zeros gets the scale 1. Rounding is to nearest, as in a cast.
    """
    scaled_MN = weight_MN.to(torch.float32, copy=True)
    rows, columns = scaled_MN.shape
    scale_RC = torch.ones(grid_shape(rows, columns, block), device=weight_MN.device)
    for part, scale in _regions(scaled_MN, scale_RC, block):
        largest = part.abs().amax(dim=(1, 3), keepdim=True)
        scale.copy_(torch.where(largest > 0, largest / E4M3_MAX, 1.0))
        part.div_(scale)
    # A quotient may round to just above the largest value, which e4m3 would turn into NaN.
    return scaled_MN.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale_RC
