"""GGUF blocks -> numbers, in torch: the types that people use, a few times faster than numpy.

Each function takes blocks as bytes and gives float32, bit for bit what gguf-py's `dequantize`
gives; every other type goes through that library. A row is a whole number of blocks.

Shapes: R rows, N blocks, B bytes (of a row or a block), E elements of a block.
Source: the block structs of ggml-common.h, gguf-py's `quants`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import gguf
import numpy as np
import torch

from forethought.checkpoints import gguf_types as t

# Blocks at a time: the intermediate results stay in the processor's cache.
_ELEMENTS_AT_ONCE: Final = 1 << 18

NATIVE: Final[dict[str, torch.dtype]] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types that are stored as torch would store them."""


def _half(raw_NB: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of each block, as float32 (N, 1)."""
    return raw_NB[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(raw_NB: torch.Tensor) -> torch.Tensor:
    """Low halves of all bytes, then high halves."""
    return torch.cat((raw_NB & 15, raw_NB >> 4), dim=1)


def _fifth_bits(raw_N4: torch.Tensor) -> torch.Tensor:
    """32 bits of each block, as 0 or 16, in the order of `_nibbles`."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((raw_N4.unsqueeze(2) >> shifts) & 1).reshape(-1, 32) << 4


def _q8_0(raw_NB: torch.Tensor) -> torch.Tensor:
    return raw_NB[:, 2:].view(torch.int8).float() * _half(raw_NB, 0)


def _q4_0(raw_NB: torch.Tensor) -> torch.Tensor:
    return (_nibbles(raw_NB[:, 2:]).float() - 8) * _half(raw_NB, 0)


def _q4_1(raw_NB: torch.Tensor) -> torch.Tensor:
    return _nibbles(raw_NB[:, 4:]).float() * _half(raw_NB, 0) + _half(raw_NB, 2)


def _q5_0(raw_NB: torch.Tensor) -> torch.Tensor:
    values = _nibbles(raw_NB[:, 6:]) | _fifth_bits(raw_NB[:, 2:6])
    return (values.float() - 16) * _half(raw_NB, 0)


def _q5_1(raw_NB: torch.Tensor) -> torch.Tensor:
    values = _nibbles(raw_NB[:, 8:]) | _fifth_bits(raw_NB[:, 4:8])
    return values.float() * _half(raw_NB, 0) + _half(raw_NB, 2)


def _scales_k4(raw_NB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eight scales and eight minima, six bits each, that follow d and dmin."""
    first, second, mixed = raw_NB[:, 4:8], raw_NB[:, 8:12], raw_NB[:, 12:16]
    scales = torch.cat((first & 63, (mixed & 15) | ((first >> 2) & 48)), dim=1)
    minima = torch.cat((second & 63, (mixed >> 4) | ((second >> 2) & 48)), dim=1)
    return scales.float() * _half(raw_NB, 0), minima.float() * _half(raw_NB, 2)


def _q4_k(raw_NB: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_k4(raw_NB)
    packed = raw_NB[:, 16:].reshape(-1, 4, 32)
    values = torch.stack((packed & 15, packed >> 4), dim=2).reshape(-1, 8, 32)
    return (values.float() * scales.unsqueeze(2) - minima.unsqueeze(2)).reshape(-1, 256)


def _q5_k(raw_NB: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_k4(raw_NB)
    packed = raw_NB[:, 48:].reshape(-1, 4, 32)
    low = torch.stack((packed & 15, packed >> 4), dim=2).reshape(-1, 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8).reshape(1, 8, 1)
    high = (raw_NB[:, 16:48].unsqueeze(1) >> shifts) & 1
    values = (low | (high << 4)).float()
    return (values * scales.unsqueeze(2) - minima.unsqueeze(2)).reshape(-1, 256)


def _q6_k(raw_NB: torch.Tensor) -> torch.Tensor:
    packed = raw_NB[:, :128].reshape(-1, 2, 64)
    low = torch.stack((packed & 15, packed >> 4), dim=2).reshape(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).reshape(1, 1, 4, 1)
    high = (raw_NB[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high << 4)).float() - 32
    scales = raw_NB[:, 192:208].view(torch.int8).float() * _half(raw_NB, 208)
    return (values.reshape(-1, 16, 16) * scales.unsqueeze(2)).reshape(-1, 256)


_OWN: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

# Block size and bytes by name.
_BLOCKS: Final = {name: (size, count) for name, size, count in t.TENSOR_TYPES.values()}


def block_of(kind: str) -> tuple[int, int]:
    """Elements and bytes of one block of a type."""
    return _BLOCKS[kind]


def can_dequantize(kind: str) -> bool:
    """Whether `dequantize` knows the type."""
    if kind in _OWN or kind in NATIVE:
        return True
    if kind not in gguf.GGMLQuantizationType.__members__:
        return False
    try:
        _by_library(torch.zeros(1, _BLOCKS[kind][1], dtype=torch.uint8), kind)
    except NotImplementedError:
        return False
    return True


def dequantize(raw_RB: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """Rows of whole blocks, (R, bytes of a row) uint8 -> (R, elements of a row) of `dtype`.

    For a type of `NATIVE` and its own dtype the result is a view.
    """
    rows = raw_RB.shape[0]
    if kind in NATIVE:
        return raw_RB.view(NATIVE[kind]).to(dtype)
    size, count = _BLOCKS[kind]
    raw_NB = raw_RB.reshape(-1, count)
    function = _OWN.get(kind)
    out_NE = torch.empty(raw_NB.shape[0], size, dtype=dtype)
    step = _ELEMENTS_AT_ONCE // size
    for start in range(0, raw_NB.shape[0], step):
        part_NB = raw_NB[start : start + step]
        out_NE[start : start + step] = (
            function(part_NB) if function is not None else _by_library(part_NB, kind)
        )
    return out_NE.reshape(rows, -1)


def _by_library(raw_NB: torch.Tensor, kind: str) -> torch.Tensor:
    # A damaged file may hold any scale, infinite ones too: that is for the caller to notice.
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(raw_NB.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values)
