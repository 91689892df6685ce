"""Decode steps of a DeepSeek-V3 from few kernels: each kernel against float64, on a GPU; and which
networks they are written for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from forethought.engines.torch.cuda import dense, latent
from forethought.engines.torch.cuda.decoder import Decoder
from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import ALIVE, FIELDS, LENGTH, NEXT
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.gate import Routing, route
from forethought.models.deepseek_v3.routing import RoutingRecorder
from forethought.models.rope import rotary_cos_sin, rotary_table, rotate_half, rotate_pairs
from tiny_training import tiny_dense, tiny_v3

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
BATCHES = pytest.mark.parametrize("batch", [1, 7, 50, 700, 2048])
WIDTH = 12
UNGROUPED = {"n_group": 1, "topk_group": 1}


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    error = (ours.double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < (2e-6 if ours.dtype == torch.float32 else 8e-3)


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).to("cuda", dtype)


# -- which networks


def _of_the_loop(network: DeepseekV3) -> None:
    network.set_expert_path("loop")


def _of_keys_and_values(network: DeepseekV3) -> None:
    network.absorb = False


def _of_a_wide_gate(network: DeepseekV3) -> None:
    gate = network.model.layers[1].mlp.gate
    gate.weight.data = gate.weight.data.double()


@pytest.mark.parametrize(
    ("changes", "change", "reason"),
    [
        ({}, None, "it is on cpu"),
        ({"q_lora_rank": None}, None, "it is on cpu"),
        ({"attention_bias": True}, None, "it is on cpu"),
        ({"n_group": 2}, None, "1 of 2 groups"),
        ({"n_routed_experts": 260}, None, "260 experts"),
        ({"attention_bias": True, "q_lora_rank": None}, None, "bias"),
        (
            {
                "model_type": "deepseek_v2",
                "scoring_func": "softmax",
                "topk_method": "greedy",
                "norm_topk_prob": False,
                "num_nextn_predict_layers": 0,
            },
            None,
            "softmax",
        ),
        ({}, _of_the_loop, "path"),
        ({}, _of_keys_and_values, "not latents"),
        ({}, DeepseekV3.double, "float64"),
        ({}, _of_a_wide_gate, "several dtypes"),
    ],
)
def test_networks_that_are_not_covered_and_why(changes, change, reason):
    network = tiny_v3(64, **{**UNGROUPED, **changes})
    if change is not None:
        change(network)
    obstacle = latent.obstacle(network)
    assert obstacle is not None
    assert reason in obstacle
    assert not latent.fusable(network)


def test_a_dense_network_is_another_decoders():
    assert latent.obstacle(tiny_dense(64)) == "it is no DeepSeek-V3"


@GPU
@DTYPES
def test_each_network_has_the_decoder_that_is_written_for_it(dtype):
    def decoder_of(network: CausalLM) -> type:
        ends = torch.zeros(64, dtype=torch.bool)
        decoder = Decoder(network.to("cuda", dtype), 4, ends, None, capture=False)
        decoder.renew(8, 4)
        decoder.check_places()
        return type(decoder._fused)

    assert decoder_of(tiny_v3(64, **UNGROUPED)) is latent.LatentDecoder
    assert decoder_of(tiny_v3(64)) is type(None)
    assert decoder_of(tiny_dense(64)) is dense.DenseDecoder


# -- latents


def state_of(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A state, every fifth row of it over and one of these full, and a table of pages in no
    order."""
    generator = torch.Generator().manual_seed(rows)
    state_FR = torch.zeros(FIELDS, rows, dtype=torch.int64)
    state_FR[LENGTH] = torch.randint(0, WIDTH * PAGE, (rows,), generator=generator)
    state_FR[LENGTH, :3] = torch.tensor([PAGE - 1, PAGE, 0])[:rows]
    state_FR[ALIVE] = (torch.arange(rows) % 5 != 3).long()
    state_FR[LENGTH, 3:4] = WIDTH * PAGE
    table_RW = 1 + torch.randperm(rows * WIDTH, generator=generator).view(rows, WIDTH)
    return state_FR.to("cuda"), table_RW.int().to("cuda")


