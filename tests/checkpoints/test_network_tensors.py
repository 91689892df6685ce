"""Names, shapes and sums: against transformers' own modules, and against the papers' figures."""

from __future__ import annotations

import math

import pytest
import torch

from forethought.checkpoints.folder import JSON
from forethought.checkpoints.hf_config import parse_config, to_hf
from forethought.checkpoints.network_config import DeepseekConfig
from forethought.checkpoints.network_tensors import (
    cache_bytes_per_token,
    checkpoint_tensors,
    count_parameters,
    gguf_bytes,
    load_bytes,
    mtp_layers_present,
    mtp_tensors,
)

R1: dict[str, JSON] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
LITE: dict[str, JSON] = {
    **{key: value for key, value in R1.items() if key != "quantization_config"},
    "architectures": ["DeepseekV2ForCausalLM"],
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
QWEN_1_5B: dict[str, JSON] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SIZES: dict[str, JSON] = {
    "vocab_size": 40,
    "hidden_size": 36,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
DEEPSEEK: dict[str, JSON] = {
    **SIZES,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 6,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "moe_intermediate_size": 7,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 2.0,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
}
V2 = {**DEEPSEEK, "model_type": "deepseek_v2", "norm_topk_prob": False, "n_group": None}
SMALL: dict[str, dict[str, JSON]] = {
    "llama": {**SIZES, "model_type": "llama"},
    "llama tied, biased": {
        **SIZES,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "qwen2": {**SIZES, "model_type": "qwen2"},
    "qwen3": {**SIZES, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen3 biased": {**SIZES, "model_type": "qwen3", "head_dim": 8, "attention_bias": True},
    "v3": DEEPSEEK,
    "v3 biased, no q-LoRA": {**DEEPSEEK, "attention_bias": True, "q_lora_rank": None},
    "v2": {**V2, "topk_group": None},
    "v2 grouped": {**V2, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2},
}


def theirs(values: dict[str, JSON]) -> dict[str, tuple[int, ...]]:
    """Shapes of transformers' own module, its fused experts taken apart."""
    import transformers

    hf = to_hf(parse_config(values, "x"))
    kind = getattr(transformers, str(hf["architectures"][0]).replace("ForCausalLM", "Config"))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind(**hf))
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("experts.gate_up_proj"):
            for expert in range(shape[0]):
                for part in ("gate_proj", "up_proj"):
                    key = name.replace("gate_up_proj", f"{expert}.{part}.weight")
                    found[key] = (shape[1] // 2, shape[2])
        elif name.endswith("experts.down_proj"):
            for expert in range(shape[0]):
                found[name.replace("down_proj", f"{expert}.down_proj.weight")] = shape[1:]
        elif not (name == "lm_head.weight" and hf["tie_word_embeddings"]):
            found[name] = shape
    return found


@pytest.mark.parametrize("name", SMALL)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    assert checkpoint_tensors(parse_config(SMALL[name], "x")) == theirs(SMALL[name])


def test_parameters_of_the_released_networks() -> None:
    v3 = count_parameters(parse_config(R1, "x"))
    assert round(v3.total / 1e9) == 671
    assert round(v3.active / 1e9) == 37
    assert v3.embedding == v3.head == 129280 * 7168
    # README of the weights: 11.5B unique parameters in the MTP module.
    assert v3.mtp == pytest.approx(11.5e9, rel=0.02)
    lite = count_parameters(parse_config(LITE, "x"))
    assert lite.total == pytest.approx(15.7e9, rel=0.002)
    assert lite.active == pytest.approx(2.4e9, rel=0.03)
    assert lite.mtp == 0
    qwen = count_parameters(parse_config(QWEN_1_5B, "x"))
    assert qwen.total == pytest.approx(1.777e9, rel=0.001)
    assert qwen.active == qwen.total - qwen.embedding


def test_a_tied_head_counts_once() -> None:
    tied = count_parameters(parse_config({**QWEN_1_5B, "tie_word_embeddings": True}, "x"))
    assert tied.head == 0
    assert tied.active == tied.total
    assert tied.total == pytest.approx(1.544e9, rel=0.001)


def test_mtp_module() -> None:
    config = parse_config(R1, "x")
    tensors = mtp_tensors(config)
    assert all(name.startswith("model.layers.61.") for name in tensors)
    assert tensors["model.layers.61.eh_proj.weight"] == (7168, 14336)
    assert tensors["model.layers.61.embed_tokens.weight"] == (129280, 7168)
    assert tensors["model.layers.61.shared_head.head.weight"] == (129280, 7168)
    assert "model.layers.61.mlp.experts.255.down_proj.weight" in tensors
    assert "model.layers.61.mlp.gate.e_score_correction_bias" in tensors
    assert not tensors.keys() & checkpoint_tensors(config).keys()
    block = {name for name in checkpoint_tensors(config) if ".layers.60." in name}
    extra = {"embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"}
    assert {name.replace("layers.60.", "layers.61.") for name in block} == {
        name
        for name in tensors
        if name.removeprefix("model.layers.61.").removesuffix(".weight") not in extra
    }
    assert len(tensors) == len(block) + len(extra)
    assert mtp_layers_present(config, tensors) == 1
    assert mtp_layers_present(config, checkpoint_tensors(config)) == 0
    assert mtp_tensors(parse_config(QWEN_1_5B, "x")) == {}


def test_bytes() -> None:
    config = parse_config(R1, "x")
    # 576 numbers a token a layer, in 61 layers: about 70 kB in bf16.
    assert cache_bytes_per_token(config, 2) == 61 * 576 * 2
    assert cache_bytes_per_token(config, 2, latent=False) == 61 * 128 * (192 + 128) * 2
    assert cache_bytes_per_token(parse_config(QWEN_1_5B, "x"), 2) == 28 * 2 * 2 * 128 * 2
    total = count_parameters(config).total
    biases = 58 * 256
    assert load_bytes(config, "bfloat16") == 2 * total + 2 * biases
    assert load_bytes(config, "float32") == 4 * total


def test_gguf_bytes_against_a_sum_by_hand() -> None:
    config = parse_config(
        {**SIZES, "model_type": "llama", "hidden_size": 96, "intermediate_size": 50}, "x"
    )
    tensors = checkpoint_tensors(config)
    vectors = sum(math.prod(shape) for shape in tensors.values() if len(shape) == 1)
    # Rows of 50 fit no block of 32; all others are 96 wide.
    odd = sum(math.prod(s) for n, s in tensors.items() if n.endswith("down_proj.weight"))
    rest = sum(map(math.prod, tensors.values())) - vectors - odd
    assert gguf_bytes(config, "f32") == 4 * (vectors + odd + rest)
    assert gguf_bytes(config, "bf16") == 4 * vectors + 2 * (odd + rest)
    for kind, block in (("q8_0", 34), ("q5_0", 22), ("q4_0", 18)):
        assert gguf_bytes(config, kind) == 4 * vectors + 2 * odd + rest // 32 * block  # type: ignore[arg-type]


def test_gguf_bytes_of_deepseek() -> None:
    config = parse_config(R1, "x")
    assert isinstance(config, DeepseekConfig)
    total = count_parameters(config).total
    assert gguf_bytes(config, "f32") == 4 * total
    # Everything but norms and routers (0.02%) in blocks of 34 bytes for 32 values.
    assert gguf_bytes(config, "q8_0") == pytest.approx(total * 34 / 32, rel=1e-3)
    assert gguf_bytes(config, "q4_0") == pytest.approx(total * 18 / 32, rel=1e-3)
