"""What passes of a network cost, from its config alone: FLOPs of products, bytes of memory.

FLOPs are those of matrix products, two for each pair of numbers that is multiplied and added, with
attention's own two products at causal lengths, and only the experts that a token goes to. Norms,
rotations, softmax and nonlinearities are not counted, nor is anything that is computed twice to
save memory: it is the work that the mathematics asks for, whatever code does it.

Bytes are the least that must pass between memory and processor: weights, gradients, cache, logits
and the optimiser's state. What a pass keeps for itself (activations) is not counted.

Sources: PaLM (arXiv:2204.02311) appendix B for the counting of FLOPs, DeepSeek-V2
(arXiv:2405.04434) section 2.1.2 for absorbed decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forethought.checkpoints.network_config import DeepseekConfig, NetworkConfig
from forethought.checkpoints.network_tensors import (
    EMBEDDING,
    GATE_BIAS,
    HEAD,
    Shape,
    cache_bytes_per_token,
    checkpoint_tensors,
    is_mtp_copy,
    mtp_tensors,
)

_WIDE: Final = 4
"""Bytes of a float32: logits, moments, masters, a gate's selection bias."""


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of matrix products, and bytes of memory traffic."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class _Part:
    """Numbers in a part of the network: ``matrices`` that every token meets, routed ``experts``
    (all of them), other trained ``vectors``, and a gate's ``biases``, which nothing trains."""

    matrices: int
    experts: int
    vectors: int
    biases: int

    @classmethod
    def of(cls, tensors: Mapping[str, Shape]) -> _Part:
        sizes = {"matrices": 0, "experts": 0, "vectors": 0, "biases": 0}
        for name, shape in tensors.items():
            kind = "matrices" if len(shape) == 2 else "vectors"
            if ".mlp.experts." in name:
                kind = "experts"
            elif name.endswith(GATE_BIAS):
                kind = "biases"
            sizes[kind] += math.prod(shape)
        return cls(**sizes)

    @property
    def trained(self) -> int:
        return self.matrices + self.experts + self.vectors


