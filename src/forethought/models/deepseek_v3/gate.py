"""Which experts a token goes to, and with what weights.

N: tokens, D: width of the residual stream, E: routed experts, K: experts a token uses, G: groups.

Sources: DeepSeek-V3 (arXiv:2412.19437) sections 2.1.2 and 4.2 (sigmoid, selection bias, groups by
the sum of their two best), DeepSeek-V2 (arXiv:2405.04434) section 2.2 (softmax, groups by their
best), and transformers' `deepseek_v3` and `deepseek_v2`, which this follows to the number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.models import fused

_FEW = 256
"""Experts up to which a row of scores is held in registers."""


class Routing(NamedTuple):
    """What the gate decides. Training reads it through a forward hook on the gate."""

    indices_NK: torch.Tensor
    """int64, the chosen experts in no particular order."""
    weights_NK: torch.Tensor
    """float32, what their outputs are multiplied by. Gradients flow through these alone."""
    scores_NE: torch.Tensor
    """float32, affinities of all experts, without bias (for the balance loss)."""


def route(
    logits_NE: torch.Tensor,
    bias_E: torch.Tensor | None,
    *,
    scoring_func: str,
    topk_method: str,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    replay_NK: torch.Tensor | None = None,
) -> Routing:
    """Choose `top_k` experts for each token from the gate's logits.

    `replay_NK` gives the choice instead (int64): the experts that another pass over the same tokens
    took. Their weights still come from these logits, so that gradients flow (arXiv:2510.11370).

    `noaux_tc` (V3): the bias takes part in the choice of groups and experts and in nothing else.
    `group_limited_greedy` and `greedy` (V2): no bias. The weights are the chosen scores, divided by
    their sum where `norm_topk_prob` is set, times `routed_scaling_factor`.
    """
    scores_NE = _sigmoid(logits_NE) if scoring_func == "sigmoid" else logits_NE.softmax(dim=-1)
    # The choice has no gradient; the weights are gathered from the scores, which have one.
    if replay_NK is not None:
        indices_NK = replay_NK
    else:
        choice_NE = scores_NE.detach()
        if bias_E is not None:
            choice_NE = choice_NE + bias_E
        if topk_method != "greedy" and topk_group < n_group:
            best = 2 if topk_method == "noaux_tc" else 1
            # V2 masks with 0, below every softmax score; biased scores may be negative.
            masked = float("-inf") if topk_method == "noaux_tc" else 0.0
            choice_NE = _within_best_groups(choice_NE, n_group, topk_group, best, masked)
        indices_NK = _largest(choice_NE, top_k)
    weights_NK = scores_NE.gather(1, indices_NK)
    if norm_topk_prob:
        weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
    return Routing(indices_NK, weights_NK * routed_scaling_factor, scores_NE)


def _largest(choice_NE: torch.Tensor, top_k: int) -> torch.Tensor:
    """The columns of each row's largest numbers; int64 [N, K], in no particular order."""
    if choice_NE.is_cuda and choice_NE.shape[1] <= _FEW and fused.kernels() is not None:
        # torch's `topk` gives each row a block of threads, whatever its width.
        return fused.top_columns(choice_NE, top_k)
    return choice_NE.topk(top_k, dim=-1, sorted=False).indices


def _sigmoid(logits_NE: torch.Tensor) -> torch.Tensor:
    """The sigmoid, with the same bits for a token wherever it stands in the batch.

    On a CPU torch computes what is left over of its vectors one by one, and rounds it differently.
    """
    experts = logits_NE.shape[1]
    if logits_NE.device.type != "cpu" or experts % 32 == 0:
        return logits_NE.sigmoid()
    return F.pad(logits_NE, (0, -experts % 32)).sigmoid()[:, :experts]


def _within_best_groups(
    choice_NE: torch.Tensor, n_group: int, topk_group: int, best: int, masked: float
) -> torch.Tensor:
    """`choice_NE` with `masked` outside the groups whose `best` experts have the highest sums."""
    grouped_NGP = choice_NE.view(choice_NE.shape[0], n_group, -1)
    group_NG = grouped_NGP.topk(best, dim=-1).values.sum(dim=-1)
    kept = group_NG.topk(topk_group, dim=-1, sorted=False).indices
    dropped_NG = torch.ones_like(group_NG, dtype=torch.bool).scatter_(1, kept, value=False)
    return grouped_NGP.masked_fill(dropped_NG.unsqueeze(-1), masked).flatten(-2)


class Gate(nn.Module):
    """Scores every expert for every token, in float32 whatever the dtype of the network.

    `e_score_correction_bias` is no parameter: no gradient moves it, `update_bias` does.
    """

    e_score_correction_bias: torch.Tensor | None

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.scoring_func = config.scoring_func
        self.topk_method = config.topk_method
        self.top_k = config.num_experts_per_tok
        self.n_group = config.n_group
        self.topk_group = config.topk_group
        self.norm_topk_prob = config.norm_topk_prob
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = None
        if config.topk_method == "noaux_tc":
            bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)
        self.replay_NK: torch.Tensor | None = None
        """The experts that the next passes take instead of choosing; see `routing.replayed`."""

    def forward(self, x_ND: torch.Tensor) -> Routing:
        with torch.autocast(x_ND.device.type, enabled=False):
            if fused.usable(x_ND) and self.weight.dtype == x_ND.dtype:
                logits_NE = fused.wide_linear(x_ND, self.weight)
            else:
                wide = torch.promote_types(x_ND.dtype, torch.float32)
                logits_NE = F.linear(x_ND.to(wide), self.weight.to(wide))
            return route(
                logits_NE,
                self.e_score_correction_bias,
                scoring_func=self.scoring_func,
                topk_method=self.topk_method,
                top_k=self.top_k,
                n_group=self.n_group,
                topk_group=self.topk_group,
                norm_topk_prob=self.norm_topk_prob,
                routed_scaling_factor=self.routed_scaling_factor,
                replay_NK=self.replay_NK,
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Gate:
        """Keep the bias in float32 when the network is moved to another dtype.

        Its steps of 0.001 would vanish in bfloat16 beside values near 1.
        """
        before = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.e_score_correction_bias
        if before is not None and after is not None and after.dtype != torch.float32:
            self.e_score_correction_bias = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        experts, width = self.weight.shape
        return f"{width} -> {self.top_k} of {experts}, {self.scoring_func}, {self.topk_method}"
