"""The decode step of a DeepSeek-V3 from few kernels: what `network.hidden` computes, fused.

B: rows of the bucket, D: width of the residual stream, H: heads, L: kv_lora_rank, N:
qk_nope_head_dim, P: qk_rope_head_dim, C = L + P: width of a cached token, V: v_head_dim, T:
positions, R: rotary frequencies, F: inner width, E: routed experts, S: steps of a chunk, M: layers
with experts, K: experts a token uses.

A layer is ten kernels instead of some forty: the joint projection; the queries that are absorbed,
with the latents stored on the way; attention (a second kernel joins its parts where rows are few);
the values of every head; the output's projection; a norm; the gate; both products of the experts,
the shared ones among them; a norm that adds up what they gave.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from forethought.engines.torch.cuda.attention import paged_attention
from forethought.engines.torch.cuda.cache import PagedCache
from forethought.engines.torch.cuda.dense import joined
from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import NEXT
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.decoder import DeepseekLayer, MixtureOfExperts
from forethought.models.deepseek_v3.experts import Experts
from forethought.models.deepseek_v3.mla import MLA
from forethought.models.layers import RMSNorm, SwiGLU
from forethought.models.rope import rotary_cos_sin

_MOST_EXPERTS = 256
"""A program of the gate holds the scores of a few rows in registers."""


@dataclass(frozen=True, slots=True)
class ExpertLog:
    """Where the chosen experts are taken down."""

    step: torch.Tensor
    """int64 [1], the step of the chunk."""
    experts_SRMK: torch.Tensor
    """int16."""


@dataclass(frozen=True, slots=True)
class _Routed:
    """A mixture of experts."""

    mixture: MixtureOfExperts
    bias_E: torch.Tensor
    number: int
    """Among the layers with experts."""


@dataclass(frozen=True, slots=True)
class _Dense:
    """A feed-forward part without experts."""

    mlp: SwiGLU
    gate_up: tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with its matrices joined."""

    attention: MLA
    norm: RMSNorm
    """Before the feed-forward."""
    mlp: _Routed | _Dense
    next_norm: RMSNorm
    """Of the next layer, or the last."""
    projection: tuple[torch.Tensor, torch.Tensor | None]
    """Of the queries, or of what is before their norm, and of the latent with its key."""
    expanded_HOL: torch.Tensor
    """[H, N + V, L]: from latents to every head's keys and values."""


