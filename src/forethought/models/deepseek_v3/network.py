"""DeepSeek-V3 and -V2: layers, MTP module, and how a checkpoint's experts fill stacked parameters.

B: batch, T: tokens, D: width of the residual stream, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.errors import ModelError
from forethought.models.attention import AttentionCache
from forethought.models.causal_lm import CausalLM, Source
from forethought.models.deepseek_v3.decoder import DeepseekLayer
from forethought.models.deepseek_v3.experts import ExpertPath, Experts
from forethought.models.deepseek_v3.mla import MLA
from forethought.models.deepseek_v3.mtp import MTP
from forethought.models.rope import rotary_table


class DeepseekV3(CausalLM):
    """A network of `model_type` deepseek_v3 or deepseek_v2; only the config tells them apart.

    `mtp` adds the module that predicts one token further; ModelError when the config says that the
    weights bring none, or several.
    """

    float32_names = frozenset({"e_score_correction_bias"})

    def __init__(self, config: DeepseekConfig, *, mtp: bool = False) -> None:
        if mtp and config.num_nextn_predict_layers != 1:
            raise ModelError(
                "config.json: self-speculation needs one MTP module, but num_nextn_predict_layers "
                f"is {config.num_nextn_predict_layers}"
            )
        layers = [
            DeepseekLayer(config, layer, routed=layer >= config.first_k_dense_replace)
            for layer in range(config.num_hidden_layers)
        ]
        rotary = rotary_table(
            config.rope_theta,
            config.qk_rope_head_dim,
            config.rope_scaling,
            config.max_position_embeddings,
        )
        super().__init__(config, layers, rotary)
        self.deepseek_config = config
        self.mtp = MTP(config) if mtp else None

    @property
    def absorb(self) -> bool:
        """Whether caches hold latents (see :class:`MLA`). Set it before a cache is first used."""
        return all(part.absorb for part in self.modules() if isinstance(part, MLA))

    @absorb.setter
    def absorb(self, value: bool) -> None:
        for part in self.modules():
            if isinstance(part, MLA):
                part.absorb = value

    def set_expert_path(self, path: ExpertPath | None) -> None:
        """How routed experts are computed (see `experts`); None: the quickest on the device."""
        for part in self.modules():
            if isinstance(part, Experts):
                part.path = path

    def mtp_hidden(
        self,
        next_ids_BT: torch.Tensor,
        hidden_BTD: torch.Tensor,
        positions_BT: torch.Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> torch.Tensor:
        """States whose :meth:`logits` are those of the token after the next; [B, T, D].

        `hidden_BTD` is what :meth:`hidden` gave at `positions_BT` (default 0 .. T - 1; needed with
        a cache), `next_ids_BT` the token that follows each. The cache needs a layer
        `num_hidden_layers`, of which the main network's calls leave no trace. ValueError when the
        network was made without its MTP module.
        """
        if self.mtp is None:
            raise ValueError("this network was made without its MTP module")
        if positions_BT is None:
            if cache is not None:
                raise ValueError("a forward pass with a cache needs the positions of its tokens")
            positions_BT = torch.arange(next_ids_BT.shape[1], device=next_ids_BT.device)[None]
        cos_BTR, sin_BTR = self.cos_sin(positions_BT)
        x_BTD = self.mtp.combine(self.model.embed_tokens(next_ids_BT), hidden_BTD)
        out_BTD: torch.Tensor = self.mtp(x_BTD, cos_BTR, sin_BTR, cache)
        return out_BTD

    def mtp_logits(
        self,
        next_ids_BT: torch.Tensor,
        hidden_BTD: torch.Tensor,
        positions_BT: torch.Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> torch.Tensor:
        """Logits of the token after the next, [B, T, V], from the shared head; see `mtp_hidden`."""
        return self.logits(self.mtp_hidden(next_ids_BT, hidden_BTD, positions_BT, cache))

    def parameter_sources(self) -> Iterator[Source]:
        """Experts come one by one; the MTP module is the layer after the last.

        The copies of embedding and head that released checkpoints keep in the MTP layer
        (`embed_tokens`, `shared_head.head`) fill nothing.
        """
        last = f"model.layers.{self.deepseek_config.num_hidden_layers}."
        for name in self.state_dict(keep_vars=True):
            stored = last + name.removeprefix("mtp.") if name.startswith("mtp.") else name
            prefix, _, leaf = stored.rpartition(".")
            if not prefix.endswith("mlp.experts"):
                yield Source(stored, name)
                continue
            inner = self.deepseek_config.moe_intermediate_size
            for expert in range(self.deepseek_config.n_routed_experts):
                if leaf == "down_proj":
                    yield Source(f"{prefix}.{expert}.down_proj.weight", name, (expert,))
                    continue
                gate, up = (expert, slice(0, inner)), (expert, slice(inner, 2 * inner))
                yield Source(f"{prefix}.{expert}.gate_proj.weight", name, gate)
                yield Source(f"{prefix}.{expert}.up_proj.weight", name, up)
