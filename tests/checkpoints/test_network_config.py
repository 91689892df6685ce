"""config.json: what is read, what is written, what is refused; transformers is the reference."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.checkpoints.folder import JSON, open_folder, parse_json, read_json
from forethought.checkpoints.hf_config import parse_config, read_config, to_hf
from forethought.checkpoints.network_config import (
    BlockQuantization,
    DeepseekConfig,
    DenseConfig,
    Llama3Scaling,
    YarnScaling,
)
from forethought.errors import ForethoughtError, ModelError, UserError

SIZES: dict[str, JSON] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
LLAMA: dict[str, JSON] = {
    **SIZES,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "pretraining_tp": 1,
    "use_cache": True,
}
QWEN2: dict[str, JSON] = {
    **SIZES,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_key_value_heads": 3,
    "bos_token_id": 3,
    "eos_token_id": 3,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 21,
    "tie_word_embeddings": True,
    "rope_theta": 10000,
}
QWEN3: dict[str, JSON] = {
    **SIZES,
    "model_type": "qwen3",
    "num_key_value_heads": 6,
    "head_dim": 16,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
V3: dict[str, JSON] = {
    **SIZES,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_key_value_heads": 6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "seq_aux": True,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 40,
    "moe_layer_freq": 1,
    "n_group": 4,
    "topk_group": 2,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 64,
    },
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "torch_dtype": "bfloat16",
}
V2: dict[str, JSON] = {
    **{key: value for key, value in V3.items() if key not in {"quantization_config"}},
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "num_nextn_predict_layers": 0,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 64,
    },
}
ALL = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "deepseek_v3": V3, "deepseek_v2": V2}


def with_keys(base: dict[str, JSON], **changes: JSON) -> dict[str, JSON]:
    values = copy.deepcopy(base)
    values.update(changes)
    return values


def sentence(values: dict[str, JSON]) -> str:
    with pytest.raises(ModelError) as caught:
        parse_config(values, "x/config.json")
    text = str(caught.value)
    assert text.startswith("x/config.json")
    assert "\n" not in text
    return text


def test_llama() -> None:
    config = parse_config(LLAMA, "x")
    assert isinstance(config, DenseConfig)
    assert (config.head_dim, config.num_key_value_heads) == (8, 2)
    assert config.eos_token_ids == (2, 5)
    assert config.dtype == "bfloat16"
    assert config.rope_scaling == Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    assert (config.attention_bias, config.output_bias, config.qk_norm) == (False, False, False)
    biased = parse_config(with_keys(LLAMA, attention_bias=True, mlp_bias=True), "x")
    assert isinstance(biased, DenseConfig)
    assert biased.attention_bias
    assert biased.output_bias
    assert biased.mlp_bias


def test_qwen() -> None:
    qwen2 = parse_config(QWEN2, "x")
    assert isinstance(qwen2, DenseConfig)
    assert (qwen2.attention_bias, qwen2.output_bias, qwen2.tie_word_embeddings) == (
        *(True, False),
        True,
    )
    qwen3 = parse_config(QWEN3, "x")
    assert isinstance(qwen3, DenseConfig)
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.attention_bias) == (True, 16, False)
    assert qwen3.rope_scaling == YarnScaling(factor=4.0, original_max_position_embeddings=64)


def test_deepseek() -> None:
    v3 = parse_config(V3, "x")
    assert isinstance(v3, DeepseekConfig)
    assert v3.quantization == BlockQuantization(block_size=(128, 128))
    assert v3.qk_head_dim == 24
    assert v3.rope_scaling is not None
    assert (v3.rope_scaling.mscale, v3.rope_scaling.mscale_all_dim) == (1.0, 1.0)
    v2 = parse_config(V2, "x")
    assert isinstance(v2, DeepseekConfig)
    assert (v2.q_lora_rank, v2.scoring_func, v2.topk_method) == (None, "softmax", "greedy")
    nulls = parse_config(with_keys(V2, n_group=None, topk_group=None), "x")
    assert isinstance(nulls, DeepseekConfig)
    assert (nulls.n_group, nulls.topk_group) == (1, 1)


@pytest.mark.parametrize("name", ALL)
def test_written_is_read_back(name: str) -> None:
    config = parse_config(ALL[name], "x")
    written = to_hf(config)
    assert parse_config(json.loads(json.dumps(written)), "x") == config
    assert "rope_parameters" not in written


@pytest.mark.parametrize("name", ALL)
def test_transformers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    """transformers opens it, keeps every number, and what it saves (its own keys) reads back."""
    import transformers

    values = {key: value for key, value in ALL[name].items() if key != "quantization_config"}
    config = parse_config(values, "x")
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == name
    ours = config.model_dump()
    for key in ours.keys() - {"eos_token_ids", "rope_scaling", "dtype", "rope_theta"}:
        if hasattr(theirs, key):
            assert getattr(theirs, key) == ours[key], key
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert str(theirs.dtype) == f"torch.{config.dtype}"
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    saved = json.loads((again / "config.json").read_text())
    assert "rope_parameters" in saved
    assert read_config(again) == config


def test_transformers_defaults_are_read(tmp_path: Path) -> None:
    """Configurations that transformers makes and saves itself, with its own defaults."""
    from transformers import DeepseekV2Config, DeepseekV3Config, LlamaConfig, Qwen3Config

    for theirs in (
        DeepseekV3Config(),
        DeepseekV2Config(num_experts_per_tok=6, q_lora_rank=None),
        LlamaConfig(),
        Qwen3Config(),
    ):
        folder = tmp_path / theirs.model_type
        theirs.save_pretrained(folder)
        config = read_config(folder)
        assert config.model_type == theirs.model_type
        assert config.rope_theta == 10000.0
        assert config.rope_scaling is None


@pytest.mark.parametrize(
    ("base", "changes", "needle"),
    [
        (LLAMA, {"model_type": "mamba"}, "model_type 'mamba'"),
        (LLAMA, {"model_type": None}, "deepseek_v3"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp"),
        (LLAMA, {"pretraining_tp": True}, "pretraining_tp is true"),
        (LLAMA, {"logit_scale": 0.5}, "'logit_scale'"),
        (LLAMA, {"rope_thetta": 5.0}, "nearest known key is 'rope_theta'"),
        (LLAMA, {"sliding_window": 4096}, "'sliding_window'"),
        (LLAMA, {"vocab_size": 96.0}, "vocab_size is 96.0"),
        (LLAMA, {"vocab_size": True}, "vocab_size is true"),
        (LLAMA, {"vocab_size": -1}, "vocab_size is -1"),
        (LLAMA, {"vocab_size": 1 << 40}, "vocab_size"),
        (LLAMA, {"num_hidden_layers": 1 << 20}, "num_hidden_layers"),
        (LLAMA, {"num_key_value_heads": 4}, "num_key_value_heads 4"),
        (LLAMA, {"head_dim": 7}, "head_dim 7 is odd"),
        (LLAMA, {"hidden_size": 50, "head_dim": 8}, "hidden_size 50"),
        (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id"),
        (LLAMA, {"eos_token_id": 96}, "eos_token_id 96 is not below vocab_size 96"),
        (LLAMA, {"torch_dtype": "float64"}, "float64"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "low_freq_factor is missing",
        ),
        (LLAMA, {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        (LLAMA, {"rope_parameters": {"rope_theta": 7.0}}, "rope_scaling and rope_parameters"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA, {"_attn_implementation": "someone/kernel"}, "_attn_implementation"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "a\n\x1b[": 1}}, "a\\n\\x1b["),
        (LLAMA, {"a\nb": 1}, "a\\nb"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN2, {"attention_bias": False}, "attention_bias"),
        (QWEN2, {"layer_types": ["sliding_attention"]}, "layer_types"),
        (QWEN2, {"mlp_bias": True}, "mlp_bias"),
        (QWEN3, {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale_all_dim": 1}}, "mscale"),
        (QWEN3, {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "truncate"),
        (QWEN3, {"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 3}}, "factor"),
        (QWEN3, {"rope_scaling": {"type": "yarn", "factor": 4, "beta_fst": 3}}, "'beta_fast'"),
        (V3, {"topk_group": 5}, "topk_group 5 is more than n_group 4"),
        (V3, {"n_routed_experts": 13}, "n_routed_experts 13"),
        (V3, {"n_group": 12}, "one expert a group"),
        (V3, {"n_group": None}, "n_group is missing"),
        (V3, {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than the 6"),
        (V3, {"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is odd"),
        (V3, {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        (V3, {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        (V3, {"topk_method": "greedy"}, "topk_method 'greedy'"),
        (V3, {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        (V3, {"first_k_dense_replace": 4}, "first_k_dense_replace 4"),
        (V3, {"n_routed_experts": 1 << 16, "num_hidden_layers": 1 << 12}, "n_routed_experts"),
        (V3, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
        (V3, {"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        (V3, {"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob"),
        (V2, {"rope_interleave": False}, "rope_interleave"),
        (V2, {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        (V2, {"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.707}}, "mscale"),
    ],
)
def test_refused(base: dict[str, JSON], changes: dict[str, JSON], needle: str) -> None:
    assert needle in sentence(with_keys(base, **changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_scheme", "static"),
        ("fmt", "e5m2"),
        ("weight_block_size", [128]),
        ("weight_block_size", None),
        ("weight_block_size", [128, 0]),
        ("expert_dtype", "fp4"),
        ("zero_point", True),
    ],
)
def test_fp8_of_another_kind_is_refused(key: str, value: JSON) -> None:
    base = V3["quantization_config"]
    assert isinstance(base, dict)
    text = sentence(with_keys(V3, quantization_config={**base, key: value}))
    assert key in text or "block_size" in text


def test_scales_in_ue8m0_are_accepted() -> None:
    base = V3["quantization_config"]
    assert isinstance(base, dict)
    values = with_keys(V3, quantization_config={**base, "scale_fmt": "ue8m0"})
    assert parse_config(values, "x") == parse_config(V3, "x")


@pytest.mark.parametrize("name", ALL)
def test_missing_sizes_are_named(name: str) -> None:
    for key in ("vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings"):
        values = {k: v for k, v in ALL[name].items() if k != key}
        assert f"{key} is missing" in sentence(values)


def test_a_published_config_with_oddities() -> None:
    """SmolLM2-135M-Instruct's: keys of other tools, an untypical initializer_range, tied."""
    values: dict[str, JSON] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 49152,
    }
    config = parse_config(values, "x")
    assert isinstance(config, DenseConfig)
    assert (config.head_dim, config.rope_theta, config.tie_word_embeddings) == (64, 1e5, True)


