"""Reading GGUF weights for torch: values, names, and what is refused."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import gguf
import gguf_writer as w
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import modeling_gguf_pytorch_utils

from forethought.checkpoints import gguf_types as t
from forethought.checkpoints.gguf_config import config_from_header, metadata_from_config
from forethought.checkpoints.gguf_dequantize import _OWN, can_dequantize, dequantize
from forethought.checkpoints.gguf_header import read_header
from forethought.checkpoints.gguf_names import Rotary, plan
from forethought.checkpoints.gguf_rope import find_llama3, llama3_factors
from forethought.checkpoints.gguf_weights import GGUFWeights
from forethought.checkpoints.network_config import (
    DeepseekConfig,
    DenseConfig,
    Llama3Scaling,
    NetworkConfig,
    YarnScaling,
)
from forethought.checkpoints.network_tensors import checkpoint_tensors
from forethought.errors import ModelError, UserError

TYPE_IDS = {name: number for number, (name, _, _) in t.TENSOR_TYPES.items()}
DENSE = DenseConfig(
    model_type="llama",
    vocab_size=9,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    rope_theta=1e6,
)
DEEPSEEK = DeepseekConfig(
    model_type="deepseek_v3",
    vocab_size=9,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    rms_norm_eps=1e-6,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    rope_theta=10000.0,
    q_lora_rank=16,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    moe_intermediate_size=7,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    first_k_dense_replace=1,
    rope_scaling=YarnScaling(
        factor=40.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707
    ),
)


def keys_of(config: NetworkConfig, **changes: Any) -> list[tuple[str, int, object]]:
    """Metadata as keys of the tests' own writer; a change to None leaves a key out."""
    metadata: dict[str, Any] = dict(metadata_from_config(config))
    architecture = next(iter(metadata)).partition(".")[0]
    for key, value in changes.items():
        metadata[f"{architecture}.{key.replace('__', '.')}"] = value
    kinds = {bool: w.BOOL, int: w.U32, float: w.F32, str: w.STR, tuple: w.ARR}
    return [("general.architecture", w.STR, architecture)] + [
        (key, kinds[type(value)], value) for key, value in metadata.items() if value is not None
    ]


def tensors_of(
    config: NetworkConfig, seed: int = 0
) -> list[tuple[str, tuple[int, ...], int, bytes]]:
    generator = np.random.default_rng(seed)
    return [
        (
            stored.name,
            tuple(reversed(stored.shape)),
            0,
            generator.standard_normal(stored.shape).astype("<f4").tobytes(),
        )
        for stored in plan(config)
    ]


def write(path: Path, config: NetworkConfig, **changes: Any) -> Path:
    path.write_bytes(w.gguf(keys_of(config, **changes), tensors_of(config)))
    return path


