"""What every network of this room is: token ids in, hidden states and logits out.

B: batch, T: tokens, D: width of the residual stream, V: vocabulary, R: rotary frequencies.

The names of parameters are those of Hugging Face checkpoints, with one difference: routed experts
are stacked into one parameter, so that a grouped product needs no Python loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from forethought.checkpoints.network_config import NetworkConfig
from forethought.models.attention import AttentionCache
from forethought.models.layers import RMSNorm, embedding, linear
from forethought.models.packed import PackedSequences
from forethought.models.rope import RotaryTable, rotary_cos_sin


class Source(NamedTuple):
    """Which tensor of a checkpoint fills which part of a parameter (or of a buffer)."""

    checkpoint_name: str
    parameter_name: str
    part: tuple[int | slice, ...] = ()
    """`parameter[part]` has the shape of the stored tensor; () is the whole of it."""


class DecoderLayer(nn.Module):
    """One layer of a decoder: attention and a feed-forward part, each behind its norm and added to
    the residual stream. Subclasses bring these four modules."""

    input_layernorm: RMSNorm
    self_attn: nn.Module
    post_attention_layernorm: RMSNorm
    mlp: nn.Module

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        cache: AttentionCache | None,
    ) -> torch.Tensor:
        """The residual stream after this layer; [B, T, D]."""
        normed_BTD = self.input_layernorm(x_BTD)
        x_BTD, delta_BTD = self.parts(x_BTD, normed_BTD, cos_BTR, sin_BTR, cache)
        return x_BTD + delta_BTD

    def parts(
        self,
        x_BTD: torch.Tensor,
        normed_BTD: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        cache: AttentionCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream after attention, and what the feed-forward part adds to it: their sum is
        :meth:`forward`, and whoever norms that sum can do both at once. ``normed_BTD``: the stream
        behind the layer's first norm."""
        attended_BTD: torch.Tensor = self.self_attn(normed_BTD, cos_BTR, sin_BTR, cache)
        x_BTD, normed_BTD = self.post_attention_layernorm.after(x_BTD, attended_BTD)
        delta_BTD: torch.Tensor = self.mlp(normed_BTD)
        return x_BTD, delta_BTD

    def recomputed_parts(
        self,
        x_BTD: torch.Tensor,
        normed_BTD: torch.Tensor,
        cos_BTR: torch.Tensor,
        sin_BTR: torch.Tensor,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`parts`, of which only the inputs are kept: the backward pass computes the rest a
        second time (arXiv:1604.06174)."""

        def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.as_now()

        x_BTD, delta_BTD = checkpoint(
            self.parts,
            x_BTD,
            normed_BTD,
            cos_BTR,
            sin_BTR,
            packed,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing here is random
            context_fn=again,
        )
        return x_BTD, delta_BTD

    def as_now(self) -> AbstractContextManager[None]:
        """Within it, what decides how the layer computes is as it was when this was called."""
        return nullcontext()


class Trunk(nn.Module):
    """The parameters under `model.` in a checkpoint: embeddings, layers, last norm."""

    def __init__(self, config: NetworkConfig, layers: Iterable[DecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A decoder: config + weights + ids -> logits. Subclasses bring their layers.

    `float32_names` are the last parts of the names of tensors that stay in float32 whatever the
    dtype of the rest (a gate's selection bias).
    """

    float32_names: frozenset[str] = frozenset()

    def __init__(
        self, config: NetworkConfig, layers: Iterable[DecoderLayer], rotary: RotaryTable
    ) -> None:
        super().__init__()
        self._config = config
        self.recompute = False
        """Keep few activations for the backward pass, which takes about a third longer then."""
        self.rotary = rotary
        self.model = Trunk(config, layers)
        if not config.tie_word_embeddings:
            self.lm_head = linear(config.hidden_size, config.vocab_size)

    @property
    def config(self) -> NetworkConfig:
        return self._config

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations (some few tensors may be float32 beside it)."""
        return self.model.embed_tokens.weight.dtype

    @property
    def head_weight(self) -> torch.Tensor:
        """[V, D]: the embeddings where the config ties them."""
        tied = self._config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def num_parameters(self) -> int:
        """How many numbers are trained; tied embeddings count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def cos_sin(self, positions_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotation of one forward pass, shared by its layers; [B, T, R] each."""
        return rotary_cos_sin(self.rotary, positions_BT, self.dtype)

    def hidden(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm; [B, T, D].

        Positions default to 0 .. T - 1. With a cache they must be given (ValueError): the cache
        knows what is stored, and its owner where the new tokens stand.
        """
        if positions_BT is None:
            if cache is not None:
                raise ValueError("a forward pass with a cache needs the positions of its tokens")
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).unsqueeze(0)
        cos_BTR, sin_BTR = self.cos_sin(positions_BT)
        x_BTD: torch.Tensor = self.model.embed_tokens(ids_BT)
        layers = [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]
        norms = [layer.input_layernorm for layer in layers] + [self.model.norm]
        normed_BTD: torch.Tensor = norms[0](x_BTD)
        stateless = cache is None or isinstance(cache, PackedSequences)
        recompute = self.recompute and stateless and torch.is_grad_enabled()
        for layer, norm in zip(layers, norms[1:], strict=True):
            if recompute:
                assert cache is None or isinstance(cache, PackedSequences)
                x_BTD, delta_BTD = layer.recomputed_parts(
                    x_BTD, normed_BTD, cos_BTR, sin_BTR, cache
                )
            else:
                x_BTD, delta_BTD = layer.parts(x_BTD, normed_BTD, cos_BTR, sin_BTR, cache)
            x_BTD, normed_BTD = norm.after(x_BTD, delta_BTD)
        return normed_BTD

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., V], in the dtype of the network."""
        return F.linear(x, self.head_weight)

    def forward(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> torch.Tensor:
        """Logits of every position; [B, T, V]. See :meth:`hidden`."""
        return self.logits(self.hidden(ids_BT, positions_BT, cache))

    def parameter_sources(self) -> Iterator[Source]:
        """Each tensor of a checkpoint once, with the place it fills. All parameters and persistent
        buffers are covered. Here names are the same; networks with stacked experts override it."""
        for name in self.state_dict(keep_vars=True):
            yield Source(name, name)

    def checkpoint_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(checkpoint name, view of the tensor) of everything a checkpoint stores, to save it."""
        state = self.state_dict()
        for source in self.parameter_sources():
            yield source.checkpoint_name, state[source.parameter_name][source.part]
