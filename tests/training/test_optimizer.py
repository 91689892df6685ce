"""The optimiser: torch's AdamW to the bit, small steps not lost in bfloat16, storage that stays."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from forethought.errors import ModelError
from forethought.training.config import OptimizerConfig
from forethought.training.optimizer import (
    MasterAdamW,
    NonFiniteGradient,
    check_norm,
    learning_rate,
)

CONFIG = OptimizerConfig(learning_rate=0.02, weight_decay=0.1, clip_norm=0.5)


def toy(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Matrices, a vector, a tied weight, and a parameter that is not trained."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Embedding(11, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 11, bias=False)
    )
    network[3].weight = network[0].weight
    network[1].bias.requires_grad_(False)
    return network.to(dtype)


def loss_of(network: nn.Module, step: int, micro: int = 0) -> torch.Tensor:
    ids = torch.randint(0, 11, (8, 2), generator=torch.Generator().manual_seed(100 * step + micro))
    return nn.functional.cross_entropy(network(ids[:, 0]).double(), ids[:, 1])


def train(network: nn.Module, optimizer: MasterAdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(network, step)
        loss.backward()
        optimizer.step(CONFIG.learning_rate)
        losses.append(float(loss.detach()))
    return losses


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch(dtype):
    ours, theirs = toy(dtype), toy(dtype)
    optimizer = MasterAdamW(ours.named_parameters(), CONFIG)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() >= 2]},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        foreach=False,
        fused=False,
    )
    for step in range(20):
        rate = learning_rate(CONFIG.model_copy(update={"warmup_steps": 5}), step, 20)
        loss_of(ours, step).backward()
        norm = optimizer.step(rate, grad_scale=0.25)
        reference.zero_grad()
        (loss_of(theirs, step) * 0.25).backward()
        expected = nn.utils.clip_grad_norm_(trained, CONFIG.clip_norm)
        torch.testing.assert_close(norm, expected)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name)
        torch.testing.assert_close(parameter, other, rtol=tolerance, atol=tolerance)


def test_learns():
    network = toy()
    losses = train(network, MasterAdamW(network.named_parameters(), CONFIG), range(3))
    network = toy(torch.bfloat16)
    again = train(network, MasterAdamW(network.named_parameters(), CONFIG), range(3))
    assert losses == pytest.approx(again, rel=0.02)


def test_only_matrices_decay():
    matrix = nn.Parameter(torch.ones(2, 2))
    expert = nn.Parameter(torch.ones(2, 2, 2))
    norm = nn.Parameter(torch.ones(2))
    named = [("matrix", matrix), ("expert", expert), ("norm", norm)]
    optimizer = MasterAdamW(named, CONFIG)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5)
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    torch.testing.assert_close(expert.detach(), torch.full((2, 2, 2), 0.95))
    assert torch.equal(norm, torch.ones(2))


@pytest.mark.parametrize("size", [0.2, 0.5, 3.0])
def test_clips_by_the_global_norm(size):
    """Beta1 = 0: the first moment is the clipped gradient, by which it is seen."""
    config = OptimizerConfig(learning_rate=0.1, beta1=0.0, clip_norm=0.5)
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))
    optimizer = MasterAdamW([("first", first), ("second", second)], config)
    direction = torch.randn(7, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    first.grad = direction[:3] * size * 4
    second.grad = (direction[3:] * size * 4).view(2, 2)
    norm = optimizer.step(0.1, grad_scale=0.25)
    assert norm.shape == ()
    assert float(norm) == pytest.approx(size)
    state = optimizer.state_tensors()
    clipped = torch.cat([state["first.exp_avg"], state["second.exp_avg"].flatten()])
    torch.testing.assert_close(clipped, direction * min(size, 0.5), rtol=1e-5, atol=1e-6)
    assert first.grad is None
    assert second.grad is None


def test_small_steps_add_up_in_bfloat16():
    """A step of 1e-4 at 1.0 is far below bfloat16's 2^-8: only a master can hold it."""
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("w", parameter)], CONFIG)
    for step in range(200):
        parameter.sum().backward()
        optimizer.step(1e-4)
        if step == 10:
            assert torch.equal(parameter, torch.ones_like(parameter))
    master = optimizer.state_tensors()["w.master"]
    torch.testing.assert_close(master, torch.full((4,), 1 - 0.02), rtol=1e-4, atol=1e-4)
    assert torch.equal(parameter, master.to(torch.bfloat16))