def test_needs_no_torch() -> None:
    code = """
import sys
import forethought.checkpoints.hf_config, forethought.checkpoints.network_tensors
import forethought.checkpoints.folder
assert not {"torch", "numpy", "safetensors", "transformers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_but_switched_off_is_ignored() -> None:
    values = with_keys(LLAMA, rope_interleaved=False, logit_scale=None)
    assert parse_config(values, "x") == parse_config(LLAMA, "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}},
        {"_attn_implementation_internal": "someone/kernel"},
        {"task_specific_params": {"a": [{"auto_map": {"x": "y"}}]}},
        {"quantization_config": {"quant_method": "fp8", "x_internal": "y"}},
        {"custom_pipelines": {"a": {"impl": "mine.Pipeline"}}},
        {"tokenizer_class": "tokenization_mine.py"},
    ],
)
def test_code_is_refused(changes: dict[str, JSON]) -> None:
    text = sentence(with_keys(V3, **changes))
    assert "never runs" in text
    assert "remove" in text


def test_code_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    flag = tmp_path.parent / "ran"
    (tmp_path / "modeling_mine.py").write_text(f"open({str(flag)!r}, 'w')")
    with pytest.raises(ModelError, match=r"modeling_mine\.py"):
        read_config(tmp_path)
    assert not flag.exists()


def test_generation_config_adds_eos(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 9], "top_p": 0.9}')
    assert read_config(tmp_path).eos_token_ids == (2, 5, 9)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert read_config(tmp_path).eos_token_ids == (2, 5, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 700}')
    with pytest.raises(ModelError, match="eos_token_id 700"):
        read_config(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    for content in (b"", b"[]", b"\xff\xfe", b'{"a": NaN}', b"{" * 5000, b'{"a":' * 100_000):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"config\.json"):
            read_config(tmp_path)
    path.write_bytes(b'{"model_type": "llama", "model_type": "qwen2"}')
    with pytest.raises(ModelError, match="appears twice"):
        read_config(tmp_path)
    path.write_bytes(b'{"a": "' + b"x" * (5 << 20) + b'"}')
    with pytest.raises(ModelError, match="larger than 4 MiB"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        read_config(path)


def test_folder_without_tokenizer_or_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        open_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "vocab.json").write_text("{}")
    folder = open_folder(tmp_path)
    assert folder.weights == (tmp_path / "model.safetensors",)
    assert folder.chat_template is None
    with pytest.raises(ModelError, match=r"no tokenizer\.json \(it has vocab\.json\)"):
        folder.require_tokenizer()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert open_folder(tmp_path).require_tokenizer() == tmp_path / "tokenizer.json"


def test_configs_are_frozen_and_refuse_unknown_fields() -> None:
    config = parse_config(LLAMA, "x")
    with pytest.raises(ValueError, match="frozen"):
        config.vocab_size = 5
    with pytest.raises(ValueError, match="colour"):
        DenseConfig.model_validate({**config.model_dump(), "colour": "red"})
    with pytest.raises(ValueError, match="finite"):
        DenseConfig.model_validate({**config.model_dump(), "rope_theta": float("inf")})


values_of_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.data())
def test_any_value_anywhere_is_a_sentence_or_a_config(name: str, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*ALL[name], "quantization_config", "rope_parameters", "odd"]))
    values = with_keys(ALL[name], **{key: data.draw(values_of_json)})
    try:
        config = parse_config(values, "x")
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert parse_config(to_hf(config), "x") == config


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_sentence_or_an_object(data: bytes) -> None:
    try:
        assert isinstance(parse_json(data, "x"), dict)
    except ForethoughtError as error:
        assert str(error).startswith("x ")  # noqa: PT017


def test_read_json_says_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_json(tmp_path / "none.json")
