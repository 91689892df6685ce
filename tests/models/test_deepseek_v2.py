"""DeepSeek-V2 in the same network: softmax gate, greedy or by groups, no q-LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepseek_reference import V2, pair
from reference import assert_close, greedy, greedy_difference, next_token_loss, random_ids

from forethought.checkpoints.network_config import DeepseekConfig, YarnScaling
from forethought.checkpoints.network_tensors import count_parameters
from forethought.models.cache import PlainCache
from forethought.models.deepseek_v3 import DeepseekV3

VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "by groups": {"topk_method": "group_limited_greedy"},
    "with q-LoRA": {"q_lora_rank": 20},
    "biases": {"attention_bias": True},
}

V2_LITE = DeepseekConfig(
    model_type="deepseek_v2",
    vocab_size=102400,
    hidden_size=2048,
    intermediate_size=10944,
    num_hidden_layers=27,
    num_attention_heads=16,
    rms_norm_eps=1e-6,
    max_position_embeddings=163840,
    tie_word_embeddings=False,
    rope_theta=10000.0,
    rope_scaling=YarnScaling(
        factor=40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707
    ),
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    moe_intermediate_size=1408,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    scoring_func="softmax",
    topk_method="greedy",
    norm_topk_prob=False,
    first_k_dense_replace=1,
)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_logits_are_those_of_transformers(changes: dict[str, Any]) -> None:
    network, theirs = pair(V2, **changes)
    ids = random_ids(97, 2, 41)
    expected = theirs(ids).logits
    assert_close(network(ids), expected, 1e-4, "without a cache")
    cache = PlainCache(2, 41, layers=3)
    steps = [network(ids[:, :37], cache.positions(37), cache)]
    steps += [network(ids[:, t : t + 1], cache.positions(1), cache) for t in range(37, 41)]
    assert_close(torch.cat(steps, dim=1), expected, 1e-4, "absorbed")


def test_gradients_are_those_of_transformers() -> None:
    network, theirs = pair(V2, topk_method="group_limited_greedy")
    ids = random_ids(97, 2, 33, seed=2)
    next_token_loss(network(ids), ids).backward()
    next_token_loss(theirs(ids).logits, ids).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in network.named_parameters():
        assert_close(parameter.grad, expected[name].grad, 1e-4, name)


@torch.no_grad()
def test_64_greedy_tokens_are_those_of_transformers() -> None:
    network, theirs = pair(V2, seed=4, max_position_embeddings=128)
    prompt = [5, 17, 60]
    ids = greedy(network, prompt, 64)
    expected = greedy(lambda ids_BT: theirs(ids_BT).logits, prompt, 64)
    assert len(set(expected)) > 3
    assert greedy_difference(ids, expected, prompt, lambda ids_BT: theirs(ids_BT).logits) is None


def test_the_16b_has_the_papers_parameter_counts() -> None:
    with torch.device("meta"):
        network = DeepseekV3(V2_LITE)
    # DeepSeek-V2 (arXiv:2405.04434) appendix B: 15.7B in all, 2.4B active.
    assert network.num_parameters() == 15_706_484_224
    idle = sum(p.numel() * 58 // 64 for n, p in network.named_parameters() if ".experts." in n)
    active = network.num_parameters() - idle - 102400 * 2048
    assert 2.4e9 < active < 2.5e9
    counted = count_parameters(V2_LITE)
    assert (counted.total, counted.active) == (network.num_parameters(), active)
