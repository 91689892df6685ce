"""How much memory a GGUF model needs, before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forethought.checkpoints.gguf_header import GGUFHeader
from forethought.errors import ModelError

F16_BYTES = 2
# llama.cpp's default micro-batch: how many positions pass through the network at once.
MICRO_BATCH = 512
_FIXED_SLACK = 64 << 20


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """An estimate in bytes: weights, key/value cache, and room for computing."""

    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.compute


def kv_bytes_per_token(header: GGUFHeader) -> int:
    """Bytes that one token of context takes in the key/value cache, at f16, over all layers.

    Multi-head latent attention (`deepseek2` with one shared key/value head) keeps only the latent
    vector and the rotary part (DeepSeek-V2 paper, section 2.1). Sliding windows are not credited.
    Raises ModelError if the header lacks what the sum needs.
    """
    layers = header.block_count
    if layers is None or not 0 <= layers <= 1 << 16:
        raise _missing(header, "block_count")
    heads = header.head_count_kv
    latent = header.integer(header.arch_key("attention.kv_lora_rank"))
    if latent is not None and (
        heads == 1 or header.integer(header.arch_key("attention.key_length_mla")) is not None
    ):
        rope = header.integer(header.arch_key("rope.dimension_count"))
        if rope is None:
            raise _missing(header, "rope.dimension_count")
        return layers * (latent + rope) * F16_BYTES
    keys, values = header.key_length, header.value_length
    if heads is None or keys is None or values is None:
        raise _missing(header, "attention.head_count_kv")
    total = sum(heads[:layers]) if isinstance(heads, list) else heads * layers
    return total * (keys + values) * F16_BYTES


def _missing(header: GGUFHeader, key: str) -> ModelError:
    return ModelError(
        f"{header.path} does not say {header.arch_key(key)!r} in its header, which is needed to "
        "tell how much memory it takes: convert the model again."
    )


def memory_needed(header: GGUFHeader, context: int, slots: int = 1) -> MemoryNeed:
    """Estimate the memory to run the model with `slots` sequences of `context` tokens each.

    Weights count all files of a split model that lie beside the first.
    """
    width = header.embedding_length or 0
    feed_forward = header.per_layer(header.arch_key("feed_forward_length"))
    if isinstance(feed_forward, list):
        feed_forward = max(feed_forward, default=0)
    activations = MICRO_BATCH * (6 * width + 2 * (feed_forward or 0)) * 4
    logits = MICRO_BATCH * header.vocabulary_size * 4
    return MemoryNeed(
        weights=_weights(header),
        cache=kv_bytes_per_token(header) * context * slots,
        compute=activations + logits + _FIXED_SLACK,
    )


def _weights(header: GGUFHeader) -> int:
    if header.split_count == 1:
        return header.weight_bytes
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", header.path.name)
    if match is None:
        return header.weight_bytes
    total = header.weight_bytes
    for sibling in header.path.parent.glob(f"*-of-{match[2]}.gguf"):
        if sibling.name.startswith(match[1] + "-") and sibling.name != header.path.name:
            total += sibling.stat().st_size
    return total
