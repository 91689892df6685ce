"""The dense decoder against transformers: Llama, Qwen2 and Qwen3 with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference import (
    assert_close,
    greedy,
    greedy_difference,
    next_token_loss,
    ours,
    random_ids,
    random_reference,
    relative_error,
    same_greedy,
)
from transformers import PreTrainedModel

from forethought.models.cache import PlainCache
from forethought.models.causal_lm import CausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
COMMON = {"vocab_size": 97, "max_position_embeddings": 256, "rms_norm_eps": 1e-5}
CASES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "llama3-tied": {
        "model_type": "llama",
        "hidden_size": 30,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
    },
    "llama-biases": {
        "model_type": "llama",
        "hidden_size": 30,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 14,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "qwen2-tied": {
        "model_type": "qwen2",
        "hidden_size": 50,
        "intermediate_size": 68,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen2-yarn": {
        "model_type": "qwen2",
        "hidden_size": 36,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "tie_word_embeddings": False,
        "rope_parameters": YARN,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen3-tied": {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 22,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CausalLM, PreTrainedModel]:
    """Our network and transformers' with the same weights."""
    reference = random_reference({**COMMON, **CASES[request.param]}, seed=7)
    return ours(reference, tmp_path_factory.mktemp("folder")), reference


def decode(network: CausalLM, ids: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """Logits of `ids`, through a cache, `chunks` tokens at a time."""
    cache = PlainCache(ids.shape[0], ids.shape[1], network.config.num_hidden_layers)
    parts = [
        network(part, cache.positions(part.shape[1]), cache) for part in ids.split(chunks, dim=1)
    ]
    assert cache.length == ids.shape[1]
    return torch.cat(parts, dim=1)


def test_logits_are_those_of_transformers(pair: tuple[CausalLM, PreTrainedModel]) -> None:
    network, reference = pair
    ids = random_ids(97, 3, 70)
    with torch.no_grad():
        assert_close(network(ids), reference(ids).logits, 1e-4)


def test_shifted_positions_are_those_of_transformers(
    pair: tuple[CausalLM, PreTrainedModel],
) -> None:
    network, reference = pair
    ids = random_ids(97, 2, 12)
    # Each row its own positions, with a gap, all beyond the original length of the scaled ones.
    positions = torch.stack((torch.arange(90, 102), torch.arange(30, 54, 2)))
    with torch.no_grad():
        theirs = reference(ids, position_ids=positions).logits
        assert_close(network(ids, positions), theirs, 1e-4)


@pytest.mark.parametrize("chunks", [[1] * 33, [9, 1, 16, 7]], ids=["one by one", "in chunks"])
def test_cached_decode_equals_the_whole_forward(
    pair: tuple[CausalLM, PreTrainedModel], chunks: list[int]
) -> None:
    network, _ = pair
    ids = random_ids(97, 2, 33)
    with torch.no_grad():
        assert_close(decode(network, ids, chunks), network(ids), 1e-5)


def test_gradients_are_those_of_transformers(pair: tuple[CausalLM, PreTrainedModel]) -> None:
    network, reference = pair
    ids = random_ids(97, 2, 40)
    losses = next_token_loss(network(ids), ids), next_token_loss(reference(ids).logits, ids)
    assert_close(*losses, 1e-5)
    for loss, model in zip(losses, pair, strict=True):
        model.zero_grad()
        loss.backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert set(found) == set(theirs)
    for name, gradient in found.items():
        assert float(theirs[name].abs().max()) > 0, name
        assert_close(gradient, theirs[name], 1e-4, name)


def cached_greedy(network: CausalLM, prompt: list[int], new: int) -> list[int]:
    cache = PlainCache(1, len(prompt) + new, network.config.num_hidden_layers)
    found: list[int] = []
    ids = torch.tensor([prompt])
    with torch.no_grad():
        while len(found) < new:
            logits = network(ids, cache.positions(ids.shape[1]), cache)
            found.append(int(logits[0, -1].argmax()))
            ids = torch.tensor([[found[-1]]])
    return found


def test_greedy_tokens_are_those_of_transformers(pair: tuple[CausalLM, PreTrainedModel]) -> None:
    network, reference = pair

    def their_logits(ids: torch.Tensor) -> torch.Tensor:
        return reference(ids).logits

    seen: set[int] = set()
    for prompt in ([5, 81, 13], [1, 2, 3, 4, 5], [90]):
        found = cached_greedy(network, prompt, 64)
        expected = greedy(their_logits, prompt, 64)
        assert greedy_difference(found, expected, prompt, their_logits) is None
        seen.update(found)
    # A network that says one token for ever would prove little.
    assert len(seen) > 6


def test_a_first_difference_is_allowed_at_a_tie_alone() -> None:
    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(1, ids.shape[1], 5)
        rows[0, -1] = torch.tensor([1.0, 0.99995, 0.5, 0.0, 0.0])
        return rows

    assert same_greedy([0, 0], [0, 0], [3], logits_of)
    assert same_greedy([0, 1, 4], [0, 0, 2], [3], logits_of)
    assert not same_greedy([0, 2], [0, 0], [3], logits_of)
    assert not same_greedy([0, 1], [0, 0], [3], logits_of, tie=1e-6)
    assert "1 tokens against 2" in str(greedy_difference([0], [0, 0], [3], logits_of))


def test_bfloat16_is_as_good_as_that_of_transformers(tmp_path: Path) -> None:
    config = {**COMMON, **CASES["qwen3"]}
    exact = random_reference(config, seed=3)
    ids = random_ids(97, 2, 40)
    rounded = random_reference(config, seed=3, dtype=torch.bfloat16)
    network = ours(rounded, tmp_path)
    assert network.dtype == torch.bfloat16
    with torch.no_grad():
        expected = exact(ids).logits
        logits = network(ids)
        assert logits.dtype == torch.bfloat16
        error, theirs = (relative_error(x, expected) for x in (logits, rounded(ids).logits))
    assert 0 < error < 1.5 * theirs + 1e-3


def test_norms_round_as_those_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from forethought.models.layers import RMSNorm

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(33, generator=generator)
    x = torch.randn(5, 33, generator=generator) * 3
    for dtype in (torch.bfloat16, torch.float16):
        norm, theirs = RMSNorm(33, 1e-5), LlamaRMSNorm(33, 1e-5)
        for module in (norm, theirs):
            module.weight.data = weight.to(dtype)
        assert torch.equal(norm(x.to(dtype)), theirs(x.to(dtype)))
    norm.weight.data = weight.double()
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(norm(x.double()), exact, rtol=1e-12, atol=0)


def test_what_a_network_says_of_itself(pair: tuple[CausalLM, PreTrainedModel]) -> None:
    network, reference = pair
    assert network.num_parameters() == reference.num_parameters()
    assert network.device == torch.device("cpu")
    assert network.dtype == torch.float32
    ids = random_ids(97, 1, 5)
    with torch.no_grad():
        hidden = network.hidden(ids)
        assert hidden.shape == (1, 5, network.config.hidden_size)
        assert_close(network.logits(hidden[:, -1]), network(ids)[:, -1], 1e-6)
    with pytest.raises(ValueError, match="positions"):
        network(ids, cache=PlainCache(1, 8, network.config.num_hidden_layers))
