"""The module that predicts one token further (multi-token prediction), of depth 1.

B: batch, T: tokens, D: width of the residual stream, R: rotary frequencies.

Source: DeepSeek-V3 (arXiv:2412.19437) section 2.2, equations 21 to 25, with two points where the
released weights decide and the paper does not:

- `eh_proj` takes [embedding ; hidden state]. The paper writes [hidden state ; embedding].
- The hidden state is that *after* the last norm of the main network; `hnorm` is applied on top.

transformers (`MtpModel`), vLLM (`deepseek_mtp`) and SGLang (`deepseek_nextn`) agree on both.
"""

from __future__ import annotations

import torch
from torch import nn

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.models.attention import AttentionCache
from forethought.models.deepseek_v3.decoder import DeepseekLayer
from forethought.models.layers import RMSNorm, linear


class SharedHead(nn.Module):
    """The norm before the output head. The head itself is the main network's."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MTP(DeepseekLayer):
    """A routed layer behind a projection of the next token and the state that predicted it.

    In a checkpoint it is the layer after the last one, whose number is also its layer in a cache.
    Embedding and output head are the main network's (:meth:`DeepseekV3.mtp_hidden`).
    """

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config, config.num_hidden_layers, routed=True)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def combine(self, embedded_BTD: torch.Tensor, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """What the layer runs on: the embedding of t[i+1] and the main state of position i, joined
        (equation 21); [B, T, D]."""
        both = torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1)
        joined_BTD: torch.Tensor = self.eh_proj(both)
        return joined_BTD

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        cache: AttentionCache | None,
    ) -> torch.Tensor:
        """From joined inputs to states whose logits are those of t[i+2]; [B, T, D]."""
        out_BTD: torch.Tensor = self.shared_head.norm(
            super().forward(x_BTD, cos_BTR, sin_BTR, cache)
        )
        return out_BTD
