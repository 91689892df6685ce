"""The tensors of a network by name and shape, and what follows: parameters, bytes of everything.

Names and shapes are those of Hugging Face checkpoints, a linear layer as [out, in], experts one by
one, as released. Sources: DeepSeek-V3 (arXiv:2412.19437) section 4.2 and the README of its weights
(names of the MTP module); transformers' networks of these model types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from forethought.checkpoints.network_config import (
    DeepseekConfig,
    DenseConfig,
    DtypeName,
    NetworkConfig,
)

Shape = tuple[int, ...]
GGUFQuantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q5_0"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
GATE_BIAS = "mlp.gate.e_score_correction_bias"

DTYPE_BYTES: Mapping[DtypeName, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# Values in a block of a GGUF type, and its bytes (ggml's ggml-common.h).
GGUF_BLOCKS: Mapping[GGUFQuantization, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q5_0": (32, 22),
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def checkpoint_tensors(config: NetworkConfig) -> dict[str, Shape]:
    """Every tensor that a checkpoint of `config` must hold, in file order, without MTP modules.

    A tied head is absent. Shapes of V3's gate bias included.
    """
    found: dict[str, Shape] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        found |= _layer(config, layer)
    found["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        found[HEAD] = (config.vocab_size, config.hidden_size)
    return found


def mtp_tensors(config: NetworkConfig) -> dict[str, Shape]:
    """The tensors of the MTP modules, at layer ids from `num_hidden_layers` on; often empty.

    Each brings copies of the embedding and the head, as in the released weights; files may leave
    those two out (`is_mtp_copy`), and a file may bring no MTP module at all.
    """
    found: dict[str, Shape] = {}
    if not isinstance(config, DeepseekConfig):
        return found
    hidden, vocabulary = config.hidden_size, config.vocab_size
    for module in range(config.num_nextn_predict_layers):
        layer = config.num_hidden_layers + module
        p = f"model.layers.{layer}."
        found |= {
            p + "embed_tokens.weight": (vocabulary, hidden),
            p + "enorm.weight": (hidden,),
            p + "hnorm.weight": (hidden,),
            p + "eh_proj.weight": (hidden, 2 * hidden),
        }
        found |= _layer(config, layer)
        found |= {
            p + "shared_head.norm.weight": (hidden,),
            p + "shared_head.head.weight": (vocabulary, hidden),
        }
    return found


def is_mtp_copy(name: str) -> bool:
    """Whether an MTP tensor is the copy of the embedding or of the head."""
    return name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None for the embedding, the last norm and the head."""
    match = _LAYER.match(name)
    return None if match is None else int(match[1])


def mtp_layers_present(config: NetworkConfig, names: Container[str]) -> int:
    """How many MTP modules a file really brings: those whose `eh_proj` is among `names`.

    transformers writes `num_nextn_predict_layers` 1 into folders that hold no such module.
    """
    if not isinstance(config, DeepseekConfig):
        return 0
    for module in range(config.num_nextn_predict_layers):
        if f"model.layers.{config.num_hidden_layers + module}.eh_proj.weight" not in names:
            return module
    return config.num_nextn_predict_layers


def _layer(config: NetworkConfig, layer: int) -> dict[str, Shape]:
    p, hidden = f"model.layers.{layer}.", config.hidden_size
    found: dict[str, Shape] = {p + "input_layernorm.weight": (hidden,)}
    if isinstance(config, DenseConfig):
        found |= _dense_attention(config, p + "self_attn.")
        found[p + "post_attention_layernorm.weight"] = (hidden,)
        found |= _swiglu(p + "mlp.", hidden, config.intermediate_size, config.mlp_bias)
        return found
    found |= _latent_attention(config, p + "self_attn.")
    found[p + "post_attention_layernorm.weight"] = (hidden,)
    if layer < config.first_k_dense_replace:
        return found | _swiglu(p + "mlp.", hidden, config.intermediate_size)
    found[p + "mlp.gate.weight"] = (config.n_routed_experts, hidden)
    if config.topk_method == "noaux_tc":
        found[p + GATE_BIAS] = (config.n_routed_experts,)
    width = config.moe_intermediate_size
    for expert in range(config.n_routed_experts):
        found |= _swiglu(f"{p}mlp.experts.{expert}.", hidden, width)
    return found | _swiglu(p + "mlp.shared_experts.", hidden, width * config.n_shared_experts)


def _linear(name: str, out: int, width: int, bias: bool) -> dict[str, Shape]:
    found: dict[str, Shape] = {name + ".weight": (out, width)}
    if bias:
        found[name + ".bias"] = (out,)
    return found


def _swiglu(p: str, hidden: int, width: int, bias: bool = False) -> dict[str, Shape]:
    return {
        **_linear(p + "gate_proj", width, hidden, bias),
        **_linear(p + "up_proj", width, hidden, bias),
        **_linear(p + "down_proj", hidden, width, bias),
    }


