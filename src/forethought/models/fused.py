"""The small layers in one kernel each, with their gradients: what networks call on CUDA.

N: rows, D: width, F: inner width, B: batch, H: heads, T: tokens, R: rotary frequencies, E: experts,
K: experts a token uses, M = N * K.

A large product needs no help; norms, rotations and SwiGLU between them are bound by memory, and
torch passes over their data several times. `usable` says when these kernels serve: on CUDA, in
bfloat16 or float16, where triton is there. Elsewhere callers keep to torch, which is the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import ModuleType

_HALVES = (torch.bfloat16, torch.float16)
_allowed = True


def allow(value: bool) -> bool:
    """Switch the kernels off or on for the process; what it was before."""
    global _allowed
    before, _allowed = _allowed, value
    return before


def usable(x: torch.Tensor) -> bool:
    """Whether the kernels take `x`: on CUDA, of 16 bits, and triton is installed."""
    return _allowed and x.is_cuda and x.dtype in _HALVES and kernels() is not None


@lru_cache
def kernels() -> ModuleType | None:
    """The kernels' module, or None (and one line of warning) where triton is missing."""
    try:
        from forethought.models import triton_kernels
    except ImportError as error:
        warnings.warn(f"no fused kernels, torch's own are used: {error}", stacklevel=2)
        return None
    return triton_kernels


def _made() -> Any:
    module = kernels()
    assert module is not None
    return module


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [N, D] with a contiguous last axis, copied only where it has to be."""
    flat = x.flatten(0, -2) if x.dim() > 2 else x.view(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis, as :class:`forethought.models.layers.RMSNorm` defines it."""
    out: torch.Tensor = _Norm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
    return out


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, RMSNorm of it): the residual stream after a block, and what the next reads."""
    result: tuple[torch.Tensor, torch.Tensor] = _AddNorm.apply(  # type: ignore[no-untyped-call]
        x, delta, weight_D, eps
    )
    return result


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        x_ND = _rows(x)
        _, out_ND, rstd_N = _made().norm_forward(x_ND, None, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, rstd_N)
        out: torch.Tensor = out_ND.view(x.shape)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x_ND, weight_D, rstd_N = ctx.saved_tensors
        grad_ND = grad.contiguous().view(x_ND.shape)
        to_x, to_weight = _made().norm_backward(grad_ND, None, x_ND, weight_D, rstd_N)
        return to_x.view(grad.shape), to_weight, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, delta: torch.Tensor, weight_D: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total_ND, out_ND, rstd_N = _made().norm_forward(
            _rows(x), _rows(delta).contiguous(), weight_D, eps
        )
        ctx.save_for_backward(total_ND, weight_D, rstd_N)
        return total_ND.view(x.shape), out_ND.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, through: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        total_ND, weight_D, rstd_N = ctx.saved_tensors
        to_sum, to_weight = _made().norm_backward(
            grad.contiguous().view(total_ND.shape),
            through.contiguous().view(total_ND.shape),
            total_ND,
            weight_D,
            rstd_N,
        )
        to_sum = to_sum.view(grad.shape)
        return to_sum, to_sum, to_weight, None


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    out: torch.Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate_NF, up_NF = _rows(gate), _rows(up)
        ctx.save_for_backward(gate_NF, up_NF)
        out: torch.Tensor = _made().swiglu_forward(gate_NF, up_NF).view(gate.shape)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate_NF, up_NF = ctx.saved_tensors
        both = _made().swiglu_backward(grad.contiguous().view(gate_NF.shape), gate_NF, up_NF)
        return both[0].view(grad.shape), both[1].view(grad.shape)


def swiglu_of_columns(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(first half of the columns) * the second half; [..., O / 2]."""
    out: torch.Tensor = _SwiGLUOfColumns.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


