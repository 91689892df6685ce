"""Rotary positions: frequencies with the scalings of Llama 3 and YaRN, and the two rotations.

B: batch, T: tokens, H: heads, D: rotated width of a head, R = D / 2: frequencies.

A network computes the cosines and sines once a forward pass; all its layers share them. Sources:
RoFormer (arXiv:2104.09864), YaRN (arXiv:2309.00071), the Llama 3.1 and DeepSeek-V3 releases.

The scalings hold at every position, as in transformers: a config that says `yarn` gets YaRN below
its original length too. (DeepSeek's reference code applies it when the *maximum* length is beyond
the original one, which every config with `rope_scaling` is: the same rule, since neither looks at
the length of the sequence at hand.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from forethought.checkpoints.network_config import Llama3Scaling, YarnScaling
from forethought.models import fused


@dataclass(frozen=True)
class RotaryTable:
    """The frequencies of a network: no parameter, so a network built on `meta` has them too."""

    inv_freq: torch.Tensor
    """[R] float32, radians a position."""
    factor: float
    """Multiplies cosines and sines (YaRN's attention factor; 1.0 elsewhere)."""
    _copies: dict[torch.device, torch.Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def on(self, device: torch.device) -> torch.Tensor:
        """`inv_freq` on `device`; copied there once, since a copy a step would stall a GPU."""
        if device == self.inv_freq.device:
            return self.inv_freq
        if device not in self._copies:
            self._copies[device] = self.inv_freq.to(device)
        return self._copies[device]


def rotary_table(
    theta: float,
    dim: int,
    scaling: Llama3Scaling | YarnScaling | None,
    max_position_embeddings: int,
) -> RotaryTable:
    """Frequencies of `dim` rotated columns (dim / 2 of them), on the CPU in float32.

    `max_position_embeddings` is what the config allows; no scaling here depends on it beyond what
    its own fields say. Raises ValueError for an odd `dim`.
    """
    if dim % 2:
        raise ValueError(f"the rotated width of a head must be even, not {dim}")
    steps = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    inv_freq = 1.0 / theta**steps
    if isinstance(scaling, Llama3Scaling):
        return RotaryTable(_llama3(inv_freq, scaling), 1.0)
    if isinstance(scaling, YarnScaling):
        return RotaryTable(_yarn(inv_freq, theta, dim, scaling), _yarn_factor(scaling))
    return RotaryTable(inv_freq, 1.0)


def _llama3(inv_freq: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Waves longer than the trained context are slowed by `factor`, short ones kept."""
    turns = scaling.original_max_position_embeddings * inv_freq / (2 * math.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / width).clamp(0.0, 1.0)
    return (1 - kept) * inv_freq / scaling.factor + kept * inv_freq


def _yarn(inv_freq: torch.Tensor, theta: float, dim: int, scaling: YarnScaling) -> torch.Tensor:
    """Columns that turn `beta_fast` times or more in the original length are kept, those below
    `beta_slow` slowed by `factor`, and a linear ramp over the columns lies between."""

    def column(turns: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (2 * math.pi * turns)
        return dim * math.log(wavelength) / (2 * math.log(theta))

    low = max(math.floor(column(scaling.beta_fast)), 0)
    high = min(math.ceil(column(scaling.beta_slow)), dim - 1)
    columns = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    slowed = ((columns - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return slowed * inv_freq / scaling.factor + (1 - slowed) * inv_freq


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_factor(scaling: YarnScaling) -> float:
    """The factor of cosines and sines; 1.0 where `mscale` equals `mscale_all_dim` (DeepSeek)."""
    above = _mscale(scaling.factor, scaling.mscale)
    return above / _mscale(scaling.factor, scaling.mscale_all_dim)


def yarn_softmax_scale(scaling: YarnScaling | None) -> float:
    """What DeepSeek multiplies its softmax scale by: the `mscale_all_dim` correction squared.

    1.0 without YaRN or with `mscale_all_dim` 0. The dense networks never apply it.
    """
    if scaling is None or not scaling.mscale_all_dim:
        return 1.0
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def rotary_cos_sin(
    table: RotaryTable, positions_BT: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all angles, [B, T, R] each, computed in float32, rounded to `dtype`."""
    angles_BTR = positions_BT.float().unsqueeze(-1) * table.on(positions_BT.device)
    cos_BTR, sin_BTR = angles_BTR.cos(), angles_BTR.sin()
    if table.factor != 1.0:
        cos_BTR, sin_BTR = cos_BTR * table.factor, sin_BTR * table.factor
    return cos_BTR.to(dtype), sin_BTR.to(dtype)


def _rotated(
    a_BHTR: torch.Tensor, b_BHTR: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor
) -> torch.Tensor:
    cos_B1TR, sin_B1TR = cos_BTR.unsqueeze(1), sin_BTR.unsqueeze(1)
    return torch.cat(
        (a_BHTR * cos_B1TR - b_BHTR * sin_B1TR, b_BHTR * cos_B1TR + a_BHTR * sin_B1TR), dim=-1
    )


def rotate_half(x_BHTD: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor) -> torch.Tensor:
    """Rotate column i together with column i + D/2 (Llama, Qwen); [B, H, T, D]."""
    if fused.usable(x_BHTD):
        return fused.rotated(x_BHTD, cos_BTR, sin_BTR, pairs=False)
    first, second = x_BHTD.chunk(2, dim=-1)
    return _rotated(first, second, cos_BTR, sin_BTR)


def rotate_pairs(
    x_BHTD: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor
) -> torch.Tensor:
    """Rotate column 2i together with column 2i + 1 (DeepSeek); [B, H, T, D].

    The result holds the first of each pair in its leading half and the second in the other: queries
    and keys are permuted alike, so their products are what they would be, and nothing is
    interleaved again.
    """
    if fused.usable(x_BHTD):
        return fused.rotated(x_BHTD, cos_BTR, sin_BTR, pairs=True)
    return _rotated(x_BHTD[..., 0::2], x_BHTD[..., 1::2], cos_BTR, sin_BTR)
