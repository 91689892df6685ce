"""Keys and values in pages, and the rows' state, as tensors that never move.

R: rows, B: rows of a bucket, N: tokens of prompts in a row, H: query heads, G: key heads, K: width
of a key, V: width of a value, C: what a token stores a key head (K + V, or K for latents), P: pages
of the pool, W: pages of a row, F: fields of the state.

A decode step reads lengths and pages from tensors, so one captured graph serves every step.
"""

from __future__ import annotations

import torch

from forethought.checkpoints.network_config import DenseConfig
from forethought.engines.torch.cuda.attention import paged_attention
from forethought.engines.torch.cuda.pages import NOBODYS, PAGE
from forethought.engines.torch.cuda.schedule import ALIVE, FIELDS, LENGTH
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.packed import PackedSequences


def stored_width(network: CausalLM) -> tuple[int, int]:
    """(G, C): what a layer of the network stores of a token."""
    config = network.config
    if isinstance(config, DenseConfig):
        return config.num_key_value_heads, 2 * config.head_dim
    assert isinstance(network, DeepseekV3)
    config = network.deepseek_config
    if network.absorb:
        return 1, config.kv_lora_rank + config.qk_rope_head_dim
    return config.num_attention_heads, config.qk_head_dim + config.v_head_dim


def page_bytes(network: CausalLM) -> int:
    """Memory of a page, all layers of it."""
    groups, width = stored_width(network)
    return network.config.num_hidden_layers * groups * PAGE * width * network.dtype.itemsize


class PagedCache:
    """Implements :class:`forethought.models.attention.AttentionCache` for one network.

    :meth:`prefill` or :meth:`decode` say what the next forward pass fills. ``pages`` of the pool,
    ``width`` of them a row at most.
    """

    def __init__(self, network: CausalLM, rows: int, pages: int, width: int) -> None:
        self.rows, self.pages, self.width = rows, pages, width
        self.device = device = network.device
        self.state_FR = torch.zeros(FIELDS, rows, dtype=torch.int64, device=device)
        self.table_RW = torch.full((rows, width), NOBODYS, dtype=torch.int32, device=device)
        groups, stored = stored_width(network)
        # Zeros: what is masked must be finite, since 0 x nan is nan.
        self.pool = torch.zeros(
            network.config.num_hidden_layers,
            pages,
            groups,
            PAGE,
            stored,
            dtype=network.dtype,
            device=device,
        )
        """[layers, P, G, PAGE, C]: of each token of a page its key and then its value."""
        self._packed: PackedSequences | None = None
        self._pages_N = torch.empty(0, dtype=torch.int64)
        self._slots_N = torch.empty(0, dtype=torch.int64)

    @property
    def bytes(self) -> int:
        """Memory of the pool."""
        return self.pool.nbytes

    # -- what the next forward pass fills

    def prefill(
        self, packed: PackedSequences, pages_N: torch.Tensor, slots_N: torch.Tensor
    ) -> None:
        """The next pass computes whole sequences, [1, N]: each token into a place of a page."""
        self._pages_N, self._slots_N, self._packed = pages_N, slots_N, packed

    def decode(self, batch: int) -> None:
        """The next pass computes one token of each of the first rows; rows that are not alive
        write where nobody reads."""
        self._packed = None
        lengths_B = self.state_FR[LENGTH, :batch]
        # A row that is full and over stands one place behind its last page.
        column_B = (lengths_B // PAGE).clamp(max=self.width - 1)
        pages_B1 = self.table_RW[:batch].gather(1, column_B[:, None])
        alive_B = self.state_FR[ALIVE, :batch] != 0
        self._pages_N = torch.where(alive_B, pages_B1[:, 0], NOBODYS).long()
        self._slots_N = lengths_B % PAGE

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """See the protocol."""
        new_BGTC = k_BGTK if v_BGTV is None else torch.cat((k_BGTK, v_BGTV), dim=-1)
        new_NGC = new_BGTC.transpose(1, 2).flatten(0, 1)
        pool_PGTC = self.pool[layer]
        pool_PGTC[self._pages_N, :, self._slots_N] = new_NGC
        if self._packed is not None:
            return self._packed.attend(layer, q_BHTK, k_BGTK, v_BGTV, scale)
        out_BHV = paged_attention(
            q_BHTK[:, :, 0],
            pool_PGTC,
            self.table_RW,
            self.state_FR,
            key_width=k_BGTK.shape[3],
            latent=v_BGTV is None,
            scale=scale,
        )
        return out_BHV[:, :, None]

    # -- between passes

    def copy_pages(self, of: torch.Tensor, to: torch.Tensor) -> None:
        """Copy pages in every layer; int64 on the device."""
        self.pool.index_copy_(1, to, self.pool.index_select(1, of))

    def move_rows(self, of: torch.Tensor, to: torch.Tensor) -> None:
        """Rows ``of`` become rows ``to``, and are not alive themselves any more."""
        self.state_FR.index_copy_(1, to, self.state_FR.index_select(1, of))
        self.table_RW.index_copy_(0, to, self.table_RW.index_select(0, of))
        self.state_FR[ALIVE].index_fill_(0, of, 0)
