"""The Triton kernels of a decode step against float64, on a GPU; what holds without one as well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cuda.attention import gathered_attention, paged_attention, splits
from forethought.engines.torch.cuda.draw import IDS, LOGPROBS, DrawLog, Mode, take_step
from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import (
    ALIVE,
    DRAWN,
    FIELDS,
    INDEX,
    LENGTH,
    LIMIT,
    NEXT,
    SEED,
)
from forethought.engines.torch.noise import uniform
from forethought.engines.torch.sampler import RowParameters, Sampler
from forethought.models.rope import rotary_cos_sin, rotary_table, rotate_half

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
LENGTHS = [0, 15, 16, 40, 90, 33, 200, 127]
ROWS = len(LENGTHS)
DEAD = 5
WIDTH = 14
SHAPES = {
    # name: query heads, key heads, width of a key, stored width, latent
    "grouped": (8, 4, 64, 128, False),
    "narrow": (3, 3, 20, 40, False),
    "odd": (4, 2, 80, 160, False),
    "one group": (15, 1, 128, 256, False),
    "values apart": (4, 4, 48, 80, False),
    "latent": (6, 1, 24, 24, True),
    "latent of V3": (128, 1, 576, 576, True),
    "latent, small": (20, 1, 160, 160, True),
}


def state_of(device: str, limit: int = 300) -> torch.Tensor:
    state_FR = torch.zeros(FIELDS, ROWS, dtype=torch.int64)
    state_FR[LENGTH] = torch.tensor(LENGTHS)
    state_FR[ALIVE] = 1
    state_FR[ALIVE, DEAD] = 0
    state_FR[SEED] = torch.tensor([5, -7, 9 << 40, 1, 2, 3, (1 << 62) + 1, 0])
    state_FR[INDEX] = torch.arange(ROWS)
    state_FR[DRAWN] = torch.tensor([0, 3, 100, 5, 6, 7, 250, 1])
    state_FR[LIMIT] = limit
    return state_FR.to(device)


def pages_of(
    groups: int, stored: int, device: str, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool of float64 and a table, pages in no order."""
    generator = torch.Generator().manual_seed(seed)
    pages = ROWS * WIDTH + 1
    pool = torch.randn(pages, groups, PAGE, stored, generator=generator, dtype=torch.float64)
    table = torch.randperm(pages - 1, generator=generator)[: ROWS * WIDTH].view(ROWS, WIDTH) + 1
    return pool.to(device), table.int().to(device)


