"""What a checkpoint says about its network: the fields of `config.json` that change the numbers.

The names are Hugging Face's. One class for the dense decoders (Llama 3, Qwen2, Qwen3), one for the
DeepSeek family (V2's softmax gate beside V3's). Both are frozen; an impossible combination is
refused when it is made. Sources: the `config.json` of the released checkpoints; DeepSeek-V3
(arXiv:2412.19437) section 4.2; transformers' configurations of these model types.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DenseType = Literal["llama", "qwen2", "qwen3"]
DeepseekType = Literal["deepseek_v2", "deepseek_v3"]
DtypeName = Literal["float32", "bfloat16", "float16"]

# Far above every released network, far below what would exhaust memory by its names alone.
Width = Annotated[int, Field(ge=1, le=1 << 22)]
Layers = Annotated[int, Field(ge=1, le=1 << 12)]
Positions = Annotated[int, Field(ge=1, le=1 << 31)]
Count = Annotated[int, Field(ge=0, le=1 << 16)]
MAX_EXPERTS_IN_ALL = 1 << 18


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Llama3Scaling(_Frozen):
    """Llama 3.1's rope scaling: long wavelengths slowed by `factor`, the band between blended."""

    kind: Literal["llama3"] = "llama3"
    factor: Annotated[float, Field(ge=1)]
    low_freq_factor: Annotated[float, Field(gt=0)]
    high_freq_factor: Annotated[float, Field(gt=0)]
    original_max_position_embeddings: Positions

    @model_validator(mode="after")
    def _band(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must be greater than low_freq_factor "
                f"{self.low_freq_factor}"
            )
        return self


class YarnScaling(_Frozen):
    """YaRN as DeepSeek uses it. `mscale` scales the rotary factors, `mscale_all_dim` the softmax.

    With m(x) = 0.1 x ln(factor) + 1, cos and sin are multiplied by m(mscale) / m(mscale_all_dim),
    and DeepSeek's softmax scale by m(mscale_all_dim) squared. `mscale` without `mscale_all_dim` is
    read differently by released code and by transformers, so only 1 is accepted there.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Annotated[float, Field(ge=1)]
    original_max_position_embeddings: Positions
    beta_fast: Annotated[float, Field(gt=0)] = 32.0
    beta_slow: Annotated[float, Field(gt=0)] = 1.0
    mscale: Annotated[float, Field(gt=0)] = 1.0
    mscale_all_dim: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _ramp(self) -> Self:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast {self.beta_fast} must be greater than beta_slow {self.beta_slow}"
            )
        if self.mscale_all_dim == 0 and self.mscale != 1:
            raise ValueError(f"mscale {self.mscale} without mscale_all_dim is ambiguous")
        return self


class BlockQuantization(_Frozen):
    """FP8 weights as released: e4m3, one fp32 `weight_scale_inv` for a block of `block_size`."""

    block_size: tuple[Width, Width] = (128, 128)


class _Network(_Frozen):
    vocab_size: Width
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    rms_norm_eps: Annotated[float, Field(ge=0, lt=1)]
    max_position_embeddings: Positions
    tie_word_embeddings: bool
    rope_theta: Annotated[float, Field(gt=1, le=1e15)]
    initializer_range: Annotated[float, Field(ge=0, le=1)] = 0.02
    bos_token_id: Annotated[int, Field(ge=0)] | None = None
    eos_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    dtype: DtypeName = "float32"
    quantization: BlockQuantization | None = None

    @model_validator(mode="after")
    def _token_ids(self) -> Self:
        for key, ids in (
            ("bos_token_id", () if self.bos_token_id is None else (self.bos_token_id,)),
            ("eos_token_id", self.eos_token_ids),
        ):
            if any(token >= self.vocab_size for token in ids):
                raise ValueError(f"{key} {max(ids)} is not below vocab_size {self.vocab_size}")
        return self


class DenseConfig(_Network):
    """A Llama, Qwen2 or Qwen3: grouped-query attention and SwiGLU, in every layer."""

    model_type: DenseType
    num_key_value_heads: Width
    head_dim: Width
    attention_bias: bool = False
    """Biases of the q, k and v projections (always in Qwen2)."""
    output_bias: bool = False
    """Bias of the attention's output projection (Llama with `attention_bias`)."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before the rotation (Qwen3)."""
    rope_scaling: Llama3Scaling | YarnScaling | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and rotations need pairs")
        if self.model_type == "llama" and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_scaling.mscale_all_dim:
            raise ValueError(
                "mscale_all_dim of rope_scaling is DeepSeek's and changes nothing here"
            )
        fixed = {
            "qk_norm": self.model_type == "qwen3",
            "attention_bias": True if self.model_type == "qwen2" else self.attention_bias,
            "output_bias": False if self.model_type == "qwen2" else self.attention_bias,
            "mlp_bias": self.mlp_bias if self.model_type == "llama" else False,
        }
        for key, value in fixed.items():
            if getattr(self, key) is not value:
                raise ValueError(f"{key} must be {str(value).lower()} in this {self.model_type}")
        return self

    @property
    def widest_head(self) -> int:
        """The width of what attention multiplies."""
        return self.head_dim


