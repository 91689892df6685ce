"""The Triton form of `attention.paged_attention`. Imported on CUDA alone.

Letters as there; N: tokens of a tile. A program takes one row, one key head (of many query heads
some 16 of them) and one of the parts that the sequence is split into. Softmax is online; what parts
found is put together by a second kernel. Widths that are no power of two are two tiles: the largest
power of two below, and the rest, padded and masked.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels below: their arguments are pointers and numbers of its own.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import ALIVE, LENGTH

_LEAST = 16
"""The tensor cores' smallest tile: fewer heads or columns are padded."""
_ALIVE = tl.constexpr(ALIVE)
_LENGTH = tl.constexpr(LENGTH)


@triton.jit
def _attend(
    q_ptr,
    pool_ptr,
    table_ptr,
    state_ptr,
    out_ptr,
    part_ptr,
    stats_ptr,
    scale_log2,
    rows,
    q_stride,
    width,
    page_stride,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    STORED: tl.constexpr,
    LATENT: tl.constexpr,
    PAGE: tl.constexpr,
    KA: tl.constexpr,
    KB: tl.constexpr,
    VA: tl.constexpr,
    VB: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """HEADS: query heads of a key head. KA + KB, VA + VB: tiles of a key and of a value."""
    blocks_h: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    group = tl.program_id(0) // blocks_h
    row = tl.program_id(1)
    split = tl.program_id(2)
    head_H = (tl.program_id(0) % blocks_h) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_H = head_H < HEADS
    alive = tl.load(state_ptr + _ALIVE * rows + row)
    stored = tl.load(state_ptr + _LENGTH * rows + row)
    tokens = tl.where(alive != 0, stored + 1, 0).to(tl.int32)
    per = tl.cdiv(tl.cdiv(tokens, BLOCK_N), SPLITS) * BLOCK_N
    start = split * per
    end = tl.minimum(tokens, start + per)

    a_K = tl.arange(0, KA)
    q_row_H = q_ptr + row.to(tl.int64) * q_stride + (group * HEADS + head_H) * KEY
    qa_HK = tl.load(
        q_row_H[:, None] + a_K[None, :], mask=in_H[:, None] & (a_K < KEY)[None, :], other=0.0
    )
    if KB:
        b_K = KA + tl.arange(0, KB)
        qb_HK = tl.load(
            q_row_H[:, None] + b_K[None, :], mask=in_H[:, None] & (b_K < KEY)[None, :], other=0.0
        )
    best_H = tl.full([BLOCK_H], -float("inf"), tl.float32)
    sum_H = tl.zeros([BLOCK_H], tl.float32)
    oa_HV = tl.zeros([BLOCK_H, VA], tl.float32)
    if VB:
        ob_HV = tl.zeros([BLOCK_H, VB], tl.float32)
    va_V = tl.arange(0, VA)
    for first in range(start, end, BLOCK_N):
        at_N = first + tl.arange(0, BLOCK_N)
        in_N = at_N < end
        page_N = tl.load(table_ptr + row * width + at_N // PAGE, mask=in_N, other=0).to(tl.int64)
        token_N = pool_ptr + page_N * page_stride + (group * PAGE + at_N % PAGE) * STORED
        ka_NK = tl.load(
            token_N[:, None] + a_K[None, :], mask=in_N[:, None] & (a_K < KEY)[None, :], other=0.0
        )
        scores_HN = tl.dot(qa_HK, tl.trans(ka_NK), input_precision="ieee")
        if KB:
            kb_NK = tl.load(
                token_N[:, None] + b_K[None, :],
                mask=in_N[:, None] & (b_K < KEY)[None, :],
                other=0.0,
            )
            scores_HN = tl.dot(qb_HK, tl.trans(kb_NK), scores_HN, input_precision="ieee")
        scores_HN = tl.where(in_N[None, :], scores_HN * scale_log2, -float("inf"))
        new_H = tl.maximum(best_H, tl.max(scores_HN, 1))
        share_HN = tl.exp2(scores_HN - new_H[:, None])
        shrink_H = tl.exp2(best_H - new_H)
        best_H = new_H
        sum_H = sum_H * shrink_H + tl.sum(share_HN, 1)
        if LATENT:
            va_NV = ka_NK
        else:
            va_NV = tl.load(
                token_N[:, None] + KEY + va_V[None, :],
                mask=in_N[:, None] & (va_V < VALUE)[None, :],
                other=0.0,
            )
        share_HN = share_HN.to(va_NV.dtype)
        oa_HV = tl.dot(share_HN, va_NV, oa_HV * shrink_H[:, None], input_precision="ieee")
        if VB:
            if LATENT:
                vb_NV = kb_NK
            else:
                b_V = VA + tl.arange(0, VB)
                vb_NV = tl.load(
                    token_N[:, None] + KEY + b_V[None, :],
                    mask=in_N[:, None] & (b_V < VALUE)[None, :],
                    other=0.0,
                )
            ob_HV = tl.dot(share_HN, vb_NV, ob_HV * shrink_H[:, None], input_precision="ieee")

    # A part without tokens, and a row that is not alive, sum to nothing.
    total_H = tl.where(sum_H > 0, sum_H, 1.0)
    head_row_H = (row.to(tl.int64) * GROUPS + group) * HEADS + head_H
    if SPLITS == 1:
        target_H = out_ptr + head_row_H * VALUE
    else:
        target_H = part_ptr + (head_row_H * SPLITS + split) * VALUE
        at_H = stats_ptr + (head_row_H * SPLITS + split)
        tl.store(at_H, best_H + tl.log2(total_H), mask=in_H & (sum_H > 0))
        tl.store(at_H, best_H, mask=in_H & (sum_H <= 0))
    kind = target_H.dtype.element_ty
    tl.store(
        target_H[:, None] + va_V[None, :],
        (oa_HV / total_H[:, None]).to(kind),
        mask=in_H[:, None] & (va_V < VALUE)[None, :],
    )
    if VB:
        b_out_V = VA + tl.arange(0, VB)
        tl.store(
            target_H[:, None] + b_out_V[None, :],
            (ob_HV / total_H[:, None]).to(kind),
            mask=in_H[:, None] & (b_out_V < VALUE)[None, :],
        )


@triton.jit
def _together(
    part_ptr, stats_ptr, out_ptr, VALUE: tl.constexpr, V: tl.constexpr, SPLITS: tl.constexpr
):
    """Parts weighted by their sums: exp2 of what `stats` holds, log2(sum exp2) of each part."""
    head = tl.program_id(0).to(tl.int64)
    split_S = tl.arange(0, SPLITS)
    v_V = tl.arange(0, V)
    sums_S = tl.load(stats_ptr + head * SPLITS + split_S)
    best = tl.max(sums_S, 0)
    # All parts are empty where the row is not alive.
    share_S = tl.where(sums_S > -float("inf"), tl.exp2(sums_S - best), 0.0)
    total = tl.sum(share_S, 0)
    parts_SV = tl.load(
        part_ptr + (head * SPLITS + split_S[:, None]) * VALUE + v_V[None, :],
        mask=(v_V < VALUE)[None, :],
        other=0.0,
    )
    out_V = tl.sum(parts_SV * share_S[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + head * VALUE + v_V, out_V.to(out_ptr.dtype.element_ty), mask=v_V < VALUE)


def decode_attention(
    q_BHK: torch.Tensor,
    pool_PGTC: torch.Tensor,
    table_RW: torch.Tensor,
    state_FR: torch.Tensor,
    key_width: int,
    latent: bool,
    scale: float,
    splits: int,
) -> torch.Tensor:
    """See `attention.paged_attention`. The heads of a query must lie together; rows may be apart
    (a part of a joint projection)."""
    batch, heads, _ = q_BHK.shape
    groups, stored = pool_PGTC.shape[1], pool_PGTC.shape[3]
    if q_BHK.stride(2) != 1 or q_BHK.stride(1) != key_width:
        q_BHK = q_BHK.contiguous()
    value = key_width if latent else stored - key_width
    out_BHV = q_BHK.new_empty(batch, heads, value)
    part, stats = out_BHV, out_BHV
    if splits > 1:
        part = q_BHK.new_empty(batch, heads, splits, value, dtype=torch.float32)
        stats = q_BHK.new_empty(batch, heads, splits, dtype=torch.float32)
    key_a, key_b = tiles(key_width)
    value_a, value_b = tiles(value)
    of_group = heads // groups
    block_h = max(_LEAST, min(64, triton.next_power_of_2(of_group)))
    wide = key_a + key_b > 128
    grid = (groups * triton.cdiv(of_group, block_h), batch, splits)
    _attend[grid](
        q_BHK,
        pool_PGTC,
        table_RW,
        state_FR,
        out_BHV,
        part,
        stats,
        scale * math.log2(math.e),
        state_FR.shape[1],
        q_BHK.stride(0),
        table_RW.shape[1],
        pool_PGTC.stride(0),
        groups,
        of_group,
        key_width,
        value,
        stored,
        latent,
        PAGE,
        key_a,
        key_b,
        value_a,
        value_b,
        block_h,
        _tile(key_a + key_b, q_BHK.element_size()),
        splits,
        num_warps=8 if wide and block_h > _LEAST else 4,
        num_stages=2,
    )
    if splits > 1:
        _together[(batch * heads,)](
            part, stats, out_BHV, value, triton.next_power_of_2(value), splits, num_warps=2
        )
    return out_BHV


def tiles(width: int) -> tuple[int, int]:
    """Powers of two that hold a width: one, or one and the rest (0: none)."""
    if width <= _LEAST:
        return _LEAST, 0
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, max(_LEAST, triton.next_power_of_2(rest)) if rest else 0


def _tile(width: int, size: int) -> int:
    """Tokens of a tile: what shared memory holds twice, at most 64."""
    held = 65536 // (width * size)
    return max(16, min(64, 1 << (held.bit_length() - 1)))