@GPU
@BATCHES
@DTYPES
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(
    ("heads", "nope", "rope", "rank", "value"),
    [(6, 64, 32, 128, 64), (2, 6, 4, 8, 6), (3, 24, 16, 48, 20), (5, 128, 64, 512, 128)],
)
def test_queries_are_absorbed_and_latents_stored(
    heads, nope, rope, rank, value, pairs, dtype, batch
):
    from forethought.engines.torch.cuda import latent_kernels

    rows, stored = batch + 3, rank + rope
    state_FR, table_RW = state_of(rows)
    pool = normal(rows * WIDTH + 1, 1, PAGE, stored, dtype=dtype)
    before = pool.clone()
    both = normal(batch, heads * (nope + rope) + stored, dtype=dtype, seed=1)
    q_BX, kv_BC = both.split([heads * (nope + rope), stored], dim=1)
    weight_HOL = normal(heads, nope + value, rank, dtype=dtype, scale=nope**-0.5, seed=2)
    norm_L = 1 + normal(rank, dtype=dtype, scale=0.2, seed=3)
    rotary = rotary_table(1e4, rope, None, 512)
    positions = torch.arange(WIDTH * PAGE, device="cuda")[None]
    cos, sin = (part[0].contiguous() for part in rotary_cos_sin(rotary, positions, dtype))
    counts_E = torch.full((11,), 7, dtype=torch.int32, device="cuda")
    ours = latent_kernels.absorb_and_store(
        q_BX, kv_BC, weight_HOL, (norm_L, 1e-6), pool, table_RW, state_FR, cos, sin, counts_E,
        nope=nope, pairs=pairs,
    )  # fmt: skip

    alive = state_FR[ALIVE, :batch] != 0
    lengths = state_FR[LENGTH, :batch][alive]
    turn: Callable[..., torch.Tensor] = rotate_pairs if pairs else rotate_half
    own = [part.double()[lengths][:, None] for part in (cos, sin)]
    q_BHO = q_BX.double().view(batch, heads, -1)[alive]
    absorbed_BHL = torch.einsum("bhn,hnl->bhl", q_BHO[..., :nope], weight_HOL.double()[:, :nope])
    close(ours[alive][..., :rank], absorbed_BHL)
    close(ours[alive][..., rank:], turn(q_BHO[..., nope:].unsqueeze(2), *own)[:, :, 0])
    assert bool(ours.isfinite().all())

    pages = table_RW[:batch][alive].long().gather(1, lengths[:, None] // PAGE)[:, 0]
    found = pool[pages, 0, lengths % PAGE]
    latents_BL, keys_BP = kv_BC.double()[alive].split([rank, rope], dim=1)
    close(found[:, :rank], F.rms_norm(latents_BL, (rank,), norm_L.double(), 1e-6))
    close(found[:, rank:], turn(keys_BP[:, None, None], *own)[:, 0, 0])
    pool[pages, 0, lengths % PAGE] = before[pages, 0, lengths % PAGE]
    assert torch.equal(pool, before)
    assert not bool(counts_E.any())


# -- the residual stream


@GPU
@DTYPES
@pytest.mark.parametrize("width", [16, 384, 1000])
def test_the_stream_and_its_norms(width, dtype):
    from forethought.engines.torch.cuda import latent_kernels

    x, delta, weight = (normal(9, width, dtype=dtype, seed=seed) for seed in range(3))
    weight = weight[0]

    def normed(total: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(total.double(), (width,), weight.double(), 1e-5)

    total = (x.float() + delta.float()).to(dtype)
    close(latent_kernels.add_norm(x, delta, weight, 1e-5), normed(total))
    assert torch.equal(x, total)

    rows, weights = normal(27, width, dtype=dtype, seed=4), normal(9, 3, dtype=torch.float32)
    parts = rows.float().view(9, 3, width) * weights[..., None]
    combined = (parts.sum(dim=1).to(dtype).float() + delta.float()).to(dtype)
    total = (x.float() + combined.float()).to(dtype)
    ours = latent_kernels.combine_norm(x, delta, rows, weights, weight, 1e-5)
    close(x, total)
    close(ours, normed(total))

    embed = normal(50, width, dtype=dtype, seed=5)
    ids = torch.tensor([3, 49, 0, 1, 2, 7, 7, 7, 8], device="cuda")
    ours = latent_kernels.embed_norm(ids, embed, weight, 1e-5, x)
    assert torch.equal(x, embed[ids])
    close(ours, normed(embed[ids]))


# -- the gate


def routed(
    x_BD: torch.Tensor, weight_ED: torch.Tensor, bias_E: torch.Tensor, top_k: int, norm: bool
) -> Routing:
    """What `Gate` does, in float64."""
    return route(
        F.linear(x_BD.double(), weight_ED.double()),
        bias_E.double(),
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        top_k=top_k,
        n_group=1,
        topk_group=1,
        norm_topk_prob=norm,
        routed_scaling_factor=2.5,
    )


@GPU
@BATCHES
@DTYPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("width", "experts", "top_k"), [(384, 16, 2), (16, 8, 2), (100, 12, 3), (512, 256, 8)]
)
def test_the_gate_chooses_weighs_lists_and_takes_down(width, experts, top_k, norm, dtype, batch):
    from forethought.engines.torch.cuda import expert_kernels

    x_BD = normal(batch, width, dtype=dtype)
    weight_ED = normal(experts, width, dtype=dtype, scale=width**-0.5, seed=1)
    bias_E = normal(experts, dtype=torch.float32, scale=0.1, seed=2)
    counts_E = torch.zeros(experts, dtype=torch.int32, device="cuda")
    step = torch.tensor([2], device="cuda")
    log = torch.full((4, batch + 2, 3, top_k), -1, dtype=torch.int16, device="cuda")
    lists = expert_kernels.route(
        x_BD, weight_ED, bias_E, counts_E,
        top_k=top_k, norm=norm, scale=2.5, log=(step, log), layer=1,
    )  # fmt: skip
    expected = routed(x_BD, weight_ED, bias_E, top_k, norm)

    chosen_BK = log[2, :batch, 1].long()
    best = (expected.scores_NE + bias_E).gather(1, expected.indices_NK).sort().values
    ours = (expected.scores_NE + bias_E).gather(1, chosen_BK).sort().values
    torch.testing.assert_close(ours, best, rtol=0, atol=1e-6)  # all the same but for ties
    assert bool((chosen_BK.sort().values.diff() > 0).all())
    weights_BK = expected.scores_NE.gather(1, chosen_BK)
    if norm:
        weights_BK = weights_BK / weights_BK.sum(dim=1, keepdim=True)
    torch.testing.assert_close(lists.weights_BK.double(), 2.5 * weights_BK, rtol=3e-6, atol=1e-6)

    log[2, :batch, 1] = -1
    assert bool((log == -1).all())
    assert torch.equal(counts_E.long(), chosen_BK.flatten().bincount(minlength=experts))
    pairs = chosen_BK.flatten()
    for expert in range(experts):
        own = lists.pairs_EB[expert, : int(counts_E[expert])]
        assert torch.equal(own.sort().values.long(), (pairs == expert).nonzero()[:, 0])


@GPU
def test_of_equal_experts_the_first_are_chosen_and_rows_without_numbers_do_no_harm():
    from forethought.engines.torch.cuda import expert_kernels
    from forethought.models import fused

    x_BD = normal(40, 64, dtype=torch.float32)
    weight_ED = torch.zeros(10, 64, device="cuda")
    bias_E = torch.tensor([0.0, 0.5, 0.25, 0.5, 0.25, 0.5, 0, 0, 0, 0], device="cuda")
    log = torch.zeros(1, 40, 1, 4, dtype=torch.int16, device="cuda")

    def chosen() -> expert_kernels.Lists:
        return expert_kernels.route(
            x_BD, weight_ED, bias_E, torch.zeros(10, dtype=torch.int32, device="cuda"),
            top_k=4, norm=True, scale=1.0,
            log=(torch.zeros(1, dtype=torch.int64, device="cuda"), log), layer=0,
        )  # fmt: skip

    chosen()
    assert log[0, :, 0].tolist() == [[1, 3, 5, 2]] * 40
    if fused.kernels() is not None:
        assert torch.equal(log[0, :, 0], fused.top_columns(bias_E.expand(40, 10), 4).short())
    x_BD[:30] = float("nan")
    lists = chosen()
    assert bool(((log >= 0) & (log < 10)).all())
    assert log[0, 30:, 0].tolist() == [[1, 3, 5, 2]] * 10
    assert bool(lists.weights_BK[30:].isfinite().all())


# -- the experts


@GPU
@BATCHES
@DTYPES
@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize(
    ("width", "inner", "shared", "experts", "top_k"),
    [(384, 160, 160, 16, 2), (16, 10, 10, 8, 2), (100, 40, 80, 12, 3), (256, 64, 64, 64, 6)],
)
def test_the_experts_products(width, inner, shared, experts, top_k, crowded, dtype, batch):
    """Crowded: all rows want the same few experts, whose lists are as long as they can be."""
    from forethought.engines.torch.cuda import expert_kernels

    x_BD = normal(batch, width, dtype=dtype)
    gate_up_EOD = normal(experts, 2 * inner, width, dtype=dtype, scale=width**-0.5, seed=1)
    down_EDF = normal(experts, width, inner, dtype=dtype, scale=inner**-0.5, seed=2)
    gate_GD, up_GD = normal(2, shared, width, dtype=dtype, scale=width**-0.5, seed=3)
    down_DG = normal(width, shared, dtype=dtype, scale=shared**-0.5, seed=4)
    choice_BE = torch.rand(batch, experts, generator=torch.Generator().manual_seed(5))
    if crowded:
        choice_BE = torch.arange(experts).flip(0).expand(batch, experts)
    chosen_BK = choice_BE.topk(top_k, dim=1).indices.to("cuda")
    pairs_EB = torch.full((experts, batch), 1 << 30, dtype=torch.int32, device="cuda")
    for expert in range(experts):
        own = (chosen_BK.flatten() == expert).nonzero()[:, 0]
        pairs_EB[expert, : len(own)] = own.flip(0).int()  # in any order
    counts_E = chosen_BK.flatten().bincount(minlength=experts).int()
    lists = expert_kernels.Lists(torch.ones(batch, top_k, device="cuda"), pairs_EB, counts_E)

    inner_XF, shared_BG = expert_kernels.gated_experts(x_BD, gate_up_EOD, gate_GD, up_GD, lists)
    out_XD, base_BD = expert_kernels.projected_experts(
        inner_XF, shared_BG, down_EDF, down_DG, lists
    )
    rows_XD = x_BD.double().repeat_interleave(top_k, dim=0)
    owner_X = chosen_BK.flatten()
    for expert in range(experts):
        own = owner_X == expert
        if bool(own.any()):
            gate, up = (rows_XD[own] @ gate_up_EOD[expert].double().T).chunk(2, dim=1)
            close(inner_XF[own], F.silu(gate) * up)
            close(out_XD[own], inner_XF[own].double() @ down_EDF[expert].double().T)
    gate, up = x_BD.double() @ gate_GD.double().T, x_BD.double() @ up_GD.double().T
    close(shared_BG, F.silu(gate) * up)
    close(base_BD, shared_BG.double() @ down_DG.double().T)


# -- all of it


@GPU
@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("batch", [1, 24, 300])
@pytest.mark.parametrize("q_lora_rank", [None, 12])
def test_a_steps_states_and_experts_are_the_networks(q_lora_rank, batch, dtype):
    """Steps on a cache that is filled by them, against the plain path on a cache of its own."""
    changes = {**UNGROUPED, "q_lora_rank": q_lora_rank, "num_experts_per_tok": 3}
    network = tiny_v3(64, **changes).to("cuda", dtype)
    ends = torch.zeros(64, dtype=torch.bool)
    tokens_SB = torch.randint(0, 64, (2 * PAGE + 2, batch), generator=torch.Generator())
    with RoutingRecorder(network) as recorder:
        ours, theirs = (Decoder(network, batch, ends, recorder, capture=False) for _ in range(2))
        for decoder in (ours, theirs):
            decoder.renew(4 * batch + 1, 4)
            decoder.check_places()
            assert decoder.cache is not None
            pages = 1 + torch.arange(4 * batch, device="cuda").view(batch, 4)
            decoder.cache.table_RW.copy_(pages)
            decoder.cache.state_FR[ALIVE] = 1
        fused, cache = ours._fused, theirs.cache
        assert isinstance(fused, latent.LatentDecoder)
        assert ours._experts_SRMK is not None
        assert cache is not None
        assert ours.cache is not None
        for step, tokens_B in enumerate(tokens_SB.to("cuda")):
            for state_FR in (ours.cache.state_FR, cache.state_FR):
                state_FR[NEXT], state_FR[LENGTH] = tokens_B, step
            cache.decode(batch)
            expected = network.hidden(tokens_B[:, None], cache.state_FR[LENGTH][:, None], cache)
            found = fused.hidden(batch)
            experts_BMK = ours._experts_SRMK[0].sort().values
            chosen_BMK = recorder.indices_MNK().transpose(0, 1).short().sort().values
            same_B = (experts_BMK == chosen_BMK).flatten(1).all(dim=1)
            if dtype == torch.float32:
                assert bool(same_B.all())
                close(found, expected[:, 0])
            else:
                assert float(same_B.double().mean()) > 0.7
            # From here on both have the same past.
            ours.cache.pool.copy_(cache.pool)