class DeepseekConfig(_Network):
    """A DeepSeek-V3, or a V2: latent attention and a mixture of experts.

    `q_lora_rank` None projects the query directly (V2-Lite). `num_nextn_predict_layers` counts MTP
    modules that the weights bring.
    """

    model_type: DeepseekType
    q_lora_rank: Width | None
    kv_lora_rank: Width
    qk_nope_head_dim: Width
    qk_rope_head_dim: Width
    v_head_dim: Width
    moe_intermediate_size: Width
    n_routed_experts: Annotated[int, Field(ge=1, le=1 << 16)]
    n_shared_experts: Annotated[int, Field(ge=1, le=1 << 10)]
    num_experts_per_tok: Annotated[int, Field(ge=1, le=1 << 16)]
    n_group: Annotated[int, Field(ge=1, le=1 << 16)]
    topk_group: Annotated[int, Field(ge=1, le=1 << 16)]
    routed_scaling_factor: Annotated[float, Field(gt=0)]
    scoring_func: Literal["sigmoid", "softmax"]
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"]
    norm_topk_prob: bool
    first_k_dense_replace: Count
    moe_layer_freq: int = 1
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=16)] = 0
    rope_interleave: bool = True
    attention_bias: bool = False
    rope_scaling: YarnScaling | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.qk_rope_head_dim % 2:
            raise ValueError(
                f"qk_rope_head_dim {self.qk_rope_head_dim} is odd, and rotations need pairs"
            )
        if self.moe_layer_freq != 1:
            raise ValueError(
                f"moe_layer_freq {self.moe_layer_freq} is not supported: only 1, experts in every "
                "layer after the first dense ones"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace {self.first_k_dense_replace} is more than "
                f"num_hidden_layers {self.num_hidden_layers}"
            )
        if self.num_hidden_layers * self.n_routed_experts > MAX_EXPERTS_IN_ALL:
            raise ValueError(
                f"n_routed_experts {self.n_routed_experts} in num_hidden_layers "
                f"{self.num_hidden_layers} are more experts than forethought handles"
            )
        self._check_gate()
        if self.model_type == "deepseek_v2":
            self._check_v2()
        return self

    def _check_gate(self) -> None:
        v2 = self.model_type == "deepseek_v2"
        scoring = "softmax" if v2 else "sigmoid"
        methods = ("greedy", "group_limited_greedy") if v2 else ("noaux_tc",)
        if self.scoring_func != scoring:
            raise ValueError(
                f"scoring_func {self.scoring_func!r} is not supported in {self.model_type}: only "
                f"{scoring!r}"
            )
        if self.topk_method not in methods:
            raise ValueError(
                f"topk_method {self.topk_method!r} is not supported in {self.model_type}: only "
                f"{' and '.join(map(repr, methods))}"
            )
        kept = self.n_routed_experts
        if self.topk_method != "greedy":
            if self.n_routed_experts % self.n_group:
                raise ValueError(
                    f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group "
                    f"{self.n_group}"
                )
            if self.topk_group > self.n_group:
                raise ValueError(
                    f"topk_group {self.topk_group} is more than n_group {self.n_group}"
                )
            in_group = self.n_routed_experts // self.n_group
            if self.topk_method == "noaux_tc" and in_group < 2:
                raise ValueError(
                    f"n_group {self.n_group} leaves one expert a group, and a group's score is the "
                    "sum of its two best"
                )
            kept = self.topk_group * in_group
        if self.num_experts_per_tok > kept:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than the {kept} experts "
                "that the kept groups hold"
            )

    def _check_v2(self) -> None:
        if self.norm_topk_prob:
            raise ValueError(
                "norm_topk_prob true is not supported in deepseek_v2: its released code and "
                "transformers disagree on it"
            )
        if not self.rope_interleave:
            raise ValueError("rope_interleave false is not supported in deepseek_v2")
        if self.num_nextn_predict_layers:
            raise ValueError("num_nextn_predict_layers must be 0 in deepseek_v2: it has no MTP")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}, and transformers refuses that in deepseek_v2"
            )

    @property
    def widest_head(self) -> int:
        """The width of what attention multiplies."""
        return max(self.qk_head_dim, self.v_head_dim)

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: the part without position, and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


NetworkConfig = DenseConfig | DeepseekConfig
