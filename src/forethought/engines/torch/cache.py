"""Keys and values of a batch of samples of different lengths, stored row by row.

B: rows computed in this step, N: tokens computed (B rows of T tokens), S: stored tokens a row that
are looked at, H: query heads, G: key heads, K: width of a key, V: width of a value.

A row is one sample. Its tokens lie in order, so that a fork copies a prefix and a step writes one
place a row. What a row sees is a function of its own length alone: lengths are padded to a multiple
of BLOCK with masked places, which add exact zeros, so that a longer neighbour changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from forethought.models.attention import causal_attention
from forethought.models.packed import PackedSequences

BLOCK = 32
"""Tokens by which the looked-at length grows; a multiple of every kernel's vector width."""


class RowCache:
    """Implements :class:`forethought.models.attention.AttentionCache` for one network.

    Call :meth:`prefill` or :meth:`decode` before each forward pass; it says which rows and places
    the pass fills. Storage grows to what is asked for and is never shrunk.
    """

    def __init__(self, layers: int, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._layers: list[torch.Tensor | None] = [None] * layers
        self._rows = 0
        self._capacity = 0
        self._views: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor] | None]] = {}
        self._places_N = torch.empty(0, dtype=torch.int64)
        self._mask: torch.Tensor | None = None
        self._first_row = 0
        self._batch = 0
        self._seen = 0
        self._fresh = False
        self._packed: PackedSequences | None = None

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def capacity(self) -> int:
        """Tokens a row holds."""
        return self._capacity

    @property
    def bytes(self) -> int:
        """Memory held now."""
        return sum(stored.nbytes for stored in self._layers if stored is not None)

    # -- room

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for ``rows`` rows of ``tokens`` tokens; what is stored is kept."""
        if rows <= self._rows and tokens <= self._capacity:
            return
        rows = max(rows, self._rows)
        tokens = max(-(-tokens // BLOCK) * BLOCK, self._capacity)
        for at, old_RCW in enumerate(self._layers):
            if old_RCW is not None:
                new_RCW = old_RCW.new_zeros(rows, tokens, old_RCW.shape[2])
                new_RCW[: self._rows, : self._capacity] = old_RCW
                self._layers[at] = new_RCW
        self._rows, self._capacity = rows, tokens
        self._views.clear()

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first ``length`` tokens of one row into others."""
        for stored_RCW in self._layers:
            if stored_RCW is not None:
                for target in targets:
                    stored_RCW[target, :length] = stored_RCW[source, :length]

    # -- what the next forward pass fills

    def prefill_packed(self, rows: Sequence[int], packed: PackedSequences) -> None:
        """The next pass computes the first tokens of several rows at once, one sequence each.

        It is called with ids [1, N] and the positions of ``packed``.
        """
        first = [row * self._capacity for row in rows]
        lengths = torch.tensor(packed.lengths)
        starts_N = torch.repeat_interleave(torch.tensor(first), lengths).to(self._device)
        self._places_N = starts_N + packed.positions_1N[0]
        self._packed = packed

    def prefill(self, row: int, start: int, count: int) -> None:
        """The next pass computes ``count`` tokens of one row, from position ``start`` on."""
        first = row * self._capacity + start
        self._packed = None
        self._places_N = torch.arange(first, first + count, device=self._device)
        self._first_row, self._batch, self._seen = row, 1, start + count
        self._fresh = start == 0
        self._mask = None
        if not self._fresh:
            # New token t sees all that is stored before it, and itself.
            visible_TS = torch.ones(count, self._seen, dtype=torch.bool, device=self._device)
            self._mask = visible_TS.tril(start)

    def decode(self, lengths_B: torch.Tensor, longest: int, dtype: torch.dtype) -> None:
        """The next pass computes one token of each of the first B rows.

        ``lengths_B``: tokens stored in each row before it (int64, on the device); ``longest``: the
        greatest of them, known to the host. ``dtype``: of the activations.
        """
        batch = lengths_B.shape[0]
        self._packed = None
        rows_B = torch.arange(batch, device=self._device)
        self._places_N = rows_B * self._capacity + lengths_B
        self._first_row, self._batch = 0, batch
        self._seen = (longest // BLOCK + 1) * BLOCK
        self._fresh = False
        unseen_BS = torch.arange(self._seen, device=self._device) > lengths_B[:, None]
        mask_BS = torch.zeros(batch, self._seen, dtype=dtype, device=self._device)
        self._mask = mask_BS.masked_fill_(unseen_BS, -torch.inf)[:, None, None, :]

    # -- attention

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """See the protocol."""
        groups, key_width = k_BGTK.shape[1], k_BGTK.shape[3]
        new_NW = k_BGTK.transpose(1, 2).flatten(0, 1).flatten(1)
        if v_BGTV is not None:
            new_NW = torch.cat((new_NW, v_BGTV.transpose(1, 2).flatten(0, 1).flatten(1)), dim=1)
        value_width = 0 if v_BGTV is None else v_BGTV.shape[3]
        self._store(layer, new_NW)
        if self._packed is not None:
            return self._packed.attend(layer, q_BHTK, k_BGTK, v_BGTV, scale)
        if self._fresh:
            values = k_BGTK if v_BGTV is None else v_BGTV
            return causal_attention(q_BHTK, k_BGTK, values, scale)
        k_BGSK, v_BGSV = self._stored(layer, groups, key_width, value_width)
        return F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSV,
            self._mask,
            scale=scale,
            enable_gqa=q_BHTK.shape[1] != groups,
        )

    def attend_flat(
        self, layer: int, q_NHK: torch.Tensor, kv_NW: torch.Tensor, groups: int, scale: float
    ) -> torch.Tensor:
        """As :meth:`attend` for tokens in a row and keys and values side by side; [N, H, K].

        ``kv_NW``: keys of all groups, then values of the same width. Made for networks whose
        projections leave them so: nothing is rearranged.
        """
        tokens, _, width = q_NHK.shape
        self._store(layer, kv_NW)
        per_row = tokens // self._batch
        q_BHTK = q_NHK.view(self._batch, per_row, -1, width).transpose(1, 2)
        if self._fresh:
            half = groups * width
            k_BGTK = kv_NW[:, :half].view(1, tokens, groups, width).transpose(1, 2)
            v_BGTK = kv_NW[:, half:].view(1, tokens, groups, width).transpose(1, 2)
            out_BHTK = causal_attention(q_BHTK, k_BGTK, v_BGTK, scale)
        else:
            k_BGSK, v_BGSK = self._stored(layer, groups, width, width)
            out_BHTK = F.scaled_dot_product_attention(
                q_BHTK,
                k_BGSK,
                v_BGSK,
                self._mask,
                scale=scale,
                enable_gqa=q_NHK.shape[1] != groups,
            )
        return out_BHTK.transpose(1, 2).reshape(tokens, -1)

    def _store(self, layer: int, new_NW: torch.Tensor) -> None:
        stored_RCW = self._layers[layer]
        if stored_RCW is None:
            # Zeros: what is masked must be finite, since 0 x nan is nan.
            stored_RCW = new_NW.new_zeros(self._rows, self._capacity, new_NW.shape[1])
            self._layers[layer] = stored_RCW
        stored_RCW.view(-1, stored_RCW.shape[2]).index_copy_(0, self._places_N, new_NW)

    def _stored(
        self, layer: int, groups: int, key_width: int, value_width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the rows of this pass, [B, G, S, K] and [B, G, S, V]; views."""
        if self._first_row:
            return self._view(layer, groups, key_width, value_width)
        views = self._views.get((self._batch, self._seen))
        if views is None:
            # They change with the batch and every BLOCK tokens: views a layer a step cost more
            # than they say.
            self._views.clear()
            views = self._views[self._batch, self._seen] = [None] * len(self._layers)
        found = views[layer]
        if found is None:
            found = views[layer] = self._view(layer, groups, key_width, value_width)
        return found

    def _view(
        self, layer: int, groups: int, key_width: int, value_width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stored_RCW = self._layers[layer]
        assert stored_RCW is not None
        looked_at = stored_RCW[self._first_row : self._first_row + self._batch, : self._seen]
        split = groups * key_width
        k_BGSK = (
            looked_at[:, :, :split].view(*looked_at.shape[:2], groups, key_width).transpose(1, 2)
        )
        if not value_width:
            return k_BGSK, k_BGSK
        v_BGSV = (
            looked_at[:, :, split:].view(*looked_at.shape[:2], groups, value_width).transpose(1, 2)
        )
        return k_BGSK, v_BGSV
