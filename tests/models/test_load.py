"""Networks from folders and back: memory, devices, damaged checkpoints, transformers as reader."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import assert_close, ours, random_ids, random_reference, save_reference
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import forethought.models
from forethought.checkpoints.network_config import DenseConfig
from forethought.errors import ModelError, UserError
from forethought.models.dense import DenseLM
from forethought.models.loading import (
    build,
    load,
    load_weights,
    open_checkpoint,
    save,
    skeleton,
    stored_bytes,
    usable_device,
    usable_dtype,
)

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def tiny_config(**changes: Any) -> DenseConfig:
    fields = {name: value for name, value in TINY.items() if name != "rope_parameters"}
    return DenseConfig(
        **(
            fields
            | {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
            | {"qk_norm": True}
            | changes
        )
    )


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return random_reference(TINY, seed=1)


@pytest.fixture
def folder(reference: PreTrainedModel, tmp_path: Path) -> Path:
    return save_reference(reference, tmp_path / "folder")


def test_the_package_loads_by_its_short_names(folder: Path) -> None:
    # The module that holds them is imported above: it must not hide the function.
    network = forethought.models.load(folder)
    assert isinstance(network, forethought.models.CausalLM)
    assert {"load", "build", "save"} <= set(dir(forethought.models))
    with pytest.raises(AttributeError, match="lode"):
        _ = forethought.models.lode


def test_importing_the_package_imports_no_torch() -> None:
    code = """
import sys
import forethought.models
assert "torch" not in sys.modules
sys.modules["torch"] = None  # as if it were not installed
try:
    forethought.models.load("x")
except forethought.models.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'forethought[train]'" in done.stdout
    assert "torch" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dtype_that_is_asked_for(
    folder: Path, reference: PreTrainedModel, dtype: torch.dtype
) -> None:
    network = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    stored = reference.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, stored[name].to(dtype)), name


def test_a_sharded_folder_is_the_same_network(
    reference: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    sharded = save_reference(reference, tmp_path / "sharded", max_shard_size="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, parts = load(folder).state_dict(), load(sharded).state_dict()
    assert list(whole) == list(parts)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_training_leaves_the_file_as_it_was(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = file.read_bytes()
    network = load(folder)
    ids = random_ids(61, 2, 9)
    network(ids).square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad)
    assert file.read_bytes() == before


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_network_opens_in_transformers(tmp_path: Path, tied: bool) -> None:
    network = build(
        tiny_config(tie_word_embeddings=tied), generator=torch.Generator().manual_seed(3)
    )
    target = save(network, tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    ids = random_ids(61, 2, 20)
    with torch.no_grad():
        assert_close(network(ids), theirs(ids).logits, 1e-4)
        assert torch.equal(load(target)(ids), network(ids))
    assert load(target).config == network.config


def test_a_read_network_is_written_as_it_was(
    reference: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    target = save(load(folder), tmp_path / "again", source=folder)
    before = load_file(folder / "model.safetensors")
    after = load_file(target / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    ids = random_ids(61, 1, 12)
    with torch.no_grad():
        assert_close(again(ids).logits, reference(ids).logits, 1e-5)


def test_a_built_network_is_drawn_with_the_deviation_of_its_config() -> None:
    config = tiny_config(
        hidden_size=96, attention_bias=True, output_bias=True, initializer_range=0.05
    )
    network = build(config, generator=torch.Generator().manual_seed(0))
    again = build(config, generator=torch.Generator().manual_seed(0))
    for (name, tensor), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(tensor, other)
        if name.endswith("norm.weight"):
            assert torch.all(tensor == 1), name
        elif name.endswith("bias"):
            assert torch.all(tensor == 0), name
        else:
            assert float(tensor.detach().std()) == pytest.approx(0.05, rel=0.1), name
    assert torch.isfinite(network(random_ids(61, 1, 7))).all()


def test_meta_networks_count_without_memory() -> None:
    big = tiny_config(hidden_size=8192, intermediate_size=28672, vocab_size=128256, head_dim=128)
    network = build(big, device="meta", dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert stored_bytes(big, torch.bfloat16) == 2 * network.num_parameters() > 6e9
    # Frequencies are no parameters: they are there on any device.
    assert network.rotary.inv_freq.device.type == "cpu"
    tied = tiny_config(tie_word_embeddings=True)
    assert stored_bytes(tiny_config()) - stored_bytes(tied) == 4 * 61 * 24
    assert isinstance(DenseLM(tied), DenseLM)


def test_loading_into_a_network_keeps_its_memory(folder: Path, reference: PreTrainedModel) -> None:
    weights, config = open_checkpoint(folder)
    network = build(config)
    places = {name: tensor.data_ptr() for name, tensor in network.named_parameters()}
    assert load_weights(network, weights) is network
    weights.close()
    assert places == {name: tensor.data_ptr() for name, tensor in network.named_parameters()}
    stored = reference.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


def _rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, file, {"format": "pt"})


def test_a_missing_tensor_is_named(folder: Path) -> None:
    _rewrite(folder, **{"model.layers.1.self_attn.k_norm.weight": None})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.k_norm\.weight"):
        load(folder)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    _rewrite(folder, **{"model.layers.0.mlp.up_proj.weight": torch.zeros(36, 25)})
    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight.*25.*24"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_named(folder: Path, value: float) -> None:
    broken = torch.ones(24)
    broken[17] = value
    _rewrite(folder, **{"model.norm.weight": broken})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load(folder)


def test_a_network_that_does_not_fit_stays_as_it_was(folder: Path) -> None:
    weights, _ = open_checkpoint(folder)
    network = build(tiny_config(intermediate_size=40))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj\.weight has shape.*36.*40"):
        load_weights(network, weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    empty = skeleton(tiny_config(attention_bias=True, output_bias=True))
    with pytest.raises(ModelError, match=r"lacks the tensor model\.layers\.0.*bias"):
        load_weights(empty, weights)
    weights.close()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "nowhere")
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"")
    with pytest.raises(UserError, match="give a Hugging Face folder"):
        load(other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match="no folder to take the tokenizer from"):
        save(build(tiny_config()), tmp_path / "new", source=tmp_path / "nowhere")
    assert not (tmp_path / "new").exists()


def test_an_mtp_module_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="this qwen3 has no MTP module"):
        load(folder, mtp=True)


def test_a_gguf_file_loads_dequantised(smollm2_path: Path) -> None:
    network = load(smollm2_path)
    assert network.num_parameters() == 134_515_008
    assert network.dtype == torch.float32
    assert network.config.tie_word_embeddings
    # It goes on with what repeats: rows and rotations are where they belong.
    weights, config = open_checkpoint(smollm2_path)
    assert config == network.config
    weights.close()
    with torch.no_grad():
        logits = network(torch.tensor([[1000, 7000, 2500, 9000] * 4]))
    assert logits[0, -4:].argmax(-1).tolist() == [7000, 2500, 9000, 1000]


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "gpt_neox"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="gpt_neox"):
        load(folder)


def test_devices_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="not a device"):
        usable_device("gpu")
    if torch.cuda.is_available():
        with pytest.raises(UserError, match="CUDA GPU"):
            usable_device("cuda:99")
    else:
        with pytest.raises(UserError, match="no CUDA GPU here; use cpu"):
            load(folder, device="cuda")
    assert usable_device("cpu") == torch.device("cpu")


def test_too_little_memory_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="GiB, more memory than cpu has free"):
        build(tiny_config(hidden_size=1 << 22, intermediate_size=1 << 22))