def test_gradients_of_micro_batches_add_up_in_fp32():
    """1 + 255 times 2^-9: in bfloat16 each of the small ones is lost."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    config = OptimizerConfig(learning_rate=0.1, clip_norm=1e6)
    optimizer = MasterAdamW([("w", parameter)], config)
    for size in (1.0, *[2.0**-9] * 255):
        (parameter * size).sum().backward()
        assert parameter.grad is None
    assert float(optimizer.step(0.1)) == 1 + 255 / 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storage_never_moves(dtype):
    network = toy(dtype)
    optimizer = MasterAdamW(network.named_parameters(), CONFIG)
    seen = {name: parameter.detach() for name, parameter in network.named_parameters()}
    pointers = {name: tensor.data_ptr() for name, tensor in seen.items()}
    before = weights(network)
    train(network, optimizer, range(4))
    optimizer.load_state_tensors({k: v.clone() for k, v in optimizer.state_tensors().items()})
    for name, parameter in network.named_parameters():
        assert parameter.data_ptr() == pointers[name]
        assert torch.equal(seen[name], parameter)  # a view of before sees the steps
        assert torch.equal(before[name], parameter) == (not parameter.requires_grad)
    masters = [name for name in optimizer.state_tensors() if name.endswith(".master")]
    assert len(masters) == (4 if dtype == torch.bfloat16 else 0)  # no second copy of float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("done", [0, 5])
def test_a_saved_state_goes_on_bit_for_bit(dtype, done):
    network = toy(dtype)
    optimizer = MasterAdamW(network.named_parameters(), CONFIG)
    train(network, optimizer, range(done))
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    then = weights(network)
    losses = train(network, optimizer, range(done, done + 5))

    other = toy(dtype)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(then[name])
    resumed = MasterAdamW(other.named_parameters(), CONFIG)
    resumed.load_state_tensors(saved)
    for name, tensor in resumed.state_tensors().items():
        assert torch.equal(tensor, saved[name]), name
    assert train(other, resumed, range(done, done + 5)) == losses
    for name, tensor in weights(network).items():
        assert torch.equal(tensor, other.get_parameter(name)), name
    assert all(
        torch.equal(tensor, resumed.state_tensors()[name])
        for name, tensor in optimizer.state_tensors().items()
    )


def test_a_state_of_another_network_is_refused_by_name():
    network = toy(torch.bfloat16)
    optimizer = MasterAdamW(network.named_parameters(), CONFIG)
    train(network, optimizer, range(2))
    before = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    good = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    name = "1.weight.exp_avg"
    for changed, said in (
        ({k: v for k, v in good.items() if k != "0.weight.master"}, "0.weight.master .*missing"),
        ({**good, "5.weight.step": torch.zeros(())}, "5.weight.step .*belongs to no parameter"),
        ({**good, name: good[name][:2]}, r"1.weight.exp_avg .*\[2, 6\] instead of .*\[6, 6\]"),
        ({**good, name: good[name].double()}, "1.weight.exp_avg .*float64"),
    ):
        with pytest.raises(ModelError, match=said):
            optimizer.load_state_tensors(changed)
    assert all(torch.equal(t, before[k]) for k, t in optimizer.state_tensors().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, dtype):
    network = toy(dtype)
    optimizer = MasterAdamW(network.named_parameters(), CONFIG)
    train(network, optimizer, range(2))
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    before = weights(network)
    (loss_of(network, 9) * bad).backward()
    with pytest.raises(NonFiniteGradient, match="not taken"):
        optimizer.step(0.1)
    for name, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, state[name]), name
    for name, tensor in weights(network).items():
        assert torch.equal(tensor, before[name]), name
    optimizer.zero_grad()
    train(network, optimizer, range(2, 3))
    check_norm(torch.tensor(3.0))


def test_a_parameter_without_a_gradient_stays():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = MasterAdamW([("used", used), ("unused", unused)], CONFIG)
    used.sum().backward()
    optimizer.step(0.1)
    assert torch.equal(unused, torch.ones(2, 2))
    assert float(optimizer.state_tensors()["unused.step"]) == 0
    assert float(optimizer.state_tensors()["used.step"]) == 1
    with pytest.raises(RuntimeError, match="without any gradient"):
        optimizer.step(0.1)


def test_one_optimiser_at_a_time():
    network = toy(torch.bfloat16)
    first = MasterAdamW(network.named_parameters(), CONFIG)
    second = MasterAdamW(network.named_parameters(), CONFIG)
    with pytest.raises(RuntimeError, match="two optimisers"):
        loss_of(network, 0).backward()
    first.close()
    second.zero_grad()
    train(network, second, range(2))


def test_float16_is_refused():
    with pytest.raises(ModelError, match=r"w is torch\.float16"):
        MasterAdamW([("w", nn.Parameter(torch.zeros(1, dtype=torch.float16)))], CONFIG)


def schedule(total: int, **keys: object) -> list[float]:
    config = OptimizerConfig.model_validate({"learning_rate": 2.0, **keys})
    return [learning_rate(config, step, total) for step in range(total)]


def test_the_schedule_by_hand():
    assert schedule(3) == [2, 2, 2]
    keys = {"warmup_steps": 4, "decay_steps": 4, "final_ratio": 0.5}
    expected = [0.5, 1, 1.5, 2, 2, 2, 1.75, 1.5, 1.25, 1]
    assert schedule(10, **keys) == pytest.approx(expected)
    cosine = [2, *[1 + (1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4)]]
    assert schedule(10, **keys, decay="cosine")[5:] == pytest.approx(cosine)
    assert schedule(2, decay_steps=1, final_ratio=0.0) == [2, 0]
    for step in (-1, 3):
        with pytest.raises(ValueError, match="not one of 3"):
            learning_rate(CONFIG, step, 3)


@given(
    total=st.integers(1, 60),
    warmup=st.integers(0, 80),
    decay=st.integers(0, 80),
    kind=st.sampled_from(["linear", "cosine"]),
    final=st.floats(0, 1),
)
def test_the_schedule_rises_then_falls(total, warmup, decay, kind, final):
    rates = schedule(total, warmup_steps=warmup, decay_steps=decay, decay=kind, final_ratio=final)
    assert all(0 <= rate <= 2 for rate in rates)
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    falling = rates[top:]
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    if decay and warmup <= total:
        assert rates[-1] == pytest.approx(2 * final)
    if 0 < warmup <= total - decay:
        assert max(rates) == rates[warmup - 1] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_nothing_waits_and_a_bad_gradient_changes_nothing(dtype):
    network = toy(dtype).cuda()
    optimizer = MasterAdamW(network.named_parameters(), CONFIG)
    ids = torch.arange(8, device="cuda")
    for scale in (1.0, 1.0, math.nan, 1.0):
        before = weights(network)
        state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
        torch.cuda.set_sync_debug_mode("error")
        try:
            (network(ids).float().square().mean() * scale).backward()
            norm = optimizer.step(0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        same = all(torch.equal(t, before[name]) for name, t in weights(network).items())
        kept = all(torch.equal(t, state[name]) for name, t in optimizer.state_tensors().items())
        assert (same, kept) == ((True, True) if math.isnan(scale) else (False, False))
        if math.isnan(scale):
            with pytest.raises(NonFiniteGradient):
                check_norm(norm)