@pytest.mark.parametrize("kind", [*_OWN, "IQ4_NL", "Q2_K", "Q3_K", "TQ1_0", "IQ2_XXS", "MXFP4"])
def test_dequantized_as_the_library_does(kind: str) -> None:
    size, count = next((s, c) for name, s, c in t.TENSOR_TYPES.values() if name == kind)
    raw = np.random.default_rng(3).integers(0, 256, (7, 5 * count), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert can_dequantize(kind)
    ours = dequantize(torch.from_numpy(raw), kind, torch.float32)
    assert ours.shape == (7, 5 * size)
    # NaN of either sign may come from random scales.
    assert np.array_equal(ours.numpy(), wanted, equal_nan=True)
    half = dequantize(torch.from_numpy(raw), kind, torch.bfloat16)
    assert torch.equal(half.nan_to_num(), ours.bfloat16().nan_to_num())


def test_dequantized_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.randint(0, 256, (6, 4 * 20), dtype=torch.uint8)
    raw[:, 1::20] = raw[:, 3::20] = 0x2C  # scales that are numbers
    whole = dequantize(raw, "Q4_1", torch.float32)
    monkeypatch.setattr("forethought.checkpoints.gguf_dequantize._ELEMENTS_AT_ONCE", 96)
    assert torch.equal(dequantize(raw, "Q4_1", torch.float32), whole)


@pytest.mark.parametrize("kind", ["I8", "F64", "Q8_1", "Q8_K"])
def test_a_type_that_is_no_weight(kind: str, tmp_path: Path) -> None:
    assert not can_dequantize(kind)
    size, count = next((s, c) for name, s, c in t.TENSOR_TYPES.values() if name == kind)
    config = DENSE.model_copy(update={"hidden_size": 256})
    tensors = []
    for name, shape, number, raw in tensors_of(config):
        if name == "blk.1.ffn_up.weight":
            number, raw = TYPE_IDS[kind], bytes(len(raw) // 4 // size * count)
        tensors.append((name, shape, number, raw))
    path = tmp_path / "odd.gguf"
    path.write_bytes(w.gguf(keys_of(config), tensors))
    with pytest.raises(ModelError, match=rf"'blk.1.ffn_up.weight' has the type {kind}"):
        GGUFWeights(path)


@pytest.mark.parametrize(
    "config",
    [
        DENSE,
        DENSE.model_copy(update={"model_type": "qwen2", "attention_bias": True}),
        DENSE.model_copy(update={"model_type": "qwen3", "qk_norm": True}),
        DENSE.model_copy(
            update={"attention_bias": True, "output_bias": True, "mlp_bias": True, "head_dim": 6}
        ),
        DEEPSEEK,
        DEEPSEEK.model_copy(
            update={
                "model_type": "deepseek_v2",
                "scoring_func": "softmax",
                "topk_method": "greedy",
                "norm_topk_prob": False,
                "n_group": 1,
                "rope_scaling": None,
            }
        ),
    ],
    ids=["llama", "qwen2", "qwen3", "biases", "deepseek_v3", "deepseek_v2"],
)
def test_config_and_names_there_and_back(config: NetworkConfig, tmp_path: Path) -> None:
    weights = GGUFWeights(write(tmp_path / "m.gguf", config))
    assert weights.config == config
    assert {name: weights.shape(name) for name in weights.names()} == checkpoint_tensors(config)
    for name in weights.names():
        assert name in weights
        tensor = weights.read(name)
        assert tensor.dtype == weights.dtype(name) == torch.float32
        assert tensor.is_contiguous()
        assert tuple(tensor.shape) == weights.shape(name)
        assert torch.equal(weights.read(name, torch.bfloat16), tensor.bfloat16())
    assert "model.layers.9.mlp.up_proj.weight" not in weights
    with pytest.raises(KeyError):
        weights.shape("model.layers.9.mlp.up_proj.weight")


def test_pieces_of_kv_b_and_experts(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", DEEPSEEK)
    weights = GGUFWeights(path)
    reader = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    k_b, v_b = reader["blk.1.attn_k_b.weight"], reader["blk.1.attn_v_b.weight"]
    whole = weights.read("model.layers.1.self_attn.kv_b_proj.weight").numpy()
    for head in range(2):
        rows = whole[head * 11 : head * 11 + 11]
        assert np.array_equal(rows[:6], k_b[head].T)
        assert np.array_equal(rows[6:], v_b[head])
    expert = weights.read("model.layers.1.mlp.experts.3.down_proj.weight").numpy()
    assert np.array_equal(expert, reader["blk.1.ffn_down_exps.weight"][3])


def test_older_files_keep_kv_b_whole(tmp_path: Path) -> None:
    keys = keys_of(
        DEEPSEEK,
        attention__head_count_kv=2,
        attention__key_length=10,
        attention__value_length=5,
        attention__key_length_mla=None,
        attention__value_length_mla=None,
    )
    tensors = [item for item in tensors_of(DEEPSEEK) if not item[0].endswith("_b.weight")]
    tensors += [item for item in tensors_of(DEEPSEEK) if item[0].endswith("attn_q_b.weight")]
    whole = np.arange(22 * 8, dtype="<f4")
    tensors += [(f"blk.{i}.attn_kv_b.weight", (8, 22), 0, whole.tobytes()) for i in range(2)]
    path = tmp_path / "m.gguf"
    path.write_bytes(w.gguf(keys, tensors))
    weights = GGUFWeights(path)
    assert weights.config == DEEPSEEK
    read = weights.read("model.layers.0.self_attn.kv_b_proj.weight")
    assert np.array_equal(read.numpy(), whole.reshape(22, 8))


@given(heads=st.integers(1, 5), before=st.integers(0, 5), half=st.integers(1, 6))
def test_rotary_rows_are_a_permutation(heads: int, before: int, half: int) -> None:
    rows = Rotary(heads, before, 2 * half).rows()
    assert sorted(rows) == list(range(heads * (before + 2 * half)))
    for head in range(heads):
        start = head * (before + 2 * half)
        assert rows[start : start + before] == list(range(start, start + before))
        for pair in range(half):
            at = start + before + 2 * pair
            assert rows[at + 1] - rows[at] == half


@given(
    factor=st.sampled_from([2.0, 8.0, 16.0, 32.0]),
    bits=st.integers(6, 14),
    half=st.integers(8, 64),
    theta=st.sampled_from([10000.0, 500000.0]),
)
@settings(max_examples=60, deadline=None)
def test_llama3_scaling_is_found_again(factor: float, bits: int, half: int, theta: float) -> None:
    scaling = Llama3Scaling(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=1 << bits,
    )
    factors = llama3_factors(scaling, 2 * half, theta)
    stored = [float(x) for x in np.array(factors, dtype=np.float32)]
    found = find_llama3(stored, 2 * half, theta)
    if all(value == 1 for value in stored):
        return  # so short a head is never slowed
    assert found is not None
    assert np.allclose(llama3_factors(found, 2 * half, theta), factors, rtol=3e-5)
    if half == 64 and theta == 500000.0:
        assert found == scaling


def test_rope_factors_that_are_not_llama3(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for factors, sentence in (
        ([1.0, 3.0, 2.0, 9.0], "no rope scaling of Llama 3"),
        ([1.0, float("nan"), 2.0, 9.0], "no rope scaling of Llama 3"),
        ([1.0, 1.0], "shape"),
    ):
        extra = ("rope_freqs.weight", (len(factors),), 0, np.array(factors, "<f4").tobytes())
        path.write_bytes(w.gguf(keys_of(DENSE), [extra, *tensors_of(DENSE)]))
        with pytest.raises(ModelError, match=sentence):
            GGUFWeights(path)
    ones = ("rope_freqs.weight", (4,), 0, np.ones(4, "<f4").tobytes())
    path.write_bytes(w.gguf(keys_of(DENSE), [ones, *tensors_of(DENSE)]))
    assert GGUFWeights(path).config == DENSE


REFUSED: dict[str, tuple[NetworkConfig, dict[str, Any], str]] = {
    "linear scaling": (
        DENSE,
        {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0},
        "llama.rope.scaling.type is 'linear'",
    ),
    "scaling without a type": (DENSE, {"rope__scaling__factor": 2.0}, "rope.scaling.type"),
    "longrope": (DENSE, {"rope__scaling__type": "longrope"}, "is 'longrope'"),
    "window": (DENSE, {"attention__sliding_window": 128}, "attention.sliding_window is 128"),
    "scale": (DENSE, {"attention__scale": 0.5}, "attention.scale is 0.5"),
    "logits": (DENSE, {"logit_scale": 0.1}, "logit_scale is 0.1"),
    "capping": (DENSE, {"final_logit_softcapping": 30.0}, "softcapping"),
    "experts in a llama": (DENSE, {"expert_count": 8}, "llama.expert_count is 8"),
    "both directions": (DENSE, {"attention__causal": False}, "attention.causal is False"),
    "half rotated": (DENSE, {"rope__dimension_count": 4}, "rope.dimension_count"),
    "unlike layers": (
        DENSE,
        {"attention__head_count_kv": (w.I32, [2, 1])},
        "head_count_kv differs from layer to layer",
    ),
    "new key": (DENSE, {"brand_new": 1}, "llama.brand_new is 1"),
    "no layers": (DENSE, {"block_count": 0}, "block_count is 0"),
    "too many layers": (DENSE, {"block_count": 2**31 - 1}, "more than the file has tensors"),
    "one layer more": (DENSE, {"block_count": 3}, "lacks the tensor 'blk.2.attn_q.weight'"),
    "one layer less": (DENSE, {"block_count": 1}, "has the tensor 'blk.1.attn_q.weight'"),
    "another width": (DENSE, {"feed_forward_length": 65}, "'blk.0.ffn_gate.weight' has the shape"),
    "no epsilon": (DENSE, {"attention__layer_norm_rms_epsilon": None}, "is missing"),
    "gate": (DEEPSEEK, {"expert_gating_func": 3}, "expert_gating_func is 3"),
    "a module more": (DEEPSEEK, {"nextn_predict_layers": 1}, "nextn_predict_layers is 1"),
    "many experts": (DEEPSEEK, {"expert_count": 2**31 - 2}, "router has another shape"),
    "unlike groups": (DEEPSEEK, {"expert_group_count": 3}, "expert_count of 4 does not fit"),
    "no latent": (DEEPSEEK, {"attention__kv_lora_rank": None}, "kv_lora_rank is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    config, changes, sentence = REFUSED[case]
    path = write(tmp_path / "m.gguf", config, **changes)
    with pytest.raises(ModelError, match=sentence) as caught:
        GGUFWeights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_architecture_and_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(w.gguf([("general.architecture", w.STR, "mamba")]))
    with pytest.raises(ModelError, match=r"architecture 'mamba'.*llama.cpp engine"):
        GGUFWeights(path)
    with pytest.raises(UserError, match="no file"):
        GGUFWeights(tmp_path / "none.gguf")
    for key in ("llama." + "x" * 60000, "llama.\x1b[2J\n"):
        path.write_bytes(w.gguf([*keys_of(DENSE), (key, w.STR, key)], tensors_of(DENSE)))
        with pytest.raises(ModelError, match="does not compute") as caught:
            GGUFWeights(path)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()
    path.write_bytes(w.gguf([*keys_of(DENSE), ("split.count", w.U16, 2)], tensors_of(DENSE)))
    with pytest.raises(ModelError, match="one of 2 files"):
        GGUFWeights(path)
    path.write_bytes(w.gguf(keys_of(DENSE)))
    with pytest.raises(ModelError, match="token_embd"):
        config_from_header(read_header(path))


def test_closing_leaves_tensors_alone(tmp_path: Path) -> None:
    weights = GGUFWeights(write(tmp_path / "m.gguf", DENSE))
    tensor = weights.read("model.embed_tokens.weight")
    before = tensor.clone()
    weights.close()
    gc.collect()
    assert torch.equal(tensor, before)
    with pytest.raises(ModelError, match="closed"):
        weights.read("model.norm.weight")
    weights.close()


def test_alignment_of_one_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = [*keys_of(DENSE), ("general.alignment", w.U32, 1), ("general.pad", w.STR, "x")]
    plain = GGUFWeights(write(tmp_path / "plain.gguf", DENSE))
    for pad in ("x", "xy"):
        keys[-1] = ("general.pad", w.STR, pad)
        path.write_bytes(w.gguf(keys, tensors_of(DENSE), alignment=1))
        weights = GGUFWeights(path)
        for name in weights.names():
            assert torch.equal(weights.read(name), plain.read(name))


@pytest.mark.slow
def test_smollm2_as_transformers_reads_it(smollm2_path: Path) -> None:
    # What from_pretrained(gguf_file=...) calls, which itself asks for accelerate.
    read = modeling_gguf_pytorch_utils.load_gguf_checkpoint(str(smollm2_path))["config"]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**read))
    state = modeling_gguf_pytorch_utils.load_gguf_checkpoint(
        str(smollm2_path), return_tensors=True, model_to_load=model
    )["tensors"]
    weights = GGUFWeights(smollm2_path)
    names = list(weights.names())
    assert set(names) == set(state) - {"lm_head.weight"}
    assert weights.config.tie_word_embeddings
    for name in names:
        assert torch.equal(weights.read(name, torch.float32), state[name]), name
