"""The small layers that every network here shares: RMSNorm, SwiGLU, and plain linear maps.

D: width of the residual stream. Modules are made without initial values (weights are loaded, or
`initialise` draws them), so that building one costs nothing on any device, `meta` included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from forethought.models import fused


def linear(in_features: int, out_features: int, bias: bool = False) -> nn.Linear:
    """An `nn.Linear` whose values are not drawn: they are undefined until loaded or initialised."""
    layer = nn.Linear(in_features, out_features, bias=bias, device="meta")
    # Not `to_empty`: towards meta it imports torch's compiler, half a second and 70 MB.
    layer.weight = nn.Parameter(torch.empty(out_features, in_features))
    if bias:
        layer.bias = nn.Parameter(torch.empty(out_features))
    return layer


def embedding(rows: int, width: int) -> nn.Embedding:
    """An `nn.Embedding` whose values are undefined until loaded or initialised."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (arXiv:1910.07467).

    Inputs of 16 bits are normalised in float32 and rounded back before the product with the
    weight, as transformers does; wider inputs keep their own precision.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = self.weight.shape
        if fused.usable(x):
            return fused.rms_norm(x, self.weight, self.eps)
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, shape, self.weight, self.eps)
        # Without a weight torch computes in float32 and rounds once, before our product.
        return F.rms_norm(x, shape, None, self.eps) * self.weight

    def after(self, x: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, the norm of it): how a block's result joins the residual stream."""
        if fused.usable(x):
            return fused.add_rms_norm(x, delta, self.weight, self.eps)
        x = x + delta
        return x, self(x)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202), with Hugging Face's names."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = linear(hidden_size, intermediate_size, bias)
        self.up_proj = linear(hidden_size, intermediate_size, bias)
        self.down_proj = linear(intermediate_size, hidden_size, bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if fused.joins(x_BTD):
            both = fused.joined_linear(x_BTD, (self.gate_proj, self.up_proj))
            inner = fused.swiglu_of_columns(both)
        elif fused.usable(x_BTD):
            inner = fused.swiglu(self.gate_proj(x_BTD), self.up_proj(x_BTD))
        else:
            inner = F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)
        out_BTD: torch.Tensor = self.down_proj(inner)
        return out_BTD


@torch.no_grad()
def initialise(module: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """Draw the values of a network that is to be trained from nothing, in place.

    Matrices (embeddings, projections, experts, gates) are normal with deviation `std`, norms are
    one, biases and floating-point buffers zero (DeepSeek-V3 section 4.2 uses 0.006). The generator
    lives on the module's device. Nothing is drawn on `meta`.
    """
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if isinstance(part, RMSNorm):
                parameter.fill_(1.0)
            elif parameter.dim() >= 2:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.zero_()
        for buffer in part.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.zero_()
