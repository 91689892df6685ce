"""DeepSeek-V3 against transformers: logits, gradients, greedy tokens, names, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepseek_reference import V3, config_of, pair
from reference import (
    FolderTensors,
    assert_close,
    greedy,
    greedy_difference,
    next_token_loss,
    random_ids,
    save_reference,
)

from forethought.checkpoints.network_config import DeepseekConfig, YarnScaling
from forethought.checkpoints.network_tensors import (
    checkpoint_tensors,
    count_parameters,
    is_mtp_copy,
    mtp_tensors,
)
from forethought.errors import ModelError
from forethought.models.cache import PlainCache
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.loading import load, save

NO_SCALING = {"rope_type": "default", "rope_theta": 10000.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "all of it": {},
    "no q-LoRA": {"q_lora_rank": None},
    "one group": {"n_group": 1, "topk_group": 1},
    "weights not normalised": {"norm_topk_prob": False},
    "halves rotated, not pairs": {"rope_interleave": False},
    "no scaling": {"rope_parameters": NO_SCALING},
    "biases": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "no dense layer": {"first_k_dense_replace": 0},
}

V3_671B = DeepseekConfig(
    model_type="deepseek_v3",
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    num_attention_heads=128,
    rms_norm_eps=1e-6,
    max_position_embeddings=163840,
    tie_word_embeddings=False,
    rope_theta=10000.0,
    rope_scaling=YarnScaling(
        factor=40.0, original_max_position_embeddings=4096, mscale_all_dim=1.0
    ),
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    first_k_dense_replace=3,
    num_nextn_predict_layers=1,
)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_logits_are_those_of_transformers(changes: dict[str, Any]) -> None:
    network, theirs = pair(V3, **changes)
    ids = random_ids(97, 2, 41)  # YaRN's original length is 16
    expected = theirs(ids).logits
    assert_close(network(ids), expected, 1e-4, "without a cache")
    cache = PlainCache(2, 41, layers=3)
    first = network(ids[:, :23], cache.positions(23), cache)
    second = network(ids[:, 23:], cache.positions(18), cache)
    assert_close(torch.cat((first, second), dim=1), expected, 1e-4, "absorbed")


@pytest.mark.parametrize("absorb", [True, False])
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_whole_forward_pass(absorb: bool) -> None:
    network, _ = pair(V3)
    network.absorb = absorb
    assert network.absorb is absorb
    ids = random_ids(97, 3, 30, seed=1)
    cache = PlainCache(3, 30, layers=3)
    steps = [network(ids[:, :9], cache.positions(9), cache)]
    steps += [network(ids[:, t : t + 1], cache.positions(1), cache) for t in range(9, 30)]
    assert_close(torch.cat(steps, dim=1), network(ids), 1e-5)


@pytest.mark.parametrize("path", ["loop", "grouped", "gather"])
def test_gradients_are_those_of_transformers(path: Any) -> None:
    network, theirs = pair(V3)
    network.set_expert_path(path)
    ids = random_ids(97, 2, 33, seed=2)
    next_token_loss(network(ids), ids).backward()
    next_token_loss(theirs(ids).logits, ids).backward()
    expected = dict(theirs.named_parameters())
    assert len(expected) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert expected[name].grad.abs().max() > 0, name
        assert_close(parameter.grad, expected[name].grad, 1e-4, name)


@torch.no_grad()
def test_64_greedy_tokens_are_those_of_transformers() -> None:
    network, theirs = pair(V3, seed=3, max_position_embeddings=128)
    prompt = [5, 17, 60, 2, 2, 91]
    cache = PlainCache(1, 70, layers=3)
    logits, ids = network(torch.tensor([prompt]), cache.positions(6), cache), []
    while len(ids) < 64:
        ids.append(int(logits[0, -1].argmax()))
        logits = network(torch.tensor([ids[-1:]]), cache.positions(1), cache)

    def logits_of(ids_BT: torch.Tensor) -> torch.Tensor:
        return theirs(ids_BT).logits

    expected = greedy(logits_of, prompt, 64)
    assert len(set(expected)) > 3
    assert greedy_difference(ids, expected, prompt, logits_of) is None


def test_the_network_keeps_its_bias_in_float32_and_the_rest_in_bfloat16() -> None:
    network, theirs = pair(V3)
    before = theirs.model.layers[1].mlp.gate.e_score_correction_bias.clone()
    network.to(torch.bfloat16)
    after = network.model.layers[1].mlp.gate.e_score_correction_bias
    assert torch.equal(after, before)
    assert {tensor.dtype for tensor in network.parameters()} == {torch.bfloat16}
    logits = network(random_ids(97, 1, 5))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_every_tensor_of_a_checkpoint_has_its_place(tmp_path: Path) -> None:
    network, theirs = pair(V3)
    stored = FolderTensors(save_reference(theirs, tmp_path))
    state = network.state_dict()
    filled = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sources = list(network.parameter_sources())
    assert {source.checkpoint_name for source in sources} == set(stored.names())
    assert len({source.checkpoint_name for source in sources}) == len(sources)
    for source in sources:
        filled[source.parameter_name][source.part] += stored.read(source.checkpoint_name)
    for name, tensor in state.items():
        assert torch.equal(filled[name], tensor), name
    for name, tensor in network.checkpoint_tensors():
        assert torch.equal(tensor, stored.read(name)), name


@pytest.mark.parametrize("mtp", [False, True])
def test_names_and_shapes_are_those_that_the_checkpoints_room_expects(mtp: bool) -> None:
    _, theirs = pair(V3)
    config = config_of(theirs)
    network = DeepseekV3(config, mtp=mtp)
    found = {name: tuple(tensor.shape) for name, tensor in network.checkpoint_tensors()}
    expected = dict(checkpoint_tensors(config))
    if mtp:
        expected |= {n: shape for n, shape in mtp_tensors(config).items() if not is_mtp_copy(n)}
    assert found == expected


@torch.no_grad()
def test_a_folder_of_transformers_loads_and_ours_loads_there(tmp_path: Path) -> None:
    network, theirs = pair(V3)
    ids = random_ids(97, 2, 20)
    expected = theirs(ids).logits
    loaded = load(save_reference(theirs, tmp_path / "theirs"))
    assert torch.equal(loaded(ids), network(ids))
    save(loaded, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", experts_implementation="eager")
    assert_close(again(ids).logits, expected, 1e-5)


def test_the_671b_has_the_papers_parameter_counts() -> None:
    with torch.device("meta"):
        main, both = DeepseekV3(V3_671B), DeepseekV3(V3_671B, mtp=True)
    bias = 58 * 256
    assert main.num_parameters() + bias == 671_026_419_200
    idle = sum(p.numel() * 248 // 256 for n, p in main.named_parameters() if ".experts." in n)
    embedding = 129280 * 7168
    assert round((main.num_parameters() - idle - embedding) / 1e9) == 37
    counted = count_parameters(V3_671B)
    assert counted.total == main.num_parameters() + bias
    assert counted.active == main.num_parameters() + bias - idle - embedding
    # README_WEIGHTS of the release says 11.5B of the MTP module's own: one routed layer, eh_proj.
    layer = sum(tensor.numel() for tensor in main.model.layers[60].parameters())
    assert both.num_parameters() - main.num_parameters() == layer + 2 * 7168**2 + 3 * 7168
    assert round(layer / 1e9, 1) == 11.5


def test_a_config_without_mtp_has_no_mtp_module() -> None:
    config = V3_671B.model_copy(update={"num_nextn_predict_layers": 0})
    with torch.device("meta"), pytest.raises(ModelError, match="num_nextn_predict_layers is 0"):
        DeepseekV3(config, mtp=True)


def test_what_is_printed_of_a_network_says_how_it_routes() -> None:
    network, theirs = pair(V3)
    assert "45 -> 3 of 12, sigmoid, noaux_tc" in str(network)
    assert network.config == config_of(theirs)
