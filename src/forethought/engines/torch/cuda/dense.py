"""The decode step of a dense network from few kernels: what `network.hidden` computes, fused.

B: rows of the bucket, D: width of the residual stream, H: query heads, G: key heads, K: width of a
head, T: positions, R: rotary frequencies, F: inner width.

A step on few rows costs what its kernels cost to start, so there are nine a layer instead of some
forty. Matrices that read the same input (q, k and v; gate and up) are one product: their parameters
are made neighbours in memory, once, and stay the parameters that training updates in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from forethought.engines.torch.cuda.attention import paged_attention
from forethought.engines.torch.cuda.cache import PagedCache
from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import NEXT
from forethought.models.causal_lm import CausalLM
from forethought.models.dense import DenseAttention, DenseLayer, DenseLM
from forethought.models.layers import RMSNorm, SwiGLU
from forethought.models.rope import rotary_cos_sin


@torch.no_grad()
def neighbours(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parameters one below the other, as one tensor that shares their memory.

    They are moved together unless they lie so already. Shapes are equal but for the first axis.
    """
    first = parameters[0]
    rows = [len(parameter) for parameter in parameters]
    ends = [0]
    for parameter in parameters:
        ends.append(ends[-1] + parameter.numel())
    start = first.storage_offset()
    together = all(
        parameter.is_contiguous()
        and parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and parameter.storage_offset() == start + end
        for parameter, end in zip(parameters, ends, strict=False)
    )
    if together:
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride(), start)
    joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(joined, rows), strict=True):
        parameter.data = part
    return joined


def joined(layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of linear maps that read the same input."""
    weight = neighbours([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return weight, neighbours(biases) if biases else None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with its matrices joined."""

    attention: DenseAttention
    norm: RMSNorm
    """Before the feed-forward."""
    mlp: SwiGLU
    next_norm: RMSNorm
    """Of the next layer, or the last."""
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    gate_up: tuple[torch.Tensor, torch.Tensor | None]
    qk_norms: tuple[torch.Tensor, torch.Tensor, float] | None


class DenseDecoder:
    """Decode steps of a dense network on CUDA, in 16 or 32 bits, on a paged cache.

    Make a new one when the network's parameters have moved (not when their values change).
    """

    def __init__(self, network: DenseLM, cache: PagedCache) -> None:
        self._network, self._cache = network, cache
        positions_1T = torch.arange(cache.width * PAGE, device=network.device)[None]
        cos_1TR, sin_1TR = rotary_cos_sin(network.rotary, positions_1T, network.dtype)
        self._cos_TR, self._sin_TR = cos_1TR[0].contiguous(), sin_1TR[0].contiguous()
        layers = [layer for layer in network.model.layers if isinstance(layer, DenseLayer)]
        norms = [layer.input_layernorm for layer in layers]
        self._first_norm = norms[0]
        following = [*norms[1:], network.model.norm]
        self._layers = [
            self._prepared(layer, norm) for layer, norm in zip(layers, following, strict=True)
        ]

    def _prepared(self, layer: DenseLayer, next_norm: RMSNorm) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(attention, DenseAttention)
        return _Layer(
            attention,
            layer.post_attention_layernorm,
            mlp,
            next_norm,
            joined([attention.q_proj, attention.k_proj, attention.v_proj]),
            joined([mlp.gate_proj, mlp.up_proj]),
            (attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.eps)
            if attention.qk_norm
            else None,
        )

    def hidden(self, batch: int) -> torch.Tensor:
        """Hidden states of the newest token of the first rows, after the last norm; [B, D]."""
        from forethought.engines.torch.cuda import kernels

        cache = self._cache
        embed_VD = self._network.model.embed_tokens.weight
        x_BD = torch.empty(batch, embed_VD.shape[1], dtype=embed_VD.dtype, device=cache.device)
        norm = self._first_norm
        normed_BD = kernels.embed_norm(cache.state_FR[NEXT], embed_VD, norm.weight, norm.eps, x_BD)
        for layer in self._layers:
            attention = layer.attention
            pool_PGTC = cache.pool[attention.layer]
            groups, width = pool_PGTC.shape[1], attention.head_dim
            qkv_BO = F.linear(normed_BD, *layer.qkv)
            heads = qkv_BO.shape[1] // width - 2 * groups
            kernels.rotate_and_store(
                qkv_BO,
                pool_PGTC,
                cache.table_RW,
                cache.state_FR,
                self._cos_TR,
                self._sin_TR,
                heads,
                layer.qk_norms,
            )
            out_BHK = paged_attention(
                qkv_BO[:, : heads * width].view(batch, heads, width),
                pool_PGTC,
                cache.table_RW,
                cache.state_FR,
                key_width=width,
                latent=False,
                scale=attention.scale,
            )
            delta_BD = attention.o_proj(out_BHK.flatten(1))
            normed_BD = kernels.add_norm(x_BD, delta_BD, layer.norm.weight, layer.norm.eps)
            inner_BF = kernels.gated(F.linear(normed_BD, *layer.gate_up))
            delta_BD = layer.mlp.down_proj(inner_BF)
            norm = layer.next_norm
            normed_BD = kernels.add_norm(x_BD, delta_BD, norm.weight, norm.eps)
        return normed_BD


def fusable(network: CausalLM) -> bool:
    """Whether :class:`DenseDecoder` computes this network's steps."""
    dense = isinstance(network, DenseLM)
    return dense and network.device.type == "cuda" and network.dtype.itemsize <= 4
