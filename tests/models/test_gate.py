"""Routing by hand-computed values and against a slow reading of the papers; balance of loads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from deepseek_reference import V2, V3, config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_reference

from forethought.models.deepseek_v3.balance import (
    expert_load,
    sequence_balance_loss,
    update_bias,
)
from forethought.models.deepseek_v3.gate import Gate, route


def settings_of(**changes: Any) -> dict[str, Any]:
    v3 = {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "top_k": 2,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    }
    return {**v3, **changes}


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def chosen(indices: torch.Tensor) -> list[set[int]]:
    return [set(row) for row in indices.tolist()]


def test_v3_by_hand() -> None:
    # Groups {0, 1, 2} and {3, 4, 5}: the best single expert is in the first, the best two in the
    # second.
    scores = [0.9, 0.1, 0.1, 0.6, 0.5, 0.2]
    logits = torch.tensor([[logit(score) for score in scores]])
    routing = route(logits, torch.zeros(6), **settings_of())
    assert chosen(routing.indices_NK) == [{3, 4}]
    weights = dict(zip(routing.indices_NK[0].tolist(), routing.weights_NK[0].tolist(), strict=True))
    assert weights == pytest.approx({3: 2.5 * 0.6 / 1.1, 4: 2.5 * 0.5 / 1.1})
    assert routing.scores_NE[0].tolist() == pytest.approx(scores)


def test_the_bias_selects_and_weighs_nothing() -> None:
    scores = [0.9, 0.1, 0.1, 0.6, 0.5, 0.2]
    logits = torch.tensor([[logit(score) for score in scores]])
    bias = torch.tensor([0.0, 0.0, 0.0, -0.3, 0.0, 0.4])
    # Biased: group 1 has 0.9 + 0.1, group 2 has 0.6 + 0.5.
    routing = route(logits, bias, **settings_of(norm_topk_prob=False))
    weights = dict(zip(routing.indices_NK[0].tolist(), routing.weights_NK[0].tolist(), strict=True))
    assert weights == pytest.approx({5: 2.5 * 0.2, 4: 2.5 * 0.5})


def test_groups_with_negative_choices_still_win_over_masked_ones() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0]])
    bias = torch.tensor([-3.0, -3.0, -3.0, -3.0, -9.0, -9.0, -9.0, -9.0])
    routing = route(logits, bias, **settings_of(top_k=4))
    assert chosen(routing.indices_NK) == [{0, 1, 2, 3}]


def test_v2_greedy_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    v2 = settings_of(
        scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=16
    )
    routing = route(logits, None, **v2)
    weights = dict(zip(routing.indices_NK[0].tolist(), routing.weights_NK[0].tolist(), strict=True))
    assert weights == pytest.approx({3: 6.4, 2: 4.8})


def test_v2_takes_the_group_with_the_best_expert() -> None:
    logits = torch.tensor([[0.4, 0.05, 0.05, 0.2, 0.2, 0.1]]).log()
    v2 = settings_of(
        scoring_func="softmax",
        topk_method="group_limited_greedy",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
    )
    routing = route(logits, None, **v2)
    assert 0 in chosen(routing.indices_NK)[0]
    assert sorted(routing.weights_NK[0].tolist()) == pytest.approx([0.05, 0.4])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 5),
    size=st.integers(2, 5),
    data=st.data(),
)
def test_v3_equals_a_slow_reading_of_the_paper(
    seed: int, groups: int, size: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, kept * size))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, groups * size, generator=generator, dtype=torch.float64)
    bias = torch.randn(groups * size, generator=generator, dtype=torch.float64)
    routing = route(logits, bias, **settings_of(top_k=top_k, n_group=groups, topk_group=kept))
    for token in range(7):
        scores = [1 / (1 + math.exp(-value)) for value in logits[token].tolist()]
        biased = [score + b for score, b in zip(scores, bias.tolist(), strict=True)]
        members = [range(g * size, (g + 1) * size) for g in range(groups)]
        strength = [sum(sorted(biased[e] for e in group)[-2:]) for group in members]
        best = sorted(range(groups), key=lambda g: -strength[g])[:kept]
        allowed = [e for g in best for e in members[g]]
        expected = sorted(allowed, key=lambda e: -biased[e])[:top_k]
        assert set(routing.indices_NK[token].tolist()) == set(expected)
        total = sum(scores[e] for e in expected)
        for e, weight in zip(
            routing.indices_NK[token].tolist(), routing.weights_NK[token].tolist(), strict=True
        ):
            assert weight == pytest.approx(2.5 * scores[e] / total)


@pytest.mark.parametrize(
    "fields", [V3, {**V2, "topk_method": "group_limited_greedy"}], ids=["v3", "v2"]
)
def test_the_gate_is_that_of_transformers(fields: dict[str, Any]) -> None:
    theirs = random_reference(fields, seed=7)
    gate = Gate(config_of(theirs))
    their_gate = theirs.model.layers[1].mlp.gate
    gate.load_state_dict(their_gate.state_dict())
    x_ND = torch.randn(50, 45, generator=torch.Generator().manual_seed(1))
    _, their_weights, their_indices = their_gate(x_ND)
    indices, weights, _ = gate(x_ND)
    ours, expected = torch.zeros(50, 12), torch.zeros(50, 12)
    torch.testing.assert_close(
        ours.scatter(1, indices, weights), expected.scatter(1, their_indices, their_weights)
    )


def test_a_16_bit_network_scores_in_float32() -> None:
    theirs = random_reference(V3, seed=7)
    gate = Gate(config_of(theirs))
    gate.load_state_dict(theirs.model.layers[1].mlp.gate.state_dict())
    gate.to(torch.bfloat16)
    x_ND = torch.randn(20, 45, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = gate(x_ND)
    expected = (x_ND.double() @ gate.weight.double().T).sigmoid()
    assert routing.weights_NK.dtype == torch.float32
    torch.testing.assert_close(routing.scores_NE.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_load_counts_tokens_and_leaves_out_padding() -> None:
    indices = torch.tensor([[[0, 2], [2, 3]], [[2, 0], [3, 0]]])
    assert expert_load(indices, 5).tolist() == [3, 0, 3, 2, 0]
    mask = torch.tensor([[True, True], [True, False]])
    assert expert_load(indices, 5, mask).tolist() == [2, 0, 3, 1, 0]


def test_the_bias_falls_for_the_busy_and_rises_for_the_idle() -> None:
    bias = torch.tensor([0.5, 0.5, 0.5, 0.5])
    after = update_bias(bias, torch.tensor([9, 1, 4, 2]), 0.001)
    assert after.tolist() == pytest.approx([0.499, 0.501, 0.5, 0.501])
    assert bias.tolist() == [0.5, 0.5, 0.5, 0.5]


def test_updates_of_the_bias_balance_the_experts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 8, generator=generator) + torch.linspace(-2, 2, 8)
    bias = torch.zeros(8)
    even = settings_of(top_k=2, n_group=1, topk_group=1)

    def load_of(bias_E: torch.Tensor) -> torch.Tensor:
        return expert_load(route(logits, bias_E, **even).indices_NK, 8)

    assert load_of(bias).max() > 250
    for _ in range(600):
        bias = update_bias(bias, load_of(bias), 0.002)
    assert load_of(bias).max() < 115  # 100 is even


def test_the_balance_loss_by_hand() -> None:
    # One sequence, two tokens, three experts, top-1. f = 3 / (1 * 2) * [1, 1, 0];
    # P = mean of [0.5, 0.25, 0.25] and [0.2, 0.6, 0.2].
    scores = torch.tensor([[[0.8, 0.4, 0.4], [0.2, 0.6, 0.2]]], requires_grad=True)
    indices = torch.tensor([[[0], [1]]])
    loss = sequence_balance_loss(scores, indices, alpha=0.1)
    assert loss.item() == pytest.approx(0.1 * 1.5 * (0.35 + 0.425))
    loss.backward()
    # d/ds of 0.1 * 1.5 / 2 * (s0 + s1) / (s0 + s1 + s2) at the first token.
    expected = [0.075 * 0.4 / 1.6**2, 0.075 * 0.4 / 1.6**2, -0.075 * 1.2 / 1.6**2]
    assert scores.grad is not None
    assert scores.grad[0, 0].tolist() == pytest.approx(expected)


def test_the_balance_loss_is_within_sequences_and_leaves_out_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 6, 8, generator=generator)
    indices = scores.topk(2, dim=-1).indices
    alone = [sequence_balance_loss(scores[i : i + 1], indices[i : i + 1], 1.0) for i in range(3)]
    together = sequence_balance_loss(scores, indices, 1.0)
    assert together.item() == pytest.approx(sum(part.item() for part in alone) / 3)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 4:] = False
    short = sequence_balance_loss(scores[:, :4], indices[:, :4], 1.0)
    assert sequence_balance_loss(scores, indices, 1.0, mask).item() == pytest.approx(short.item())
