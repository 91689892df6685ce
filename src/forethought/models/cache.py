"""The readable reference of :class:`AttentionCache`: every row of the batch has the same length.

B: batch, T: new tokens, S: tokens stored after the call, H: query heads, G: key heads,
K: width of a key, V: width of a value. Tests hold the engine's caches to this one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from forethought.models.attention import causal_attention


class PlainCache:
    """Keys and values by concatenation: O(length) copies a step, and nothing to misread.

    Made for one `batch`, at most `capacity` tokens, `layers` layers. Storage takes the dtype and
    device of what the network first appends.
    """

    def __init__(self, batch: int, capacity: int, layers: int) -> None:
        self.batch = batch
        self.capacity = capacity
        self._keys: list[torch.Tensor | None] = [None] * layers
        self._values: list[torch.Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        """Tokens stored in the first layer (between two forward passes: in every layer)."""
        return self.stored(0)

    def stored(self, layer: int) -> int:
        """Tokens stored in one layer."""
        keys = self._keys[layer]
        return 0 if keys is None else keys.shape[2]

    def positions(self, new: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Positions of the next `new` tokens, [B, T]: what a network is called with."""
        first = self.length
        row = torch.arange(first, first + new, device=device)
        return row.expand(self.batch, new)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on (speculation that was not accepted)."""
        for stored in (self._keys, self._values):
            for layer, tensor in enumerate(stored):
                if tensor is not None:
                    stored[layer] = tensor[:, :, :length]

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """Append and attend; see :class:`AttentionCache`. ValueError beyond capacity or batch."""
        new = q_BHTK.shape[2]
        past = self.stored(layer)
        if q_BHTK.shape[0] != self.batch:
            raise ValueError(f"the cache holds {self.batch} rows, not {q_BHTK.shape[0]}")
        if past + new > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, not {past + new}")
        keys_BGSK = self._append(self._keys, layer, k_BGTK)
        values_BGSV = keys_BGSK if v_BGTV is None else self._append(self._values, layer, v_BGTV)
        if past == 0:
            return causal_attention(q_BHTK, keys_BGSK, values_BGSV, scale)
        # New token t sees everything before it and itself: columns 0 .. past + t.
        visible_TS = torch.ones(new, past + new, dtype=torch.bool, device=q_BHTK.device)
        return F.scaled_dot_product_attention(
            q_BHTK,
            keys_BGSK,
            values_BGSV,
            attn_mask=visible_TS.tril(past),
            scale=scale,
            enable_gqa=q_BHTK.shape[1] != keys_BGSK.shape[1],
        )

    @staticmethod
    def _append(stored: list[torch.Tensor | None], layer: int, new: torch.Tensor) -> torch.Tensor:
        old = stored[layer]
        both = new if old is None else torch.cat((old, new), dim=2)
        stored[layer] = both
        return both
