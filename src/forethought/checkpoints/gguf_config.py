"""GGUF metadata <-> the network's configuration, for the architectures that forethought computes.

Reading is strict: a key of the architecture that changes the numbers and is not understood here is
an error that names it, because a network that ignores it would answer wrongly and say nothing.
Writing refuses what llama.cpp would compute otherwise than the network does.

No torch and no numpy: `models show` uses this. Source: llama.cpp's loader (hyperparameters of
`llama`, `qwen2`, `qwen3`, `deepseek2`) and its converter from Hugging Face folders.
"""

from __future__ import annotations

import math
import struct
from typing import Final, Literal

from pydantic import ValidationError

from forethought.checkpoints.gguf_header import GGUFArray, GGUFHeader, TensorInfo
from forethought.checkpoints.gguf_names import ROPE_FACTORS
from forethought.checkpoints.gguf_rope import find_llama3, llama3_factors
from forethought.checkpoints.network_config import (
    DeepseekConfig,
    DenseConfig,
    DenseType,
    DtypeName,
    Llama3Scaling,
    NetworkConfig,
    YarnScaling,
)
from forethought.errors import ModelError, UserError

ARCHITECTURES: Final = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
"""`model_type` of a Hugging Face folder -> `general.architecture` of a GGUF."""

_DENSE: Final[dict[str, DenseType]] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_SOFTMAX, _SIGMOID = 1, 2
_LITE_LAYERS: Final = (26, 27)
# Biases that llama.cpp's loader of each architecture knows.
_BIASES: Final[dict[DenseType, tuple[str, ...]]] = {
    "llama": ("attention_bias", "output_bias", "mlp_bias"),
    "qwen2": ("attention_bias",),
    "qwen3": (),
}
# More would not fit a machine; it keeps every product of two sizes far below 2 ** 63.
_MOST = 1 << 31

_COMMON_KEYS: Final = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
_DEEPSEEK_KEYS: Final = {
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "leading_dense_block_count",
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_feed_forward_length",
    "expert_group_count",
    "expert_group_used_count",
    "expert_gating_func",
    "expert_weights_scale",
    "expert_weights_norm",
    "rope.scaling.yarn_log_multiplier",
}
# Keys that change nothing that is computed here.
_SILENT_KEYS: Final = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type"}
# Keys that change nothing at these values.
_NEUTRAL: Final[dict[str, tuple[float | bool, ...]]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.output_scale": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
    "use_parallel_residual": (False,),
}

MetadataValue = str | bool | int | float


# Reading ------------------------------------------------------------------------------------------


def config_from_header(header: GGUFHeader) -> NetworkConfig:
    """The configuration of the network in a GGUF file.

    Raises ModelError naming the architecture or the metadata key that is not supported, missing or
    impossible; sizes are checked against the tensors by who reads these.
    """
    architecture = header.architecture
    if architecture not in ARCHITECTURES.values():
        raise ModelError(
            f"{header.path} has the architecture {shown(architecture or 'none')!r}, and the torch "
            f"engine knows {', '.join(dict.fromkeys(ARCHITECTURES.values()))}: use the llama.cpp "
            "engine."
        )
    if header.split_count != 1:
        raise ModelError(
            f"{header.path} is one of {header.split_count} files of a split model: join them "
            "with llama.cpp's gguf-split --merge first."
        )
    reader = _Reader(header)
    reader.check_keys()
    try:
        if architecture == "deepseek2":
            return _deepseek(reader)
        return _dense(reader, _DENSE[architecture])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its sizes"
        raise ModelError(
            f"{header.path}: the network that its metadata describes is impossible ({where}: "
            f"{first['msg']}); convert the model again."
        ) from None