class _SwiGLUOfColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        gate_up_NO = _rows(gate_up)
        ctx.save_for_backward(gate_up_NO)
        out: torch.Tensor = _made().swiglu_forward(*gate_up_NO.chunk(2, dim=-1))
        return out.view(*gate_up.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (gate_up_NO,) = ctx.saved_tensors
        out = torch.empty_like(gate_up_NO)
        grad_NF = grad.contiguous().view(len(gate_up_NO), -1)
        _made().swiglu_backward_into(grad_NF, *gate_up_NO.chunk(2, dim=-1), *out.chunk(2, dim=-1))
        return out.view(*grad.shape[:-1], -1)


def rotated(
    x_BHTD: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor, *, pairs: bool
) -> torch.Tensor:
    """The rotations of `rope`: halves, or pairs whose firsts lead in the result; [B, H, T, D]."""
    out: torch.Tensor = _Rotated.apply(  # type: ignore[no-untyped-call]
        x_BHTD, cos_BTR, sin_BTR, pairs
    )
    return out


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BHTD: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor, pairs: bool
    ) -> torch.Tensor:
        x_BHTD = x_BHTD if x_BHTD.stride(-1) == 1 else x_BHTD.contiguous()
        cos_BTR, sin_BTR = cos_BTR.contiguous(), sin_BTR.contiguous()
        ctx.save_for_backward(cos_BTR, sin_BTR)
        ctx.pairs = pairs
        out: torch.Tensor = _made().rotate(x_BHTD, cos_BTR, sin_BTR, pairs=pairs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        cos_BTR, sin_BTR = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        return (
            _made().rotate(grad, cos_BTR, sin_BTR, pairs=ctx.pairs, back=True),
            None,
            None,
            None,
        )


def dispatched(x_ND: torch.Tensor, place_NK: torch.Tensor) -> torch.Tensor:
    """Each token's row at the K places of its pairs; [M, D]. Places are a permutation of M."""
    out: torch.Tensor = _Dispatched.apply(x_ND, place_NK)  # type: ignore[no-untyped-call]
    return out


class _Dispatched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, place_NK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place_NK)
        out: torch.Tensor = _made().scatter(x_ND.contiguous(), place_NK)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MD: torch.Tensor) -> tuple[torch.Tensor, None]:
        (place_NK,) = ctx.saved_tensors
        return _made().gather_sum(grad_MD.contiguous(), place_NK, None), None


def combined(
    rows_MD: torch.Tensor,
    place_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    base_ND: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each token's weighted sum of its K rows, in float32 and rounded, plus ``base_ND``; [N, D].
    ``weights_NK`` is float32."""
    out: torch.Tensor = _Combined.apply(  # type: ignore[no-untyped-call]
        rows_MD, place_NK, weights_NK, base_ND
    )
    return out


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_MD: torch.Tensor,
        place_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        base_ND: torch.Tensor | None,
    ) -> torch.Tensor:
        rows_MD, weights_NK = rows_MD.contiguous(), weights_NK.contiguous()
        ctx.save_for_backward(rows_MD, place_NK, weights_NK)
        if base_ND is not None:
            base_ND = base_ND.contiguous()
        out: torch.Tensor = _made().gather_sum(rows_MD, place_NK, weights_NK, base_ND)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_ND: torch.Tensor
    ) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor | None]:
        rows_MD, place_NK, weights_NK = ctx.saved_tensors
        to_rows, to_weights = _made().scatter_weighted(
            grad_ND.contiguous(), place_NK, weights_NK, rows_MD
        )
        return to_rows, None, to_weights, grad_ND if ctx.needs_input_grad[3] else None


def top_columns(choice_NE: torch.Tensor, top_k: int) -> torch.Tensor:
    """The columns of each row's ``top_k`` largest numbers, the larger first; int64 [N, K]. No
    gradient. Of equal numbers the first counts as larger."""
    columns: torch.Tensor = _made().top_columns(choice_NE.contiguous(), top_k)
    return columns


def wide_linear(x_ND: torch.Tensor, weight_OD: torch.Tensor) -> torch.Tensor:
    """x @ weight.T with float32 results from 16-bit inputs; [N, O].

    A product of two bfloat16 numbers is exact in float32 and sums are float32, so nothing is lost
    against widening both sides first, which costs copies and a product several times as slow.
    """
    out: torch.Tensor = _WideLinear.apply(x_ND, weight_OD)  # type: ignore[no-untyped-call]
    return out


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, weight_OD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_ND, weight_OD)
        return torch.mm(x_ND, weight_OD.t(), out_dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_ND, weight_OD = ctx.saved_tensors
        grad = grad_NO.to(x_ND.dtype)
        return grad @ weight_OD, grad.t() @ x_ND


_MANY = 1024
"""Rows from which on joining matrices costs less than it saves."""


def joins(x: torch.Tensor) -> bool:
    """Whether linear maps of `x` should be computed as one (`joined_linear`)."""
    return usable(x) and x.numel() >= _MANY * x.shape[-1]


def joined_linear(x: torch.Tensor, layers: Sequence[torch.nn.Linear]) -> torch.Tensor:
    """What several linear maps of one input give, side by side; [..., sum of their widths].

    One product fills the device better than three, and the gradients of the input need not be
    added up. The weights are put together anew each time: they are small beside that many rows.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None]
    out: torch.Tensor = _JoinedLinear.apply(  # type: ignore[no-untyped-call]
        x, len(layers), *(layer.weight for layer in layers), *biases
    )
    return out


