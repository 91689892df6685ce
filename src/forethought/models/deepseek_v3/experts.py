"""The routed experts: many small SwiGLUs, of which each token uses a few.

N: tokens, K: experts a token uses, M = N * K: (token, expert) pairs, D: width of the residual
stream, E: experts, F: width of an expert, I and O: width into and out of a product.

Three ways to the same numbers:

- `loop`: a Python loop over the experts that were chosen. The reference that one can read, and the
  quickest on a CPU: it touches each used matrix once and copies none.
- `grouped`: pairs sorted by expert, one grouped product for all experts. For CUDA: nothing waits
  for the host, and the number of kernels does not depend on the number of experts.
- `gather`: the matrices of every pair are copied out and multiplied one row at a time. A token's
  numbers then do not depend, to the bit, on which experts the rest of its batch chose; it costs one
  copy of K experts for each token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.models import fused
from forethought.models.deepseek_v3.balance import expert_load

ExpertPath = Literal["loop", "grouped", "gather"]


def choose_path(device: torch.device) -> ExpertPath:
    """The quickest path on a device.

    On CUDA the loop would wait for the host to learn the loads, once a layer. On a CPU there is
    nothing to wait for, and at any number of tokens the loop reads what the others read, or less.
    """
    return "grouped" if device.type == "cuda" else "loop"


def loop_experts(
    x_ND: torch.Tensor,
    indices_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    gate_up_EOD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """Each used expert in turn, on the tokens that chose it; [N, D]."""
    order_M, pairs_MD = _sorted_by_expert(x_ND, indices_NK)
    outputs = []
    loads = expert_load(indices_NK, gate_up_EOD.shape[0]).tolist()
    # Cut all at once: the gradient of an index would be a whole stack of zeros for each expert.
    pairs = torch.split(pairs_MD, loads)
    parts = zip(pairs, gate_up_EOD.unbind(), down_EDF.unbind(), loads, strict=True)
    for rows_LD, gate_up_OD, down_DF, load in parts:
        if load:
            outputs.append(F.linear(_swiglu(F.linear(rows_LD, gate_up_OD)), down_DF))
    return _combined(torch.cat(outputs), order_M, weights_NK)


def grouped_experts(
    x_ND: torch.Tensor,
    indices_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    gate_up_EOD: torch.Tensor,
    down_EDF: torch.Tensor,
    base_ND: torch.Tensor | None = None,
) -> torch.Tensor:
    """All experts at once, plus ``base_ND``; [N, D]. The loads never leave the device."""
    if fused.usable(x_ND):
        place_NK, ends_E = places(indices_NK, gate_up_EOD.shape[0])
        pairs_MD = fused.dispatched(x_ND, place_NK)
        inner_MF = fused.swiglu_of_columns(grouped_product(pairs_MD, gate_up_EOD, ends_E))
        rows_MD = grouped_product(inner_MF, down_EDF, ends_E)
        return fused.combined(rows_MD, place_NK, weights_NK, base_ND)
    order_M, pairs_MD = _sorted_by_expert(x_ND, indices_NK)
    ends_E = expert_load(indices_NK, gate_up_EOD.shape[0]).cumsum(0)
    inner_MF = _swiglu(grouped_product(pairs_MD, gate_up_EOD, ends_E))
    out_ND = _combined(grouped_product(inner_MF, down_EDF, ends_E), order_M, weights_NK)
    return out_ND if base_ND is None else out_ND + base_ND


def places(indices_NK: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pair stands once pairs are sorted by expert, in the order of tokens within one,
    and where each expert's rows end: (int64 [N, K], int64 [E])."""
    # Keys of 8 bits are sorted in one pass where those of 64 take eight.
    keys_M = indices_NK.flatten().to(torch.uint8 if experts <= 256 else torch.int16)
    sorted_M, order_M = keys_M.sort(stable=True)
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(order_M.shape[0], device=order_M.device)
    expert_E = torch.arange(experts, device=order_M.device, dtype=torch.int32)
    ends_E = torch.searchsorted(sorted_M.int(), expert_E, right=True)
    return place_M.view_as(indices_NK), ends_E