class LatentDecoder:
    """Decode steps of a DeepSeek-V3 on CUDA, in 16 or 32 bits, on a paged cache of latents.

    Make a new one when the network's parameters or buffers have moved (not when their values
    change). ``log``: where the chosen experts go, if they are kept.
    """

    def __init__(self, network: DeepseekV3, cache: PagedCache, log: ExpertLog | None) -> None:
        self._network, self._cache, self._log = network, cache, log
        self._config = config = network.deepseek_config
        positions_1T = torch.arange(cache.width * PAGE, device=network.device)[None]
        cos_1TR, sin_1TR = rotary_cos_sin(network.rotary, positions_1T, network.dtype)
        self._cos_TR, self._sin_TR = cos_1TR[0].contiguous(), sin_1TR[0].contiguous()
        self._counts_E = torch.zeros(
            config.n_routed_experts, dtype=torch.int32, device=network.device
        )
        layers = [layer for layer in network.model.layers if isinstance(layer, DeepseekLayer)]
        norms = [layer.input_layernorm for layer in layers]
        self._first_norm = norms[0]
        following = [*norms[1:], network.model.norm]
        self._layers = [
            self._prepared(layer, norm) for layer, norm in zip(layers, following, strict=True)
        ]

    def _prepared(self, layer: DeepseekLayer, next_norm: RMSNorm) -> _Layer:
        attention = layer.self_attn
        assert isinstance(attention, MLA)
        queries = attention.q_proj if attention.q_lora_rank is None else attention.q_a_proj
        expanded = attention.kv_b_proj.weight.detach()
        return _Layer(
            attention,
            layer.post_attention_layernorm,
            self._feed_forward(layer.mlp, attention.layer),
            next_norm,
            joined([queries, attention.kv_a_proj_with_mqa]),
            expanded.view(attention.heads, -1, attention.kv_lora_rank),
        )

    def _feed_forward(self, mlp: nn.Module, layer: int) -> _Routed | _Dense:
        if isinstance(mlp, SwiGLU):
            return _Dense(mlp, joined([mlp.gate_proj, mlp.up_proj]))
        assert isinstance(mlp, MixtureOfExperts)
        bias_E = mlp.gate.e_score_correction_bias
        assert bias_E is not None
        return _Routed(mlp, bias_E, layer - self._config.first_k_dense_replace)

    def hidden(self, batch: int) -> torch.Tensor:
        """Hidden states of the newest token of the first rows, after the last norm; [B, D]."""
        from forethought.engines.torch.cuda import latent_kernels as kernels

        cache = self._cache
        embed_VD = self._network.model.embed_tokens.weight
        x_BD = torch.empty(batch, embed_VD.shape[1], dtype=embed_VD.dtype, device=cache.device)
        norm = self._first_norm
        normed_BD = kernels.embed_norm(cache.state_FR[NEXT], embed_VD, norm.weight, norm.eps, x_BD)
        for layer in self._layers:
            delta_BD = self._attended(layer, normed_BD)
            norm, next_norm = layer.norm, layer.next_norm
            normed_BD = kernels.add_norm(x_BD, delta_BD, norm.weight, norm.eps)
            if isinstance(layer.mlp, _Routed):
                shared_BD, rows_XD, weights_BK = self._experts(layer.mlp, normed_BD)
                normed_BD = kernels.combine_norm(
                    x_BD, shared_BD, rows_XD, weights_BK, next_norm.weight, next_norm.eps
                )
            else:
                delta_BD = _dense(layer.mlp, normed_BD)
                normed_BD = kernels.add_norm(x_BD, delta_BD, next_norm.weight, next_norm.eps)
        return normed_BD

    def _attended(self, layer: _Layer, normed_BD: torch.Tensor) -> torch.Tensor:
        """What attention adds to the residual stream; [B, D]."""
        from forethought.engines.torch.cuda import latent_kernels as kernels
        from forethought.models import triton_kernels

        attention, cache, batch = layer.attention, self._cache, len(normed_BD)
        rank, nope = attention.kv_lora_rank, attention.qk_nope_head_dim
        cached = rank + attention.qk_rope_head_dim
        both = F.linear(normed_BD, *layer.projection)
        q_BX, kv_BC = both[:, :-cached], both[:, -cached:]
        if attention.q_lora_rank is not None:
            norm = attention.q_a_layernorm
            _, q_BX, _ = triton_kernels.norm_forward(q_BX, None, norm.weight, norm.eps)
            q_BX = attention.q_b_proj(q_BX)
        latent_norm = attention.kv_a_layernorm
        pool_PGTC = cache.pool[attention.layer]
        q_BHC = kernels.absorb_and_store(
            q_BX,
            kv_BC,
            layer.expanded_HOL,
            (latent_norm.weight, latent_norm.eps),
            pool_PGTC,
            cache.table_RW,
            cache.state_FR,
            self._cos_TR,
            self._sin_TR,
            self._counts_E,
            nope=nope,
            pairs=self._config.rope_interleave,
        )
        out_BHC = paged_attention(
            q_BHC,
            pool_PGTC,
            cache.table_RW,
            cache.state_FR,
            key_width=cached,
            latent=True,
            scale=attention.scale,
        )
        out_BHV = q_BHC.new_empty(batch, attention.heads, attention.v_head_dim)
        to_value_HLV = layer.expanded_HOL[:, nope:].transpose(1, 2)
        torch.bmm(out_BHC[..., :rank].transpose(0, 1), to_value_HLV, out=out_BHV.transpose(0, 1))
        delta_BD: torch.Tensor = attention.o_proj(out_BHV.flatten(1))
        return delta_BD

    def _experts(
        self, routed: _Routed, normed_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(the shared experts' result [B, D], that of each pair [B K, D], their weights [B, K])."""
        from forethought.engines.torch.cuda import expert_kernels as kernels

        gate, experts = routed.mixture.gate, routed.mixture.experts
        shared, log = routed.mixture.shared_experts, self._log
        lists = kernels.route(
            normed_BD,
            gate.weight,
            routed.bias_E,
            self._counts_E,
            top_k=gate.top_k,
            norm=gate.norm_topk_prob,
            scale=gate.routed_scaling_factor,
            log=None if log is None else (log.step, log.experts_SRMK),
            layer=routed.number,
        )
        inner_XF, shared_BG = kernels.gated_experts(
            normed_BD,
            experts.gate_up_proj,
            shared.gate_proj.weight,
            shared.up_proj.weight,
            lists,
        )
        rows_XD, base_BD = kernels.projected_experts(
            inner_XF, shared_BG, experts.down_proj, shared.down_proj.weight, lists
        )
        return base_BD, rows_XD, lists.weights_BK


def _dense(dense: _Dense, normed_BD: torch.Tensor) -> torch.Tensor:
    from forethought.models import triton_kernels

    both_BF = F.linear(normed_BD, *dense.gate_up)
    inner_BF = triton_kernels.swiglu_forward(*both_BF.chunk(2, dim=-1))
    delta_BD: torch.Tensor = dense.mlp.down_proj(inner_BF)
    return delta_BD


def obstacle(network: CausalLM) -> str | None:
    """Why :class:`LatentDecoder` does not compute this network's steps; None where it does."""
    if not isinstance(network, DeepseekV3):
        return "it is no DeepSeek-V3"
    config = network.deepseek_config
    if config.scoring_func != "sigmoid" or config.topk_method != "noaux_tc":
        return f"its gates score by {config.scoring_func} and choose by {config.topk_method}"
    if config.topk_group < config.n_group:
        return f"its gates choose among {config.topk_group} of {config.n_group} groups of experts"
    if config.n_routed_experts > _MOST_EXPERTS:
        return f"its {config.n_routed_experts} experts are more than {_MOST_EXPERTS}"
    if config.attention_bias and config.q_lora_rank is None:
        return "of the projections that are joined one has a bias and one has none"
    if not network.absorb:
        return "its cache holds keys and values, not latents"
    if any(
        part.path not in (None, "grouped")
        for part in network.modules()
        if isinstance(part, Experts)
    ):
        return "another path of its experts was asked for"
    if network.dtype.itemsize > 4:
        return f"it computes in {network.dtype}"
    if any(parameter.dtype != network.dtype for parameter in network.parameters()):
        return "its parameters are of several dtypes"
    if network.device.type != "cuda":
        return f"it is on {network.device.type}"
    return None


def fusable(network: CausalLM) -> bool:
    """Whether :class:`LatentDecoder` computes this network's steps."""
    return obstacle(network) is None
