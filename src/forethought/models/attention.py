"""What every attention of this room agrees on: one call that stores keys and values and attends.

B: batch, T: new tokens, S: tokens in the cache after the call, H: query heads, G: key heads
(H is a multiple of G), K: width of a key, V: width of a value.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class AttentionCache(Protocol):
    """Keys and values of earlier tokens. The engine brings its own; `PlainCache` is the reference.

    The cache decides which tokens see which (ragged batches, forks), so networks hold no masks.
    """

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """Append k and v of `layer`, attend causally over all that is stored; [B, H, T, V].

        ``v`` None: the values are the leading columns of the keys (absorbed MLA); the result then
        has the width of a whole key, of which the caller takes what it needs.
        """


def causal_attention(
    q_BHTK: torch.Tensor, k_BGTK: torch.Tensor, v_BGTV: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of a whole sequence on itself, without a cache; [B, H, T, V]."""
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGTK,
        v_BGTV,
        is_causal=True,
        scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
    )
