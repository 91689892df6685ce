"""A supervised step against a naive one, sequence by sequence in float64."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch

from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.balance import expert_load, sequence_balance_loss
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates
from forethought.training.batches import TokenSequence
from forethought.training.config import BalanceConfig
from forethought.training.stage import SpikeGuard, TrainingStopped
from forethought.training.supervised import ExpertBalance, Supervised
from tiny_training import optimizer_of, tiny_dense, tiny_v3

VOCABULARY, PADDED = 61, 64
MTP_WEIGHT, ALPHA = 0.3, 0.2


def sequences(seed: int = 0) -> list[TokenSequence]:
    rng = Random(seed)
    made = []
    for length in (9, 2, 17, 5, 12, 4):
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(length))
        made.append(TokenSequence(ids, rng.randrange(1, length)))
    rows = (*(rng.random() < 0.5 for _ in range(8)), True)
    return [*made, TokenSequence(made[0].ids, mask=rows)]


def made(kind: str) -> CausalLM:
    if kind == "dense":
        return tiny_dense(PADDED, dtype=torch.float64)
    return tiny_v3(PADDED, mtp=kind == "mtp", dtype=torch.float64)


def trainer(network: CausalLM, budget: int, **options) -> Supervised:
    options.setdefault("balance", BalanceConfig(loss_weight=ALPHA, bias_step=0.01))
    return Supervised(
        network,
        optimizer_of(network, clip_norm=1e6),
        vocabulary=VOCABULARY,
        micro_batch_tokens=budget,
        mtp_weight=MTP_WEIGHT,
        **options,
    )


def naive_losses(network: CausalLM, data: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """The parts of the loss of a step, one sequence after the other."""
    targets = sum(one.targets for one in data)
    parts = {name: torch.zeros((), dtype=torch.float64) for name in ("loss", "mtp", "balance")}
    mtp = isinstance(network, DeepseekV3) and network.mtp is not None
    listened = gates(network, mtp=mtp)
    for one in data:
        ids = torch.tensor([one.ids])
        trained = torch.tensor(one.mask or [at >= one.prompt for at in range(len(one.ids))])
        with RoutingRecorder(network, listened) as recorder:
            hidden = network.hidden(ids[:, :-1])
            second = network.mtp_logits(ids[:, 1:], hidden) if mtp else None
        logprobs = network.logits(hidden)[0, :, :VOCABULARY].log_softmax(dim=-1)
        own = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        parts["loss"] -= own[trained[1:]].sum() / targets
        if second is not None:
            logprobs = second[0, :-1, :VOCABULARY].log_softmax(dim=-1)
            own = logprobs.gather(1, ids[0, 2:, None])[:, 0]
            parts["mtp"] -= own[trained[2:]].sum() / targets
        for routing in recorder.routings:
            parts["balance"] += sequence_balance_loss(
                routing.scores_NE[None], routing.indices_NK[None], ALPHA
            ) / len(data)
    return parts


class _Kept(Exception):
    pass


def step_gradients(
    network: CausalLM, budget: int, data: Sequence[TokenSequence]
) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient that a step has when it is about to be taken, and its loss."""
    losses = []

    def keep(loss: float) -> None:
        losses.append(loss)
        raise _Kept

    one = trainer(network, budget)
    with pytest.raises(_Kept):
        one.step(data, 1e-3, keep)
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    one.optimizer.zero_grad()
    return found, losses[0]


@pytest.mark.parametrize("kind", ["dense", "v3", "mtp"])
def test_the_gradient_is_the_naive_one_whatever_the_micro_batches(kind):
    network, data = made(kind), sequences()
    parts = naive_losses(network, data)
    (parts["loss"] + MTP_WEIGHT * parts["mtp"] + parts["balance"]).backward()
    expected_loss = float(parts["loss"].detach())
    expected = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    for budget in (1, 13, 25, 10_000):
        got, loss = step_gradients(network, budget, data)
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max()) + 1e-12
            assert float((got[name] - gradient).abs().max()) < 1e-10 * scale, (budget, name)


