"""Conversion both ways: what comes back is what went in, and nothing half-written is left."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from forethought.checkpoints import gguf_writer as writer
from forethought.checkpoints.export import export_gguf, import_gguf
from forethought.checkpoints.gguf_header import read_header
from forethought.checkpoints.gguf_weights import GGUFWeights
from forethought.checkpoints.hf_config import read_config
from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_tensors import GGUFQuantization, gguf_bytes, mtp_tensors
from forethought.dialogue.tokenizer import Tokenizer
from forethought.errors import ModelError, UserError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, with llama3's scaling, head_dim 20: rows of 120 numbers fit no block."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    tiny.make("llama-tied-llama3", folder)
    return folder


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v3") / "model"
    tiny.make("deepseek_v3", folder)
    return folder


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "deepseek_v3", "deepseek_v2"])
def test_folder_gguf_folder_gguf(name: str, tmp_path: Path) -> None:
    first, middle, last = tmp_path / "a.gguf", tmp_path / "folder", tmp_path / "b.gguf"
    model = tiny.make(name, tmp_path / "model")
    export_gguf(tmp_path / "model", first, "f32")
    import_gguf(first, middle, None)
    export_gguf(middle, last, "f32")
    assert tensors_of(first) == tensors_of(last)
    assert read_config(middle) == read_config(tmp_path / "model")
    saved, again = (load_file(f / "model.safetensors") for f in (tmp_path / "model", middle))
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[key], again[key]) for key in saved)
    opened = transformers.AutoModelForCausalLM.from_pretrained(middle).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, model(ids).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(middle)
    text = "the cat sat<|end|> 12 é\n"
    own = HFTokenizer.from_folder(tmp_path / "model").encode(text, parse_special=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == own


def test_metadata_and_vocabulary(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    seen: list[tuple[int, int]] = []
    result = export_gguf(llama, target, "f32", progress=lambda a, b: seen.append((a, b)))
    header = read_header(target)
    assert (header.architecture, header.name, header.quantisation) == ("llama", "model", "F32")
    assert header.vocabulary_size == tiny.VOCABULARY
    tokens, kinds = header.items("tokenizer.ggml.tokens"), header.items("tokenizer.ggml.token_type")
    assert tokens is not None
    assert kinds is not None
    known = len(json.loads((llama / "tokenizer.json").read_text())["model"]["vocab"])
    assert known < tiny.VOCABULARY
    assert set(kinds.integers()[known:]) == {5}, "rows beyond the tokenizer are unused"
    assert GGUFWeights(target).config == read_config(llama)
    assert seen[-1] == (header.weight_bytes, header.weight_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert result.bytes == target.stat().st_size
    assert result.tensors == len(header.tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize("quantize", ["f16", "bf16", "q8_0", "q4_0", "q5_0"])
def test_each_quantisation(quantize: GGUFQuantization, v3: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    notes: list[str] = []
    export_gguf(v3, target, quantize, report=notes.append)
    saved = load_file(v3 / "model.safetensors")
    weights = GGUFWeights(target)
    kinds = {tensor.name: tensor.type for tensor in weights.header.tensors}
    assert kinds["blk.1.ffn_gate_inp.weight"] == kinds["blk.1.exp_probs_b.bias"] == "F32"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_down_exps.weight"] == quantize.upper()
    # k_b has rows of qk_nope_head_dim, 24 numbers; q_b rows of q_lora_rank, 48.
    uneven = quantize.upper() if quantize.endswith("f16") else "F16"
    assert kinds["blk.0.attn_k_b.weight"] == kinds["blk.0.attn_q_b.weight"] == uneven
    assert weights.header.weight_bytes == gguf_bytes(weights.config, quantize)
    assert bool(notes) == quantize.startswith("q")
    assert all("no multiple of 32" in note and "stored as f16" in note for note in notes)
    steps = {"f16": 2e-3, "bf16": 8e-3, "q8_0": 8e-3, "q5_0": 7e-2, "q4_0": 0.14}
    for name in weights.names():
        error = (weights.read(name, torch.float32) - saved[name]).abs().max()
        assert float(error) <= steps[quantize] * float(saved[name].abs().max()), name
    if quantize in {"f16", "bf16"}:
        wanted = {"f16": torch.float16, "bf16": torch.bfloat16}[quantize]
        name = "model.layers.1.mlp.experts.7.up_proj.weight"
        assert torch.equal(weights.read(name), saved[name].to(wanted))
        import_gguf(target, tmp_path / "folder", None)
        assert load_file(tmp_path / "folder" / "model.safetensors")[name].dtype == wanted


def test_q8_0_survives_the_folder(v3: Path, tmp_path: Path) -> None:
    export_gguf(v3, tmp_path / "a.gguf", "q8_0")
    import_gguf(tmp_path / "a.gguf", tmp_path / "folder", "float32")
    export_gguf(tmp_path / "folder", tmp_path / "b.gguf", "q8_0")
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")


def test_import_to_another_dtype(llama: Path, tmp_path: Path) -> None:
    export_gguf(llama, tmp_path / "a.gguf", "f32")
    import_gguf(tmp_path / "a.gguf", tmp_path / "folder", "bfloat16")
    saved = load_file(llama / "model.safetensors")
    for name, tensor in load_file(tmp_path / "folder" / "model.safetensors").items():
        assert torch.equal(tensor, saved[name].bfloat16())
    assert read_config(tmp_path / "folder").dtype == "bfloat16"


def test_the_mtp_module_is_left_out(v3: Path, tmp_path: Path) -> None:
    folder, notes = tmp_path / "model", []
    shutil.copytree(v3, folder)
    values = json.loads((folder / "config.json").read_text())
    values["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(values))
    saved = load_file(folder / "model.safetensors")
    config = read_config(folder).model_copy(update={"num_nextn_predict_layers": 1})
    saved |= {name: torch.ones(shape) for name, shape in mtp_tensors(config).items()}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    export_gguf(v3, tmp_path / "a.gguf", "f32")
    export_gguf(folder, tmp_path / "b.gguf", "f32", report=notes.append)
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    assert notes == ["The MTP module is left out: a GGUF has no place for it."]


def test_sampling_defaults_travel(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    wanted = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **wanted}))
    export_gguf(folder, tmp_path / "a.gguf", "f32")
    assert read_header(tmp_path / "a.gguf").sampling == pytest.approx(
        {"temp": 0.6, "top_p": 0.95, "top_k": 20}
    )
    import_gguf(tmp_path / "a.gguf", tmp_path / "back", None)
    again = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert again.items() >= wanted.items()


def test_fp8_blocks_are_exported_as_what_they_stand_for(v3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(v3, folder)
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(values))
    saved = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    blocks = saved[name].to(torch.float8_e4m3fn)
    saved |= {name: blocks, f"{name}_scale_inv": torch.full((1, 1), 0.5)}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    export_gguf(folder, tmp_path / "a.gguf", "f32")
    assert torch.equal(GGUFWeights(tmp_path / "a.gguf").read(name), blocks.float() * 0.5)


def test_small_pieces_are_the_same(
    v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_gguf(v3, tmp_path / "a.gguf", "q4_0")
    monkeypatch.setattr(writer, "_PIECE", 100)
    export_gguf(v3, tmp_path / "b.gguf", "q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_existing_target_and_missing_folder(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_text("precious")
    with pytest.raises(UserError, match="exists already: remove it, or choose another name"):
        export_gguf(llama, target, "f32")
    assert target.read_text() == "precious"
    with pytest.raises(UserError, match="no folder"):
        export_gguf(llama, tmp_path / "none" / "out.gguf", "f32")
    with pytest.raises(UserError, match=r"no folder|no model folder|not exist|There is no"):
        export_gguf(tmp_path / "none", tmp_path / "new.gguf", "f32")
    with pytest.raises(UserError, match="q3_k"):
        export_gguf(llama, tmp_path / "new.gguf", "q3_k")  # type: ignore[arg-type]
    export_gguf(llama, tmp_path / "new.gguf", "q8_0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="exists"):
        import_gguf(tmp_path / "new.gguf", tmp_path / "full", None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(bad: float, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    saved = load_file(folder / "model.safetensors")
    saved["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    for quantize in ("f32", "q8_0"):
        with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight"):
            export_gguf(folder, tmp_path / "out.gguf", quantize)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_numbers_beyond_float16(tmp_path: Path) -> None:
    rows = torch.full((2, 32), 1e6)
    for kind in ("F16", "Q8_0", "Q4_0"):
        with pytest.raises(ModelError, match=r"'x' holds 1e\+06.*choose f32 or bf16"):
            writer.encode(rows, gguf.GGMLQuantizationType[kind], "x")
    assert writer.encode(rows, gguf.GGMLQuantizationType.F32, "x").dtype == np.float32


def test_a_full_disk(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GB left: free some"):
        export_gguf(llama, tmp_path / "out.gguf", "f32")
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_is_compared_before_anything_is_written(llama: Path, tmp_path: Path) -> None:
    class Reversed:
        """A tokenizer that disagrees."""

        def __init__(self) -> None:
            self.inner = HFTokenizer.from_folder(llama)

        def encode(self, text: str, *, parse_special: bool) -> list[int]:
            return self.inner.encode(text, parse_special=parse_special)[::-1]

        def pieces(self, ids: Sequence[int]) -> list[bytes]:
            return self.inner.pieces(ids)

        def special_texts(self) -> Sequence[str]:
            return self.inner.special_texts()

    @contextlib.contextmanager
    def agreeing(path: Path) -> Iterator[Tokenizer]:
        yield HFTokenizer.from_folder(llama)

    @contextlib.contextmanager
    def other(path: Path) -> Iterator[Tokenizer]:
        yield Reversed()

    with pytest.raises(ModelError, match="tokenises"):
        export_gguf(llama, tmp_path / "out.gguf", "f32", open_llama_tokenizer=other)
    assert not list(tmp_path.iterdir())
    export_gguf(llama, tmp_path / "out.gguf", "f32", open_llama_tokenizer=agreeing)
    assert (tmp_path / "out.gguf").is_file()


@pytest.mark.slow
def test_smollm2_there_and_back(smollm2_path: Path, tmp_path: Path) -> None:
    import_gguf(smollm2_path, tmp_path / "folder", None)
    export_gguf(tmp_path / "folder", tmp_path / "out.gguf", "f32")
    first, second = GGUFWeights(smollm2_path), GGUFWeights(tmp_path / "out.gguf")
    assert list(first.names()) == list(second.names())
    for name in first.names():
        assert torch.equal(first.read(name, torch.float32), second.read(name))
    assert second.config == first.config
