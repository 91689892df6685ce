"""Triton kernels of a decode step of latent attention, beside attention itself. Imported on CUDA
alone.

B: rows of the bucket, R: all rows, D: width of the residual stream, H: heads, L: kv_lora_rank,
N: qk_nope_head_dim, P: qk_rope_head_dim, V: v_head_dim, C = L + P: width of a cached token,
T: positions, W: pages of a row, F: fields of the state, K: experts a token uses, M = B * K,
E: routed experts.

Sums are in float32. They are rounded where the kernels of `models.triton_kernels` round, which the
trainer runs: sampler and trainer should differ by the order of sums alone.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels below: their arguments are pointers and numbers of its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import ALIVE, LENGTH

__all__ = ["absorb_and_store", "add_norm", "combine_norm", "embed_norm"]

_LEAST = 16
"""The tensor cores' smallest tile."""
_ALIVE, _LENGTH = tl.constexpr(ALIVE), tl.constexpr(LENGTH)


# -- between the projections and attention


@triton.jit
def _rotated(
    start, cos_ptr, sin_ptr, position, at_R, inside, HALF: tl.constexpr, PAIRS: tl.constexpr
):
    """Both halves of rotated rows that begin at ``start``; rounded by the caller."""
    first_at = 2 * at_R if PAIRS else at_R
    second_at = 2 * at_R + 1 if PAIRS else at_R + HALF
    first = tl.load(start + first_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + second_at, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + position * HALF + at_R, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + position * HALF + at_R, mask=inside, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _store_latents(
    kv_ptr, norm_ptr, pool_ptr, table_ptr, state_ptr, cos_ptr, sin_ptr,
    row_B, eps, batch, rows, width, kv_stride, page_stride,
    ROPE: tl.constexpr, RANK: tl.constexpr, PAGE: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_RANK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The norm of the latents and the rotated keys, into the pages of rows that are alive."""
    half: tl.constexpr = ROPE // 2
    kind = kv_ptr.dtype.element_ty
    alive_B = tl.load(state_ptr + _ALIVE * rows + row_B, mask=row_B < batch, other=0) != 0
    position_B = tl.load(state_ptr + _LENGTH * rows + row_B, mask=alive_B, other=0)
    page_B = tl.load(table_ptr + row_B * width + position_B // PAGE, mask=alive_B, other=0)
    target_B = pool_ptr + page_B.to(tl.int64) * page_stride + position_B % PAGE * (RANK + ROPE)
    start_B = kv_ptr + row_B * kv_stride

    at_L = tl.arange(0, BLOCK_RANK)
    in_BL = alive_B[:, None] & (at_L < RANK)[None, :]
    latent_BL = tl.load(start_B[:, None] + at_L[None, :], mask=in_BL, other=0.0).to(tl.float32)
    scale_B = tl.rsqrt(tl.sum(latent_BL * latent_BL, 1) / RANK + eps)
    normed_BL = (latent_BL * scale_B[:, None]).to(kind).to(tl.float32)
    norm_L = tl.load(norm_ptr + at_L, mask=at_L < RANK, other=0.0).to(tl.float32)
    out_BL = (normed_BL * norm_L[None, :]).to(kind)
    tl.store(target_B[:, None] + at_L[None, :], out_BL, mask=in_BL)

    at_R = tl.arange(0, BLOCK_R)
    in_BR = alive_B[:, None] & (at_R < half)[None, :]
    first_BR, second_BR = _rotated(
        start_B[:, None] + RANK, cos_ptr, sin_ptr, position_B[:, None], at_R[None, :], in_BR,
        half, PAIRS,
    )  # fmt: skip
    to_BR = target_B[:, None] + RANK + at_R[None, :]
    tl.store(to_BR, first_BR.to(kind), mask=in_BR)
    tl.store(to_BR + half, second_BR.to(kind), mask=in_BR)


@triton.jit
def _absorb_queries(
    q_ptr, weight_ptr, out_ptr, state_ptr, cos_ptr, sin_ptr,
    row_B, head, tile, batch, rows, q_stride,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, RANK: tl.constexpr,
    VALUE: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Some columns of a head's queries, as wide as latents; the first tile rotates the rest."""
    half: tl.constexpr = ROPE // 2
    kind = out_ptr.dtype.element_ty
    in_B = row_B < batch
    start_B = q_ptr + row_B * q_stride + head * (NOPE + ROPE)
    target_B = out_ptr + (row_B * HEADS + head) * (RANK + ROPE)
    at_L = tile * BLOCK_L + tl.arange(0, BLOCK_L)
    weight_ptr += head.to(tl.int64) * ((NOPE + VALUE) * RANK)
    q_BL = tl.zeros([BLOCK_B, BLOCK_L], tl.float32)
    for start in range(0, NOPE, BLOCK_N):
        at_N = start + tl.arange(0, BLOCK_N)
        in_N = at_N < NOPE
        nope_BN = tl.load(
            start_B[:, None] + at_N[None, :], mask=in_B[:, None] & in_N[None, :], other=0.0
        )
        weight_NL = tl.load(
            weight_ptr + at_N[:, None] * RANK + at_L[None, :],
            mask=in_N[:, None] & (at_L < RANK)[None, :],
            other=0.0,
        )
        q_BL = tl.dot(nope_BN, weight_NL, q_BL, input_precision="ieee")
    in_BL = in_B[:, None] & (at_L < RANK)[None, :]
    tl.store(target_B[:, None] + at_L[None, :], q_BL.to(kind), mask=in_BL)
    if tile == 0:
        alive_B = tl.load(state_ptr + _ALIVE * rows + row_B, mask=in_B, other=0) != 0
        position_B = tl.load(state_ptr + _LENGTH * rows + row_B, mask=alive_B, other=0)
        at_R = tl.arange(0, BLOCK_R)
        in_BR = in_B[:, None] & (at_R < half)[None, :]
        first_BR, second_BR = _rotated(
            start_B[:, None] + NOPE, cos_ptr, sin_ptr, position_B[:, None], at_R[None, :], in_BR,
            half, PAIRS,
        )  # fmt: skip
        to_BR = target_B[:, None] + RANK + at_R[None, :]
        tl.store(to_BR, first_BR.to(kind), mask=in_BR)
        tl.store(to_BR + half, second_BR.to(kind), mask=in_BR)


@triton.jit(do_not_specialize=["batch", "latent_tiles"])
def _absorb_and_store(
    q_ptr, kv_ptr, weight_ptr, norm_ptr, out_ptr, pool_ptr, table_ptr, state_ptr,
    cos_ptr, sin_ptr, counts_ptr,
    eps, batch, latent_tiles, rows, width, q_stride, kv_stride, page_stride,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, RANK: tl.constexpr,
    VALUE: tl.constexpr, EXPERTS: tl.constexpr, PAGE: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The first programs store latents, ROWS each; the rest absorb queries."""
    program = tl.program_id(0)
    if program < latent_tiles:
        if program == 0:
            at_E = tl.arange(0, BLOCK_E)
            tl.store(counts_ptr + at_E, tl.zeros([BLOCK_E], tl.int32), mask=at_E < EXPERTS)
        row_B = (program * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        _store_latents(
            kv_ptr, norm_ptr, pool_ptr, table_ptr, state_ptr, cos_ptr, sin_ptr,
            row_B, eps, batch, rows, width, kv_stride, page_stride,
            ROPE, RANK, PAGE, PAIRS, BLOCK_RANK, BLOCK_R,
        )  # fmt: skip
    else:
        tiles: tl.constexpr = (RANK + BLOCK_L - 1) // BLOCK_L
        place = program - latent_tiles
        first = place // (HEADS * tiles) * BLOCK_B
        _absorb_queries(
            q_ptr, weight_ptr, out_ptr, state_ptr, cos_ptr, sin_ptr,
            (first + tl.arange(0, BLOCK_B)).to(tl.int64), place // tiles % HEADS, place % tiles,
            batch, rows, q_stride, HEADS, NOPE, ROPE, RANK, VALUE, PAIRS,
            BLOCK_B, BLOCK_N, BLOCK_L, BLOCK_R,
        )  # fmt: skip


def absorb_and_store(
    q_BX: torch.Tensor,
    kv_BC: torch.Tensor,
    weight_HOL: torch.Tensor,
    norm: tuple[torch.Tensor, float],
    pool_PGTC: torch.Tensor,
    table_RW: torch.Tensor,
    state_FR: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    counts_E: torch.Tensor,
    *,
    nope: int,
    pairs: bool,
) -> torch.Tensor:
    """Queries of absorbed attention, [B, H, C]; latents and keys go into the pages on the way.

    ``q`` [B, H (N + P)] and ``kv`` [B, C] are projections, whose rows may be apart; ``weight`` is
    `kv_b_proj`'s, [H, N + V, L]; ``norm`` of the latents: weight and epsilon. ``pairs``: rotate as
    `rope.rotate_pairs`, else as `rotate_half`. ``counts`` (int32) is set to zero, for the gate that
    comes later.
    """
    batch = len(q_BX)
    heads, expanded, rank = weight_HOL.shape
    rope = kv_BC.shape[1] - rank
    experts = counts_E.shape[0]
    out_BHC = q_BX.new_empty(batch, heads, rank + rope)
    block_rank = triton.next_power_of_2(rank)
    rows = max(1, min(16, 2048 // block_rank))
    block_b = max(_LEAST, min(64, triton.next_power_of_2(batch) // 16))
    block_l = max(_LEAST, min(128, block_rank))
    latent_tiles = triton.cdiv(batch, rows)
    query_tiles = triton.cdiv(batch, block_b) * heads * triton.cdiv(rank, block_l)
    _absorb_and_store[(latent_tiles + query_tiles,)](
        q_BX, kv_BC, weight_HOL, norm[0], out_BHC, pool_PGTC, table_RW, state_FR,
        cos_TR, sin_TR, counts_E,
        norm[1], batch, latent_tiles, state_FR.shape[1], table_RW.shape[1],
        q_BX.stride(0), kv_BC.stride(0), pool_PGTC.stride(0),
        HEADS=heads, NOPE=nope, ROPE=rope, RANK=rank, VALUE=expanded - nope, EXPERTS=experts,
        PAGE=PAGE, PAIRS=pairs, ROWS=rows, BLOCK_B=block_b,
        BLOCK_N=max(_LEAST, min(128 // (q_BX.element_size() // 2), triton.next_power_of_2(nope))),
        BLOCK_L=block_l, BLOCK_RANK=block_rank, BLOCK_R=triton.next_power_of_2(rope // 2),
        BLOCK_E=triton.next_power_of_2(experts), num_warps=4,
    )  # fmt: skip
    return out_BHC


# -- the residual stream


@triton.jit
def _stream(
    x_ptr, delta_ptr, rows_ptr, weights_ptr, embed_ptr, next_ptr, norm_ptr, out_ptr, eps,
    D: tl.constexpr, USED: tl.constexpr, EMBED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The stream plus what a block adds to it, and that normed. EMBED: the stream begins here;
    USED: so many weighted rows of experts are added to ``delta`` first."""
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
        if USED:
            total_D = tl.zeros([BLOCK], tl.float32)
            for k in tl.static_range(USED):
                pair = row * USED + k
                part_D = tl.load(rows_ptr + pair * D + at_D, mask=in_D, other=0.0).to(tl.float32)
                total_D += part_D * tl.load(weights_ptr + pair)
            # Rounded before and after, as `triton_kernels.gather_sum` does.
            delta_D = (total_D.to(kind).to(tl.float32) + delta_D).to(kind).to(tl.float32)
        x_D = (x_D + delta_D).to(kind).to(tl.float32)
    tl.store(x_ptr + row * D + at_D, x_D.to(kind), mask=in_D)
    scale = tl.rsqrt(tl.sum(x_D * x_D, 0) / D + eps)
    normed_D = (x_D * scale).to(kind).to(tl.float32)
    norm_D = tl.load(norm_ptr + at_D, mask=in_D, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * D + at_D, (normed_D * norm_D).to(kind), mask=in_D)


def embed_norm(
    next_R: torch.Tensor,
    embed_VD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    x_BD: torch.Tensor,
) -> torch.Tensor:
    """Begin the stream ``x`` with the tokens' embeddings; the first norm of it, [B, D]."""
    return _normed(x_BD, x_BD, (x_BD, x_BD), (embed_VD, next_R), norm_D, eps, used=0, embed=True)


def add_norm(
    x_BD: torch.Tensor, delta_BD: torch.Tensor, norm_D: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add ``delta`` to the stream ``x`` in place; its norm, [B, D]."""
    unused = (x_BD, x_BD)
    return _normed(x_BD, delta_BD, unused, unused, norm_D, eps, used=0, embed=False)


def combine_norm(
    x_BD: torch.Tensor,
    shared_BD: torch.Tensor,
    rows_MD: torch.Tensor,
    weights_BK: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Add the weighted rows of each token's experts and the shared ones' result to the stream ``x``
    in place; its norm, [B, D]. ``weights``: float32."""
    used = weights_BK.shape[1]
    pairs = (rows_MD, weights_BK)
    return _normed(x_BD, shared_BD, pairs, (x_BD, x_BD), norm_D, eps, used=used, embed=False)


def _normed(
    x_BD: torch.Tensor,
    delta_BD: torch.Tensor,
    pairs: tuple[torch.Tensor, torch.Tensor],
    tokens: tuple[torch.Tensor, torch.Tensor],
    norm_D: torch.Tensor,
    eps: float,
    *,
    used: int,
    embed: bool,
) -> torch.Tensor:
    batch, width = x_BD.shape
    out_BD = torch.empty_like(x_BD)
    block = triton.next_power_of_2(width)
    _stream[(batch,)](
        x_BD, delta_BD, *pairs, *tokens, norm_D, out_BD, eps,
        D=width, USED=used, EMBED=embed, BLOCK=block, num_warps=max(1, min(8, block // 512)),
    )  # fmt: skip
    return out_BD
