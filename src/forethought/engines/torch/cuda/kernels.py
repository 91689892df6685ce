"""Triton kernels of a decode step beside attention. Imported on CUDA alone.

B: rows of the bucket, R: all rows, D: width of the residual stream, V: vocabulary, F: fields of the
state, H: query heads, G: key heads, K: width of a head.

Sums are in float32 and rounded once, to the dtype of what is written, as in the kernels of
`models.triton_kernels`. A program takes one row.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels below: their arguments are pointers and numbers of its own.

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import (
    ALIVE,
    DRAWN,
    INDEX,
    LENGTH,
    LIMIT,
    NEXT,
    SEED,
)
from forethought.engines.torch.sampler import is_greedy

if TYPE_CHECKING:
    from forethought.engines.torch.cuda.draw import DrawLog, Mode

__all__ = [
    "add_norm",
    "advance",
    "draw_and_advance",
    "embed_norm",
    "gated",
    "noise",
    "rotate_and_store",
]

_ALIVE, _DRAWN, _INDEX = tl.constexpr(ALIVE), tl.constexpr(DRAWN), tl.constexpr(INDEX)
_LENGTH, _LIMIT = tl.constexpr(LENGTH), tl.constexpr(LIMIT)
_NEXT, _SEED = tl.constexpr(NEXT), tl.constexpr(SEED)
_WORD = tl.constexpr(0xFFFFFFFF)

# -- drawing


@triton.jit
def _uniform(seed, index, position):
    """`noise.uniform`: Philox-4x32-10 in 64-bit integers, which wrap around; float64."""
    c0, c1 = position & _WORD, (position >> 32) & _WORD
    c2, c3 = index & _WORD, (index >> 32) & _WORD
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in tl.static_range(10):
        product_0 = c0 * 0xD2511F53
        product_1 = c2 * 0xCD9E8D57
        c0 = ((product_1 >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((product_0 >> 32) & _WORD) ^ c3 ^ k1
        c1 = product_1 & _WORD
        c3 = product_0 & _WORD
        k0 = (k0 + 0x9E3779B9) & _WORD
        k1 = (k1 + 0xBB67AE85) & _WORD
    bits = ((c0 >> 5) << 26) | (c1 >> 6)
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _noise(state_ptr, out_ptr, rows):
    row = tl.program_id(0)
    seed = tl.load(state_ptr + _SEED * rows + row)
    index = tl.load(state_ptr + _INDEX * rows + row)
    place = tl.load(state_ptr + _DRAWN * rows + row)
    tl.store(out_ptr + row, _uniform(seed, index, place))


@triton.jit
def _take_down(state_ptr, log_ptr, step_ptr, is_end_ptr, rows, row, token, logprob):
    """Write a drawn token to the log and move the state of its row on."""
    step = tl.load(step_ptr)
    tl.store(log_ptr + (2 * step) * rows + row, token.to(tl.int32))
    tl.store(log_ptr + (2 * step + 1) * rows + row, logprob.to(tl.int32, bitcast=True))
    alive = tl.load(state_ptr + _ALIVE * rows + row) != 0
    drawn = tl.load(state_ptr + _DRAWN * rows + row) + 1
    limit = tl.load(state_ptr + _LIMIT * rows + row)
    length = tl.load(state_ptr + _LENGTH * rows + row) + 1
    over = (tl.load(is_end_ptr + token) != 0) | (drawn >= limit)
    tl.store(state_ptr + _DRAWN * rows + row, drawn, mask=alive)
    tl.store(state_ptr + _LENGTH * rows + row, length, mask=alive)
    tl.store(state_ptr + _NEXT * rows + row, token.to(tl.int64), mask=alive)
    tl.store(state_ptr + _ALIVE * rows + row, tl.where(over, 0, 1).to(tl.int64), mask=alive)


@triton.jit
def _logits(logits_ptr, is_end_ptr, at_V, forced, V: tl.constexpr, FORCED: tl.constexpr):
    x_V = tl.load(logits_ptr + at_V, mask=at_V < V, other=-float("inf"))
    if FORCED:
        ends_V = tl.load(is_end_ptr + at_V, mask=at_V < V, other=0) != 0
        x_V = tl.where(ends_V & (forced == 0), -float("inf"), x_V)
    return x_V


@triton.jit
def _draw(
    logits_ptr,
    state_ptr,
    log_ptr,
    step_ptr,
    is_end_ptr,
    temperature,
    rows,
    end_id,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    GREEDY: tl.constexpr,
    FORCED: tl.constexpr,
):
    """Weights exp((x - max) / temperature) in float64, as `sampler.distribution` has them."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * V
    drawn = tl.load(state_ptr + _DRAWN * rows + row)
    forced = drawn + 1 >= tl.load(state_ptr + _LIMIT * rows + row)
    at_V = tl.arange(0, BLOCK)

    best_V = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, V, BLOCK):
        x_V = _logits(logits_ptr, is_end_ptr, start + at_V, forced, V, FORCED)
        # NaN stays, so that it is noticed.
        best_V = tl.maximum(best_V, x_V, propagate_nan=tl.PropagateNan.ALL)
    best = tl.reduce(best_V, 0, _larger)

    token = tl.full([], 0, tl.int32)
    logprob = tl.full([], 0.0, tl.float32)
    if GREEDY:
        token = tl.full([], V, tl.int32)
        for start in range(0, V, BLOCK):
            x_V = _logits(logits_ptr, is_end_ptr, start + at_V, forced, V, FORCED)
            first = tl.min(tl.where(x_V == best, start + at_V, V), 0)
            token = tl.minimum(token, first)
        logprob = tl.where(best == best, logprob, float("nan"))
        token = tl.where(token < V, token, 0)
        if FORCED:
            logprob = tl.where(forced & (token != end_id), -float("inf"), logprob)
            token = tl.where(forced, end_id, token)
    else:
        scale = 1.0 / temperature
        sum_V = tl.zeros([BLOCK], tl.float64)
        for start in range(0, V, BLOCK):
            x_V = _logits(logits_ptr, is_end_ptr, start + at_V, forced, V, FORCED)
            sum_V += tl.exp((x_V - best).to(tl.float64) * scale)
        total = tl.sum(sum_V, 0)
        seed = tl.load(state_ptr + _SEED * rows + row)
        index = tl.load(state_ptr + _INDEX * rows + row)
        target = _uniform(seed, index, drawn) * total
        before = tl.full([], 0.0, tl.float64)
        weight = tl.full([], 0.0, tl.float64)
        found = tl.full([], 0, tl.int32)
        for start in range(0, V, BLOCK):
            if found == 0:
                x_V = _logits(logits_ptr, is_end_ptr, start + at_V, forced, V, FORCED)
                weight_V = tl.exp((x_V - best).to(tl.float64) * scale)
                sum_ = tl.sum(weight_V, 0)
                # The last token of any weight, should rounding leave nothing above the target.
                last = tl.max(tl.where(weight_V > 0, at_V, -1), 0)
                here = before + sum_ > target
                if here | (last >= 0):
                    if here:
                        sums_V = before + tl.cumsum(weight_V, 0)
                        place = tl.minimum(tl.sum((sums_V <= target).to(tl.int32), 0), last)
                        found = 1
                    else:
                        place = last
                    token = start + place
                    weight = tl.sum(tl.where(at_V == place, weight_V, 0.0), 0)
                before += sum_
        if FORCED:
            x_end = tl.load(logits_ptr + end_id)
            end_weight = tl.exp((x_end - best).to(tl.float64) * scale)
            weight = tl.where(forced, end_weight, weight)
            token = tl.where(forced, end_id, token)
        logprob = tl.minimum(tl.log(weight / total), 0.0, propagate_nan=tl.PropagateNan.ALL).to(
            tl.float32
        )
    _take_down(state_ptr, log_ptr, step_ptr, is_end_ptr, rows, row, token, logprob)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _advance(ids_ptr, logprobs_ptr, state_ptr, log_ptr, step_ptr, is_end_ptr, rows):
    row = tl.program_id(0)
    token = tl.load(ids_ptr + row)
    logprob = tl.load(logprobs_ptr + row)
    _take_down(state_ptr, log_ptr, step_ptr, is_end_ptr, rows, row, token, logprob)


