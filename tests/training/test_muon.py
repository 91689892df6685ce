"""Muon: what its authors write down, in float64, and what every optimiser here promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from forethought.training.config import OptimizerConfig
from forethought.training.muon import MasterMuon, is_matrix, optimizer_of, orthogonalised
from forethought.training.optimizer import MasterAdamW, NonFiniteGradient

CONFIG = OptimizerConfig(
    kind="muon", learning_rate=0.02, weight_decay=0.1, clip_norm=0.5, momentum=0.9
)


class Toy(nn.Module):
    """An embedding that is the head too, two matrices of one shape, a stack, a tall one, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.experts = nn.Parameter(torch.randn(3, 6, 6) * 0.3)
        self.up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 6, bias=False)
        self.norm = nn.LayerNorm(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(self.embed_tokens(ids)).relu())
        x = x + torch.einsum("bi,eij->bj", x, self.experts)
        return self.norm(x + self.down(self.up(x).relu())) @ self.embed_tokens.weight.T


def toy(dtype: torch.dtype = torch.float32) -> Toy:
    return Toy().to(dtype)


def loss_of(network: nn.Module, step: int) -> torch.Tensor:
    ids = torch.randint(0, 11, (8, 2), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(network(ids[:, 0]).double(), ids[:, 1])


def train(network: nn.Module, optimizer: MasterAdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(network, step % 4)
        loss.backward()
        optimizer.step(CONFIG.learning_rate)
        losses.append(float(loss.detach()))
    return losses


def textbook(weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """One matrix through the steps as the sources write them."""
    weight, momentum = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.9 * momentum + 0.1 * gradient
        x = 0.1 * gradient + 0.9 * momentum
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if tall else x
        rate = CONFIG.learning_rate
        weight = (1 - rate * 0.1) * weight - rate * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


def test_matrices_move_as_the_sources_say():
    network = toy(torch.float64)
    optimizer = MasterMuon(network.named_parameters(), CONFIG)
    names = ["first.weight", "second.weight", "experts", "up.weight", "down.weight"]
    start = {name: network.get_parameter(name).detach().clone() for name in names}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for step in range(4):
        loss_of(network, step).backward()
        norm = nn.utils.get_total_norm([p.grad for p in network.parameters()])
        factor = min(1.0, 0.5 / (float(norm) + 1e-6))
        for name in names:
            seen[name].append(network.get_parameter(name).grad * factor)
        optimizer.step(CONFIG.learning_rate)
    for name in names:
        moved = network.get_parameter(name).detach()
        if name == "experts":
            for at in range(3):
                expected = textbook(start[name][at], [one[at] for one in seen[name]])
                torch.testing.assert_close(moved[at], expected, rtol=1e-10, atol=1e-12)
        else:
            expected = textbook(start[name], seen[name])
            torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)


def test_all_else_moves_by_adamw():
    ours, theirs = toy(), toy()
    muon = MasterMuon(ours.named_parameters(), CONFIG)
    adam = MasterAdamW(theirs.named_parameters(), CONFIG)
    for network, optimizer in ((ours, muon), (theirs, adam)):
        train(network, optimizer, range(1))
    for name, parameter in ours.named_parameters():
        same = torch.equal(parameter, theirs.get_parameter(name))
        assert same == (not is_matrix(name, parameter)), name
    assert {name for name, p in ours.named_parameters() if not is_matrix(name, p)} == {
        "embed_tokens.weight", "norm.weight", "norm.bias",
    }  # fmt: skip
    assert not is_matrix("model.layers.1.mlp.gate.weight", torch.zeros(4, 8))
    assert is_matrix("model.layers.0.mlp.gate_proj.weight", torch.zeros(4, 8))


def test_singular_values_come_near_one():
    matrices = torch.randn(5, 12, 30, generator=torch.Generator().manual_seed(1)).double()
    for one in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(one))
        assert values.min() > 0.6
        assert values.max() < 1.3
    assert not orthogonalised(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_and_storage_stays(dtype):
    network = toy(dtype)
    places = [parameter.data_ptr() for parameter in network.parameters()]
    losses = train(network, MasterMuon(network.named_parameters(), CONFIG), range(60))
    assert losses[-1] < losses[0] / 2
    assert places == [parameter.data_ptr() for parameter in network.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_bit_for_bit(dtype):
    whole = toy(dtype)
    train(whole, MasterMuon(whole.named_parameters(), CONFIG), range(6))
    first = toy(dtype)
    optimizer = MasterMuon(first.named_parameters(), CONFIG)
    train(first, optimizer, range(3))
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    assert "experts.momentum" in state
    assert "experts.exp_avg" not in state
    second = toy(dtype)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other = MasterMuon(second.named_parameters(), CONFIG)
    other.load_state_tensors(state)
    train(second, other, range(3, 6))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name


def test_a_parameter_without_a_gradient_stays():
    network = toy()
    optimizer = MasterMuon(network.named_parameters(), CONFIG)
    train(network, optimizer, range(2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    momentum = optimizer.state_tensors()["second.weight.momentum"].clone()
    network.first(torch.ones(1, 6)).sum().backward()
    optimizer.step(CONFIG.learning_rate)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"first.weight"}
    assert torch.equal(optimizer.state_tensors()["second.weight.momentum"], momentum)


def test_gradients_of_captured_passes_make_the_same_steps():
    """They are written over by the next pass, and set to 0 after a step, not dropped."""
    plain, captured = toy(), toy()
    train(plain, MasterMuon(plain.named_parameters(), CONFIG), range(4))
    optimizer = MasterMuon(captured.named_parameters(), CONFIG)
    optimizer.keep_gradients()
    places = None
    buffers = [torch.empty_like(parameter) for parameter in optimizer.trained]
    for step in range(4):
        found = torch.autograd.grad(loss_of(captured, step % 4), optimizer.trained)
        torch._foreach_copy_(buffers, list(found))
        optimizer.add_gradients(buffers)
        for buffer in buffers:
            buffer.fill_(float("nan"))
        here = [gradient.data_ptr() for gradient in optimizer.gradients]
        assert places in (None, here)
        places = here
        optimizer.step(CONFIG.learning_rate)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, captured.get_parameter(name)), name


def test_a_gradient_that_is_not_finite_changes_nothing():
    network = toy()
    optimizer = MasterMuon(network.named_parameters(), CONFIG)
    train(network, optimizer, range(2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    loss_of(network, 0).backward()
    network.up.weight.grad[0, 0] = float("nan")
    with pytest.raises(NonFiniteGradient):
        optimizer.step(CONFIG.learning_rate)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_a_bad_gradient_changes_nothing_and_nothing_waits(dtype):
    network = toy(dtype).cuda()
    optimizer = MasterMuon(network.named_parameters(), CONFIG)
    ids = torch.arange(8, device="cuda")
    network(ids).sum().backward()
    optimizer.step(CONFIG.learning_rate)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    (network(ids).sum() * float("inf")).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(CONFIG.learning_rate)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for name, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, state[name]), name


def test_the_config_names_it():
    network = toy()
    assert type(optimizer_of(network.named_parameters(), CONFIG)) is MasterMuon
    plain = OptimizerConfig(learning_rate=0.1)
    assert type(optimizer_of(toy().named_parameters(), plain)) is MasterAdamW
