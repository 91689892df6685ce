"""Folders of safetensors files: read as they are, and refused with one sentence where damaged."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from forethought.checkpoints.folder import JSON
from forethought.checkpoints.fp8 import dequantize_blocks, quantize_blocks
from forethought.checkpoints.hf_config import parse_config, read_config
from forethought.checkpoints.network_config import NetworkConfig
from forethought.checkpoints.network_tensors import checkpoint_tensors, mtp_tensors
from forethought.checkpoints.safetensors_weights import (
    SafetensorsWeights,
    check_finite,
    check_tensors,
)
from forethought.checkpoints.weights import Weights
from forethought.errors import ForethoughtError, ModelError, UserError

Tensors = Mapping[str, torch.Tensor]

LLAMA: dict[str, JSON] = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "torch_dtype": "float32",
}
V3: dict[str, JSON] = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 3,
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "moe_intermediate_size": 7,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.0,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [4, 4],
    },
}


def random_tensors(config: NetworkConfig, *, mtp: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = checkpoint_tensors(config) | (mtp_tensors(config) if mtp else {})
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, values: dict[str, JSON], tensors: Tensors, shards: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return
    index = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )


def sentence(folder: Path, config: NetworkConfig | None = None) -> str:
    with pytest.raises(ForethoughtError) as caught:
        SafetensorsWeights(folder, config)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_what_was_written(tmp_path: Path, shards: int) -> None:
    config = parse_config(LLAMA, "x")
    tensors = random_tensors(config)
    write(tmp_path, LLAMA, tensors, shards)
    weights: Weights = SafetensorsWeights(tmp_path, config)
    assert set(weights.names()) == set(tensors)
    check_tensors(weights, config)
    for name, tensor in tensors.items():
        assert name in weights
        assert weights.shape(name) == tuple(tensor.shape)
        assert weights.dtype(name) == torch.float32
        assert torch.equal(weights.read(name), tensor)
        assert torch.equal(weights.read(name, torch.bfloat16), tensor.bfloat16())
    with pytest.raises(KeyError):
        weights.shape("nothing")
    weights.close()


def fp8_layout(tensors: Tensors, block: tuple[int, int]) -> tuple[dict[str, torch.Tensor], Tensors]:
    """Stored tensors as DeepSeek releases them, and what they must read as in fp32."""
    stored: dict[str, torch.Tensor] = {}
    want: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "layers" in name and "gate.weight" not in name:
            values, scale = quantize_blocks(tensor, block)
            stored |= {name: values, name + "_scale_inv": scale}
            want[name] = dequantize_blocks(values, scale, block, torch.float32)
        else:
            kept = tensor if name.endswith("correction_bias") else tensor.bfloat16()
            stored[name] = kept
            want[name] = kept.float()
    return stored, want


def test_fp8_as_released(tmp_path: Path) -> None:
    config = parse_config(V3, "x")
    stored, want = fp8_layout(random_tensors(config, mtp=True), (4, 4))
    write(tmp_path, V3, stored, 2)
    config = read_config(tmp_path)
    weights = SafetensorsWeights(tmp_path, config)
    check_tensors(weights, config)
    assert set(weights.names()) == set(want)
    assert sum(map(weights.quantized, weights.names())) > 20
    for name, tensor in want.items():
        assert torch.equal(weights.read(name, torch.float32), tensor)
        read = weights.read(name)
        assert read.dtype == weights.dtype(name)
        if weights.quantized(name):
            assert torch.equal(read, tensor.to(torch.bfloat16))
            values, scale = weights.read_blocks(name)
            assert torch.equal(values.view(torch.uint8), stored[name].view(torch.uint8))
            assert torch.equal(scale, stored[name + "_scale_inv"])


def test_fp8_that_does_not_fit_together(tmp_path: Path) -> None:
    config = parse_config(V3, "x")
    stored, _ = fp8_layout(random_tensors(config), (4, 4))
    name = "model.layers.0.mlp.up_proj.weight"
    without = {key: value for key, value in stored.items() if key != name + "_scale_inv"}
    write(tmp_path / "a", V3, without)
    assert "(_scale_inv) are missing" in sentence(tmp_path / "a", config)
    write(tmp_path / "b", V3, {**stored, name + "_scale_inv": torch.ones(1, 1)})
    assert "need [4, 3]" in sentence(tmp_path / "b", config)
    write(tmp_path / "c", V3, {**stored, name: torch.ones(14, 12)})
    assert "belongs to no FP8 weight" in sentence(tmp_path / "c", config)
    write(tmp_path / "d", V3, {**stored, name: stored[name].to(torch.float8_e5m2)})
    assert "only e4m3" in sentence(tmp_path / "d", config)


def test_mtp_modules_count_only_if_the_weights_bring_them(tmp_path: Path) -> None:
    plain = {key: value for key, value in V3.items() if key != "quantization_config"}
    config = parse_config(plain, "x")
    write(tmp_path / "none", plain, random_tensors(config))
    read = read_config(tmp_path / "none")
    assert read.model_dump()["num_nextn_predict_layers"] == 0
    check_tensors(SafetensorsWeights(tmp_path / "none"), config)
    write(tmp_path / "whole", plain, random_tensors(config, mtp=True), 2)
    assert read_config(tmp_path / "whole") == config
    # A config that asks for none, and weights that bring one.
    check_tensors(SafetensorsWeights(tmp_path / "whole"), read)
    half = random_tensors(config, mtp=True)
    del half["model.layers.2.embed_tokens.weight"], half["model.layers.2.shared_head.head.weight"]
    write(tmp_path / "half", plain, half)
    check_tensors(SafetensorsWeights(tmp_path / "half"), config)
    del half["model.layers.2.hnorm.weight"]
    write(tmp_path / "less", plain, half)
    with pytest.raises(ModelError, match=r"hnorm\.weight is missing"):
        check_tensors(SafetensorsWeights(tmp_path / "less"), config)


def test_tensors_that_are_not_the_networks(tmp_path: Path) -> None:
    config = parse_config(LLAMA, "x")
    good = random_tensors(config)
    up = "model.layers.1.mlp.up_proj.weight"

    def problem(name: str, tensors: Tensors) -> str:
        write(tmp_path / name, LLAMA, tensors)
        with pytest.raises(ModelError) as caught:
            check_tensors(SafetensorsWeights(tmp_path / name), config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    text = problem("shape", {**good, up: torch.ones(12, 14)})
    assert f"{up} has shape [12, 14], and config.json means [14, 12]" in text
    assert str(tmp_path / "shape") in text
    text = problem("missing", {k: v for k, v in good.items() if "layers.1.mlp" not in k})
    assert "model.layers.1.mlp.gate_proj.weight is missing (and 2 more like it)" in text
    lines = problem("lines", {**good, "a\n\x1b[31m" + "b" * 1000: torch.ones(2)})
    assert "a\\n\\x1b[31mbbb" in lines
    assert len(lines) < 800
    assert "score.weight is no part" in problem("extra", {**good, "score.weight": torch.ones(2)})
    whole = problem("ints", {**good, up: torch.ones(14, 12, dtype=torch.int8)})
    assert "whole numbers" in whole
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    write(tmp_path / "buffers", LLAMA, {**good, **buffers})
    check_tensors(SafetensorsWeights(tmp_path / "buffers"), config)
    tied = parse_config({**LLAMA, "tie_word_embeddings": True}, "x")
    check_tensors(SafetensorsWeights(tmp_path / "buffers"), tied)


def test_not_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        fine = torch.randn(5, 6).to(dtype)
        check_finite("a.weight", fine)
        for value, word in ((float("nan"), "NaN"), (float("inf"), "an infinity")):
            bad = fine.clone()
            bad[3, 4] = value
            with pytest.raises(ModelError, match=f"a.weight holds {word}"):
                check_finite("a.weight", bad, "folder")
        bad[3, 4] = -float("inf")
        with pytest.raises(ModelError, match="infinity"):
            check_finite("a.weight", bad)
    check_finite("empty", torch.empty(0, 4))
    check_finite("ints", torch.ones(3, dtype=torch.int32))


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "a.pkl"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    folder, flag = tmp_path / "m", tmp_path / "flag"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / name).write_bytes(pickle.dumps(Canary(flag)))
    text = sentence(folder)
    assert name in text
    assert "can run code when opened" in text
    assert "convert" in text
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "can run code when opened" in sentence(folder)
    assert not flag.exists()


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "C:x.safetensors"]
)
def test_an_index_may_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    write(folder, LLAMA, random_tensors(parse_config(LLAMA, "x")), 2)
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "outside the folder" in sentence(folder)


def test_symlinks_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    config = parse_config(LLAMA, "x")
    tensors = random_tensors(config)
    write(tmp_path / "blobs", LLAMA, tensors)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(os.path.relpath(tmp_path / "blobs" / name, snapshot))
    weights = SafetensorsWeights(snapshot, read_config(snapshot))
    assert torch.equal(weights.read("lm_head.weight"), tensors["lm_head.weight"])


def test_damaged_indexes(tmp_path: Path) -> None:
    write(tmp_path, LLAMA, random_tensors(parse_config(LLAMA, "x")), 3)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    missing = good["weight_map"] | {"extra.weight": "model-00002-of-00003.safetensors"}
    index.write_text(json.dumps({"weight_map": missing}))
    text = sentence(tmp_path)
    assert "model-00002-of-00003.safetensors lacks extra.weight" in text
    for content in ("{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{"):
        index.write_text(content)
        sentence(tmp_path)
    index.write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert "appears twice" in sentence(tmp_path)
    index.write_text(json.dumps(good))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors" in sentence(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").mkdir()
    assert "lacks model-00002-of-00003.safetensors" in sentence(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "nothing")


def raw(header: bytes, data: bytes = bytes(16), length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def header(**tensors: dict[str, object]) -> bytes:
    return raw(json.dumps(tensors).encode())


@pytest.mark.parametrize(
    "content",
    [
        header(a=entry([2], 0, 8), b=entry([2], 4, 12)),
        header(a=entry([2], 0, 8), b=entry([4], 8, 24)),
        header(a=entry([2], 0, 8)),
        header(a=entry([1], 0, 4), b=entry([2], 8, 16)),
        header(a=entry([2], 0, 16)),
        header(a=entry([-4], 0, 16)),
        header(a=entry([2**63, 2], 0, 16)),
        header(a=entry([4], 0, 16, "F33")),
        header(a=entry([4, 8], 0, 16, "F4")),
        header(a=entry([4], 16, 0)),
        header(a={"dtype": 3, "shape": [4], "data_offsets": [0, 16]}),
        header(a={"dtype": "F32", "shape": "x", "data_offsets": [0, 16]}),
        header(a={"dtype": "F32"}),
        raw(b'{"a": 3}'),
        raw(b"[]"),
        raw(b'{"a": ' * 3000),
        raw(json.dumps({"a": entry([4], 0, 16)}).encode(), length=2**63),
        raw(json.dumps({"a": entry([4], 0, 16)}).encode(), length=101_000_000),
        b"",
        b"\x00" * 8,
    ],
    ids=lambda content: content[8:60].decode(errors="replace"),
)
def test_damaged_headers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in sentence(tmp_path)


def test_equal_names_are_refused(tmp_path: Path) -> None:
    """The library itself takes the last of two."""
    first, second = json.dumps(entry([2], 0, 8)), json.dumps(entry([4], 0, 16))
    content = raw(f'{{"a": {first}, "a": {second}}}'.encode())
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "appears twice" in sentence(tmp_path)


def test_a_header_over_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(8 + 100_000_001)
    assert "larger than 100 MB" in sentence(tmp_path)


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    """Also as a shard: whatever is missing, one sentence; and the whole file still reads."""
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(5)}, whole)
    content = whole.read_bytes()
    path = tmp_path / "model.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert "model.safetensors" in sentence(tmp_path)
    path.write_bytes(content)
    assert torch.equal(SafetensorsWeights(tmp_path).read("a"), torch.ones(3, 2))


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(ModelError, match="damaged or not complete"):
        weights.read("a")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        weights.read("a")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_headers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("m")
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(5)}, folder / "model.safetensors")
    content = bytearray((folder / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(content)
    try:
        weights = SafetensorsWeights(folder)
        for name in weights.names():
            weights.read(name)
    except ForethoughtError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_converting_keeps_no_second_copy(tmp_path: Path) -> None:
    """Reading 64 MB of bf16 one by one in fp32 never holds the file as well."""
    tensors = {f"t{i}": torch.ones(1 << 20, dtype=torch.bfloat16) for i in range(32)}
    save_file(tensors, tmp_path / "model.safetensors")
    code = f"""
import resource, torch
from pathlib import Path
from forethought.checkpoints.safetensors_weights import SafetensorsWeights
weights = SafetensorsWeights(Path({str(tmp_path)!r}))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights.read("t0", torch.float32)
before = peak()
for name in weights.names():
    assert weights.read(name, torch.float32).sum() == 1 << 20
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 16 << 20