def noise(state_FR: torch.Tensor, batch: int) -> torch.Tensor:
    """The uniform numbers of the first rows' next tokens; float64 [B]."""
    out_B = torch.empty(batch, dtype=torch.float64, device=state_FR.device)
    _noise[(batch,)](state_FR, out_B, state_FR.shape[1], num_warps=1)
    return out_B


def draw_and_advance(
    logits_BV: torch.Tensor, state_FR: torch.Tensor, log: DrawLog, mode: Mode
) -> None:
    """`draw.take_step` without filters. ``logits``: float32, contiguous."""
    batch, vocabulary = logits_BV.shape
    block = min(4096, triton.next_power_of_2(vocabulary))
    _draw[(batch,)](
        logits_BV,
        state_FR,
        log.drawn_S2R,
        log.step,
        log.is_end_V,
        mode.sampling.temperature,
        state_FR.shape[1],
        log.end_id,
        vocabulary,
        block,
        is_greedy(mode.sampling),
        mode.forced,
        num_warps=8 if block >= 2048 else 4,
    )
    log.step.add_(1)


def advance(
    ids_B: torch.Tensor, logprobs_B: torch.Tensor, state_FR: torch.Tensor, log: DrawLog
) -> None:
    """Take down what was drawn elsewhere: int64 ids, float32 log-probabilities."""
    _advance[(len(ids_B),)](
        ids_B,
        logprobs_B,
        state_FR,
        log.drawn_S2R,
        log.step,
        log.is_end_V,
        state_FR.shape[1],
        num_warps=1,
    )
    log.step.add_(1)


