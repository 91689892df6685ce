"""Randomness without state: every uniform number is a pure function of (seed, index, position).

Philox-4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3" (SC 2011): the seed is the key, the sample's index and the position are the counter. All of
it is integer arithmetic, so that CPU and CUDA give the same bits.

B: rows of a batch; any shapes that broadcast will do.
"""

from __future__ import annotations

import torch

_ROUNDS = 10
_MULTIPLY_0 = 0xD2511F53
_MULTIPLY_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_WORD = 0xFFFFFFFF

_Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: _Words, key: tuple[torch.Tensor, torch.Tensor]) -> _Words:
    """Four random 32-bit words of a 128-bit counter and a 64-bit key, each word in an int64 tensor.

    The words of one argument are ordered from the least significant, as in the paper's test
    vectors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(_ROUNDS):
        # The product of two words needs 64 unsigned bits: it wraps around in int64, and all its
        # bits are right. The shift brings sign bits in from above, which the mask takes away.
        product_0 = c0 * _MULTIPLY_0
        product_1 = c2 * _MULTIPLY_1
        round_0 = (k0 + round_ * _WEYL_0) & _WORD
        round_1 = (k1 + round_ * _WEYL_1) & _WORD
        c0 = (product_1 >> 32).bitwise_and_(_WORD).bitwise_xor_(c1).bitwise_xor_(round_0)
        c2 = (product_0 >> 32).bitwise_and_(_WORD).bitwise_xor_(c3).bitwise_xor_(round_1)
        c1 = product_1.bitwise_and_(_WORD)
        c3 = product_0.bitwise_and_(_WORD)
    return c0, c1, c2, c3


def uniform(seed_B: torch.Tensor, index_B: torch.Tensor, position_B: torch.Tensor) -> torch.Tensor:
    """Float64 numbers in [0, 1) with 53 random bits, one for each (seed, index, position).

    The arguments are int64, on one device, of shapes that broadcast. Negative values are taken as
    their 64 bits.
    """
    shape = (seed_B + index_B + position_B).shape
    seed_B, index_B, position_B = (
        seed_B.expand(shape),
        index_B.expand(shape),
        position_B.expand(shape),
    )
    first, second, _, _ = philox(
        (
            position_B & _WORD,
            (position_B >> 32) & _WORD,
            index_B & _WORD,
            (index_B >> 32) & _WORD,
        ),
        (seed_B & _WORD, (seed_B >> 32) & _WORD),
    )
    bits = ((first >> 5) << 26) | (second >> 6)
    return bits.to(torch.float64) * 2.0**-53


class NoiseAhead:
    """The numbers of a batch's rows, computed for a run of positions at once.

    The rounds of the generator are some seventy small operations, whether for one number or for
    thousands: a decode loop pays for them once in ``span`` steps. The numbers are those of
    :func:`uniform`. Looking up asks the device where it is, so this is for the CPU only.
    """

    def __init__(self, seed_B: torch.Tensor, index_B: torch.Tensor, span: int = 64) -> None:
        self._seed_B1, self._index_B1 = seed_B[:, None], index_B[:, None]
        self._steps_S = torch.arange(span)
        self._start_B = torch.zeros_like(seed_B)
        self._noise_BS: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> None:
        """The batch becomes these rows of it."""
        self._seed_B1, self._index_B1 = self._seed_B1[rows], self._index_B1[rows]
        self._start_B = self._start_B[rows]
        if self._noise_BS is not None:
            self._noise_BS = self._noise_BS[rows]

    def at(self, position_B: torch.Tensor) -> torch.Tensor:
        """``uniform`` of the batch's seeds and indices at these positions; [B]."""
        offset_B = position_B - self._start_B
        noise_BS = self._noise_BS
        if noise_BS is None or not 0 <= int(offset_B.min()) <= int(offset_B.max()) < len(
            self._steps_S
        ):
            self._start_B = position_B.clone()
            offset_B = torch.zeros_like(position_B)
            noise_BS = uniform(self._seed_B1, self._index_B1, position_B[:, None] + self._steps_S)
            self._noise_BS = noise_BS
        return noise_BS.gather(1, offset_B[:, None])[:, 0]
