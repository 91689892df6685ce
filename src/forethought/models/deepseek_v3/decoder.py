"""One layer of a DeepSeek network: latent attention, then a dense SwiGLU or a mixture of experts.

B: batch, T: tokens, N = B * T, D: width of the residual stream, R: rotary frequencies.
Source: DeepSeek-V3 (arXiv:2412.19437) section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.models.causal_lm import DecoderLayer
from forethought.models.deepseek_v3.experts import Experts
from forethought.models.deepseek_v3.gate import Gate
from forethought.models.deepseek_v3.mla import MLA
from forethought.models.layers import RMSNorm, SwiGLU


class MixtureOfExperts(nn.Module):
    """The routed experts that a token chose, weighted, and the shared ones, which all tokens use.

    The shared experts are one SwiGLU of their joint width: the same sum (equation 12).
    """

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        inner = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, inner)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BTD.flatten(0, 1)
        indices_NK, weights_NK, _ = self.gate(x_ND)
        shared_ND: torch.Tensor = self.shared_experts(x_BTD).flatten(0, 1)
        out_ND: torch.Tensor = self.experts(x_ND, indices_NK, weights_NK, shared_ND)
        return out_ND.view_as(x_BTD)


class DeepseekLayer(DecoderLayer):
    """Attention and feed-forward, each behind its norm and added to the residual stream."""

    def __init__(self, config: DeepseekConfig, layer: int, *, routed: bool) -> None:
        super().__init__()
        self.self_attn = MLA(config, layer)
        self.mlp = (
            MixtureOfExperts(config)
            if routed
            else SwiGLU(config.hidden_size, config.intermediate_size)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def as_now(self) -> AbstractContextManager[None]:
        """Experts that are replayed now are replayed within it too."""
        if not isinstance(self.mlp, MixtureOfExperts):
            return nullcontext()
        return _replaying(self.mlp.gate, self.mlp.gate.replay_NK)


@contextmanager
def _replaying(gate: Gate, replay_NK: torch.Tensor | None) -> Iterator[None]:
    before, gate.replay_NK = gate.replay_NK, replay_NK
    try:
        yield
    finally:
        gate.replay_NK = before