def test_the_step_reports_its_losses_and_counts():
    network, data = made("mtp"), sequences()
    with torch.no_grad():
        parts = {name: float(value) for name, value in naive_losses(network, data).items()}
    metrics = trainer(network, 20).step(data, 1e-3)
    assert metrics["loss"] == pytest.approx(parts["loss"], rel=1e-10)
    assert metrics["mtp_loss"] == pytest.approx(parts["mtp"], rel=1e-10)
    assert metrics["balance_loss"] == pytest.approx(parts["balance"], rel=1e-10)
    assert metrics["tokens"] == sum(one.inputs for one in data)
    assert metrics["sequences"] == len(data)
    assert metrics["grad_norm"] > 0
    dense = trainer(made("dense"), 20).step(data, 1e-3)
    assert dense["mtp_loss"] is None
    assert "expert_imbalance" not in dense


def test_what_trains_nothing_is_in_no_count():
    silent = TokenSequence((1, 2, 3), mask=(False,) * 3)
    metrics = trainer(made("v3"), 20).step([silent, *sequences()], 1e-3)
    assert metrics == trainer(made("v3"), 20).step(sequences(), 1e-3)
    with pytest.raises(ValueError, match="no sequence of the step has a token to train"):
        trainer(made("v3"), 20).step([silent], 1e-3)


@pytest.mark.parametrize("budget", [10, 10_000])
def test_biases_go_towards_an_even_load(budget):
    network, data = made("mtp"), sequences()
    before = [gate.e_score_correction_bias.clone() for gate in gates(network, mtp=True)]
    loads = [torch.zeros(8, dtype=torch.int64) for _ in before]
    with RoutingRecorder(network, gates(network, mtp=True)) as recorder, torch.no_grad():
        for one in data:
            ids = torch.tensor([one.ids])
            hidden = network.hidden(ids[:, :-1])
            network.mtp_hidden(ids[:, 1:], hidden)
            for load, routing in zip(loads, recorder.routings, strict=True):
                load += expert_load(routing.indices_NK, 8)
    metrics = trainer(network, budget).step(data, 1e-3)
    for gate, bias, load in zip(gates(network, mtp=True), before, loads, strict=True):
        moved = gate.e_score_correction_bias - bias
        busy, idle = load.double() > load.double().mean(), load.double() < load.double().mean()
        assert busy.any()
        torch.testing.assert_close(moved[busy], torch.full_like(moved[busy], -0.01))
        torch.testing.assert_close(moved[idle], torch.full_like(moved[idle], 0.01))
    worst = max(float(load.max() / load.double().mean()) for load in loads)
    assert metrics["expert_imbalance"] == pytest.approx(worst)


def test_loads_are_counted_anew_after_each_update():
    network = made("v3")
    balance = ExpertBalance(network, mtp=False)
    assert balance.imbalance is None
    busy = torch.zeros(2, 6, 2, dtype=torch.int64)
    busy[..., 1] = 1
    balance.count(busy.unbind())
    assert balance.imbalance == pytest.approx(4.0)
    balance.update(0.0)
    assert balance.imbalance is None


def test_a_step_that_was_stopped_leaves_no_gradient_behind():
    network, data = made("v3"), sequences()
    expected = made("v3")
    trainer(expected, 20).step(data, 1e-3)
    one = trainer(network, 20)

    def refuse(loss: float) -> None:
        raise TrainingStopped("on purpose.")

    with pytest.raises(TrainingStopped):
        one.step(sequences(seed=4), 1e-3, refuse)
    one.step(data, 1e-3)
    state = network.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_a_gradient_that_is_not_finite_stops_and_changes_nothing():
    network = made("v3")
    with torch.no_grad():
        network.model.norm.weight[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(TrainingStopped, match="the gradient is not finite"):
        trainer(network, 20).step(sequences(), 1e-3)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) or name == "model.norm.weight", name


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_does_not_join_the_mean(loss):
    guard = SpikeGuard(4.0)
    guard.check(2.0)
    with pytest.raises(TrainingStopped, match="the loss is"):
        guard.check(loss)
    assert guard.facts() == {"loss_mean": 2.0, "loss_count": 1}


def test_a_spike_stops_once_the_mean_is_known():
    guard = SpikeGuard(4.0)
    for _ in range(20):
        guard.check(1.0)
    guard.check(3.9)
    with pytest.raises(TrainingStopped, match="over 4 times the recent mean"):
        guard.check(5.0)
    again = SpikeGuard(4.0)
    again.load(guard.facts())
    with pytest.raises(TrainingStopped):
        again.check(5.0)
    again.check(1.0)
