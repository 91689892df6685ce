"""A folder exported as GGUF computes in llama.cpp what it computes in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import tiny_checkpoints as tiny
from safetensors.torch import load_file

import llama_cpp_greedy
from forethought.checkpoints.export import export_gguf
from forethought.checkpoints.gguf_weights import GGUFWeights
from forethought.checkpoints.network_tensors import GGUFQuantization
from forethought.errors import ForethoughtError, UserError

LONG = [2 + (7 * i + i * i) % 290 for i in range(100)]  # beyond the original length of 64


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.mark.parametrize("name", tiny.MODELS)
def test_same_greedy_tokens(name: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "model", tmp_path / "model.gguf"
    model = tiny.make(name, folder)
    export_gguf(folder, target, "f32")
    with llama_cpp_greedy.opened(target) as llama:
        # 27 layers of experts are slow in transformers.
        count = 64 if model.config.num_hidden_layers < 9 else 12
        for prompt in (LONG, [5]):
            theirs = llama.tokens(prompt, count)
            assert len(set(theirs)) > 5, "a model that repeats itself proves little"
            assert tiny.first_difference_is_a_tie(model, prompt, theirs, count)
    weights = GGUFWeights(target)
    saved = load_file(folder / "model.safetensors")
    assert set(weights.names()) == set(saved) - {
        "lm_head.weight" if weights.config.tie_word_embeddings else ""
    }
    for key in weights.names():
        read = weights.read(key)
        assert weights.shape(key) == tuple(read.shape) == tuple(saved[key].shape)
        if name != "deepseek_v3-halves":  # read back in pairs
            assert read.dtype == saved[key].dtype
            assert bool((read == saved[key]).all()), key
    weights.close()


@pytest.mark.parametrize("name", ["llama-biases", "deepseek_v3"])
def test_llama_cpp_loads_every_quantisation(name: str, tmp_path: Path) -> None:
    tiny.make(name, tmp_path / "model")
    answers = {}
    for quantize in get_args(GGUFQuantization):
        target = tmp_path / f"{quantize}.gguf"
        export_gguf(tmp_path / "model", target, quantize)
        with llama_cpp_greedy.opened(target) as llama:
            answers[quantize] = llama.tokens([5, 9, 7], 8)
    assert answers["f32"][0] == answers["f16"][0] == answers["q8_0"][0]
    assert all(len(tokens) == 8 for tokens in answers.values())


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "query not factored": ("deepseek_v3", {"q_lora_rank": None}, "q_lora_rank null and 3 layers"),
    "depth of a lite": ("deepseek_v3", {"num_hidden_layers": 27}, "q_lora_rank 48 and 27 layers"),
    "biases of qwen3": ("qwen3", {"attention_bias": True}, "attention_bias true"),
    "biases of mla": ("deepseek_v3", {"attention_bias": True}, "attention_bias true"),
    "groups by their best": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        "topk_method group_limited_greedy",
    ),
    "softmax not scaled": (
        "deepseek_v3",
        {"rope_parameters": {**tiny._YARN, "mscale_all_dim": 0.0, "mscale": 1.0}},
        "rope_scaling.mscale 1.0",
    ),
    "another epsilon": ("deepseek_v3", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_where_llama_cpp_differs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes, sentence = REFUSED[case]
    tiny.make(name, tmp_path / "model", **changes)
    with pytest.raises(UserError, match=sentence):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("case", ["query not factored", "depth of a lite", "biases of qwen3"])
def test_the_refusal_is_still_needed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a new llama.cpp loads one of these, this fails: allow it then."""
    name, changes, _ = REFUSED[case]
    tiny.make(name, tmp_path / "model", **changes)
    monkeypatch.setattr(
        "forethought.checkpoints.gguf_config.refuse_unexportable", lambda config: None
    )
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    with (
        pytest.raises((RuntimeError, ForethoughtError)),
        llama_cpp_greedy.opened(tmp_path / "model.gguf"),
    ):
        pass