def shown(text: str, most: int = 80) -> str:
    """A name from the file as a message can show it: printable and short, whatever it is."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."


class _Reader:
    """Metadata of one file with the sentences for what is wrong in it."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        self.tensors = {tensor.name: tensor for tensor in header.tensors}

    def fail(self, key: str, what: str) -> ModelError:
        return ModelError(
            f"{self.header.path}: {shown(self.header.arch_key(key))} {what}; use the llama.cpp "
            "engine, or convert the model again."
        )

    def check_keys(self) -> None:
        prefix = f"{self.header.architecture}."
        known = _COMMON_KEYS | _SILENT_KEYS
        if self.header.architecture == "deepseek2":
            known |= _DEEPSEEK_KEYS
        for full, value in self.header.metadata.items():
            key = full.removeprefix(prefix)
            if key == full or key in known:
                continue
            if isinstance(value, GGUFArray) or value not in _NEUTRAL.get(key, ()):
                what = "an array" if isinstance(value, GGUFArray) else shown(str(value))
                raise self.fail(key, f"is {what}, which the torch engine does not compute")

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A count; per-layer arrays are accepted where all layers agree."""
        value = self.header.per_layer(self.header.arch_key(key))
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.fail(key, "differs from layer to layer, which is not supported")
            value = value[0]
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        if not least <= value < _MOST:
            raise self.fail(key, f"is {value}, which is no possible size")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.header.number(self.header.arch_key(key))
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        return _shortest(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise self.fail(key, f"is {value}, and must be above 0")
        return value

    def common(self) -> dict[str, object]:
        """The fields that both kinds of network have."""
        header = self.header
        if "token_embd.weight" not in self.tensors:
            raise ModelError(f"{header.path} has no tensor 'token_embd.weight': it is no model.")
        ids = []
        for name in ("eos", "eot", "eom"):
            token = header.integer(f"tokenizer.ggml.{name}_token_id")
            if token is not None and token not in ids:
                ids.append(token)
        vocabulary = self.tensors["token_embd.weight"].shape[-1]
        if not 0 < vocabulary < _MOST:
            raise ModelError(f"{header.path}: 'token_embd.weight' has {vocabulary} rows.")
        layers = self.size("block_count")
        if layers > len(self.tensors):
            raise self.fail("block_count", f"is {layers}, more than the file has tensors")
        return {
            "vocab_size": vocabulary,
            "hidden_size": self.size("embedding_length"),
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": self.size("attention.head_count"),
            "rms_norm_eps": self.positive("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self.size("context_length"),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "rope_theta": self.positive("rope.freq_base", 10000.0),
            "bos_token_id": header.bos_id,
            "eos_token_ids": tuple(ids),
            "dtype": _main_dtype(header),
        }

    def yarn(self, *, mscale_all_dim: float = 0.0) -> YarnScaling | None:
        """Rope scaling as the metadata has it: none, or YaRN."""
        kind = self.header.text(self.header.arch_key("rope.scaling.type"))
        factor = self.number("rope.scaling.factor", 0.0)
        if kind in {None, "linear"} and factor in {0.0, 1.0}:
            return None
        if kind == "none":
            return None
        if kind != "yarn":
            raise self.fail(
                "rope.scaling.type", f"is {shown(kind or 'linear')!r}, which is not supported"
            )
        original = self.size("rope.scaling.original_context_length")
        return YarnScaling(
            factor=self.positive("rope.scaling.factor"),
            original_max_position_embeddings=original,
            beta_fast=self.positive("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.positive("rope.scaling.yarn_beta_slow", 1.0),
            mscale=mscale_all_dim or 1.0,
            mscale_all_dim=mscale_all_dim,
        )


def _dense(reader: _Reader, model_type: DenseType) -> DenseConfig:
    header, tensors = reader.header, reader.tensors
    fields = reader.common()
    heads = reader.size("attention.head_count")
    if "attention.key_length" not in _own_keys(header) and reader.size("embedding_length") % heads:
        raise reader.fail("attention.key_length", "is missing")
    head_dim = reader.size("attention.key_length", reader.size("embedding_length") // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if reader.size(key, head_dim) != head_dim:
            raise reader.fail(key, f"is not attention.key_length ({head_dim}): not supported")
    kv_heads = reader.size("attention.head_count_kv", heads)
    if heads % kv_heads or head_dim % 2:
        raise reader.fail("attention.head_count", f"of {heads} does not fit the other sizes")
    scaling: Llama3Scaling | YarnScaling | None = reader.yarn()
    if ROPE_FACTORS in tensors:
        if scaling is not None:
            raise reader.fail("rope.scaling.type", f"comes together with {ROPE_FACTORS!r}")
        theta = reader.positive("rope.freq_base", 10000.0)
        factors = _read_factors(header, tensors[ROPE_FACTORS], head_dim)
        if any(factor != 1 for factor in factors):
            scaling = find_llama3(factors, head_dim, theta)
            if scaling is None:
                raise ModelError(
                    f"{header.path}: the tensor {ROPE_FACTORS!r} is no rope scaling of Llama 3, "
                    "and no other is supported; use the llama.cpp engine."
                )
    return DenseConfig.model_validate(
        {
            **fields,
            "model_type": model_type,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "attention_bias": model_type == "qwen2" or "blk.0.attn_q.bias" in tensors,
            "output_bias": "blk.0.attn_output.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "qk_norm": model_type == "qwen3",
            "rope_scaling": scaling,
        }
    )


def _deepseek(reader: _Reader) -> DeepseekConfig:
    header = reader.header
    fields = reader.common()
    layers = reader.size("block_count")
    heads = reader.size("attention.head_count")
    rope = reader.size("rope.dimension_count")
    rank = reader.size("attention.kv_lora_rank")
    split = "attention.key_length_mla" in _own_keys(header)
    suffix = "_mla" if split else ""
    if split and (
        reader.size("attention.head_count_kv", heads) != 1
        or reader.size("attention.key_length") != rank + rope
        or reader.size("attention.value_length") != rank
    ):
        raise reader.fail("attention.key_length", "does not fit kv_lora_rank")
    key = reader.size(f"attention.key_length{suffix}")
    if key <= rope or rope % 2:
        raise reader.fail("rope.dimension_count", f"of {rope} does not fit heads of {key}")
    q_rank = reader.size("attention.q_lora_rank", 0, least=0)
    gating = reader.size("expert_gating_func", _SOFTMAX)
    if gating not in {_SOFTMAX, _SIGMOID}:
        raise reader.fail("expert_gating_func", f"is {gating}: only 1 (softmax) and 2 (sigmoid)")
    sigmoid = gating == _SIGMOID
    experts, used = reader.size("expert_count"), reader.size("expert_used_count")
    groups = reader.size("expert_group_count", 1, least=0) or 1
    used_groups = reader.size("expert_group_used_count", 1, least=0) or 1
    if used > experts or experts % groups or used_groups > groups:
        raise reader.fail("expert_count", f"of {experts} does not fit the experts and groups used")
    if groups > 1 and not sigmoid:
        raise reader.fail("expert_group_count", "with a softmax gate is not supported")
    dense = min(reader.size("leading_dense_block_count", 0, least=0), layers)
    router = reader.tensors.get(f"blk.{dense}.ffn_gate_inp.weight")
    if dense < layers and (router is None or router.shape[-1] != experts):
        raise reader.fail("expert_count", f"is {experts}, and the router has another shape")
    scale = reader.number("expert_weights_scale", 0.0)
    log_multiplier = reader.number("rope.scaling.yarn_log_multiplier", 0.0)
    scaling = reader.yarn(mscale_all_dim=_shortest(log_multiplier * 10, digits=7))
    if scaling is not None and not log_multiplier:
        # llama.cpp then scales the softmax and the rotary part in a way that no folder states.
        raise reader.fail("rope.scaling.yarn_log_multiplier", "is missing")
    return DeepseekConfig.model_validate(
        {
            **fields,
            "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
            "q_lora_rank": q_rank or None,
            "kv_lora_rank": rank,
            "qk_nope_head_dim": key - rope,
            "qk_rope_head_dim": rope,
            "v_head_dim": reader.size(f"attention.value_length{suffix}"),
            "moe_intermediate_size": reader.size("expert_feed_forward_length"),
            "n_routed_experts": experts,
            "n_shared_experts": reader.size("expert_shared_count", 0, least=0),
            "num_experts_per_tok": used,
            "n_group": groups,
            "topk_group": used_groups,
            "routed_scaling_factor": scale or 1.0,
            "scoring_func": "sigmoid" if sigmoid else "softmax",
            "topk_method": "noaux_tc" if sigmoid else "greedy",
            "norm_topk_prob": header.flag(header.arch_key("expert_weights_norm")) or False,
            "first_k_dense_replace": dense,
            "rope_scaling": scaling,
        }
    )


def keeps_kv_b_split(header: GGUFHeader) -> bool:
    """Whether a `deepseek2` file keeps `kv_b_proj` in two parts, as those since 2025 do."""
    return header.arch_key("attention.key_length_mla") in header.metadata


def _own_keys(header: GGUFHeader) -> set[str]:
    prefix = f"{header.architecture}."
    return {key.removeprefix(prefix) for key in header.metadata if key.startswith(prefix)}


def _main_dtype(header: GGUFHeader) -> DtypeName:
    """The type of most of the matrices; quantised ones stand for float32."""
    totals: dict[str, int] = {}
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            totals[tensor.type] = totals.get(tensor.type, 0) + tensor.elements
    most = max(totals, key=lambda kind: totals[kind], default="F32")
    names: dict[str, Literal["float16", "bfloat16"]] = {"F16": "float16", "BF16": "bfloat16"}
    return names.get(most, "float32")


def _shortest(value: float, digits: int = 9) -> float:
    """The shortest decimal that is the same float32: 1e-06 again, not 9.99999997e-07."""
    for precision in range(1, digits + 1):
        candidate = float(f"{value:.{precision}g}")
        if abs(candidate) < 3e38 and struct.pack("<f", candidate) == struct.pack("<f", value):
            return candidate
    return value if digits == 9 else float(f"{value:.{digits}g}")


def _read_factors(header: GGUFHeader, tensor: TensorInfo, head_dim: int) -> list[float]:
    if tensor.type != "F32" or tensor.shape != (head_dim // 2,):
        raise ModelError(
            f"{header.path}: the tensor {ROPE_FACTORS!r} is {tensor.type} of shape "
            f"{tensor.shape}, and float32 of ({head_dim // 2},) is needed; convert the model again."
        )
    try:
        with header.path.open("rb") as stream:
            stream.seek(header.data_offset + tensor.offset)
            data = stream.read(tensor.bytes)
    except OSError as error:
        raise UserError(f"{header.path} cannot be read ({error.strerror or error}).") from None
    if len(data) != tensor.bytes:
        raise ModelError(f"{header.path} is truncated: download it again.")
    return list(struct.unpack(f"<{head_dim // 2}f", data))


# Writing ------------------------------------------------------------------------------------------


def metadata_from_config(config: NetworkConfig) -> dict[str, MetadataValue]:
    """The hyperparameters of a GGUF of this network, with the keys of its architecture.

    Raises UserError where llama.cpp cannot load the network, or would compute something else.
    """
    refuse_unexportable(config)
    fields: dict[str, MetadataValue] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
    }
    if isinstance(config, DenseConfig):
        fields |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim,
        }
    else:
        fields |= _deepseek_metadata(config)
    scaling = config.rope_scaling
    if isinstance(scaling, YarnScaling):
        fields |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": scaling.beta_fast,
            "rope.scaling.yarn_beta_slow": scaling.beta_slow,
        }
        if isinstance(config, DeepseekConfig):
            fields["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling.mscale_all_dim
    architecture = ARCHITECTURES[config.model_type]
    return {f"{architecture}.{key}": value for key, value in fields.items()}


def rope_factors(config: NetworkConfig) -> list[float] | None:
    """The values of `rope_freqs.weight`, or None where the network needs none."""
    if isinstance(config, DenseConfig) and isinstance(config.rope_scaling, Llama3Scaling):
        return llama3_factors(config.rope_scaling, config.head_dim, config.rope_theta)
    return None


def _deepseek_metadata(config: DeepseekConfig) -> dict[str, MetadataValue]:
    rope = config.qk_rope_head_dim
    fields: dict[str, MetadataValue] = {
        # llama.cpp attends on the latent: one key-value head, as wide as latent and rotary part.
        "attention.head_count_kv": 1,
        "attention.key_length": config.kv_lora_rank + rope,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "rope.dimension_count": rope,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": _SIGMOID if config.scoring_func == "sigmoid" else _SOFTMAX,
    }
    if config.q_lora_rank is not None:
        fields["attention.q_lora_rank"] = config.q_lora_rank
    if config.n_group > 1:
        fields["expert_group_count"] = config.n_group
        fields["expert_group_used_count"] = config.topk_group
    return fields


def refuse_unexportable(config: NetworkConfig) -> None:
    """Raise UserError, with the field and its value, for what llama.cpp cannot compute."""
    if isinstance(config, DenseConfig):
        scaling = config.rope_scaling
        if isinstance(scaling, YarnScaling) and (scaling.mscale, scaling.mscale_all_dim) != (1, 0):
            raise _refused(config, "rope_scaling.mscale", scaling.mscale)
        allowed = _BIASES[config.model_type]
        for field in ("attention_bias", "output_bias", "mlp_bias"):
            if getattr(config, field) and field not in allowed:
                raise _refused(config, field, True)
        return
    # llama.cpp takes a deepseek2 of these depths for a V2-Lite, and every other for none.
    if (config.q_lora_rank is None) != (config.num_hidden_layers in _LITE_LAYERS):
        raise _refused(config, "q_lora_rank", config.q_lora_rank, config.num_hidden_layers)
    if config.attention_bias:
        raise _refused(config, "attention_bias", True)
    if config.moe_layer_freq != 1:
        raise _refused(config, "moe_layer_freq", config.moe_layer_freq)
    if config.topk_method == "group_limited_greedy" and config.n_group > 1:
        raise _refused(config, "topk_method", config.topk_method)
    if config.scoring_func == "softmax" and (config.norm_topk_prob or config.n_group > 1):
        field = "norm_topk_prob" if config.norm_topk_prob else "n_group"
        raise _refused(config, field, getattr(config, field))
    if not math.isclose(config.rms_norm_eps, 1e-6, rel_tol=1e-6):
        # The norms of the latents have 1e-6 whatever the config says; a GGUF has one epsilon.
        raise _refused(config, "rms_norm_eps", config.rms_norm_eps)
    yarn = config.rope_scaling
    if yarn is not None and (yarn.mscale != yarn.mscale_all_dim or not yarn.mscale):
        raise _refused(config, "rope_scaling.mscale", yarn.mscale)


def _refused(
    config: NetworkConfig, field: str, value: object, layers: int | None = None
) -> UserError:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    depth = "" if layers is None else f" and {layers} layers"
    return UserError(
        f"llama.cpp cannot compute a {config.model_type} with {field} {shown}{depth}, so there is "
        "no GGUF of it: keep the folder and use the torch engine."
    )
