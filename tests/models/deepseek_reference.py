"""Tiny DeepSeek networks of odd shapes beside the transformers models of the same weights."""

from __future__ import annotations

from typing import Any

import torch
from reference import random_reference
from transformers import PreTrainedModel

from forethought.checkpoints.network_config import DeepseekConfig, YarnScaling
from forethought.models.deepseek_v3 import DeepseekV3

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
}
"""`mscale` and `mscale_all_dim` differ, so that swapping them shows."""

V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 97,
    "hidden_size": 45,
    "intermediate_size": 52,
    "moe_intermediate_size": 22,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "n_shared_experts": 2,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "q_lora_rank": 20,
    "kv_lora_rank": 26,
    "qk_nope_head_dim": 11,
    "qk_rope_head_dim": 6,
    "v_head_dim": 9,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    # Far from 1e-6, which the norms inside the attention keep.
    "rms_norm_eps": 1e-3,
    "rope_parameters": YARN,
    "tie_word_embeddings": False,
}

V2: dict[str, Any] = {
    **V3,
    "model_type": "deepseek_v2",
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": None,
    # transformers views its rotary columns as complex numbers: heads of even width.
    "qk_nope_head_dim": 10,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.7,
}


def config_of(reference: PreTrainedModel) -> DeepseekConfig:
    """Our config with the fields of a transformers model."""
    theirs = reference.config
    rope = dict(theirs.rope_parameters)
    theta = rope.pop("rope_theta")
    v3 = theirs.model_type == "deepseek_v3"
    scaling = None
    if rope.pop("rope_type") == "yarn":
        scaling = YarnScaling(**rope)
    same = {
        name: getattr(theirs, name)
        for name in DeepseekConfig.model_fields
        if name in V3 and name not in ("rope_parameters",)
    }
    return DeepseekConfig(
        **same,
        rope_theta=theta,
        rope_scaling=scaling,
        scoring_func="sigmoid" if v3 else "softmax",
        topk_method="noaux_tc" if v3 else theirs.topk_method,
        rope_interleave=theirs.rope_interleave if v3 else True,
        attention_bias=theirs.attention_bias,
        num_nextn_predict_layers=1 if v3 else 0,
    )


def pair(fields: dict[str, Any], seed: int = 0, **changes: Any) -> tuple[DeepseekV3, Any]:
    """(our network, transformers' model), the same random weights in float32."""
    theirs = random_reference({**fields, **changes}, seed)
    # torch's grouped product, which transformers takes by default, wants widths of whole 16 bytes.
    theirs.set_experts_implementation("eager")
    network = DeepseekV3(config_of(theirs))
    missing, unexpected = network.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert set(unexpected) <= {"lm_head.weight"}
    return network.eval(), theirs


def constructed(config: DeepseekConfig, seed: int = 0, **options: bool) -> DeepseekV3:
    """Our network alone, every parameter random."""
    network = DeepseekV3(config, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() >= 2:
                tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return network.eval()
