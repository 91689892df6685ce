"""What a decode step computes: a network, laid out for sampling.

B: rows, T: tokens of each, N = B x T: tokens in a row, D: width of the residual stream,
H: query heads, G: key heads, K: width of a head, R = K / 2: rotary frequencies, V: vocabulary.

`NetworkProgram` runs any network of `forethought.models` as it is; with kernels of its own for the
linear layers on a CPU. `DenseProgram` is the dense decoder written as one flat loop: projections
of the same input in one product, rotation as one complex product in place, SwiGLU and residual sums
inside the products. Tests hold it to the network's own forward pass.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from forethought.checkpoints.network_config import DenseConfig
from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.kernels import (
    Kernel,
    Precision,
    make_kernel,
    make_pair,
    quantize_rows,
)
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.dense import DenseAttention, DenseLayer, DenseLM
from forethought.models.layers import RMSNorm, SwiGLU


class Program(Protocol):
    """Ids in, hidden states and logits out, through a :class:`RowCache` that is ready for them."""

    layers: int
    """Layers that the cache needs."""
    dtype: torch.dtype
    device: torch.device

    def hidden(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, cache: RowCache
    ) -> torch.Tensor:
        """Hidden states after the last norm, [N, D]."""

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, V]."""


class _KernelLinear(nn.Module):
    """Stands where an `nn.Linear` stood."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return self._kernel(x)
        return self._kernel(x.flatten(0, -2)).view(*x.shape[:-1], -1)


class NetworkProgram:
    """Any network, through its own forward pass.

    On a CPU its linear layers become kernels; the network is changed in place and gives up their
    weights. What reads a weight without the layer (MLA's `kv_b_proj`) stays as it is.
    """

    def __init__(self, network: CausalLM, precision: Precision, *, share: bool = False) -> None:
        self._mtp = network if isinstance(network, DeepseekV3) and network.mtp is not None else None
        self.layers = network.config.num_hidden_layers + (self._mtp is not None)
        self.dtype = network.dtype
        self.device = network.device
        self._network = network
        self._head: Kernel | None = None
        # Experts of one token's choice beside another's must not change its bits.
        self._set_expert_path = getattr(network, "set_expert_path", None)
        if self.device.type == "cpu" and not share:
            self._head = make_kernel(network.head_weight, None, precision)
            for parent in list(network.model.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear) and name != "kv_b_proj":
                        kernel = make_kernel(child.weight, child.bias, precision)
                        setattr(parent, name, _KernelLinear(kernel))
            if not network.config.tie_word_embeddings:
                del network.lm_head

    def hidden(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, cache: RowCache
    ) -> torch.Tensor:
        if self._set_expert_path is None or self.device.type != "cpu":
            return self._network.hidden(ids_BT, positions_BT, cache).flatten(0, 1)
        self._set_expert_path("gather" if ids_BT.shape[1] == 1 else "loop")
        try:
            return self._network.hidden(ids_BT, positions_BT, cache).flatten(0, 1)
        finally:
            self._set_expert_path(None)  # whoever trains the network chooses for himself

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return self._network.logits(hidden_ND) if self._head is None else self._head(hidden_ND)

    @property
    def can_draft(self) -> bool:
        """Whether the network brings its MTP module."""
        return self._mtp is not None

    def draft(
        self,
        next_ids_BT: torch.Tensor,
        hidden_BTD: torch.Tensor,
        positions_BT: torch.Tensor,
        cache: RowCache,
    ) -> torch.Tensor:
        """The MTP module's logits of the token after the last of ``next_ids_BT``; [V], one row."""
        assert self._mtp is not None
        drafted_BTD = self._mtp.mtp_hidden(next_ids_BT, hidden_BTD, positions_BT, cache)
        return self.logits(drafted_BTD[0, -1:])[0]


class _Embedding:
    """Rows of the embedding matrix; as int8 with a scale a row where the products are int8."""

    def __init__(self, weight_VD: torch.Tensor, precision: Precision) -> None:
        self._scale_V1: torch.Tensor | None = None
        if precision == "int8":
            self._weight_VD, scale_V = quantize_rows(weight_VD)
            self._scale_V1 = scale_V[:, None]
        else:
            self._weight_VD = weight_VD

    def __call__(self, ids_N: torch.Tensor) -> torch.Tensor:
        rows_ND = F.embedding(ids_N, self._weight_VD)
        if self._scale_V1 is None:
            return rows_ND
        return rows_ND.float().mul_(F.embedding(ids_N, self._scale_V1))


class _Layer:
    """The kernels and norms of one dense layer."""

    __slots__ = (
        "down",
        "head_norms",
        "inner",
        "input_norm",
        "output",
        "post_norm",
        "projections",
    )

    def __init__(self, layer: DenseLayer, config: DenseConfig, precision: Precision) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(attention, DenseAttention)
        assert isinstance(mlp, SwiGLU)
        width = config.head_dim
        parts = [
            _paired(attention.q_proj.weight, width),
            _paired(attention.k_proj.weight, width),
            attention.v_proj.weight,
        ]
        bias = None
        if config.attention_bias:
            bias = torch.cat(
                [
                    _paired(attention.q_proj.bias, width),
                    _paired(attention.k_proj.bias, width),
                    attention.v_proj.bias,
                ]
            )
        self.projections = make_kernel(torch.cat(parts), bias, precision)
        self.output = make_kernel(attention.o_proj.weight, attention.o_proj.bias, precision)
        self.inner = make_pair(
            mlp.gate_proj.weight.detach(),
            mlp.up_proj.weight.detach(),
            (mlp.gate_proj.bias.detach(), mlp.up_proj.bias.detach()) if config.mlp_bias else None,
            precision,
        )
        self.down = make_kernel(mlp.down_proj.weight, mlp.down_proj.bias, precision)
        assert isinstance(layer.input_layernorm, RMSNorm)
        assert isinstance(layer.post_attention_layernorm, RMSNorm)
        self.input_norm = layer.input_layernorm.weight.detach()
        self.post_norm = layer.post_attention_layernorm.weight.detach()
        self.head_norms: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.qk_norm:
            self.head_norms = (
                _paired(attention.q_norm.weight.detach(), width),
                _paired(attention.k_norm.weight.detach(), width),
            )


def _paired(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head reordered so that the two that rotate together are neighbours.

    Queries and keys are reordered alike, so their products are what they were.
    """
    heads = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


class DenseProgram:
    """A dense decoder as one flat loop over kernels. CPU; float32, bfloat16 or int8 weights.

    Takes the network's weights layer by layer and frees them there. A tied head is held twice: as
    rows to look up, and laid out for its product.
    """

    def __init__(self, network: DenseLM, precision: Precision) -> None:
        config = network.config
        assert isinstance(config, DenseConfig)
        self.layers = config.num_hidden_layers
        self.device = torch.device("cpu")
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._width = config.head_dim
        self._scale = config.head_dim**-0.5
        self._eps = config.rms_norm_eps
        self._rotary = network.rotary
        self._layers: list[_Layer] = []
        for at, layer in enumerate(network.model.layers):
            assert isinstance(layer, DenseLayer)
            self._layers.append(_Layer(layer, config, precision))
            network.model.layers[at] = nn.Identity()
        self._norm = network.model.norm.weight.detach().to(self.dtype)
        self._head = make_kernel(network.head_weight, None, precision)
        embeddings = network.model.embed_tokens.weight.detach()
        self._embedding = _Embedding(
            embeddings if precision == "int8" else embeddings.to(self.dtype), precision
        )
        del network.model.embed_tokens
        if not config.tie_word_embeddings:
            del network.lm_head

    def hidden(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, cache: RowCache
    ) -> torch.Tensor:
        heads, groups, width, eps = self._heads, self._groups, self._width, self._eps
        rotated = (heads + groups) * width
        x_ND = self._embedding(ids_BT.flatten())
        turn_N1R = self._turns(positions_BT.flatten())
        shape = (x_ND.shape[1],)
        pairs = (-1, heads + groups, width // 2, 2)
        half = self.dtype is not torch.float32
        for at, layer in enumerate(self._layers):
            normed_ND = F.rms_norm(x_ND, shape, layer.input_norm, eps)
            all_NW = layer.projections(normed_ND)
            qk_NHK = all_NW[:, :rotated].view(-1, heads + groups, width)
            if layer.head_norms is not None:
                q_norm, k_norm = layer.head_norms
                qk_NHK[:, :heads] = F.rms_norm(qk_NHK[:, :heads], (width,), q_norm, eps)
                qk_NHK[:, heads:] = F.rms_norm(qk_NHK[:, heads:], (width,), k_norm, eps)
            if half:
                wide = torch.view_as_complex(qk_NHK.float().view(*pairs)).mul_(turn_N1R)
                qk_NHK.copy_(torch.view_as_real(wide).flatten(2))
            else:
                torch.view_as_complex(qk_NHK.view(*pairs)).mul_(turn_N1R)
            out_ND = cache.attend_flat(
                at, qk_NHK[:, :heads], all_NW[:, heads * width :], groups, self._scale
            )
            x_ND = layer.output.plus(out_ND, x_ND)
            normed_ND = F.rms_norm(x_ND, shape, layer.post_norm, eps)
            x_ND = layer.down.plus(layer.inner(normed_ND), x_ND)
        return F.rms_norm(x_ND, shape, self._norm, eps)

    def _turns(self, positions_N: torch.Tensor) -> torch.Tensor:
        """The rotation of each token as complex numbers, [N, 1, R] complex64."""
        angles_NR = positions_N.float()[:, None] * self._rotary.inv_freq
        radius = torch.full_like(angles_NR, self._rotary.factor)
        return torch.polar(radius, angles_NR)[:, None]

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return self._head(hidden_ND)


def make_program(network: CausalLM, precision: Precision, *, share: bool = False) -> Program:
    """The fastest program for a network on its device.

    ``share`` keeps the network's own parameters, for whoever trains them too; else the program owns
    the weights, and the network must not be used again.
    """
    if isinstance(network, DenseLM) and network.device.type == "cpu" and not share:
        return DenseProgram(network, precision)
    return NetworkProgram(network, precision, share=share)