def gather_experts(
    x_ND: torch.Tensor,
    indices_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    gate_up_EOD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """Every pair by itself; [N, D]."""
    indices_M = indices_NK.flatten()
    pairs_MD1 = x_ND.repeat_interleave(indices_NK.shape[1], dim=0).unsqueeze(-1)
    gate_up_MO = torch.bmm(gate_up_EOD.index_select(0, indices_M), pairs_MD1).squeeze(-1)
    inner_MF1 = _swiglu(gate_up_MO).unsqueeze(-1)
    outputs_MD = torch.bmm(down_EDF.index_select(0, indices_M), inner_MF1).squeeze(-1)
    return _weighted_sum(outputs_MD, weights_NK)


def _swiglu(gate_up_MO: torch.Tensor) -> torch.Tensor:
    gate_MF, up_MF = gate_up_MO.chunk(2, dim=-1)
    return F.silu(gate_MF) * up_MF


def _sorted_by_expert(
    x_ND: torch.Tensor, indices_NK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(which pair stands where once they are sorted by expert [M], their tokens [M, D])."""
    order_M = indices_NK.flatten().argsort(stable=True)
    return order_M, x_ND.index_select(0, order_M // indices_NK.shape[1])


def _combined(
    sorted_MD: torch.Tensor, order_M: torch.Tensor, weights_NK: torch.Tensor
) -> torch.Tensor:
    """Back to the order of tokens, and summed; [N, D]."""
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(order_M.shape[0], device=order_M.device)
    return _weighted_sum(sorted_MD.index_select(0, place_M), weights_NK)


def _weighted_sum(outputs_MD: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
    # The weights are float32 or wider, so the sum is too; it is rounded once.
    outputs_NKD = outputs_MD.view(*weights_NK.shape, -1)
    weighted_NKD = outputs_NKD * weights_NK.unsqueeze(-1)
    return weighted_NKD.sum(dim=1).to(outputs_MD.dtype)


def grouped_product(
    x_MI: torch.Tensor, weight_EOI: torch.Tensor, ends_E: torch.Tensor
) -> torch.Tensor:
    """Rows ends[e-1] .. ends[e] times the transpose of weight[e], for every e; [M, O].

    `ends_E` are cumulative loads (int64, on the device); the last is M. An expert may have no rows.
    """
    if _has_grouped_kernel(x_MI, weight_EOI):
        return F.grouped_mm(x_MI, weight_EOI.transpose(-2, -1), offs=ends_E.to(torch.int32))
    return blocked_product(x_MI, weight_EOI, ends_E)


def _has_grouped_kernel(x_MI: torch.Tensor, weight_EOI: torch.Tensor) -> bool:
    """torch's kernel: bfloat16 rows of whole 16-byte units, on Hopper and the data-centre Blackwell
    (elsewhere `grouped_mm` is a loop on the host that waits for the loads)."""
    _, width_out, width_in = weight_EOI.shape
    return (
        x_MI.device.type == "cuda"
        and x_MI.dtype == weight_EOI.dtype == torch.bfloat16
        and width_in % 8 == 0
        and width_out % 8 == 0
        and _cuda_major(x_MI.device.index) in (9, 10)
    )


@lru_cache
def _cuda_major(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


_LARGEST_BLOCK = 128


def blocked_product(
    x_MI: torch.Tensor, weight_EOI: torch.Tensor, ends_E: torch.Tensor
) -> torch.Tensor:
    """:func:`grouped_product` from batched products alone, for any device and dtype; [M, O].

    The rows of each expert are cut into blocks of one size, the last of them padded, and each block
    is multiplied by a copy of its expert's matrix. How many blocks there are is known only to the
    device, but their number is bounded by M and by M / rows + E, so every shape is known here.
    """
    pairs, experts = x_MI.shape[0], weight_EOI.shape[0]
    rows = _block_rows(pairs, experts)
    blocks = min(pairs, pairs // rows + experts)
    starts_E = F.pad(ends_E[:-1], (1, 0))
    block_ends_E = ((ends_E - starts_E + rows - 1) // rows).cumsum(0)
    block_starts_E = F.pad(block_ends_E[:-1], (1, 0))

    # Blocks beyond the last used one repeat the last expert and the last row; nobody reads them.
    block = torch.arange(blocks, device=x_MI.device)
    expert = torch.searchsorted(block_ends_E, block, right=True).clamp(max=experts - 1)
    first_row = starts_E[expert] + (block - block_starts_E[expert]) * rows
    row = first_row.unsqueeze(1) + torch.arange(rows, device=x_MI.device)
    padded = x_MI[row.clamp(max=pairs - 1)]
    products = torch.bmm(padded, weight_EOI.index_select(0, expert).transpose(1, 2))

    pair = torch.arange(pairs, device=x_MI.device)
    owner = torch.searchsorted(ends_E, pair, right=True)
    place = block_starts_E[owner] * rows + pair - starts_E[owner]
    return products.flatten(0, 1).index_select(0, place)


def _block_rows(pairs: int, experts: int) -> int:
    """The mean load rounded up to a power of two: at most three rows for each pair, and about two
    copies of each matrix while loads are below the largest block."""
    mean = max(1, pairs // experts)
    return int(min(_LARGEST_BLOCK, 1 << (mean - 1).bit_length()))


_PATHS = {"loop": loop_experts, "gather": gather_experts}


class Experts(nn.Module):
    """All routed experts of one layer, stacked (as in transformers; a checkpoint has them one by
    one). `path` None chooses by device."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        experts, inner = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, config.hidden_size, inner))
        self.path: ExpertPath | None = None

    def forward(
        self,
        x_ND: torch.Tensor,
        indices_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        base_ND: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum of the chosen experts, plus ``base_ND`` (the shared ones' result);
        [N, D], of the dtype of `x_ND`."""
        gate_up: torch.Tensor = self.gate_up_proj
        down: torch.Tensor = self.down_proj
        kind = x_ND.device.type
        if torch.is_autocast_enabled(kind):
            # Grouped products are not on autocast's list, so it would leave them in float32.
            dtype = torch.get_autocast_dtype(kind)
            x_ND, gate_up, down = x_ND.to(dtype), gate_up.to(dtype), down.to(dtype)
        path = self.path or choose_path(x_ND.device)
        if path == "grouped":
            return grouped_experts(x_ND, indices_NK, weights_NK, gate_up, down, base_ND)
        out_ND = _PATHS[path](x_ND, indices_NK, weights_NK, gate_up, down)
        return out_ND if base_ND is None else out_ND + base_ND

    def extra_repr(self) -> str:
        experts, width, inner = self.down_proj.shape
        return f"{experts} of {width} -> {inner} -> {width}"
