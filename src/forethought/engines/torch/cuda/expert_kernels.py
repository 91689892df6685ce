"""Triton kernels of a mixture of experts in a decode step: the gate, and the experts' products.
Imported on CUDA alone.

B: rows of the bucket, R: all rows, S: steps of a chunk, D: width of the residual stream, E: routed
experts, K: experts a token uses, F: width of an expert, G: joint width of the shared ones,
M: layers with experts, X = B K: pairs of a token and an expert it uses; pair b K + k is token b's.

The gate appends each pair to its expert's list. Two kernels then multiply the rows of every list by
its expert's matrices, and all rows by the shared experts' in the same breath. In what order pairs
stand in a list is left to chance; what is computed for a pair does not depend on it.

Sums are in float32 and rounded as in training (`deepseek_v3.experts.grouped_experts`).
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels below: their arguments are pointers and numbers of its own.

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

__all__ = ["Lists", "gated_experts", "projected_experts", "route"]

_LEAST = 16
"""The tensor cores' smallest tile."""


class Lists(NamedTuple):
    """What the gate decided of the rows of a bucket."""

    weights_BK: torch.Tensor
    """float32."""
    pairs_EB: torch.Tensor
    """int32; of each expert the first so many count as ``counts`` says. A token chooses an expert
    once, so no list is longer than B."""
    counts_E: torch.Tensor
    """int32."""