def by_hand(
    q_BHK: torch.Tensor,
    pool: torch.Tensor,
    table: torch.Tensor,
    key: int,
    latent: bool,
    scale: float,
) -> torch.Tensor:
    """Row by row, token by token in order."""
    out = []
    for row, length in enumerate(LENGTHS):
        tokens = [pool[table[row, at // PAGE], :, at % PAGE] for at in range(length + 1)]
        stored_SGC = torch.stack(tokens).repeat_interleave(q_BHK.shape[1] // pool.shape[1], dim=1)
        k, v = stored_SGC[..., :key], stored_SGC if latent else stored_SGC[..., key:]
        weights_HS = (torch.einsum("hk,shk->hs", q_BHK[row], k) * scale).softmax(dim=-1)
        out.append(torch.einsum("hs,shv->hv", weights_HS, v))
    return torch.stack(out)


@pytest.mark.parametrize("name", SHAPES)
def test_gathered_attention_is_attention_written_out(name):
    heads, groups, key, stored, latent = SHAPES[name]
    pool, table = pages_of(groups, stored, "cpu")
    q_BHK = torch.randn(ROWS, heads, key, dtype=torch.float64)
    ours = gathered_attention(
        q_BHK, pool, table, state_of("cpu"), key_width=key, latent=latent, scale=0.3
    )
    expected = by_hand(q_BHK, pool, table, key, latent, 0.3)
    alive = [row for row in range(ROWS) if row != DEAD]
    torch.testing.assert_close(ours[alive], expected[alive])
    assert bool(ours.isfinite().all())


@GPU
@pytest.mark.parametrize("parts", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_the_attention_kernel_is_float64s_attention(name, dtype, parts, monkeypatch):
    heads, groups, key, stored, latent = SHAPES[name]
    pool, table = pages_of(groups, stored, "cuda")
    pool = pool.to(dtype)
    state = state_of("cuda")
    q_BHK = torch.randn(ROWS, heads, key, device="cuda", dtype=dtype)
    scale = key**-0.5
    monkeypatch.setattr("forethought.engines.torch.cuda.attention.splits", lambda _: parts)
    ours = paged_attention(q_BHK, pool, table, state, key_width=key, latent=latent, scale=scale)
    expected = gathered_attention(
        q_BHK.double(), pool.double(), table, state, key_width=key, latent=latent, scale=scale
    )
    alive = [row for row in range(ROWS) if row != DEAD]
    error = (ours.double() - expected)[alive].norm() / expected[alive].norm()
    assert float(error) < (2e-6 if dtype == torch.float32 else 6e-3)
    assert bool(ours.isfinite().all())


def test_few_rows_are_split_and_many_are_not():
    assert splits(4096) == splits(264) == splits(133) == 1
    assert splits(132) == 2
    assert splits(1) == 16


# -- drawing

VOCABULARIES = [61, 1000, 9001]
ENDS = (3, 7, 55)
WAYS = [
    SamplingParameters(0.0, 1.0),
    SamplingParameters(1.0, 1.0),
    SamplingParameters(0.7, 1.0),
    SamplingParameters(0.6, 0.95),
    SamplingParameters(1.0, 1.0, top_k=8),
    SamplingParameters(1.0, 0.9, top_k=30, min_p=0.02),
]


def log_of(vocabulary: int, device: str) -> DrawLog:
    is_end_V = torch.zeros(vocabulary, dtype=torch.bool)
    is_end_V[list(ENDS)] = True
    return DrawLog(ROWS, is_end_V, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("sampling", WAYS)
def test_tokens_and_logprobs_are_the_samplers(sampling, vocabulary, device):
    generator = torch.Generator().manual_seed(vocabulary)
    parameters = state_of("cpu")
    rows = [
        RowParameters(sampling, int(parameters[SEED, r]), int(parameters[INDEX, r]), "sampling")
        for r in range(ROWS)
    ]
    sampler = Sampler(rows)
    log = log_of(vocabulary, device)
    state = state_of(device)
    state[ALIVE] = 1
    for step in range(4):
        logits_BV = 3 * torch.randn(ROWS, vocabulary, generator=generator)
        before = state.cpu().clone()
        expected = sampler.sample(logits_BV, before[DRAWN])
        take_step(logits_BV.to(device), state, log, Mode(sampling))
        drawn_2R = log.drawn_S2R[step].cpu()
        assert torch.equal(drawn_2R[IDS].long(), expected.ids_B)
        assert expected.logprobs_B is not None
        torch.testing.assert_close(
            drawn_2R[LOGPROBS].view(torch.float32), expected.logprobs_B.float(), atol=2e-6, rtol=0
        )
        after = state.cpu().clone()
        went_on = before[ALIVE] == 1
        ended = torch.isin(expected.ids_B, torch.tensor(ENDS))
        assert torch.equal(after[LENGTH], before[LENGTH] + before[ALIVE])
        assert torch.equal(after[DRAWN], before[DRAWN] + before[ALIVE])
        assert torch.equal(after[NEXT], torch.where(went_on, expected.ids_B, before[NEXT]))
        assert torch.equal(after[ALIVE] == 1, went_on & ~ended)
    assert int(log.step) == 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_lengths_end_there_and_nowhere_before(temperature, device):
    state, log = state_of(device), log_of(61, device)
    state[ALIVE] = 1
    state[DRAWN] = torch.arange(ROWS)
    state[LIMIT] = 6
    logits_BV = torch.zeros(ROWS, 61, device=device)
    logits_BV[:, list(ENDS)] = 20.0
    take_step(logits_BV, state, log, Mode(SamplingParameters(temperature, 1.0), forced=True))
    ids = log.drawn_S2R[0, IDS].cpu()
    assert [int(token) in ENDS for token in ids] == [drawn >= 5 for drawn in range(ROWS)]
    assert set(ids[5:].tolist()) == {ENDS[0]}
    assert state[ALIVE].tolist() == [int(drawn < 5) for drawn in range(ROWS)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_numbers_has_a_logprob_that_is_none(temperature, device):
    state, log = state_of(device), log_of(1000, device)
    logits_BV = torch.randn(ROWS, 1000, device=device)
    logits_BV[2, 77] = float("nan")
    logits_BV[4] = -torch.inf
    take_step(logits_BV, state, log, Mode(SamplingParameters(temperature, 1.0)))
    logprobs = log.drawn_S2R[0, LOGPROBS].view(torch.float32).cpu()
    if temperature:
        assert logprobs.isnan().nonzero()[:, 0].tolist() == [2, 4]
    ids = log.drawn_S2R[0, IDS]
    assert bool(((ids >= 0) & (ids < 1000)).all())


@GPU
def test_the_kernels_noise_is_the_samplers():
    from forethought.engines.torch.cuda import kernels

    state = state_of("cuda")
    expected = uniform(state[SEED], state[INDEX], state[DRAWN])
    assert torch.equal(kernels.noise(state, ROWS), expected)


# -- a dense layer


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    error = (ours.double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < (1e-6 if ours.dtype == torch.float32 else 5e-3)


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_gates(dtype):
    from forethought.engines.torch.cuda import kernels

    x, delta = (torch.randn(9, 576, device="cuda", dtype=dtype) for _ in range(2))
    weight, table = (torch.randn(n, 576, device="cuda", dtype=dtype)[-1] for n in (1, 1))
    embed = torch.randn(50, 576, device="cuda", dtype=dtype)
    total = (x.float() + delta.float()).to(dtype)
    ours = kernels.add_norm(x, delta, weight, 1e-5)
    assert torch.equal(x, total)
    close(ours, F.rms_norm(total.double(), (576,), weight.double(), 1e-5))
    ids = torch.tensor([3, 49, 0, 1, 2, 7, 7, 7, 8], device="cuda")
    ours = kernels.embed_norm(ids, embed, table, 1e-5, x)
    assert torch.equal(x, embed[ids])
    close(ours, F.rms_norm(embed[ids].double(), (576,), table.double(), 1e-5))
    both = torch.randn(9, 2 * 1408, device="cuda", dtype=dtype)
    gate, up = both.double().chunk(2, dim=-1)
    close(kernels.gated(both), F.silu(gate) * up)


@GPU
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "width"), [(8, 4, 64), (9, 3, 64), (5, 5, 12)])
def test_queries_are_rotated_and_keys_and_values_stored(heads, groups, width, dtype, normed):
    from forethought.engines.torch.cuda import kernels

    pool, table = pages_of(groups, 2 * width, "cuda")
    pool, before = pool.to(dtype), pool.to(dtype)
    state = state_of("cuda")
    qkv = torch.randn(ROWS, (heads + 2 * groups) * width, device="cuda", dtype=dtype)
    q, k, v = (
        part.double().view(ROWS, -1, 1, width)
        for part in qkv.split([heads * width, groups * width, groups * width], dim=1)
    )
    norms = None
    if normed:
        weights = [torch.randn(width, device="cuda", dtype=dtype) for _ in range(2)]
        norms = (weights[0], weights[1], 1e-6)
        q, k = (
            F.rms_norm(x, (width,), weight.double(), 1e-6)
            for x, weight in zip((q, k), weights, strict=True)
        )
    rotary = rotary_table(1e4, width, None, 512)
    positions = torch.arange(WIDTH * PAGE, device="cuda")[None]
    cos, sin = (part[0].contiguous() for part in rotary_cos_sin(rotary, positions, dtype))
    own = [part.double()[state[LENGTH]][:, None] for part in (cos, sin)]
    q, k = rotate_half(q, *own), rotate_half(k, *own)
    kernels.rotate_and_store(qkv, pool, table, state, cos, sin, heads, norms)
    alive = [row for row in range(ROWS) if row != DEAD]
    close(qkv[alive, : heads * width], q.reshape(ROWS, -1)[alive])
    for row, length in enumerate(LENGTHS):
        page, slot = int(table[row, length // PAGE]), length % PAGE
        if row != DEAD:
            close(pool[page, :, slot, :width], k[row, :, 0])
            assert torch.equal(pool[page, :, slot, width:].double(), v[row, :, 0])
            pool[page, :, slot] = before[page, :, slot]
    assert torch.equal(pool, before)
