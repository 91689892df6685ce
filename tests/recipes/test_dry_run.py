"""The facts of a recipe before it runs: sizes against the networks themselves, times against none.

Times are only held to what must be true on any machine.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from forethought.checkpoints.network_config import NetworkConfig
from forethought.checkpoints.network_tensors import count_parameters
from forethought.models.costs import CostModel
from forethought.models.loading import build
from forethought.recipes.dry_run import DryRun, activation_values, dry_run, odd_rows
from forethought.recipes.measure import PROMPT_TOKENS
from forethought.recipes.reading import read_recipe
from forethought.training.batches import PackedBatch, TokenSequence
from recipes.recipe_text import GOOD, changed

DENSE = """\
[model]
model_type = "qwen3"
hidden_size = 64
intermediate_size = 160
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 512

"""
DENSE_RECIPE = GOOD[: GOOD.index("[model]")] + DENSE + GOOD[GOOD.index("[tokenizer]") :]


def facts(folder: Path, text: str) -> DryRun:
    (folder / "r.toml").write_text(text)
    return dry_run(read_recipe(str(folder / "r.toml")))


def network(folder: Path, text: str) -> NetworkConfig:
    (folder / "r.toml").write_text(text)
    model = read_recipe(str(folder / "r.toml")).recipe.model
    assert model is not None
    return model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    before = torch.get_num_threads()
    found = facts(tmp_path_factory.mktemp("dry"), GOOD)
    assert torch.get_num_threads() == before  # the recipe's are for its own time
    return found


def test_sizes_are_those_of_the_network(tiny: DryRun, tmp_path: Path) -> None:
    model = network(tmp_path, GOOD)
    made = build(model, mtp=True)
    assert tiny.parameters == count_parameters(model).total
    numbers = made.num_parameters()
    # The gate's bias is a buffer of its own, four experts of the one routed layer and of the MTP's.
    assert numbers <= tiny.parameters + tiny.mtp <= numbers + 8
    assert tiny.memory.weights == tiny.memory.gradients == 4 * (tiny.parameters + tiny.mtp)
    assert tiny.memory.optimizer == 2 * tiny.memory.weights
    assert tiny.cache_bytes_per_token == 2 * (32 + 16) * 4
    assert tiny.memory.cache == 16 * (PROMPT_TOKENS + 32) * tiny.cache_bytes_per_token
    parts = [getattr(tiny.memory, one.name) for one in fields(tiny.memory)]
    assert tiny.memory.total == sum(parts)
    assert set(tiny.gguf) == {"f32", "f16", "bf16", "q8_0", "q4_0", "q5_0"}
    assert tiny.gguf["f32"] > tiny.gguf["f16"] > tiny.gguf["q8_0"] > tiny.gguf["q4_0"]


def test_lanes_each_have_gradients_and_passes_of_their_own(tiny: DryRun, tmp_path: Path) -> None:
    two = facts(tmp_path, GOOD.replace("threads = 1\n", "threads = 1\nlanes = 2\n", 1))
    assert two.memory.gradients == 2 * tiny.memory.gradients
    assert tiny.memory.activations < two.memory.activations <= 2 * tiny.memory.activations
    assert two.memory.weights == tiny.memory.weights
    assert all(stage.seconds is not None and stage.seconds > 0 for stage in two.stages)


def test_tokens_and_times_of_each_stage(tiny: DryRun) -> None:
    pretrain, rl = tiny.stages
    assert (pretrain.trained, pretrain.sampled) == (512, 0)
    assert (rl.trained, rl.sampled) == (4 * 4 * (PROMPT_TOKENS + 32) // 2, 4 * 4 * 32 // 2)
    for stage in tiny.stages:
        assert stage.step_seconds is not None
        assert stage.seconds is not None
        assert 0 < stage.step_seconds * stage.steps < stage.seconds
    assert tiny.seconds == sum(stage.seconds or 0 for stage in tiny.stages)
    assert not tiny.not_measured


def test_flops_of_a_step_are_those_of_its_texts_and_samples(tiny: DryRun, tmp_path: Path) -> None:
    costs = CostModel(network(tmp_path, GOOD))
    pretrain, rl = tiny.stages
    # Documents of 64 tokens; the recipe's network has its MTP module.
    assert pretrain.flops == costs.training([64] * 8, 512, 512).flops
    # A step has half of a rollout of 16 samples, four of each problem.
    texts, loss = [PROMPT_TOKENS + 32] * 8, 8 * 32
    trained = costs.training(texts, loss).flops
    drawn = 8 * sum(costs.decode(1, PROMPT_TOKENS + at).flops for at in range(1, 33))
    prompts = 2 * costs.prefill([PROMPT_TOKENS], 1).flops
    assert rl.flops == pytest.approx(trained + drawn + prompts, rel=1e-9)
    reference = facts(tmp_path, changed("group_size = 4", 'group_size = 4\nloss.preset = "grpo"'))
    assert reference.stages[1].flops - rl.flops == pytest.approx(trained / 3, rel=1e-9)
    assert f", {rl.flops / 1e6:.3g} MFLOP: " in tiny.as_text()


def test_the_facts_are_a_table_and_json(tiny: DryRun) -> None:
    value = json.loads(json.dumps(tiny.as_json(), allow_nan=False))
    assert value["memory"]["total"] == tiny.memory.total
    assert value["stages"][1]["kind"] == "rl"
    assert value["seconds"] == tiny.seconds
    text = tiny.as_text()
    assert f"{tiny.parameters:,}" in text
    assert "2 rl" in text
    assert "GGUF, q8_0" in text


@pytest.mark.parametrize("text", [GOOD, DENSE_RECIPE], ids=["deepseek_v3", "qwen3"])
def test_the_estimate_of_activations_is_near_what_is_kept(text: str, tmp_path: Path) -> None:
    model = network(tmp_path, text)
    made = build(model)
    texts = [TokenSequence(tuple(range(1, 65))) for _ in range(8)]
    batch = PackedBatch(texts)
    weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = made.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
        real = sum(kept.values()) / batch.tokens / 4
    assert hidden.requires_grad
    assert 0.6 < activation_values(model) / real < 1.7, (activation_values(model), real)


def test_a_reference_takes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forethought.recipes.dry_run.available_memory", lambda: 0)
    assert facts(tmp_path, GOOD).memory.reference == 0
    found = facts(tmp_path, changed("group_size = 4", 'group_size = 4\nloss.preset = "grpo"'))
    assert found.memory.reference == found.memory.weights


def test_what_llama_cpp_cannot_compute_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forethought.recipes.dry_run.available_memory", lambda: 0)
    found = facts(tmp_path, changed("q_lora_rank = 32\n", ""))
    assert found.gguf == {}
    assert "q_lora_rank null" in found.gguf_problem
    assert found.gguf_problem in found.as_text()


def test_rows_that_no_block_fits_are_named(tmp_path: Path) -> None:
    assert odd_rows(network(tmp_path, GOOD)) == ()
    odd = odd_rows(network(tmp_path, changed("qk_nope_head_dim = 32", "qk_nope_head_dim = 16")))
    assert odd == tuple(f"model.layers.{n}.self_attn.kv_b_proj.weight" for n in range(2))
    wide = network(tmp_path, DENSE_RECIPE.replace("= 160", "= 150"))
    assert odd_rows(wide) == tuple(f"model.layers.{n}.mlp.down_proj.weight" for n in range(3))


def test_a_run_that_does_not_fit_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forethought.recipes.dry_run.available_memory", lambda: 1 << 20)
    found = facts(tmp_path, GOOD)
    assert found.seconds is None
    assert "more memory than is free" in found.as_text()