def test_loading_does_not_import_a_compiler(folder: Path) -> None:
    """torch's compiler and sympy would cost half a second and 70 MB before the first token."""
    code = """
import sys
from forethought.models import load
import torch
before = set(sys.modules)
load(sys.argv[1])(torch.tensor([[1, 2, 3]]))
new = {name for name in set(sys.modules) - before}
assert not new & {"sympy", "torch._dynamo", "torch._inductor"}, new
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)


# The peak of this process alone: ru_maxrss would begin with that of the process that started it.
PEAK = """
import re, sys
from pathlib import Path
from forethought.models.loading import load, stored_bytes

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

load(sys.argv[1])  # a tiny one, so that all code is in memory
before = peak()
network = load(sys.argv[2])
print((peak() - before) / stored_bytes(network.config))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_takes_little_more_memory_than_the_weights(folder: Path, tmp_path: Path) -> None:
    config = {
        **TINY,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "vocab_size": 3000,
    }
    big = random_reference(config)
    assert 110e6 < 4 * big.num_parameters() < 140e6
    save_reference(big, tmp_path / "big")
    del big
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "big")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert 0.9 < float(done.stdout) < 1.15


def test_every_tensor_of_a_checkpoint_has_one_place(
    reference: PreTrainedModel, tmp_path: Path
) -> None:
    network = ours(reference, tmp_path / "x")
    names = [name for name, _ in network.checkpoint_tensors()]
    assert sorted(names) == sorted(reference.state_dict())
    for name, tensor in network.checkpoint_tensors():
        assert torch.equal(tensor, reference.state_dict()[name])


def test_a_gpu_without_bfloat16_computes_in_float32_and_says_so(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.warns(UserWarning, match="An old card does not compute in bfloat16: float32"):
        assert usable_dtype(torch.bfloat16, gpu) == torch.float32
    assert usable_dtype(torch.float32, gpu) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert usable_dtype(torch.bfloat16, gpu) == torch.bfloat16
    assert usable_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16
