"""Multi-head latent attention: the cache holds one compressed vector a token, not keys and values.

B: batch, T: new tokens, D: width of the residual stream, H: heads, R: rotary frequencies,
L: kv_lora_rank, N: qk_nope_head_dim, P: qk_rope_head_dim, K = N + P: width of a key of the plain
form, C = L + P: width of a cached row, V: v_head_dim.

Source: DeepSeek-V3 (arXiv:2412.19437) section 2.1.1, equations 1 to 11; the absorbed form is that
of DeepSeek-V2 (arXiv:2405.04434) section 2.1.2.
"""

from __future__ import annotations

import torch
from torch import nn

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.models import fused
from forethought.models.attention import AttentionCache, causal_attention
from forethought.models.layers import RMSNorm, linear
from forethought.models.packed import PackedSequences
from forethought.models.rope import rotate_half, rotate_pairs, yarn_softmax_scale

# The released code gives the norms inside the attention no epsilon of the config, but this one.
_LATENT_EPS = 1e-6


class MLA(nn.Module):
    """Latent attention of one layer.

    With a cache and `absorb`, one key head of width C is stored, [normalised latent ; rotated key],
    and `kv_b_proj` is applied to queries and outputs instead of to every stored token. Without
    `absorb` the cache gets keys [B, H, T, K] and values [B, H, T, V]. A cache serves one of the two
    from its first token on. Without a cache (training) attention is always the plain one.
    """

    def __init__(self, config: DeepseekConfig, layer: int) -> None:
        super().__init__()
        heads, width = config.num_attention_heads, config.hidden_size
        self.layer = layer
        self.heads = heads
        self.kv_lora_rank = config.kv_lora_rank
        self.qk_nope_head_dim = config.qk_nope_head_dim
        self.qk_rope_head_dim = config.qk_rope_head_dim
        self.v_head_dim = config.v_head_dim
        self.absorb = True
        self.scale = config.qk_head_dim**-0.5 * yarn_softmax_scale(config.rope_scaling)
        self._rotate = rotate_pairs if config.rope_interleave else rotate_half

        self.q_lora_rank = config.q_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = linear(width, heads * config.qk_head_dim)
        else:
            self.q_a_proj = linear(width, config.q_lora_rank, config.attention_bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, _LATENT_EPS)
            self.q_b_proj = linear(config.q_lora_rank, heads * config.qk_head_dim)
        cached = config.kv_lora_rank + config.qk_rope_head_dim
        self.kv_a_proj_with_mqa = linear(width, cached, config.attention_bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, _LATENT_EPS)
        expanded = config.qk_nope_head_dim + config.v_head_dim
        self.kv_b_proj = linear(config.kv_lora_rank, heads * expanded)
        self.o_proj = linear(heads * config.v_head_dim, width, config.attention_bias)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        cache: AttentionCache | None,
    ) -> torch.Tensor:
        """What attention adds to the residual stream; [B, T, D]."""
        if isinstance(cache, PackedSequences) and fused.usable(x_BTD):
            return self._packed(x_BTD, cos_BTR, sin_BTR, cache)
        nope_BHTN, rope_BHTP = self._queries(x_BTD)
        rope_BHTP = self._rotate(rope_BHTP, cos_BTR, sin_BTR)
        widths = [self.kv_lora_rank, self.qk_rope_head_dim]
        latent_BTL, key_BTP = self.kv_a_proj_with_mqa(x_BTD).split(widths, dim=-1)
        latent_BTL = self.kv_a_layernorm(latent_BTL)
        key_B1TP = self._rotate(key_BTP.unsqueeze(1), cos_BTR, sin_BTR)
        # A packed row stores nothing, so there is nothing to keep small.
        if cache is not None and self.absorb and not isinstance(cache, PackedSequences):
            out_BHTV = self._absorbed(nope_BHTN, rope_BHTP, latent_BTL, key_B1TP, cache)
        else:
            out_BHTV = self._plain(nope_BHTN, rope_BHTP, latent_BTL, key_B1TP, cache)
        out_BTD: torch.Tensor = self.o_proj(out_BHTV.transpose(1, 2).flatten(2))
        return out_BTD

    def _packed(
        self,
        x_1ND: torch.Tensor,
        cos_1NR: torch.Tensor,
        sin_1NR: torch.Tensor,
        packed: PackedSequences,
    ) -> torch.Tensor:
        """:meth:`_plain` of a row on CUDA: heads are made by one kernel, as wide as attention
        wants them."""
        widths = [self.kv_lora_rank, self.qk_rope_head_dim]
        latent_1NL, key_1NP = self.kv_a_proj_with_mqa(x_1ND).split(widths, dim=-1)
        expanded_1NY = self.kv_b_proj(self.kv_a_layernorm(latent_1NL))
        heads_NHW = fused.latent_heads(
            self._query_rows(x_1ND).squeeze(0),
            expanded_1NY.squeeze(0),
            key_1NP.squeeze(0),
            cos_1NR.squeeze(0),
            sin_1NR.squeeze(0),
            heads=self.heads,
            value=self.v_head_dim,
            pairs=self._rotate is rotate_pairs,
        )
        q, k, v = (each_NHW.transpose(0, 1).unsqueeze(0) for each_NHW in heads_NHW)
        out_1HNW = packed.attend(self.layer, q, k, v, self.scale)
        out_1NHV = out_1HNW.transpose(1, 2)[..., : self.v_head_dim]
        out_1ND: torch.Tensor = self.o_proj(out_1NHV.flatten(2))
        return out_1ND

    def _query_rows(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if self.q_lora_rank is None:
            q: torch.Tensor = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        return q

    def _queries(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = self._query_rows(x_BTD)
        q_BHTK = q.view(*q.shape[:2], self.heads, -1).transpose(1, 2)
        widths = [self.qk_nope_head_dim, self.qk_rope_head_dim]
        nope_BHTN, rope_BHTP = torch.split(q_BHTK, widths, dim=-1)
        return nope_BHTN, rope_BHTP

    def _plain(
        self,
        nope_BHTN: torch.Tensor,
        rope_BHTP: torch.Tensor,
        latent_BTL: torch.Tensor,
        key_B1TP: torch.Tensor,
        cache: AttentionCache | None,
    ) -> torch.Tensor:
        """Keys and values of every head written out."""
        expanded = self.kv_b_proj(latent_BTL).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_BHTN, v_BHTV = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        q_BHTK = torch.cat((nope_BHTN, rope_BHTP), dim=-1)
        k_BHTK = torch.cat((key_BHTN, key_B1TP.expand(-1, self.heads, -1, -1)), dim=-1)
        if cache is None:
            return causal_attention(q_BHTK, k_BHTK, v_BHTV, self.scale)
        return cache.attend(self.layer, q_BHTK, k_BHTK, v_BHTV, self.scale)

    def _absorbed(
        self,
        nope_BHTN: torch.Tensor,
        rope_BHTP: torch.Tensor,
        latent_BTL: torch.Tensor,
        key_B1TP: torch.Tensor,
        cache: AttentionCache,
    ) -> torch.Tensor:
        """q . (W_k c) = (W_k^T q) . c, and the sum of W_v c is W_v times the sum of c."""
        weight = self.kv_b_proj.weight.view(self.heads, -1, self.kv_lora_rank)
        to_key_HNL = weight[:, : self.qk_nope_head_dim]
        to_value_HVL = weight[:, self.qk_nope_head_dim :]
        q_BHTL = _per_head(nope_BHTN, to_key_HNL)
        q_BHTC = torch.cat((q_BHTL, rope_BHTP), dim=-1)
        k_B1TC = torch.cat((latent_BTL.unsqueeze(1), key_B1TP), dim=-1)
        out_BHTC = cache.attend(self.layer, q_BHTC, k_B1TC, None, self.scale)
        return _per_head(out_BHTC[..., : self.kv_lora_rank], to_value_HVL.transpose(1, 2))


def _per_head(x_BHTI: torch.Tensor, weight_HIO: torch.Tensor) -> torch.Tensor:
    """Each head times its own matrix; [B, H, T, O]. One batched product over heads: the matrices
    are views of the stored weight, and no row of the batch repeats them."""
    batch, heads, tokens, _ = x_BHTI.shape
    rows_HMI = x_BHTI.transpose(0, 1).reshape(heads, batch * tokens, -1)
    rows_HMO = torch.bmm(rows_HMI, weight_HIO)
    return rows_HMO.view(heads, batch, tokens, -1).transpose(0, 1)