def _dense_attention(config: DenseConfig, p: str) -> dict[str, Shape]:
    hidden, size = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    found = {
        **_linear(p + "q_proj", q, hidden, config.attention_bias),
        **_linear(p + "k_proj", kv, hidden, config.attention_bias),
        **_linear(p + "v_proj", kv, hidden, config.attention_bias),
        **_linear(p + "o_proj", hidden, q, config.output_bias),
    }
    if config.qk_norm:
        found |= {p + "q_norm.weight": (size,), p + "k_norm.weight": (size,)}
    return found


def _latent_attention(config: DeepseekConfig, p: str) -> dict[str, Shape]:
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
    latent, q_latent = config.kv_lora_rank, config.q_lora_rank
    q = heads * config.qk_head_dim
    if q_latent is None:
        found = _linear(p + "q_proj", q, hidden, False)
    else:
        found = _linear(p + "q_a_proj", q_latent, hidden, bias)
        found[p + "q_a_layernorm.weight"] = (q_latent,)
        found |= _linear(p + "q_b_proj", q, q_latent, False)
    kv = heads * (config.qk_nope_head_dim + config.v_head_dim)
    found |= _linear(p + "kv_a_proj_with_mqa", latent + config.qk_rope_head_dim, hidden, bias)
    found[p + "kv_a_layernorm.weight"] = (latent,)
    found |= _linear(p + "kv_b_proj", kv, latent, False)
    return found | _linear(p + "o_proj", hidden, heads * config.v_head_dim, bias)


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters, counted as DeepSeek's papers do.

    `total` counts all but the MTP modules, a tied head once. `active` is what one token is
    multiplied with: the head, the experts it goes to, and not the embedding, of which it takes one
    row (36.6B in DeepSeek-V3, 2.45B in V2-Lite: the papers' 37B and 2.4B). `mtp` counts the MTP
    modules without their copies of the embedding and the head.
    """

    total: int
    active: int
    embedding: int
    head: int
    mtp: int


def _in_sleeping_expert(config: NetworkConfig, name: str) -> bool:
    """Whether the tensor is of a routed expert beyond the first `num_experts_per_tok`."""
    if not isinstance(config, DeepseekConfig):
        return False
    _, found, rest = name.partition(".mlp.experts.")
    return bool(found) and int(rest.partition(".")[0]) >= config.num_experts_per_tok


def count_parameters(config: NetworkConfig) -> ParameterCount:
    """How many parameters a network has; see `ParameterCount` for what is counted where."""
    total = active = 0
    for name, shape in checkpoint_tensors(config).items():
        size = math.prod(shape)
        total += size
        active += 0 if _in_sleeping_expert(config, name) else size
    table = config.vocab_size * config.hidden_size
    return ParameterCount(
        total=total,
        active=active if config.tie_word_embeddings else active - table,
        embedding=table,
        head=0 if config.tie_word_embeddings else table,
        mtp=sum(
            math.prod(shape) for name, shape in mtp_tensors(config).items() if not is_mtp_copy(name)
        ),
    )


def cache_bytes_per_token(config: NetworkConfig, bytes_per_value: int, latent: bool = True) -> int:
    """Bytes of key/value cache that one token takes, over all layers.

    DeepSeek: with `latent` the normed latent and the rotated shared key (section 2.1.1), without
    it the keys and values of every head.
    """
    if isinstance(config, DenseConfig):
        values = 2 * config.num_key_value_heads * config.head_dim
    elif latent:
        values = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        values = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return config.num_hidden_layers * values * bytes_per_value


def load_bytes(config: NetworkConfig, dtype: DtypeName) -> int:
    """Bytes of the weights in memory at `dtype`, without MTP modules (gate biases stay fp32)."""
    size = DTYPE_BYTES[dtype]
    return sum(
        math.prod(shape) * (4 if name.endswith(GATE_BIAS) else size)
        for name, shape in checkpoint_tensors(config).items()
    )


def gguf_type(
    row: int, dimensions: int, router: bool, quantize: GGUFQuantization
) -> GGUFQuantization:
    """The GGUF type of a tensor: vectors and routers f32, rows that no block fits f16."""
    if dimensions == 1 or router:
        return "f32"
    return "f16" if row % GGUF_BLOCKS[quantize][0] else quantize


def gguf_bytes(config: NetworkConfig, quantize: GGUFQuantization) -> int:
    """Bytes of the tensors of a GGUF at `quantize`, without its header and vocabulary.

    An estimate to a few bytes a tensor (alignment). DeepSeek's `kv_b_proj` is stored as its two
    halves, of which the keys' one has rows of `qk_nope_head_dim`.
    """
    total = 0
    for name, shape in checkpoint_tensors(config).items():
        if isinstance(config, DeepseekConfig) and name.endswith("kv_b_proj.weight"):
            heads, latent = config.num_attention_heads, config.kv_lora_rank
            total += _bytes((heads * latent, config.qk_nope_head_dim), False, quantize)
            total += _bytes((heads * config.v_head_dim, latent), False, quantize)
        else:
            total += _bytes(shape, name.endswith("mlp.gate.weight"), quantize)
    return total


def _bytes(shape: Shape, router: bool, quantize: GGUFQuantization) -> int:
    kind = gguf_type(shape[-1], len(shape), router, quantize)
    values, size = GGUF_BLOCKS[kind]
    return math.prod(shape) // values * size
