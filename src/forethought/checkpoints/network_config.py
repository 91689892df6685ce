"""What a checkpoint says about its network: the fields of `config.json` that change the numbers.

The names are Hugging Face's. One class for the dense decoders (Llama 3, Qwen2, Qwen3), one for the
DeepSeek family (V2's softmax gate beside V3's). Both are frozen; an impossible combination is
refused when it is made. Sources: the `config.json` of the released checkpoints; DeepSeek-V3
(arXiv:2412.19437) section 4.2; transformers' configurations of these model types.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

DenseType = Literal["llama", "qwen2", "qwen3"]
DeepseekType = Literal["deepseek_v2", "deepseek_v3"]
DtypeName = Literal["float32", "bfloat16", "float16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Llama3Scaling(_Frozen):
    """Llama 3.1's rope scaling: long wavelengths slowed by `factor`, the band between blended."""

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class YarnScaling(_Frozen):
    """YaRN as DeepSeek uses it. `mscale` scales the rotary factors, `mscale_all_dim` the softmax."""

    kind: Literal["yarn"] = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


class BlockQuantization(_Frozen):
    """FP8 weights as released: e4m3 blocks of `block_size` with one fp32 `weight_scale_inv` each."""

    block_size: tuple[int, int] = (128, 128)


class _Network(_Frozen):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope_theta: float
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: DtypeName = "float32"
    quantization: BlockQuantization | None = None


class DenseConfig(_Network):
    """A Llama, Qwen2 or Qwen3: grouped-query attention and SwiGLU, in every layer."""

    model_type: DenseType
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool = False
    """Biases of the q, k and v projections (always in Qwen2)."""
    output_bias: bool = False
    """Bias of the attention's output projection (Llama with `attention_bias`)."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before the rotation (Qwen3)."""
    rope_scaling: Llama3Scaling | YarnScaling | None = None


class DeepseekConfig(_Network):
    """A DeepSeek-V3, or a V2: latent attention and a mixture of experts.

    `q_lora_rank` None projects the query directly (V2-Lite). `num_nextn_predict_layers` counts MTP
    modules that the weights bring.
    """

    model_type: DeepseekType
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float
    scoring_func: Literal["sigmoid", "softmax"]
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"]
    norm_topk_prob: bool
    first_k_dense_replace: int
    moe_layer_freq: int = 1
    num_nextn_predict_layers: int = 0
    rope_interleave: bool = True
    attention_bias: bool = False
    rope_scaling: YarnScaling | None = None

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


NetworkConfig = DenseConfig | DeepseekConfig