# -- a dense layer


@triton.jit
def _norm(
    x_ptr,
    delta_ptr,
    weight_ptr,
    out_ptr,
    embed_ptr,
    next_ptr,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    EMBED: tl.constexpr,
):
    """The stream plus what a layer adds to it, and that normed. EMBED: the stream begins here."""
    row = tl.program_id(0).to(tl.int64)
    at_D = tl.arange(0, BLOCK)
    in_D = at_D < D
    kind = out_ptr.dtype.element_ty
    if EMBED:
        token = tl.load(next_ptr + row)
        x_D = tl.load(embed_ptr + token * D + at_D, mask=in_D, other=0.0).to(tl.float32)
    else:
        x_D = tl.load(x_ptr + row * D + at_D, mask=in_D, other=0.0).to(tl.float32)
        delta_D = tl.load(delta_ptr + row * D + at_D, mask=in_D, other=0.0).to(tl.float32)
        x_D = (x_D + delta_D).to(kind).to(tl.float32)
    tl.store(x_ptr + row * D + at_D, x_D.to(kind), mask=in_D)
    weight_D = tl.load(weight_ptr + at_D, mask=in_D, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_D * x_D, 0) / D + eps)
    tl.store(out_ptr + row * D + at_D, (x_D * scale * weight_D).to(kind), mask=in_D)


def embed_norm(
    next_R: torch.Tensor,
    embed_VD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    x_BD: torch.Tensor,
) -> torch.Tensor:
    """Begin the stream ``x`` with the tokens' embeddings; the first norm of it, [B, D]."""
    return _normed(x_BD, x_BD, weight_D, eps, embed_VD, next_R, True)


