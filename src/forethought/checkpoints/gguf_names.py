"""How the tensors of a network are stored in GGUF: names, shapes, and the order of their rows.

One plan serves both directions. Three things differ from a Hugging Face checkpoint:

- llama.cpp rotates adjacent rows of q and k in its `llama` architecture (and in `deepseek2`),
  where Hugging Face's Llama rotates row i with row i + half: `Rotary` says which rows move.
- `deepseek2` attends on the latent itself, so `kv_b_proj` is kept in two parts: `attn_k_b`, one
  transposed matrix a head, and `attn_v_b`.
- the experts of a layer are one tensor of three dimensions.

Shapes here are in the order of torch, the slowest dimension first; GGUF writes them reversed.
MTP modules have no place in these files and are left out. Source: llama.cpp's converter and loader
of the four architectures; gguf-py's tensor names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from forethought.checkpoints.network_config import DeepseekConfig, DenseConfig, NetworkConfig

Shape = tuple[int, ...]
Layout = Literal["plain", "experts", "k_b", "v_b", "kv_b"]

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: llama3's rope scaling, worked out."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rows of `heads` heads: `before` rows that stay, then `rotated` rows kept in pairs in GGUF."""

    heads: int
    before: int
    rotated: int

    def rows(self) -> list[int]:
        """Row i of the GGUF tensor is row `rows()[i]` of the Hugging Face tensor."""
        half = self.rotated // 2
        order: list[int] = []
        for head in range(self.heads):
            start = head * (self.before + self.rotated)
            order.extend(range(start, start + self.before))
            start += self.before
            for pair in range(half):
                order.extend((start + pair, start + half + pair))
        return order


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a GGUF file and the Hugging Face tensors that it holds.

    `plain`: one, of the same shape, with `rotary` rows in another order. `experts`: one for each
    expert, stacked. `k_b` and `v_b`: a part each of the same `kv_b_proj`.
    """

    name: str
    shape: Shape
    sources: tuple[str, ...]
    source_shape: Shape
    layout: Layout = "plain"
    rotary: Rotary | None = None

    @property
    def keeps_full_precision(self) -> bool:
        """Norms, biases, routers: small, and llama.cpp wants them in float32."""
        return len(self.shape) == 1 or self.name.endswith("ffn_gate_inp.weight")


def plan(config: NetworkConfig, *, split_kv_b: bool = True) -> Iterator[StoredTensor]:
    """Every tensor of a GGUF of this network, in the order in which llama.cpp's converter goes.

    `split_kv_b` False describes the older `deepseek2` files, which keep `attn_kv_b` whole.
    """
    width, vocabulary = config.hidden_size, config.vocab_size
    yield _plain("token_embd.weight", "model.embed_tokens.weight", (vocabulary, width))
    for layer in range(config.num_hidden_layers):
        if isinstance(config, DenseConfig):
            yield from _dense_attention(config, layer)
            yield from _mlp(layer, "mlp", "", width, config.intermediate_size, config.mlp_bias)
        else:
            yield from _latent_attention(config, layer, split_kv_b)
            if has_experts(config, layer):
                yield from _experts(config, layer)
            else:
                yield from _mlp(layer, "mlp", "", width, config.intermediate_size, False)
        for gguf, hf in (
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            yield _plain(
                f"blk.{layer}.{gguf}.weight", f"model.layers.{layer}.{hf}.weight", (width,)
            )
    yield _plain("output_norm.weight", "model.norm.weight", (width,))
    if not config.tie_word_embeddings:
        yield _plain("output.weight", "lm_head.weight", (vocabulary, width))


def has_experts(config: DeepseekConfig, layer: int) -> bool:
    """Whether this layer is a mixture of experts."""
    return layer >= config.first_k_dense_replace and layer % config.moe_layer_freq == 0


def _plain(gguf: str, hf: str, shape: Shape, rotary: Rotary | None = None) -> StoredTensor:
    return StoredTensor(gguf, shape, (hf,), shape, rotary=rotary)


def _dense_attention(config: DenseConfig, layer: int) -> Iterator[StoredTensor]:
    width, head = config.hidden_size, config.head_dim
    pairs = config.model_type == "llama"
    to, source = f"blk.{layer}.attn_", f"model.layers.{layer}.self_attn."
    for letter, heads in (
        ("q", config.num_attention_heads),
        ("k", config.num_key_value_heads),
        ("v", config.num_key_value_heads),
    ):
        rotary = Rotary(heads, 0, head) if pairs and letter != "v" else None
        gguf, hf, rows = f"{to}{letter}", f"{source}{letter}_proj", heads * head
        yield _plain(f"{gguf}.weight", f"{hf}.weight", (rows, width), rotary)
        if config.attention_bias:
            yield _plain(f"{gguf}.bias", f"{hf}.bias", (rows,), rotary)
    joined = config.num_attention_heads * head
    yield _plain(f"{to}output.weight", f"{source}o_proj.weight", (width, joined))
    if config.output_bias:
        yield _plain(f"{to}output.bias", f"{source}o_proj.bias", (width,))
    if config.qk_norm:
        yield _plain(f"{to}q_norm.weight", f"{source}q_norm.weight", (head,))
        yield _plain(f"{to}k_norm.weight", f"{source}k_norm.weight", (head,))


def _latent_attention(
    config: DeepseekConfig, layer: int, split_kv_b: bool
) -> Iterator[StoredTensor]:
    width, heads = config.hidden_size, config.num_attention_heads
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    to, source = f"blk.{layer}.attn_", f"model.layers.{layer}.self_attn."
    # The released weights are in pairs already, as llama.cpp rotates them.
    in_pairs = config.rope_interleave
    q_rotary = None if in_pairs else Rotary(heads, nope, rope)
    k_rotary = None if in_pairs else Rotary(1, rank, rope)
    q_rows = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        yield _plain(f"{to}q.weight", f"{source}q_proj.weight", (q_rows, width), q_rotary)
    else:
        q_rank = config.q_lora_rank
        yield _plain(f"{to}q_a.weight", f"{source}q_a_proj.weight", (q_rank, width))
        yield _plain(f"{to}q_a_norm.weight", f"{source}q_a_layernorm.weight", (q_rank,))
        yield _plain(f"{to}q_b.weight", f"{source}q_b_proj.weight", (q_rows, q_rank), q_rotary)
    yield _plain(
        f"{to}kv_a_mqa.weight", f"{source}kv_a_proj_with_mqa.weight", (rank + rope, width), k_rotary
    )
    yield _plain(f"{to}kv_a_norm.weight", f"{source}kv_a_layernorm.weight", (rank,))
    whole, hf = (heads * (nope + value), rank), (f"{source}kv_b_proj.weight",)
    if split_kv_b:
        yield StoredTensor(f"{to}k_b.weight", (heads, rank, nope), hf, whole, "k_b")
        yield StoredTensor(f"{to}v_b.weight", (heads, value, rank), hf, whole, "v_b")
    else:
        yield StoredTensor(f"{to}kv_b.weight", whole, hf, whole, "kv_b")
    yield _plain(f"{to}output.weight", f"{source}o_proj.weight", (width, heads * value))


def _mlp(
    layer: int, hf: str, suffix: str, width: int, inner: int, bias: bool
) -> Iterator[StoredTensor]:
    for letter, rows, columns in (
        ("gate", inner, width),
        ("down", width, inner),
        ("up", inner, width),
    ):
        gguf = f"blk.{layer}.ffn_{letter}{suffix}"
        source = f"model.layers.{layer}.{hf}.{letter}_proj"
        yield _plain(f"{gguf}.weight", f"{source}.weight", (rows, columns))
        if bias:
            yield _plain(f"{gguf}.bias", f"{source}.bias", (rows,))


def _experts(config: DeepseekConfig, layer: int) -> Iterator[StoredTensor]:
    width, inner, count = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    source = f"model.layers.{layer}.mlp."
    yield _plain(f"blk.{layer}.ffn_gate_inp.weight", f"{source}gate.weight", (count, width))
    if config.topk_method == "noaux_tc":
        bias = f"{source}gate.e_score_correction_bias"
        yield _plain(f"blk.{layer}.exp_probs_b.bias", bias, (count,))
    for letter, rows, columns in (
        ("gate", inner, width),
        ("down", width, inner),
        ("up", inner, width),
    ):
        yield StoredTensor(
            f"blk.{layer}.ffn_{letter}_exps.weight",
            (count, rows, columns),
            tuple(f"{source}experts.{n}.{letter}_proj.weight" for n in range(count)),
            (rows, columns),
            "experts",
        )
    if config.n_shared_experts:
        shared = inner * config.n_shared_experts
        yield from _mlp(layer, "mlp.shared_experts", "_shexp", width, shared, False)
