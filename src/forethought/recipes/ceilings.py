"""What a device can do at best, measured: matrix products and memory, in about a second.

Whatever a profile calls a share is a share of these: figures of this machine, in this dtype, with
these threads, and not those of a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from forethought.engines.machine import available_memory

_SECONDS: Final = 0.35
"""How long each of the two is tried."""
_LONG_ENOUGH: Final = 0.02
"""Seconds of a product from which on a larger one is not tried."""
_SMALLEST, _LARGEST = 256, 8192
_MOST_COPIED: Final = 1 << 29
"""Bytes of a buffer: far more than caches hold."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """``flops`` and ``bytes`` a second. ``matrix``: rows and columns of the product that was
    quickest; ``buffer``: bytes that were copied at once, each of them read and written."""

    flops: float
    bytes: float
    matrix: int
    buffer: int


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Of ``device`` with the threads that torch has now. Draws no random number."""
    flops, matrix = _products(device, dtype)
    bandwidth, buffer = _copies(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Ceilings(flops, bandwidth, matrix, buffer)


def _products(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """(FLOP/s, rows) of the quickest square product."""
    end = time.perf_counter() + _SECONDS
    rates: dict[int, float] = {}
    size = _SMALLEST
    while True:
        left = torch.full((size, size), 0.5, device=device, dtype=dtype)
        product = partial(torch.mm, left, torch.full_like(left, 0.25), out=torch.empty_like(left))
        _took(product, device)  # libraries choose their kernels
        seconds = _took(product, device)
        if seconds > _LONG_ENOUGH or size == _LARGEST:
            break
        rates[size] = 2 * size**3 / seconds
        size *= 2
    while time.perf_counter() < end:
        seconds = min(seconds, _took(product, device))
    rates[size] = 2 * size**3 / seconds
    best = max(rates, key=rates.__getitem__)
    return rates[best], best


def _copies(device: torch.device) -> tuple[float, int]:
    """(bytes a second, bytes of the buffer) of the quickest copy."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    size = max(1 << 20, min(_MOST_COPIED, free // 8))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)  # its pages are there before it is timed
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, _took(lambda: target.copy_(source), device))
    return 2 * size / best, size


def _took(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - started, 1e-9)