@triton.jit(do_not_specialize=["batch", "layer"])
def _route(
    x_ptr, weight_ptr, bias_ptr, weights_ptr, pairs_ptr, counts_ptr, log_ptr, step_ptr,
    scale, batch, rows, layer, layers,
    D: tl.constexpr, EXPERTS: tl.constexpr, USED: tl.constexpr, NORM: tl.constexpr,
    RECORD: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`gate.route` of a few rows, with sigmoid scores and without groups."""
    row_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_B = row_B < batch
    at_E = tl.arange(0, BLOCK_E)
    in_E = at_E < EXPERTS
    logits_BE = tl.zeros([BLOCK_B, BLOCK_E], tl.float32)
    for start in range(0, D, BLOCK_D):
        at_D = start + tl.arange(0, BLOCK_D)
        in_D = at_D < D
        x_BD = tl.load(
            x_ptr + row_B[:, None] * D + at_D[None, :],
            mask=in_B[:, None] & in_D[None, :],
            other=0.0,
        )
        weight_ED = tl.load(
            weight_ptr + at_E[:, None] * D + at_D[None, :],
            mask=in_E[:, None] & in_D[None, :],
            other=0.0,
        )
        logits_BE = tl.dot(x_BD, tl.trans(weight_ED), logits_BE, input_precision="ieee")
    scores_BE = 1.0 / (1.0 + tl.exp(-logits_BE))
    bias_E = tl.load(bias_ptr + at_E, mask=in_E, other=0.0)
    choice_BE = tl.where(in_E[None, :], scores_BE + bias_E[None, :], -float("inf"))

    at_K = tl.arange(0, BLOCK_K)
    chosen_BK = tl.zeros([BLOCK_B, BLOCK_K], tl.int32)
    weights_BK = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
    for k in tl.static_range(USED):
        # The bound is for rows that hold no numbers.
        best_B = tl.minimum(tl.argmax(choice_BE, axis=1).to(tl.int32), EXPERTS - 1)
        is_best_BE = at_E[None, :] == best_B[:, None]
        score_B = tl.sum(tl.where(is_best_BE, scores_BE, 0.0), 1)
        choice_BE = tl.where(is_best_BE, -float("inf"), choice_BE)
        is_k_1K = (at_K == k)[None, :]
        chosen_BK = tl.where(is_k_1K, best_B[:, None], chosen_BK)
        weights_BK = tl.where(is_k_1K, score_B[:, None], weights_BK)
    if NORM:
        weights_BK = weights_BK / (tl.sum(weights_BK, 1)[:, None] + 1e-20)

    in_BK = in_B[:, None] & (at_K < USED)[None, :]
    pair_BK = row_B[:, None] * USED + at_K[None, :]
    tl.store(weights_ptr + pair_BK, weights_BK * scale, mask=in_BK)
    place_BK = tl.atomic_add(counts_ptr + chosen_BK, 1, mask=in_BK, sem="relaxed")
    # Rows that hold no numbers may choose an expert twice.
    tl.store(pairs_ptr + chosen_BK * batch + place_BK, pair_BK, mask=in_BK & (place_BK < batch))
    if RECORD:
        step = tl.load(step_ptr)
        place = ((step * rows + row_B[:, None]) * layers + layer) * USED + at_K[None, :]
        tl.store(log_ptr + place, chosen_BK.to(tl.int16), mask=in_BK)


def route(
    x_BD: torch.Tensor,
    weight_ED: torch.Tensor,
    bias_E: torch.Tensor,
    counts_E: torch.Tensor,
    *,
    top_k: int,
    norm: bool,
    scale: float,
    log: tuple[torch.Tensor, torch.Tensor] | None,
    layer: int,
) -> Lists:
    """What `Gate` decides: sigmoid scores in float32, the bias for the choice alone.

    ``counts`` must be zero. ``log``: the step, int64 [1], and int16 [S, R, M, K], where the chosen
    experts are taken down as those of ``layer``.
    """
    batch, width = x_BD.shape
    experts = len(weight_ED)
    weights_BK = torch.empty(batch, top_k, dtype=torch.float32, device=x_BD.device)
    pairs_EB = torch.empty(experts, batch, dtype=torch.int32, device=x_BD.device)
    step, log_SRMK = log if log is not None else (counts_E, counts_E)
    rows, layers = log_SRMK.shape[1:3] if log is not None else (0, 0)
    block_e = max(_LEAST, triton.next_power_of_2(experts))
    # A tile of the weights in 32 KiB of shared memory, as wide as that allows.
    most = 32768 // (block_e * x_BD.element_size())
    _route[(triton.cdiv(batch, _LEAST),)](
        x_BD, weight_ED, bias_E, weights_BK, pairs_EB, counts_E, log_SRMK, step,
        scale, batch, rows, layer, layers,
        D=width, EXPERTS=experts, USED=top_k, NORM=norm, RECORD=log is not None,
        BLOCK_B=_LEAST, BLOCK_D=max(_LEAST, min(128, most, triton.next_power_of_2(width))),
        BLOCK_E=block_e, BLOCK_K=triton.next_power_of_2(top_k),
        num_warps=max(1, min(4, block_e // 32)), num_stages=3,
    )  # fmt: skip
    return Lists(weights_BK, pairs_EB, counts_E)


# -- products over the lists


@triton.jit
def _gated_rows(
    x_ptr, gate_ptr, up_ptr, out_ptr, from_B, to_B, in_B, at_F,
    D: tl.constexpr, F: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """silu(x gate^T) * x up^T: columns ``at_F`` of rows ``to`` from rows ``from`` of x."""
    in_F = at_F < F
    gate_BF = tl.zeros([BLOCK_B, BLOCK_F], tl.float32)
    up_BF = tl.zeros([BLOCK_B, BLOCK_F], tl.float32)
    for start in range(0, D, BLOCK_D):
        at_D = start + tl.arange(0, BLOCK_D)
        in_D = at_D < D
        x_BD = tl.load(
            x_ptr + from_B[:, None] * D + at_D[None, :],
            mask=in_B[:, None] & in_D[None, :],
            other=0.0,
        )
        at_FD = at_F[:, None] * D + at_D[None, :]
        in_FD = in_F[:, None] & in_D[None, :]
        gate_FD = tl.load(gate_ptr + at_FD, mask=in_FD, other=0.0)
        up_FD = tl.load(up_ptr + at_FD, mask=in_FD, other=0.0)
        gate_BF = tl.dot(x_BD, tl.trans(gate_FD), gate_BF, input_precision="ieee")
        up_BF = tl.dot(x_BD, tl.trans(up_FD), up_BF, input_precision="ieee")
    kind = out_ptr.dtype.element_ty
    # Rounded as if each product were one of its own, and as `triton_kernels.swiglu_forward` does.
    gate_BF = gate_BF.to(kind).to(tl.float32)
    up_BF = up_BF.to(kind).to(tl.float32)
    silu_BF = (gate_BF / (1.0 + tl.exp(-gate_BF))).to(kind).to(tl.float32)
    tl.store(
        out_ptr + to_B[:, None] * F + at_F[None, :],
        (silu_BF * up_BF).to(kind),
        mask=in_B[:, None] & in_F[None, :],
    )


@triton.jit
def _product_rows(
    x_ptr, weight_ptr, out_ptr, row_B, in_B, at_D,
    D: tl.constexpr, F: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Columns ``at_D`` of rows of x weight^T."""
    in_D = at_D < D
    out_BD = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(0, F, BLOCK_F):
        at_F = start + tl.arange(0, BLOCK_F)
        in_F = at_F < F
        x_BF = tl.load(
            x_ptr + row_B[:, None] * F + at_F[None, :],
            mask=in_B[:, None] & in_F[None, :],
            other=0.0,
        )
        weight_DF = tl.load(
            weight_ptr + at_D[:, None] * F + at_F[None, :],
            mask=in_D[:, None] & in_F[None, :],
            other=0.0,
        )
        out_BD = tl.dot(x_BF, tl.trans(weight_DF), out_BD, input_precision="ieee")
    tl.store(
        out_ptr + row_B[:, None] * D + at_D[None, :],
        out_BD.to(out_ptr.dtype.element_ty),
        mask=in_B[:, None] & in_D[None, :],
    )


@triton.jit(do_not_specialize=["batch", "shared_tiles", "tiles"])
def _gated_experts(
    x_ptr, gate_up_ptr, gate_ptr, up_ptr, pairs_ptr, counts_ptr, inner_ptr, shared_ptr,
    batch, shared_tiles, tiles,
    D: tl.constexpr, F: tl.constexpr, SHARED: tl.constexpr, USED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The first programs of a column take the shared experts, a tile of rows each; the rest take
    every ``tiles``-th tile of an expert's list."""
    program = tl.program_id(0)
    first_F = tl.program_id(1) * BLOCK_F
    at_F = first_F + tl.arange(0, BLOCK_F)
    at_B = tl.arange(0, BLOCK_B)
    if program < shared_tiles:
        if first_F < SHARED:
            row_B = program * BLOCK_B + at_B
            _gated_rows(
                x_ptr, gate_ptr, up_ptr, shared_ptr, row_B, row_B, row_B < batch, at_F,
                D, SHARED, BLOCK_B, BLOCK_F, BLOCK_D,
            )  # fmt: skip
    elif first_F < F:
        expert = (program - shared_tiles) // tiles
        count = tl.minimum(tl.load(counts_ptr + expert), batch)
        gate_up_ptr += expert.to(tl.int64) * (2 * F * D)
        for tile in range((program - shared_tiles) % tiles, tl.cdiv(count, BLOCK_B), tiles):
            place_B = tile * BLOCK_B + at_B
            in_B = place_B < count
            pair_B = tl.load(pairs_ptr + expert * batch + place_B, mask=in_B, other=0)
            _gated_rows(
                x_ptr, gate_up_ptr, gate_up_ptr + F * D, inner_ptr, pair_B // USED, pair_B, in_B,
                at_F, D, F, BLOCK_B, BLOCK_F, BLOCK_D,
            )  # fmt: skip


@triton.jit(do_not_specialize=["batch", "shared_tiles", "tiles"])
def _projected_experts(
    inner_ptr, shared_ptr, down_ptr, shared_down_ptr, pairs_ptr, counts_ptr, out_ptr, base_ptr,
    batch, shared_tiles, tiles,
    D: tl.constexpr, F: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Programs as in `_gated_experts`."""
    program = tl.program_id(0)
    at_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at_B = tl.arange(0, BLOCK_B)
    if program < shared_tiles:
        row_B = program * BLOCK_B + at_B
        _product_rows(
            shared_ptr, shared_down_ptr, base_ptr, row_B, row_B < batch, at_D,
            D, SHARED, BLOCK_B, BLOCK_D, BLOCK_F,
        )  # fmt: skip
    else:
        expert = (program - shared_tiles) // tiles
        count = tl.minimum(tl.load(counts_ptr + expert), batch)
        down_ptr += expert.to(tl.int64) * (D * F)
        for tile in range((program - shared_tiles) % tiles, tl.cdiv(count, BLOCK_B), tiles):
            place_B = tile * BLOCK_B + at_B
            in_B = place_B < count
            pair_B = tl.load(pairs_ptr + expert * batch + place_B, mask=in_B, other=0)
            _product_rows(
                inner_ptr, down_ptr, out_ptr, pair_B, in_B, at_D, D, F, BLOCK_B, BLOCK_D, BLOCK_F
            )


class _Tiles(NamedTuple):
    rows: int
    """Rows of a tile."""
    shared: int
    """Tiles of all rows."""
    routed: int
    """Programs that share an expert's list: enough for one twice as long as the mean."""

    @staticmethod
    def of(batch: int, experts: int, top_k: int) -> _Tiles:
        mean = triton.cdiv(batch * top_k, experts)
        rows = max(_LEAST, min(64, triton.next_power_of_2(mean)))
        shared = triton.cdiv(batch, rows)
        return _Tiles(rows, shared, min(shared, 2 * triton.cdiv(mean, rows)))


def _block(width: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides a width, or the first above it."""
    divisor = width & -width
    return max(_LEAST, min(most, divisor if divisor >= 32 else triton.next_power_of_2(width)))


def gated_experts(
    x_BD: torch.Tensor,
    gate_up_EOD: torch.Tensor,
    shared_gate_GD: torch.Tensor,
    shared_up_GD: torch.Tensor,
    lists: Lists,
) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up of each pair [X, F], and of the shared experts [B, G]."""
    batch, width = x_BD.shape
    experts, inner = gate_up_EOD.shape[0], gate_up_EOD.shape[1] // 2
    shared, used = len(shared_gate_GD), lists.weights_BK.shape[1]
    inner_XF = x_BD.new_empty(batch * used, inner)
    shared_BG = x_BD.new_empty(batch, shared)
    tiles = _Tiles.of(batch, experts, used)
    wide = x_BD.element_size() > 2
    if wide:
        block_f, block_d = _block(inner, 32), _block(width, 64)
    elif tiles.rows == 64:
        block_f, block_d = _block(inner, 64), _block(width, 64)
    else:  # few programs: long tiles, since they wait for memory rather than compute
        block_f = max(_LEAST, min(64, triton.next_power_of_2(inner)))
        block_d = _block(width, 128)
    grid = tiles.shared + experts * tiles.routed, triton.cdiv(max(inner, shared), block_f)
    _gated_experts[grid](
        x_BD, gate_up_EOD, shared_gate_GD, shared_up_GD, lists.pairs_EB, lists.counts_E,
        inner_XF, shared_BG, batch, tiles.shared, tiles.routed,
        D=width, F=inner, SHARED=shared, USED=used, BLOCK_B=tiles.rows, BLOCK_F=block_f,
        BLOCK_D=block_d,
        num_warps=4, num_stages=2 if wide else 3,
    )  # fmt: skip
    return inner_XF, shared_BG


def projected_experts(
    inner_XF: torch.Tensor,
    shared_BG: torch.Tensor,
    down_EDF: torch.Tensor,
    shared_down_DG: torch.Tensor,
    lists: Lists,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each pair's expert makes of it [X, D], and the shared ones of their rows [B, D]."""
    batch, used = lists.weights_BK.shape
    experts, width, inner = down_EDF.shape
    out_XD = inner_XF.new_empty(batch * used, width)
    base_BD = inner_XF.new_empty(batch, width)
    tiles = _Tiles.of(batch, experts, used)
    wide = inner_XF.element_size() > 2
    block_d = max(_LEAST, min(64, triton.next_power_of_2(width)))
    grid = tiles.shared + experts * tiles.routed, triton.cdiv(width, block_d)
    _projected_experts[grid](
        inner_XF, shared_BG, down_EDF, shared_down_DG, lists.pairs_EB, lists.counts_E,
        out_XD, base_BD, batch, tiles.shared, tiles.routed,
        D=width, F=inner, SHARED=shared_BG.shape[1], BLOCK_B=tiles.rows, BLOCK_D=block_d,
        BLOCK_F=_block(inner, 64), num_warps=4, num_stages=2 if wide else 3,
    )  # fmt: skip
    return out_XD, base_BD