def add_norm(
    x_BD: torch.Tensor, delta_BD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add ``delta`` to the stream ``x`` in place; its norm, [B, D]."""
    return _normed(x_BD, delta_BD, weight_D, eps, x_BD, x_BD, False)


def _normed(
    x_BD: torch.Tensor,
    delta_BD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    embed_VD: torch.Tensor,
    next_R: torch.Tensor,
    embed: bool,
) -> torch.Tensor:
    batch, width = x_BD.shape
    out_BD = torch.empty_like(x_BD)
    block = triton.next_power_of_2(width)
    _norm[(batch,)](
        x_BD,
        delta_BD,
        weight_D,
        out_BD,
        embed_VD,
        next_R,
        eps,
        width,
        block,
        embed,
        num_warps=max(1, min(8, block // 512)),
    )
    return out_BD


@triton.jit
def _gated(x_ptr, out_ptr, F: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at_F = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_F = at_F < F
    kind = out_ptr.dtype.element_ty
    gate_F = tl.load(x_ptr + row * 2 * F + at_F, mask=in_F, other=0.0).to(tl.float32)
    up_F = tl.load(x_ptr + row * 2 * F + F + at_F, mask=in_F, other=0.0).to(tl.float32)
    silu_F = gate_F / (1.0 + tl.exp(-gate_F))
    tl.store(out_ptr + row * F + at_F, (silu_F * up_F).to(kind), mask=in_F)


def gated(gate_up_BF: torch.Tensor) -> torch.Tensor:
    """silu of the first half times the second, [B, F / 2]."""
    batch, both = gate_up_BF.shape
    width = both // 2
    out_BF = gate_up_BF.new_empty(batch, width)
    block = min(2048, triton.next_power_of_2(width))
    _gated[(batch, triton.cdiv(width, block))](
        gate_up_BF, out_BF, width, block, num_warps=max(1, min(8, block // 256))
    )
    return out_BF


@triton.jit
def _rotate(
    qkv_ptr,
    pool_ptr,
    table_ptr,
    state_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    rows,
    width,
    page_stride,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NORM: tl.constexpr,
):
    """Queries are rotated where they are; keys are rotated into the page, values copied there."""
    row = tl.program_id(0)
    half: tl.constexpr = K // 2
    kind = qkv_ptr.dtype.element_ty
    qkv_ptr += row.to(tl.int64) * (HEADS + 2 * GROUPS) * K
    position = tl.load(state_ptr + _LENGTH * rows + row)
    alive = tl.load(state_ptr + _ALIVE * rows + row) != 0
    page = tl.load(table_ptr + row * width + position // PAGE, mask=alive, other=0).to(tl.int64)
    page_ptr = pool_ptr + page * page_stride + (position % PAGE) * 2 * K

    head_H = tl.arange(0, BLOCK_H)
    at_R = tl.arange(0, BLOCK_R)
    in_HR = (head_H < HEADS + GROUPS)[:, None] & (at_R < half)[None, :]
    place_HR = head_H[:, None] * K + at_R[None, :]
    a_HR = tl.load(qkv_ptr + place_HR, mask=in_HR, other=0.0).to(tl.float32)
    b_HR = tl.load(qkv_ptr + place_HR + half, mask=in_HR, other=0.0).to(tl.float32)
    if NORM:
        mean_H = (tl.sum(a_HR * a_HR, 1) + tl.sum(b_HR * b_HR, 1)) / K
        scale_H1 = (1.0 / tl.sqrt(mean_H + eps))[:, None]
        is_q_H1 = (head_H < HEADS)[:, None]
        in_1R = (at_R < half)[None, :]
        q_a = tl.load(q_norm_ptr + at_R[None, :], mask=in_1R, other=0.0)
        q_b = tl.load(q_norm_ptr + half + at_R[None, :], mask=in_1R, other=0.0)
        k_a = tl.load(k_norm_ptr + at_R[None, :], mask=in_1R, other=0.0)
        k_b = tl.load(k_norm_ptr + half + at_R[None, :], mask=in_1R, other=0.0)
        w_a = tl.where(is_q_H1, q_a, k_a).to(tl.float32)
        w_b = tl.where(is_q_H1, q_b, k_b).to(tl.float32)
        a_HR = (a_HR * scale_H1 * w_a).to(kind).to(tl.float32)
        b_HR = (b_HR * scale_H1 * w_b).to(kind).to(tl.float32)
    in_R = (at_R < half) & alive
    cos_R = tl.load(cos_ptr + position * half + at_R, mask=in_R, other=0.0).to(tl.float32)
    sin_R = tl.load(sin_ptr + position * half + at_R, mask=in_R, other=0.0).to(tl.float32)
    cos_1R, sin_1R = cos_R[None, :], sin_R[None, :]
    first_HR = (a_HR * cos_1R - b_HR * sin_1R).to(kind)
    second_HR = (b_HR * cos_1R + a_HR * sin_1R).to(kind)

    is_q_HR = in_HR & (head_H < HEADS)[:, None]
    tl.store(qkv_ptr + place_HR, first_HR, mask=is_q_HR)
    tl.store(qkv_ptr + place_HR + half, second_HR, mask=is_q_HR)
    is_k_HR = in_HR & (head_H >= HEADS)[:, None] & alive
    stored_HR = (head_H - HEADS)[:, None] * (PAGE * 2 * K) + at_R[None, :]
    tl.store(page_ptr + stored_HR, first_HR, mask=is_k_HR)
    tl.store(page_ptr + stored_HR + half, second_HR, mask=is_k_HR)

    group_G = tl.arange(0, BLOCK_G)
    in_GR = (group_G < GROUPS)[:, None] & (at_R < half)[None, :]
    value_GR = (HEADS + GROUPS + group_G[:, None]) * K + at_R[None, :]
    target_GR = group_G[:, None] * (PAGE * 2 * K) + K + at_R[None, :]
    for part in tl.static_range(2):
        v_GR = tl.load(qkv_ptr + value_GR + part * half, mask=in_GR, other=0.0)
        tl.store(page_ptr + target_GR + part * half, v_GR, mask=in_GR & alive)


def rotate_and_store(
    qkv_BO: torch.Tensor,
    pool_PGTC: torch.Tensor,
    table_RW: torch.Tensor,
    state_FR: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    heads: int,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> None:
    """Norm (where there are ``norms``: weights of queries and keys, epsilon) and rotate queries in
    place and keys into the pages, beside their values. ``qkv``: [B, (H + 2 G) K], contiguous."""
    groups, width = pool_PGTC.shape[1], pool_PGTC.shape[3] // 2
    q_norm, k_norm, eps = norms if norms is not None else (cos_TR, cos_TR, 0.0)
    _rotate[(len(qkv_BO),)](
        qkv_BO,
        pool_PGTC,
        table_RW,
        state_FR,
        cos_TR,
        sin_TR,
        q_norm,
        k_norm,
        eps,
        state_FR.shape[1],
        table_RW.shape[1],
        pool_PGTC.stride(0),
        heads,
        groups,
        width,
        PAGE,
        triton.next_power_of_2(heads + groups),
        triton.next_power_of_2(groups),
        triton.next_power_of_2(width // 2),
        norms is not None,
        num_warps=2,
    )
