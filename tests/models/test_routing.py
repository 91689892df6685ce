"""Experts taken down in one pass and replayed in another; the balance loss of a packed row."""

from __future__ import annotations

import pytest
import torch
from reference import assert_close, random_ids

from forethought.models.deepseek_v3.balance import packed_balance_loss, sequence_balance_loss
from forethought.models.deepseek_v3.gate import Gate
from forethought.models.deepseek_v3.routing import (
    RoutingRecorder,
    flipped_share,
    gates,
    replayed,
)
from forethought.models.packed import PackedSequences
from tiny_training import tiny_dense, tiny_v3

VOCABULARY = 53
EXPERTS, TOP_K = 8, 2


def other_experts(indices_MNK: torch.Tensor) -> torch.Tensor:
    """For every token a set of experts that shares none with its own."""
    free = torch.ones(*indices_MNK.shape[:2], EXPERTS).scatter_(-1, indices_MNK, 0.0)
    return free.topk(TOP_K, dim=-1).indices


def test_gates_of_the_main_layers_in_order_and_the_mtp_modules_last():
    network = tiny_v3(VOCABULARY, mtp=True)
    names = {part: name for name, part in network.named_modules() if isinstance(part, Gate)}
    main = ["model.layers.1.mlp.gate", "model.layers.2.mlp.gate"]
    assert [names[gate] for gate in gates(network)] == main
    assert [names[gate] for gate in gates(network, mtp=True)] == [*main, "mtp.mlp.gate"]
    assert gates(tiny_dense(VOCABULARY)) == []


@torch.no_grad()
def test_the_recorder_keeps_the_newest_pass_and_lets_go_of_the_gates():
    network = tiny_v3(VOCABULARY)
    recorder = RoutingRecorder(network)
    with pytest.raises(ValueError, match="no forward pass"):
        recorder.indices_MNK()
    with recorder:
        network.hidden(random_ids(VOCABULARY, 1, 4))
        network.hidden(random_ids(VOCABULARY, 1, 7, seed=1))
        kept = recorder.indices_MNK()
    network.hidden(random_ids(VOCABULARY, 1, 5, seed=2))
    assert kept.shape == (2, 7, TOP_K)
    assert torch.equal(recorder.indices_MNK(), kept)
    assert not any(gate._forward_hooks for gate in gates(network))


def test_replaying_its_own_choice_changes_nothing_and_the_order_does_not_matter():
    network = tiny_v3(VOCABULARY, dtype=torch.float64)
    ids = random_ids(VOCABULARY, 1, 12)
    with RoutingRecorder(network) as recorder:
        expected = network(ids)
        chosen = recorder.indices_MNK()
    expected.square().sum().backward()
    gradients = {n: p.grad for n, p in network.named_parameters()}
    for given in (chosen, chosen.flip(-1)):
        network.zero_grad()
        with replayed(network, given):
            got = network(ids)
        got.square().sum().backward()
        assert_close(got, expected, 1e-12)
        for name, parameter in network.named_parameters():
            assert_close(parameter.grad, gradients[name], 1e-10, name)


def test_other_experts_are_used_and_the_gate_learns_from_them():
    network = tiny_v3(VOCABULARY, dtype=torch.float64)
    ids = random_ids(VOCABULARY, 1, 12)
    with RoutingRecorder(network) as recorder:
        own = network(ids)
        chosen = recorder.indices_MNK()
    others = other_experts(chosen)
    with RoutingRecorder(network) as recorder, replayed(network, others):
        replay = network(ids)
        assert torch.equal(recorder.indices_MNK(), others)
        routings = recorder.routings
    assert float((replay - own).detach().abs().max()) > 0.01
    # The weights are today's scores of the experts replayed, normed and scaled: they add up.
    for routing in routings:
        sums = routing.weights_NK.sum(dim=-1)
        torch.testing.assert_close(sums, torch.full_like(sums, 2.0))
        expected = routing.scores_NE.gather(1, routing.indices_NK)
        expected = 2.0 * expected / expected.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(routing.weights_NK, expected)
    replay.square().sum().backward()
    for gate in gates(network):
        assert gate.weight.grad is not None
        assert float(gate.weight.grad.abs().max()) > 1e-6
        used = set(gate.weight.grad.abs().amax(dim=-1).nonzero()[:, 0].tolist())
        assert used <= set(others.flatten().tolist())


def test_after_a_replay_the_gates_choose_again_even_where_the_pass_failed():
    network = tiny_v3(VOCABULARY)
    ids = random_ids(VOCABULARY, 1, 6)
    with RoutingRecorder(network) as recorder, torch.no_grad():
        network(ids)
        chosen = recorder.indices_MNK()
    with pytest.raises(RuntimeError, match="on purpose"), replayed(network, other_experts(chosen)):
        raise RuntimeError("on purpose")
    with RoutingRecorder(network) as recorder, torch.no_grad():
        network(ids)
        assert torch.equal(recorder.indices_MNK(), chosen)


def test_experts_for_another_number_of_layers_are_refused():
    network = tiny_v3(VOCABULARY)
    with (
        pytest.raises(ValueError, match="2 gates, but experts for 3 layers"),
        replayed(network, torch.zeros(3, 4, TOP_K, dtype=torch.int64)),
    ):
        pass


def test_the_share_of_flipped_choices_is_that_of_sets():
    sampled = torch.tensor([[[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]])
    assert flipped_share(sampled, sampled) == 0
    assert flipped_share(sampled, sampled.flip(-1)) == 0
    trained = sampled.clone()
    trained[0, 1, 0] = 7
    trained[1, 3] = torch.tensor([0, 1])
    assert flipped_share(sampled, trained) == pytest.approx(2 / 8)
    assert flipped_share(torch.empty(0, 4, 2), torch.empty(0, 4, 2)) == 0


@pytest.mark.parametrize("lengths", [[5], [4, 4], [5, 17, 1, 9]])
def test_the_balance_loss_of_a_row_is_the_sum_over_its_sequences(lengths):
    network = tiny_v3(VOCABULARY, dtype=torch.float64)
    packed = PackedSequences(lengths)
    ids = random_ids(VOCABULARY, 1, packed.tokens)
    with RoutingRecorder(network) as recorder:
        network.hidden(ids, packed.positions_1N, packed)
        routings = recorder.routings
    for routing in routings:
        scores = routing.scores_NE.detach().requires_grad_()
        expected = sum(
            sequence_balance_loss(s[None], i[None], 0.3)
            for s, i in zip(scores.split(lengths), routing.indices_NK.split(lengths), strict=True)
        )
        got = packed_balance_loss(scores, routing.indices_NK, packed.sequence_N, len(lengths), 0.3)
        assert_close(got, expected, 1e-12)
        (gradient,) = torch.autograd.grad(got, scores)
        (wanted,) = torch.autograd.grad(expected, scores)
        assert_close(gradient, wanted, 1e-10)
