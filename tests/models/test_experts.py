"""The three ways to compute routed experts give the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from deepseek_reference import V3, config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_reference

from forethought.models.deepseek_v3.experts import (
    ExpertPath,
    Experts,
    blocked_product,
    choose_path,
    gather_experts,
    grouped_experts,
    loop_experts,
)

Compute = Callable[..., torch.Tensor]
PATHS = {"loop": loop_experts, "grouped": grouped_experts, "gather": gather_experts}


def one_by_one(
    x_ND: torch.Tensor,
    indices_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    gate_up_EOD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """Equation 12 read aloud: token by token, expert by expert."""
    inner = down_EDF.shape[-1]
    rows = []
    for x, indices, weights in zip(x_ND, indices_NK.tolist(), weights_NK, strict=True):
        total = torch.zeros_like(x)
        for expert, weight in zip(indices, weights, strict=True):
            gate, up = gate_up_EOD[expert, :inner] @ x, gate_up_EOD[expert, inner:] @ x
            total = total + weight * (down_EDF[expert] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


def inputs(
    indices: torch.Tensor, experts: int, seed: int = 0, width: int = 10, inner: int = 6
) -> list[torch.Tensor]:
    """[x, indices, weights, gate_up, down] in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.rand(indices.shape, generator=generator, dtype=torch.float64)
    gate_up, down = normal(experts, 2 * inner, width), normal(experts, width, inner)
    return [normal(indices.shape[0], width), indices, weights, gate_up, down]


def some_indices(tokens: int, experts: int, top_k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


CASES = {
    "mixed": (some_indices(40, 12, 3), 12),
    "one token": (some_indices(1, 12, 3), 12),
    "all to one expert": (torch.full((17, 1), 4), 6),
    "all to the last": (torch.full((5, 1), 5), 6),
    "most experts empty": (some_indices(9, 4, 2) + 30, 64),
    "one expert in all": (torch.zeros(7, 1, dtype=torch.int64), 1),
    "many tokens": (some_indices(700, 3, 2), 3),
}


@pytest.mark.parametrize("compute", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_equation(
    case: tuple[torch.Tensor, int], compute: Compute
) -> None:
    results, gradients = [], []
    for function in (one_by_one, compute):
        tensors = inputs(*case)
        learned = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
        out_ND = function(*tensors)
        direction = torch.linspace(-1, 1, out_ND.numel(), dtype=torch.float64).view_as(out_ND)
        (out_ND * direction).sum().backward()
        results.append(out_ND.detach())
        gradients.append([tensor.grad for tensor in learned])
    torch.testing.assert_close(results[1], results[0])
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, expected)


@settings(max_examples=80, deadline=None)
@given(loads=st.lists(st.integers(0, 40), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_blocked_products_hold_for_any_loads(loads: list[int], seed: int) -> None:
    if not sum(loads):
        loads[seed % len(loads)] = 1
    generator = torch.Generator().manual_seed(seed)
    x_MI = torch.randn(sum(loads), 4, generator=generator, dtype=torch.float64)
    weight_EOI = torch.randn(len(loads), 3, 4, generator=generator, dtype=torch.float64)
    rows = zip(x_MI.split(loads), weight_EOI, strict=True)
    expected = torch.cat([part @ weight.T for part, weight in rows])
    ends_E = torch.tensor(loads).cumsum(0)
    torch.testing.assert_close(blocked_product(x_MI, weight_EOI, ends_E), expected)


@pytest.mark.parametrize("compute", PATHS.values(), ids=PATHS)
def test_16_bit_outputs_are_summed_in_float32(compute: Compute) -> None:
    x, indices, weights, gate_up, down = inputs(some_indices(30, 8, 4), 8)
    exact = one_by_one(x, indices, weights, gate_up, down)
    out_ND = compute(x.bfloat16(), indices, weights.float(), gate_up.bfloat16(), down.bfloat16())
    assert out_ND.dtype == torch.bfloat16
    assert (out_ND.double() - exact).abs().max() / exact.abs().max() < 0.02


@pytest.mark.parametrize("path", [None, *PATHS])
def test_under_autocast_the_module_computes_in_16_bits(path: ExpertPath | None) -> None:
    x, indices, weights, gate_up, down = inputs(some_indices(30, 12, 3), 12, width=45, inner=22)
    experts = Experts(config_of(random_reference(V3)))
    experts.load_state_dict({"gate_up_proj": gate_up, "down_proj": down})
    experts.path = path
    exact = one_by_one(x, indices, weights, gate_up, down)
    full = experts(x.float(), indices, weights.float())
    assert (full.double() - exact).abs().max() / exact.abs().max() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = experts(x.float(), indices, weights.float())
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().max() / exact.abs().max() < 0.02
    half.sum().backward()
    assert experts.down_proj.grad is not None
    assert experts.down_proj.grad.dtype == torch.float32


def test_gather_gives_a_token_the_same_bits_in_any_company() -> None:
    alone, others = some_indices(16, 6, 2, seed=1), some_indices(16, 6, 2, seed=2)
    x, _, weights, gate_up, down = inputs(alone, 6, width=64, inner=48)
    x, weights, gate_up, down = x.float(), weights.float(), gate_up.float(), down.float()
    mixed = others.clone()
    mixed[3] = alone[3]
    first = gather_experts(x, alone, weights, gate_up, down)[3]
    stranger = torch.cat((x[:3].flip(0), x[3:4], x[4:].flip(0)))
    second = gather_experts(stranger, mixed, weights, gate_up, down)[3]
    assert torch.equal(first, second)


def test_the_path_follows_the_device() -> None:
    assert choose_path(torch.device("cpu")) == "loop"
    assert choose_path(torch.device("cuda")) == "grouped"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_grouped_on_cuda_never_waits_for_the_loads(
    case: tuple[torch.Tensor, int], dtype: torch.dtype
) -> None:
    tensors = inputs(*case, width=64, inner=24)
    floats = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    floats[2] = tensors[2].float()
    ours = [t.cuda().requires_grad_(t.is_floating_point()) for t in floats]
    exact = [t.double() if t.is_floating_point() else t for t in floats]
    exact = [t.clone().requires_grad_(t.is_floating_point()) for t in exact]
    expected = one_by_one(*exact)
    expected.sum().backward()
    grouped_experts(*ours)  # the first call may set up kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        out_ND = grouped_experts(*ours)
        out_ND.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    bound = 1e-5 if dtype == torch.float32 else 0.03
    checked = [(out_ND, expected)]
    checked += [(t.grad, e.grad) for t, e in zip(ours, exact, strict=True) if t.requires_grad]
    for value, reference in checked:
        error = (value.detach().cpu().double() - reference).abs().max() / reference.abs().max()
        assert error < bound
