"""Keeping the experts evenly busy: loads, the bias that steers them, the loss within a sequence.

B: sequences, T: tokens of each, E: routed experts, K: experts a token uses. Pure functions that
training calls; the networks never do. Source: DeepSeek-V3 (arXiv:2412.19437) section 2.1.2.
"""

from __future__ import annotations

import torch


def expert_load(
    indices: torch.Tensor, experts: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """How many tokens chose each expert; int64 [E].

    `indices` is [..., K]; `mask` [...] (bool) leaves out tokens that are padding.
    """
    flat = indices.flatten()
    if flat.is_cuda and experts <= 256:
        # Adding ones to so few numbers, all threads would wait for each other.
        expert_E = torch.arange(experts, device=flat.device, dtype=flat.dtype)
        chosen_ME = flat.unsqueeze(1) == expert_E
        if mask is not None:
            chosen_ME &= mask.unsqueeze(-1).expand(indices.shape).reshape(-1, 1)
        return chosen_ME.sum(dim=0)
    if mask is None:
        ones = torch.ones_like(flat)
    else:
        ones = mask.unsqueeze(-1).expand(indices.shape).flatten().to(flat.dtype)
    # Whole numbers: the sum is exact whatever the order in which a GPU adds them.
    return flat.new_zeros(experts).scatter_add_(0, flat, ones)


def update_bias(bias_E: torch.Tensor, load_E: torch.Tensor, gamma: float) -> torch.Tensor:
    """The selection bias after one step: down by `gamma` for an overloaded expert, up for an
    underloaded one, unchanged where the load is the mean exactly. A new tensor; [..., E].

    `load_E` counts the whole batch of the step, summed over all ranks.
    """
    load_E = load_E.to(bias_E.dtype)
    return bias_E + gamma * torch.sign(load_E.mean(dim=-1, keepdim=True) - load_E)


def sequence_balance_loss(
    scores_BTE: torch.Tensor,
    indices_BTK: torch.Tensor,
    alpha: float,
    mask_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """alpha * sum over experts of f * P within each sequence (equations 17 to 20), mean over
    sequences; a scalar, 1 * alpha at perfect balance.

    f is the share of tokens that chose the expert, times E / K: a count, without gradient. P is the
    mean of the token's normalised scores. `mask_BT` (bool) leaves out padding.
    """
    experts, top_k = scores_BTE.shape[-1], indices_BTK.shape[-1]
    share_BTE = scores_BTE / scores_BTE.sum(dim=-1, keepdim=True)
    chosen_BTE = torch.zeros_like(share_BTE).scatter_(-1, indices_BTK, 1.0)
    if mask_BT is None:
        f_BE, p_BE = chosen_BTE.mean(dim=1), share_BTE.mean(dim=1)
    else:
        kept_BT1 = mask_BT.unsqueeze(-1).to(share_BTE.dtype)
        tokens_B1 = kept_BT1.sum(dim=1).clamp(min=1.0)
        f_BE = (chosen_BTE * kept_BT1).sum(dim=1) / tokens_B1
        p_BE = (share_BTE * kept_BT1).sum(dim=1) / tokens_B1
    return alpha * (experts / top_k) * (f_BE * p_BE).sum(dim=-1).mean()


def packed_balance_loss(
    scores_NE: torch.Tensor,
    indices_NK: torch.Tensor,
    sequence_N: torch.Tensor,
    sequences: int,
    alpha: float,
    real_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`sequence_balance_loss` of sequences that stand in a row, *summed* over them; a scalar.

    `sequence_N` (int64) says which of the `sequences` each token belongs to. The caller divides by
    the sequences of the whole optimiser step. `real_S` (of any dtype) is 0 for what is padding.
    """
    experts, top_k = scores_NE.shape[-1], indices_NK.shape[-1]
    share_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
    # Not `bincount`: on a GPU it waits for the largest number.
    counted_N = torch.ones_like(sequence_N)
    tokens_S = counted_N.new_zeros(sequences).scatter_add_(0, sequence_N, counted_N)
    tokens_S1 = tokens_S[:, None].clamp(min=1)
    flat = (sequence_N[:, None] * experts + indices_NK).flatten()
    chosen = flat.new_zeros(sequences * experts).scatter_add_(0, flat, torch.ones_like(flat))
    chosen_SE = chosen.view(sequences, experts)
    p_SE = share_NE.new_zeros(sequences, experts).index_add(0, sequence_N, share_NE) / tokens_S1
    f_SE = chosen_SE.to(p_SE.dtype) / tokens_S1
    if real_S is not None:
        f_SE = f_SE * real_S.unsqueeze(1)
    return alpha * (experts / top_k) * (f_SE * p_SE).sum()
