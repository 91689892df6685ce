"""Saved folders: transformers opens them to the same logits; half a folder never looks whole."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from forethought.checkpoints.folder import JSON, open_folder
from forethought.checkpoints.fp8 import quantize_blocks
from forethought.checkpoints.hf_config import parse_config, read_config, to_hf
from forethought.checkpoints.network_config import NetworkConfig
from forethought.checkpoints.network_tensors import checkpoint_tensors, mtp_tensors
from forethought.checkpoints.safetensors_weights import SafetensorsWeights, check_tensors
from forethought.checkpoints.save_folder import save_folder
from forethought.errors import ModelError, UserError

SIZES: dict[str, JSON] = {
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
YARN: JSON = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.707,
    "mscale_all_dim": 0.9,
}
V3: dict[str, JSON] = {
    **SIZES,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 6,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 5,
    "moe_intermediate_size": 8,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 2.0,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "rope_scaling": YARN,
}
MODELS: dict[str, dict[str, JSON]] = {
    "llama": {
        **SIZES,
        "model_type": "llama",
        "attention_bias": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2 tied": {**SIZES, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**SIZES, "model_type": "qwen3", "head_dim": 16},
    "deepseek_v3": V3,
    "deepseek_v2": {
        **V3,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "norm_topk_prob": False,
        "topk_method": "group_limited_greedy",
    },
}
LLAMA = MODELS["llama"]


def random_tensors(config: NetworkConfig) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, shape in checkpoint_tensors(config).items():
        yield name, torch.randn(shape, generator=generator)


def logits(folder: Path) -> torch.Tensor:
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    ids = torch.arange(60).reshape(2, 30) % 40
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_logits(name: str, shard_bytes: int, tmp_path: Path) -> None:
    """transformers' own random network, saved by it, read and saved by us, opened by it."""
    import transformers

    first, second = tmp_path / "first", tmp_path / "second"
    config = parse_config(MODELS[name], "x")
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    torch.manual_seed(1)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, num_nextn_predict_layers=0)
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith(("bias", "norm.weight")):
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(first)
    assert read_config(first) == config
    weights = SafetensorsWeights(first, config)
    check_tensors(weights, config)
    stream = ((key, weights.read(key)) for key in weights.names())
    save_folder(second, config, stream, shard_bytes=shard_bytes)
    assert read_config(second) == config
    assert (open_folder(second).index is None) == (shard_bytes > 10**9)
    assert torch.equal(logits(second), logits(first))
    generation = transformers.GenerationConfig.from_pretrained(second)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)