class CostModel:
    """The costs of one network.

    ``value_bytes``: of a weight, a gradient, a number of the cache. ``vocabulary``: rows of the
    head that are used; all of them by default. Prefill and decode are those of the sampler, which
    keeps latents for a DeepSeek network and absorbs its projections.
    """

    def __init__(
        self, config: NetworkConfig, *, value_bytes: int = 4, vocabulary: int | None = None
    ) -> None:
        self._value = value_bytes
        self._width = config.hidden_size
        self._vocabulary = config.vocab_size if vocabulary is None else vocabulary
        body = checkpoint_tensors(config)
        table = math.prod(body.pop(EMBEDDING))
        self._tables = table + (table if body.pop(HEAD, None) else 0)
        self._body = _Part.of(body)
        self._mtp = _Part.of(_first_mtp_module(config))
        self._layers = config.num_hidden_layers
        self._cached = cache_bytes_per_token(config, value_bytes)
        heads = config.num_attention_heads
        if isinstance(config, DeepseekConfig):
            latent = config.kv_lora_rank
            self._pair = 2 * heads * (config.qk_head_dim + config.v_head_dim)
            self._absorbed_pair = 2 * heads * (latent + config.qk_rope_head_dim + latent)
            self._active = config.num_experts_per_tok / config.n_routed_experts
        else:
            self._pair = self._absorbed_pair = 4 * heads * config.head_dim
            self._active = 0.0

    # -- training

    def forward(
        self, lengths: Sequence[int], loss_tokens: int, mtp_loss_tokens: int | None = None
    ) -> Cost:
        """A pass over packed sequences of so many tokens each, whose head sees ``loss_tokens`` of
        them. ``mtp_loss_tokens``: of the MTP module's; None where it is not computed."""
        tokens, pairs = sum(lengths), _causal_pairs(lengths)
        flops = tokens * self._token_flops(self._body) + pairs * self._layers * self._pair
        embedded = tokens
        if mtp_loss_tokens is not None:
            flops += tokens * self._token_flops(self._mtp) + pairs * self._pair
            embedded += tokens
            loss_tokens += mtp_loss_tokens
        weights = self._weights(tokens, loss_tokens, mtp=mtp_loss_tokens is not None)
        return Cost(flops + loss_tokens * self._head_flops, weights + self._embedded(embedded))

    def backward(
        self, lengths: Sequence[int], loss_tokens: int, mtp_loss_tokens: int | None = None
    ) -> Cost:
        """The way back of :meth:`forward`: each product has two gradients. Weights are read again
        and all gradients written."""
        mtp = mtp_loss_tokens is not None
        flops = 2 * self.forward(lengths, loss_tokens, mtp_loss_tokens).flops
        weights = self._weights(sum(lengths), loss_tokens + (mtp_loss_tokens or 0), mtp=mtp)
        return Cost(flops, weights + self.trained_parameters(mtp=mtp) * self._value)

    def training(
        self, lengths: Sequence[int], loss_tokens: int, mtp_loss_tokens: int | None = None
    ) -> Cost:
        """Forward and backward."""
        there = self.forward(lengths, loss_tokens, mtp_loss_tokens)
        return there + self.backward(lengths, loss_tokens, mtp_loss_tokens)

    def trained_parameters(self, *, mtp: bool = False) -> int:
        """Numbers that an optimiser moves, with those of the MTP module where it is trained."""
        return self._tables + self._body.trained + (self._mtp.trained if mtp else 0)

    def optimizer_step(self, *, mtp: bool = False) -> Cost:
        """AdamW with clipping, bytes alone: gradients are read for their norm and again for the
        step, which reads and writes two moments and the weights, all in float32; weights of 16 bits
        are written besides, from their masters."""
        each = 2 * _WIDE + 2 * 3 * _WIDE + (self._value if self._value < _WIDE else 0)
        return Cost(0, self.trained_parameters(mtp=mtp) * each)

    # -- sampling

    def prefill(self, lengths: Sequence[int], logits: int = 0) -> Cost:
        """A pass over prompts of so many tokens each, which are written into the cache; the head
        gives ``logits`` of them."""
        tokens = sum(lengths)
        flops = (
            tokens * self._token_flops(self._body)
            + _causal_pairs(lengths) * self._layers * self._absorbed_pair
            + logits * self._head_flops
        )
        read = self._weights(tokens, logits) + self._embedded(tokens)
        return Cost(flops, read + tokens * self._cached + self._logits_bytes(logits))

    def decode(self, rows: int, context: int) -> Cost:
        """One step, a token of each row. ``context``: tokens that the new ones attend to, those of
        all rows together, themselves included. Weights are read once for all rows."""
        flops = (
            rows * (self._token_flops(self._body) + self._head_flops)
            + context * self._layers * self._absorbed_pair
        )
        read = self._weights(rows, rows) + self._embedded(rows)
        return Cost(flops, read + (context + rows) * self._cached + self._logits_bytes(rows))

    def draw(self, rows: int) -> Cost:
        """The next tokens of so many rows, from their logits: each is read once."""
        return Cost(0, self._logits_bytes(rows))

    def touched_experts(self, tokens: int) -> float:
        """The share of a layer's experts that so many tokens are expected to reach, were they
        routed evenly and independently."""
        return 1.0 - (1.0 - self._active) ** tokens

    # -- parts

    def _token_flops(self, part: _Part) -> float:
        return 2 * (part.matrices + part.experts * self._active)

    def _weights(self, tokens: int, to_head: int, *, mtp: bool = False) -> float:
        """Bytes of the weights that a pass over so many tokens reads, each once; the head's where
        it sees any."""
        head = self._width * self._vocabulary * self._value if to_head else 0
        parts = (self._body, self._mtp) if mtp else (self._body,)
        return head + sum(self._part_bytes(part, tokens) for part in parts)

    def _part_bytes(self, part: _Part, tokens: int) -> float:
        met = part.matrices + part.vectors + part.experts * self.touched_experts(tokens)
        return met * self._value + part.biases * _WIDE

    def _embedded(self, tokens: int) -> int:
        """Bytes of the rows that an embedding gives so many tokens."""
        return tokens * self._width * self._value

    @property
    def _head_flops(self) -> int:
        return 2 * self._width * self._vocabulary

    def _logits_bytes(self, tokens: int) -> int:
        return tokens * self._vocabulary * _WIDE


def _causal_pairs(lengths: Sequence[int]) -> int:
    """Pairs of a token and one that it attends to, itself included."""
    return sum(length * (length + 1) // 2 for length in lengths)


def _first_mtp_module(config: NetworkConfig) -> dict[str, Shape]:
    """The tensors of the MTP module that is trained, without its copies of embedding and head."""
    first = f"model.layers.{config.num_hidden_layers}."
    return {
        name: shape
        for name, shape in mtp_tensors(config).items()
        if name.startswith(first) and not is_mtp_copy(name)
    }