class _JoinedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, count: int, *parts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, *parts[:count])
        ctx.count = count
        weight = torch.cat(parts[:count])
        x_ND = x.flatten(0, -2)
        if len(parts) > count:
            out_NO = torch.addmm(torch.cat(parts[count:]), x_ND, weight.t())
        else:
            out_NO = x_ND @ weight.t()
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = [len(weight) for weight in weights]
        grad_NO, x_ND = grad.flatten(0, -2), x.flatten(0, -2)
        to_x = (grad_NO @ torch.cat(weights)).view(x.shape)
        to_weights = torch.split(grad_NO.t() @ x_ND, rows)
        biased = len(ctx.needs_input_grad) > 2 + ctx.count
        to_biases = torch.split(grad_NO.sum(dim=0), rows) if biased else ()
        return to_x, None, *to_weights, *to_biases


def qkv_rotated(
    qkv_BTX: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor, heads: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, H, T, K] and keys [B, G, T, K], rotated by halves, and values [B, G, T, K], from
    projections that stand side by side."""
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _QKVRotated.apply(  # type: ignore[no-untyped-call]
        qkv_BTX, cos_BTR, sin_BTR, heads, groups
    )
    return parts


def _heads_of(qkv_BTX: torch.Tensor, heads: int, groups: int) -> tuple[torch.Tensor, ...]:
    width = qkv_BTX.shape[-1] // (heads + 2 * groups)
    qkv_BHTK = qkv_BTX.view(*qkv_BTX.shape[:2], -1, width).transpose(1, 2)
    return torch.split(qkv_BHTK, [heads, groups, groups], dim=1)


class _QKVRotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTX: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        heads: int,
        groups: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cos_BTR, sin_BTR = cos_BTR.contiguous(), sin_BTR.contiguous()
        ctx.save_for_backward(cos_BTR, sin_BTR)
        ctx.heads, ctx.groups = heads, groups
        q, k, v = _heads_of(qkv_BTX, heads, groups)
        return (
            _made().rotate(q, cos_BTR, sin_BTR, pairs=False),
            _made().rotate(k, cos_BTR, sin_BTR, pairs=False),
            v.clone(),
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, to_q: torch.Tensor, to_k: torch.Tensor, to_v: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        cos_BTR, sin_BTR = ctx.saved_tensors
        batch, heads, steps, width = to_q.shape
        out_BTX = to_q.new_empty(batch, steps, (heads + 2 * ctx.groups) * width)
        q, k, v = _heads_of(out_BTX, heads, ctx.groups)
        for grad, out in ((to_q, q), (to_k, k)):
            grad = grad if grad.stride(-1) == 1 else grad.contiguous()
            _made().rotate(grad, cos_BTR, sin_BTR, pairs=False, back=True, out=out)
        v.copy_(to_v)
        return out_BTX, None, None, None, None


def latent_heads(
    q_NX: torch.Tensor,
    kv_NY: torch.Tensor,
    key_NP: torch.Tensor,
    cos_NR: torch.Tensor,
    sin_NR: torch.Tensor,
    *,
    heads: int,
    value: int,
    pairs: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of latent attention's heads, see `mla_kernels`; [N, H, W] each, the
    values with columns of zeros behind theirs."""
    made: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _LatentHeads.apply(  # type: ignore[no-untyped-call]
        q_NX, kv_NY, key_NP, cos_NR, sin_NR, heads, value, pairs
    )
    return made


class _LatentHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NX: torch.Tensor,
        kv_NY: torch.Tensor,
        key_NP: torch.Tensor,
        cos_NR: torch.Tensor,
        sin_NR: torch.Tensor,
        heads: int,
        value: int,
        pairs: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from forethought.models.mla_kernels import joined

        cos_NR, sin_NR = cos_NR.contiguous(), sin_NR.contiguous()
        ctx.save_for_backward(cos_NR, sin_NR)
        head = q_NX.shape[1] // heads
        ctx.value, ctx.pairs, ctx.plain = value, pairs, head - key_NP.shape[1]
        width = -(-max(head, value) // 8) * 8
        return joined(
            q_NX, kv_NY, key_NP, cos_NR, sin_NR,
            heads=heads, value=value, width=width, pairs=pairs,
        )  # fmt: skip

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, to_q: torch.Tensor, to_k: torch.Tensor, to_v: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        from forethought.models.mla_kernels import parted

        cos_NR, sin_NR = ctx.saved_tensors
        found = parted(
            to_q.contiguous(), to_k.contiguous(), to_v.contiguous(), cos_NR, sin_NR,
            value=ctx.value, pairs=ctx.pairs, plain=ctx.plain,
        )  # fmt: skip
        return *found, None, None, None, None, None
