"""``forethought models show`` of folders, and ``--params``: numbers without torch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli, sentence
from .test_startup import HEAVY, loaded

PARAMS = ("--params", "--json")


def test_the_numbers_are_those_of_the_network(cli: Cli, made: dict[str, tuple[Path, Any]]) -> None:
    for name, (folder, network) in made.items():
        done = cli("models", "show", str(folder), *PARAMS)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["architecture"] == name
        count = facts["parameters"]
        buffers = sum(
            tensor.numel() for key, tensor in network.named_buffers() if "correction_bias" in key
        )
        assert count["total"] == buffers + sum(p.numel() for p in network.parameters())
        assert count["embedding"] == count["head"] == 330 * 96
        assert count["active"] < count["total"]
        assert facts["shape"]["layers"] == network.config.num_hidden_layers
        assert facts["shape"]["width"] == 96
        assert facts["load_bytes"]["float32"] == 4 * count["total"]
        assert set(facts["gguf_bytes"]) == {"f32", "f16", "bf16", "q8_0", "q4_0", "q5_0"}
    shape = facts["shape"]
    assert (shape["experts"], shape["experts_per_token"], shape["shared_experts"]) == (12, 3, 2)
    latent = 3 * (32 + 8)
    assert facts["cache_bytes_per_token"] == {"bfloat16": 2 * latent, "float32": 4 * latent}


def test_a_file_says_the_same_as_its_folder(cli: Cli, qwen3: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    assert cli("models", "export", str(qwen3), str(file), "--quantize", "q8_0").returncode == 0
    first, second = (
        json.loads(cli("models", "show", str(path), *PARAMS).stdout) for path in (qwen3, file)
    )
    for key in ("shape", "parameters", "cache_bytes_per_token", "load_bytes", "gguf_bytes"):
        assert first[key] == second[key], key
    size, estimate = file.stat().st_size, first["gguf_bytes"]["q8_0"]
    assert estimate < size < estimate + 50_000  # beside the tensors: header and vocabulary


def test_the_text_is_for_people(cli: Cli, deepseek: Path) -> None:
    text = cli("models", "show", str(deepseek), "--params").stdout.decode()
    assert re.search(r"^parameters +787,752, 424,296 active per token$", text, re.MULTILINE)
    assert re.search(r"^cache a token, float32 +480 bytes$", text, re.MULTILINE)
    assert re.search(r"^memory to load, bfloat16 +1\.6 MB$", text, re.MULTILINE)
    assert re.search(r"^GGUF, q4_0 +\d+ kB$", text, re.MULTILINE)


DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "moe_layer_freq": 1, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "hidden_act": "silu", "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False,
    "attention_bias": False, "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def test_a_config_alone_is_enough(cli: Cli, tmp_path: Path) -> None:
    """DeepSeek-V3 itself: 671B in all, 37B active (arXiv:2412.19437), and its MTP module."""
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    facts = json.loads(cli("models", "show", str(tmp_path), *PARAMS).stdout)
    count = facts["parameters"]
    assert round(count["total"] / 1e9) == 671
    assert round(count["active"] / 1e9) == 37
    assert count["mtp"] > 1e10
    assert facts["cache_bytes_per_token"]["bfloat16"] == 61 * (512 + 64) * 2
    text = cli("models", "show", str(tmp_path)).stdout.decode()
    assert "neither model.safetensors nor" in text


def test_what_has_no_gguf_says_why(cli: Cli, tmp_path: Path) -> None:
    config = DEEPSEEK_V3 | {"rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = json.loads(cli("models", "show", str(tmp_path), *PARAMS).stdout)
    assert facts["gguf_bytes"] is None
    assert "llama.cpp cannot compute a deepseek_v3 with rms_norm_eps" in facts["gguf_problem"]
    text = cli("models", "show", str(tmp_path), "--params").stdout.decode()
    assert facts["gguf_problem"] in text


def test_a_folder_is_shown(cli: Cli, qwen3: Path) -> None:
    row = json.loads(cli("models", "show", str(qwen3), "--ctx", "100", "--json").stdout)
    assert row["installed"]
    assert row["path"] == str(qwen3)
    assert row["size_bytes"] == sum(item.stat().st_size for item in qwen3.iterdir())
    assert (row["architecture"], row["layers"], row["quant"]) == ("qwen3", 2, "float32")
    assert row["memory"]["cache"] == 100 * 2 * 2 * 2 * 20 * 4
    assert row["memory_bytes"] == sum(row["memory"].values())
    text = cli("models", "show", str(qwen3)).stdout.decode()
    assert "as float32 at a context of" in text
    assert "problem" not in text


def test_a_bad_folder_or_file_is_one_sentence(
    cli: Cli, damaged: Path, scripted_path: Path, tmp_path: Path
) -> None:
    (damaged / "config.json").write_text('{"model_type": "mamba"}')
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(scripted_path.read_bytes()[:200])
    for name in (str(damaged), str(cut)):
        for more in ([], ["--params"]):
            done = cli("models", "show", name, *more)
            assert done.returncode == 1
            assert Path(name).name in sentence(done)
    done = cli("models", "show", str(scripted_path), "--params", "--ctx", "5")
    assert done.returncode == 2
    assert "--ctx" in sentence(done)


@pytest.mark.parametrize("more", [[], ["--params"], ["--params", "--json"]])
def test_no_torch_is_loaded(
    more: list[str], home: Path, qwen3: Path, scripted_path: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(qwen3, tmp_path / "folder")
    for path in (folder, scripted_path):
        code, names = loaded(["models", "show", str(path), *more], home)
        assert code == 0
        unwanted = {*HEAVY, "gguf", "safetensors", "xllamacpp", "rich"}
        assert names.isdisjoint(unwanted), names & unwanted


def test_nothing_of_the_extra_is_needed(cli: Cli, deepseek: Path, no_extra: dict[str, str]) -> None:
    done = cli("models", "show", str(deepseek), *PARAMS, **no_extra)
    assert done.returncode == 0, done.stderr
