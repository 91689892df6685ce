"""Linear maps for sampling on a CPU, each with its weights in the layout that the product wants.

N: tokens, I: inputs, O: outputs.

Measured by `benchmarks/cpu_sampling.py`: torch's own product of a few rows by a large matrix runs
at a quarter to a third of what oneDNN reaches on the same weights, blocked once when they are
loaded; fbgemm's int8 product is faster again. The residual sum and SwiGLU's product ride along
where the library lets them. All kernels are for inference; none is differentiable.
"""

from __future__ import annotations

import warnings
from typing import Final, Literal, Protocol

import torch
import torch.nn.functional as F

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")

_BLOCKED_FOR = 16
"""Rows that oneDNN chooses the blocking for. The layout serves fewer and more rows too; without a
hint, or with a hint of one row, other numbers of rows are far slower."""


class Kernel(Protocol):
    """y = W x + b, with what may follow it. A row of the result depends on its own input and the
    number of rows alone; on a CPU `PlainKernel` and `Int8Kernel` keep that for widths that are a
    multiple of 32, `BlockedKernel` for all."""

    out_features: int

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor: ...

    def plus(self, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
        """W x + b + residual."""


class PlainKernel:
    """torch's own product, on any device; it shares the weights it is given."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        self.out_features = weight_OI.shape[0]
        self._weight_OI = weight_OI
        self._bias_O = bias_O

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_NI, self._weight_OI, self._bias_O)

    def plus(self, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
        return self(x_NI).add_(residual_NO)


class BlockedKernel:
    """oneDNN's product over weights that it blocked for itself; float32 or bfloat16."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        self.out_features = weight_OI.shape[0]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            weight_OI.detach().contiguous(), _BLOCKED_FOR
        )
        self._bias_O = None if bias_O is None else bias_O.detach().clone()
        self._unary = torch.ops.mkldnn._linear_pointwise.default
        self._binary = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        y_NO: torch.Tensor = self._unary(x_NI, self._weight, self._bias_O, "none", [], "")
        return y_NO

    def plus(self, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
        y_NO: torch.Tensor = self._binary(x_NI, residual_NO, self._weight, self._bias_O, "add")
        return y_NO

    def swish(self, x_NI: torch.Tensor) -> torch.Tensor:
        """silu(W x + b)."""
        y_NO: torch.Tensor = self._unary(x_NI, self._weight, self._bias_O, "swish", [], "")
        return y_NO

    def times(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        """(W x + b) * other, elementwise."""
        y_NO: torch.Tensor = self._binary(x_NI, other_NO, self._weight, self._bias_O, "mul")
        return y_NO


SUM_OF_TWO: Final = 128
"""Of two weights' magnitudes: 255 times that fits into 16 bits with a sign."""


def quantize_rows(
    weight_OI: torch.Tensor, *, narrow: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 a row: (int8 [O, I], float32 scales [O]); a row of zeros has scale 1.

    ``narrow``: of four inputs that stand together, the magnitudes of no two weights have a sum
    above ``SUM_OF_TWO``. The largest weights of a row seldom meet, so that most rows keep most of
    their levels.
    """
    magnitude_OI = weight_OI.float().abs()
    scale_O = magnitude_OI.amax(dim=1) / 127
    if narrow:
        fours_OGF = F.pad(magnitude_OI, (0, -magnitude_OI.shape[1] % 4)).reshape(
            len(scale_O), -1, 4
        )
        sums_OG = fours_OGF.topk(2, dim=-1).values.sum(dim=-1)
        # each of the two may be rounded up by half a level
        scale_O = sums_OG.amax(dim=1) / (SUM_OF_TWO - 1)
    scale_O = torch.where(scale_O > 0, scale_O, torch.ones_like(scale_O))
    return torch.round(weight_OI.float() / scale_O[:, None]).to(torch.int8), scale_O


class Int8Kernel:
    """int8 weights (one scale an output), activations quantised to 8 bits as they come.

    ``narrow``: weights whose products with two activations never exceed 16 bits, in which a CPU
    without VNNI sums them and saturates; so that is what None takes there. (Activations of 7 bits
    would do as well, and be coarser in every row.)

    fbgemm takes one range for all rows of its input. So that a row does not depend on the others,
    each is divided by its own largest magnitude, and two further columns hold 1 and -1 (with
    weights of zero): the range is [-1, 1] always, and the integer sums are exact.
    """

    def __init__(
        self,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None = None,
        *,
        narrow: bool | None = None,
    ) -> None:
        self.out_features, self._inputs = weight_OI.shape
        self._width = -(-(self._inputs + 2) // 4) * 4  # VNNI sums four bytes at a time
        narrow = not has_vnni() if narrow is None else narrow
        levels_OI, scale_O = quantize_rows(weight_OI, narrow=narrow)
        padded_OI = F.pad(levels_OI, (0, self._width - self._inputs))
        with warnings.catch_warnings():  # torch means to drop this type of tensor one day
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(
                padded_OI, scale_O.double(), torch.zeros_like(scale_O, dtype=torch.int64), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._bias_O = None if bias_O is None else bias_O.detach().float()
        self._product = torch.ops.quantized.linear_dynamic.default
        self._input_NI = torch.empty(0, 0)

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        y_NO = self._scaled(x_NI)
        return y_NO if self._bias_O is None else y_NO.add_(self._bias_O)

    def _scaled(self, x_NI: torch.Tensor) -> torch.Tensor:
        rows = x_NI.shape[0]
        padded_NI = self._input_NI
        if padded_NI.shape[0] != rows:
            padded_NI = torch.zeros(rows, self._width)
            padded_NI[:, self._inputs] = 1.0
            padded_NI[:, self._inputs + 1] = -1.0
            self._input_NI = padded_NI
        # (torch's maximum norm does not vectorise: ten times as slow.)
        largest_N1 = x_NI.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-30)
        torch.div(x_NI, largest_N1, out=padded_NI[:, : self._inputs])
        y_NO: torch.Tensor = self._product(padded_NI, self._packed, False)
        return y_NO.mul_(largest_N1)

    def plus(self, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
        return self(x_NI).add_(residual_NO)


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes into 32-bit sums (AVX-512 VNNI or AVX VNNI)."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_vnni") or known.get("avx_vnni"))


def can_block(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's blocked products for ``dtype``."""
    if not torch.backends.mkldnn.is_available() or not hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_reorder_linear_weight"
    ):
        return False
    if dtype is torch.float32:
        return True
    return dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_int8() -> bool:
    """Whether this torch has fbgemm's int8 products."""
    return bool({"x86", "fbgemm"} & set(torch.backends.quantized.supported_engines))


class GatedPair(Protocol):
    """silu(gate x) * up x: the inner half of SwiGLU."""

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor: ...


class StackedPair:
    """Both maps in one product, for kernels that have nothing to put behind it."""

    def __init__(self, both: Kernel) -> None:
        self._both = both

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        gate_NF, up_NF = self._both(x_NI).chunk(2, dim=-1)
        return F.silu(gate_NF).mul_(up_NF)


class BlockedPair:
    """Two products: the second one takes the first one's result along."""

    def __init__(self, gate: BlockedKernel, up: BlockedKernel) -> None:
        self._gate, self._up = gate, up

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        return self._up.times(x_NI, self._gate.swish(x_NI))


def make_pair(
    gate_FI: torch.Tensor,
    up_FI: torch.Tensor,
    biases_F: tuple[torch.Tensor, torch.Tensor] | None,
    precision: Precision,
) -> GatedPair:
    """The fastest kernel of this machine for SwiGLU's inner half."""
    gate_bias, up_bias = biases_F or (None, None)
    gate = make_kernel(gate_FI, gate_bias, precision) if precision != "int8" else None
    if isinstance(gate, BlockedKernel):
        up = make_kernel(up_FI, up_bias, precision)
        assert isinstance(up, BlockedKernel)
        return BlockedPair(gate, up)
    bias = None if biases_F is None else torch.cat(biases_F)
    return StackedPair(make_kernel(torch.cat((gate_FI, up_FI)), bias, precision))


def make_kernel(
    weight_OI: torch.Tensor, bias_O: torch.Tensor | None, precision: Precision
) -> Kernel:
    """The fastest kernel that this machine has for a precision; int8 takes float weights."""
    if precision == "int8":
        return Int8Kernel(weight_OI, bias_O)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    weight_OI = weight_OI.detach().to(dtype)
    bias_O = None if bias_O is None else bias_O.detach().to(dtype)
    if weight_OI.device.type == "cpu" and can_block(dtype):
        return BlockedKernel(weight_OI, bias_O)
    return PlainKernel(weight_OI, bias_O)
