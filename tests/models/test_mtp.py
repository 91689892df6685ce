"""The MTP module against transformers' own, its names in a checkpoint, and its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepseek_reference import V3, config_of, constructed
from reference import assert_close, random_ids, random_reference, randomise
from safetensors.torch import save_file
from transformers.modeling_layers import MtpModel

from forethought.models.cache import PlainCache
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.loading import load


def mtp_pair() -> tuple[DeepseekV3, Any, Any]:
    """(our network, transformers' model, transformers' MTP model) of the same weights."""
    theirs = random_reference(V3, seed=5)
    theirs.set_experts_implementation("eager")
    their_mtp = MtpModel(theirs, 1).eval()
    randomise(their_mtp.layers, seed=6)
    network = DeepseekV3(config_of(theirs), mtp=True).eval()
    state = dict(theirs.state_dict())
    for name, tensor in their_mtp.layers[0].state_dict().items():
        name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        state[f"mtp.{name}"] = tensor
    network.load_state_dict(state)
    return network, theirs, their_mtp


@torch.no_grad()
def test_the_module_is_that_of_transformers() -> None:
    network, theirs, their_mtp = mtp_pair()
    if not hasattr(their_mtp, "forward_layer"):
        pytest.skip("an older transformers, whose module is called otherwise")
    ids = random_ids(97, 1, 31)
    positions = torch.arange(30)[None]
    # What transformers hands its MTP module: `hidden_states[-1]`, after the last norm.
    their_hidden = theirs(ids[:, :-1], output_hidden_states=True).hidden_states[-1]
    hidden = network.hidden(ids[:, :-1])
    assert_close(hidden, their_hidden, 1e-4)
    # It numbers the tokens from 1; attention sees differences of positions alone.
    expected = their_mtp.forward_layer(0, their_hidden, positions + 1, None, input_ids=ids[:, 1:])
    assert_close(network.mtp_hidden(ids[:, 1:], hidden), expected, 1e-4)
    assert_close(network.mtp_logits(ids[:, 1:], hidden), theirs.lm_head(expected), 1e-4)


@torch.no_grad()
def test_embedding_and_hidden_state_are_joined_in_this_order() -> None:
    network = constructed(config_of(random_reference(V3)), mtp=True)
    assert network.mtp is not None
    network.mtp.eh_proj.weight.zero_()
    network.mtp.eh_proj.weight[:, :45] = torch.eye(45)
    embedded, hidden = torch.randn(1, 4, 45), torch.randn(1, 4, 45)
    expected = network.mtp.enorm(embedded)
    torch.testing.assert_close(network.mtp.combine(embedded, hidden), expected)


@pytest.mark.parametrize("absorb", [True, False])
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_whole_pass(absorb: bool) -> None:
    network = constructed(config_of(random_reference(V3)), mtp=True)
    network.absorb = absorb
    ids = random_ids(97, 2, 21)
    expected = network.mtp_logits(ids[:, 1:], network.hidden(ids[:, :-1]))
    cache = PlainCache(2, 20, layers=4)
    parts = []
    for first, last in ((0, 12), (12, 13), (13, 20)):
        positions = torch.arange(first, last).expand(2, -1)
        hidden = network.hidden(ids[:, first:last], positions, cache)
        following = ids[:, first + 1 : last + 1]
        parts.append(network.mtp_logits(following, hidden, positions, cache))
        assert cache.stored(3) == cache.length == last
    assert_close(torch.cat(parts, dim=1), expected, 1e-5)


def test_in_a_checkpoint_the_module_is_the_layer_after_the_last(tmp_path: Path) -> None:
    network, theirs, their_mtp = mtp_pair()
    names = {name: tensor.clone() for name, tensor in network.checkpoint_tensors()}
    last = {name.removeprefix("model.layers.3.") for name in names if ".layers.3." in name}
    own = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
    assert own <= last
    assert {"self_attn.kv_b_proj.weight", "mlp.experts.11.up_proj.weight"} <= last
    assert not any("mtp" in name for name in names)
    # transformers finds the module under these names.
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_file(names, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = type(theirs).from_pretrained(tmp_path, dtype=torch.float32)
    again._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3.*"]
    loaded = MtpModel.from_pretrained(again)
    assert torch.equal(
        load(tmp_path, mtp=True).mtp.eh_proj.weight,  # type: ignore[union-attr]
        their_mtp.layers[0].eh_proj.weight,
    )
    assert load(tmp_path).mtp is None
    for name, tensor in their_mtp.layers.state_dict().items():
        assert torch.equal(loaded.layers.state_dict()[name], tensor), name


def test_a_network_made_without_the_module_says_so() -> None:
    network = constructed(config_of(random_reference(V3)))
    with pytest.raises(ValueError, match="without its MTP module"):
        network.mtp_logits(random_ids(97, 1, 3), torch.zeros(1, 3, 45))
