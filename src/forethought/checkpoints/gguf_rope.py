"""Llama 3's rope scaling as GGUF keeps it: a divisor for each rotary frequency.

Folders state four parameters (`factor`, `low_freq_factor`, ...); GGUF files keep what follows from
them, the tensor `rope_freqs.weight`. Source: the Llama 3.1 reference code; llama.cpp's converter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forethought.checkpoints.network_config import Llama3Scaling

# The released models (8192 tokens; factors 8 and 32), then whatever else a power of two may be.
_ORIGINALS = (8192, *(1 << bits for bits in range(4, 21) if bits != 13))


def llama3_factors(scaling: Llama3Scaling, head_dim: int, theta: float) -> list[float]:
    """The divisors of the `head_dim / 2` rotary frequencies, fastest first."""
    original = scaling.original_max_position_embeddings
    longest = original / scaling.low_freq_factor
    shortest = original / scaling.high_freq_factor
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        if wavelength < shortest:
            factors.append(1.0)
        elif wavelength > longest:
            factors.append(scaling.factor)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (original / wavelength - scaling.low_freq_factor) / span
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return factors


def find_llama3(factors: Sequence[float], head_dim: int, theta: float) -> Llama3Scaling | None:
    """The parameters that give these factors, or None.

    `factor` is the largest; the band is that of every released Llama 3 (1 to 4) and the original
    length a power of two. Where several fit they give the same numbers; 8192 goes first.
    """
    if not all(math.isfinite(value) and value >= 1 for value in factors):
        return None
    factor = float(f"{max(factors, default=1.0):.6g}")
    for original in _ORIGINALS:
        for candidate in dict.fromkeys((factor, 8.0, 32.0)):
            scaling = Llama3Scaling(
                factor=candidate,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=original,
            )
            expected = llama3_factors(scaling, head_dim, theta)
            if all(
                math.isclose(a, b, rel_tol=2e-5) for a, b in zip(factors, expected, strict=True)
            ):
                return scaling
    return None
