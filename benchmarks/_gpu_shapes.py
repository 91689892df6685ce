"""The networks that the benchmarks on a GPU use, for us and for transformers; random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from forethought.checkpoints.network_config import DeepseekConfig, DenseConfig, NetworkConfig

PEAK: Final = 989e12
"""Dense bfloat16 FLOP/s of an H100 SXM (its data sheet): what MFU is a share of."""


def _dense(
    kind: str, width: int, layers: int, heads: int, groups: int, inner: int, vocabulary: int
) -> DenseConfig:
    return DenseConfig.model_validate(
        {
            "model_type": kind,
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": width // heads,
            "attention_bias": kind == "qwen2",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
        }
    )


def _v3() -> DeepseekConfig:
    return DeepseekConfig.model_validate(
        {
            "model_type": "deepseek_v3",
            "vocab_size": 4096,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "q_lora_rank": None,
            "kv_lora_rank": 128,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "moe_intermediate_size": 160,
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
        }
    )


SHAPES: Final[Mapping[str, Callable[[], NetworkConfig]]] = {
    "llama-24m": lambda: _dense("llama", 512, 8, 8, 4, 1408, 4096),
    "v3": _v3,
    "qwen2.5-0.5b": lambda: _dense("qwen2", 896, 24, 14, 2, 4864, 151_936),
    "smollm2-135m": lambda: _dense("llama", 576, 30, 9, 3, 1536, 49_152),
}


def transformers_config(name: str, **more: Any) -> Any:
    """The same shape as a config of transformers."""
    from transformers import DeepseekV3Config, LlamaConfig, Qwen2Config

    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "deepseek_v3": DeepseekV3Config}
    keys = SHAPES[name]().model_dump(
        exclude={"model_type", "rope_theta", "rope_scaling", "qk_norm", "output_bias", "dtype"},
        exclude_none=True,
    )
    for key in ("bos_token_id", "eos_token_id", "eos_token_ids", "quantization"):
        keys.pop(key, None)
    if name == "v3":
        keys["q_lora_rank"] = None
        keys["num_key_value_heads"] = keys["num_attention_heads"]
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    return kinds[SHAPES[name]().model_type](**keys, **more)