def test_shards_and_index(tmp_path: Path) -> None:
    config = parse_config(LLAMA, "x")
    save_folder(tmp_path / "m", config, random_tensors(config), shard_bytes=20_000)
    folder = open_folder(tmp_path / "m")
    count = len(folder.weights)
    assert count > 3
    assert [path.name for path in folder.weights] == [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    tensors = dict(random_tensors(config))
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for path in folder.weights:
        assert path.stat().st_size < 20_000 + 4_000
    weights = SafetensorsWeights(tmp_path / "m", config)
    for name, tensor in tensors.items():
        assert torch.equal(weights.read(name), tensor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    config = parse_config(MODELS["qwen2 tied"], "x")
    tensors = dict(random_tensors(config))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_folder(tmp_path / "m", config, tensors.items())
    assert "lm_head.weight" not in SafetensorsWeights(tmp_path / "m", config)


def test_views_and_other_dtypes(tmp_path: Path) -> None:
    """Parts of fused tensors are written alone; the config says what dtype the weights have."""
    config = parse_config(LLAMA, "x")
    fused = torch.randn(112, 48, dtype=torch.bfloat16)
    parts = {"gate_proj": fused[:56], "up_proj": fused[56:], "down_proj": fused[56:].T}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in random_tensors(config):
            part = name.split(".")[-2]
            yield name, parts[part] if part in parts else tensor.bfloat16().requires_grad_()

    save_folder(tmp_path / "m", config, tensors())
    read = read_config(tmp_path / "m")
    assert read == config.model_copy(update={"dtype": "bfloat16"})
    weights = SafetensorsWeights(tmp_path / "m", read)
    down = weights.read("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(down, fused[56:].T)
    up = weights.read("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(up, fused[56:])


def test_fp8_goes_with_its_scales(tmp_path: Path) -> None:
    block: JSON = {"quant_method": "fp8", "weight_block_size": [4, 4], "fmt": "e4m3"}
    config = parse_config({**V3, "quantization_config": block, "torch_dtype": "bfloat16"}, "x")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"

    def tensors(*, scales: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for key, tensor in random_tensors(config):
            if key != name:
                yield key, tensor
                continue
            values, scale = quantize_blocks(tensor, (4, 4))
            yield key, values
            if scales:
                yield key + "_scale_inv", scale

    save_folder(tmp_path / "m", config, tensors(scales=True))
    assert read_config(tmp_path / "m") == config
    assert SafetensorsWeights(tmp_path / "m", config).quantized(name)
    with pytest.raises(ModelError, match="FP8"):
        save_folder(tmp_path / "n", config, tensors(scales=False))
    # Multiplied out, the folder says nothing of blocks any more.
    save_folder(tmp_path / "plain", config, random_tensors(config))
    assert read_config(tmp_path / "plain").quantization is None


def test_mtp_modules_are_saved_or_not_announced(tmp_path: Path) -> None:
    config = parse_config({**V3, "num_nextn_predict_layers": 1}, "x")
    with_mtp = {name: torch.ones(shape) for name, shape in mtp_tensors(config).items()}
    save_folder(tmp_path / "with", config, [*random_tensors(config), *with_mtp.items()])
    assert read_config(tmp_path / "with") == config
    save_folder(tmp_path / "without", config, random_tensors(config))
    saved = json.loads((tmp_path / "without" / "config.json").read_text())
    assert saved["num_nextn_predict_layers"] == 0
    with_mtp.pop("model.layers.2.enorm.weight")
    with pytest.raises(ModelError, match="enorm"):
        save_folder(tmp_path / "half", config, [*random_tensors(config), *with_mtp.items()])


def test_companions(tmp_path: Path) -> None:
    config = parse_config(LLAMA, "x")
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").write_text('{"a": 1}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 3], "top_p": 0.95}')
    (source / "modeling_mine.py").write_text("")
    (source / "pytorch_model.bin").write_text("")
    save_folder(tmp_path / "a", config, random_tensors(config), source=source)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "generation_config.json"),
    }
    assert read_config(tmp_path / "a").eos_token_ids == (2, 3)
    save_folder(
        tmp_path / "b",
        config,
        random_tensors(config),
        source=source,
        generation_config={"temperature": 0.6},
        tokenizer_files={"tokenizer.json": b'{"b": 2}'},
    )
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == b'{"b": 2}'
    assert (tmp_path / "b" / "tokenizer_config.json").read_text() == '{"a": 1}'
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == {
        "temperature": 0.6
    }
    with pytest.raises(ValueError, match="evil"):
        save_folder(tmp_path / "c", config, [], tokenizer_files={"../evil": b""})


def test_wrong_tensors_leave_nothing(tmp_path: Path) -> None:
    config = parse_config(LLAMA, "x")
    good = dict(random_tensors(config))
    up = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "was not given": [item for item in good.items() if item[0] != up],
        "must be": [*((k, t) for k, t in good.items() if k != up), (up, torch.ones(48, 56))],
        "no part": [*good.items(), ("score.weight", torch.ones(2))],
        "twice": [*good.items(), (up, good[up])],
        "int32": [(up, good[up].int())],
    }
    for needle, tensors in cases.items():
        with pytest.raises(ModelError, match=needle) as caught:
            save_folder(tmp_path / "m", config, tensors, shard_bytes=10_000)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(good.items())[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path / "m", config, interrupted(), shard_bytes=10_000)
    assert list(tmp_path.iterdir()) == []


def test_targets(tmp_path: Path) -> None:
    config = parse_config(LLAMA, "x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        save_folder(full, config, random_tensors(config))
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        save_folder(full / "notes.txt", config, random_tensors(config))
    empty = tmp_path / "empty"
    empty.mkdir()
    save_folder(empty, config, random_tensors(config))
    assert read_config(empty) == config
    deep = tmp_path / "new" / "deep"
    save_folder(deep, config, random_tensors(config))
    assert read_config(deep) == config
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(deep.stat().st_mode) == 0o777 & ~umask
    with pytest.raises(ModelError, match="cannot be written"):
        save_folder(full / "notes.txt" / "m", config, random_tensors(config))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_no_room_for_the_weights_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of a file stands for a full disk: safetensors' own error comes of it."""
    code = f"""
import json, resource
from pathlib import Path
import torch
from forethought.checkpoints.hf_config import parse_config
from forethought.checkpoints.network_tensors import checkpoint_tensors
from forethought.checkpoints.save_folder import save_folder
from forethought.errors import ModelError
config = parse_config(json.loads({json.dumps(json.dumps(LLAMA))}), "x")
tensors = [(name, torch.ones(shape)) for name, shape in checkpoint_tensors(config).items()]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    save_folder(Path({str(tmp_path / "m")!r}), config, tensors)
except ModelError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    said = done.stdout.strip()
    assert said.startswith(f"{tmp_path / 'm'} cannot be written ("), done.stderr
    assert said.endswith("check the room on the disk and the folder's permissions.")
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 in the middle: no target, and nothing with a config.json beside it."""
    code = f"""
import json, sys, time
from pathlib import Path
import torch
from forethought.checkpoints.hf_config import parse_config
from forethought.checkpoints.network_tensors import checkpoint_tensors
from forethought.checkpoints.save_folder import save_folder
config = parse_config(json.loads({json.dumps(json.dumps(LLAMA))}), "x")
def tensors():
    for number, (name, shape) in enumerate(checkpoint_tensors(config).items()):
        if number == 12:
            print("half", flush=True)
            time.sleep(60)
        yield name, torch.ones(shape)
save_folder(Path({str(tmp_path / "m")!r}), config, tensors(), shard_bytes=10_000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.endswith(".unfinished")
    assert any(left[0].glob("*.safetensors"))
    assert not (left[0] / "config.json").exists()
    with pytest.raises(UserError, match=r"no config\.json"):
        open_folder(left[0])
    config = parse_config(LLAMA, "x")
    save_folder(tmp_path / "m", config, random_tensors(config))
    assert read_config(tmp_path / "m") == config


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """80 MB in shards of 4 MB: the peak grows by a few shards, not by the model."""
    code = f"""
import json, resource
from pathlib import Path
import torch
from forethought.checkpoints.hf_config import parse_config
from forethought.checkpoints.network_tensors import checkpoint_tensors
from forethought.checkpoints.save_folder import save_folder
small = parse_config(json.loads({json.dumps(json.dumps(LLAMA))}), "x")
big = small.model_copy(update={{"num_hidden_layers": 40, "intermediate_size": 3200}})
def tensors(config):
    for name, shape in checkpoint_tensors(config).items():
        yield name, torch.ones(shape)
save_folder(Path({str(tmp_path / "small")!r}), small, tensors(small))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_folder(Path({str(tmp_path / "big")!r}), big, tensors(big), shard_bytes=4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size = sum(path.stat().st_size for path in (tmp_path / "big").iterdir())
    assert size > 70_000_000
    assert int(done.stdout) * 1024 < 20_000_000
