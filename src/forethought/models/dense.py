"""One dense decoder for Llama 3, Qwen2 and Qwen3: what differs between them is in the config.

B: batch, T: tokens, D: width of the residual stream, H: query heads, G: key and value heads,
K: width of a head, R: rotary frequencies (K / 2).

Sources: Llama 3 (arXiv:2407.21783) section 3.2, Qwen2 (arXiv:2407.10671) section 2.2, Qwen3
(arXiv:2505.09388) section 2. Grouped queries: arXiv:2305.13245.
"""

from __future__ import annotations

import torch

from forethought.checkpoints.network_config import DenseConfig
from forethought.models import fused
from forethought.models.attention import AttentionCache, causal_attention
from forethought.models.causal_lm import CausalLM, DecoderLayer
from forethought.models.layers import RMSNorm, SwiGLU, linear
from forethought.models.rope import rotary_table, rotate_half


class DenseAttention(torch.nn.Module):
    """Grouped-query attention with rotated halves; q and k normed a head where the config says."""

    def __init__(self, config: DenseConfig, layer: int) -> None:
        super().__init__()
        heads, groups, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.layer = layer
        self.heads, self.groups = heads, groups
        self.head_dim = width
        self.scale = width**-0.5
        self.q_proj = linear(config.hidden_size, heads * width, config.attention_bias)
        self.k_proj = linear(config.hidden_size, groups * width, config.attention_bias)
        self.v_proj = linear(config.hidden_size, groups * width, config.attention_bias)
        self.o_proj = linear(heads * width, config.hidden_size, config.output_bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(width, config.rms_norm_eps)
            self.k_norm = RMSNorm(width, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        cache: AttentionCache | None,
    ) -> torch.Tensor:
        q_BHTK, k_BGTK, v_BGTK = self._heads(x_BTD, cos_BTR, sin_BTR)
        if cache is None:
            out_BHTK = causal_attention(q_BHTK, k_BGTK, v_BGTK, self.scale)
        else:
            out_BHTK = cache.attend(self.layer, q_BHTK, k_BGTK, v_BGTK, self.scale)
        out_BTD: torch.Tensor = self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
        return out_BTD

    def _heads(
        self, x_BTD: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries [B, H, T, K] and keys [B, G, T, K], and values [B, G, T, K]."""
        if not self.qk_norm and fused.joins(x_BTD):
            qkv_BTX = fused.joined_linear(x_BTD, (self.q_proj, self.k_proj, self.v_proj))
            return fused.qkv_rotated(qkv_BTX, cos_BTR, sin_BTR, self.heads, self.groups)
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHK = self.q_proj(x_BTD).view(heads)
        k_BTGK = self.k_proj(x_BTD).view(heads)
        v_BGTK = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        if self.qk_norm:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BHTK = rotate_half(q_BTHK.transpose(1, 2), cos_BTR, sin_BTR)
        k_BGTK = rotate_half(k_BTGK.transpose(1, 2), cos_BTR, sin_BTR)
        return q_BHTK, k_BGTK, v_BGTK


class DenseLayer(DecoderLayer):
    """Attention, then SwiGLU, each on the normed stream and added to it."""

    mlp: SwiGLU

    def __init__(self, config: DenseConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DenseAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, config.mlp_bias)


class DenseLM(CausalLM):
    """A Llama, Qwen2 or Qwen3 of the shape that the config gives.

    Its weights are undefined until loaded or initialised; `forethought.models.build` does both.
    """

    def __init__(self, config: DenseConfig) -> None:
        table = rotary_table(
            config.rope_theta, config.head_dim, config.rope_scaling, config.max_position_embeddings
        )
        layers = [DenseLayer(config, layer) for layer in range(config.num_hidden_layers)]
        super().__init__(config, layers, table)
