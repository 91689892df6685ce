"""What int8 products cost a whole network, predicted from nothing but the steps of the rounding.

Derivation. A value that is rounded to the nearest of levels a step d apart is off by e in
[-d/2, d/2], uniform as far as a sum of many values can tell: variance d^2/12. A kernel gives each
row of activations the range [-m, m] (m: its largest magnitude) in 255 steps of 8 bits, so
d = 2 m / steps and |e| <= m / steps. One product y = sum_i w_i x_i of I inputs is off by
sum_i w_i e_i, and relative to y

    rms(error) / rms(y) = (m / rms(x)) / (sqrt(3) steps),

about 0.006 on a row of these tests (m = 2.6 rms(x)); the weights' own rounding (127 steps to their
largest magnitude) adds about 0.006, squared: 0.008. Narrow weights, for a CPU without VNNI, have as
few as 64 steps where the two largest of a row meet, and seldom do. What the
layers make of it (their gain, the softmax, the norms, how much of a branch the residual stream
keeps) has no formula in general, so the same noise is sent through the network itself: weights as
they are rounded, and e drawn anew wherever a product reads activations. To first order, errors of
a network are the sums of those of its products, whether these come from rounding or from a draw.

Predicted so for the networks of `test_programs` (relative, root mean square over all logits): 0.02
to 0.045, with narrow weights 0.025 to 0.057, which is 1.3 times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from forethought.engines.torch.kernels import quantize_rows
from forethought.models.causal_lm import CausalLM

RANGE_STEPS = 255
"""Steps of an activation's range [-m, m]."""


@torch.no_grad()
def predicted_error(
    network: CausalLM, rows: Sequence[torch.Tensor], *, narrow: bool, draws: int = 1
) -> float:
    """Root mean square of the logits' errors as a share of that of the logits, over all ``rows``.

    Changes the network: its linear maps and embeddings become what int8 weights stand for.
    """
    exact = torch.cat([network(ids[None])[0] for ids in rows]).double()
    generator = torch.Generator().manual_seed(0)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        half_step = x.abs().amax(dim=-1, keepdim=True) / RANGE_STEPS
        return x + half_step * (2 * torch.rand(x.shape, generator=generator) - 1)

    for name, part in network.named_modules():
        # (`kv_b_proj` is read without its layer and stays as it is.)
        if isinstance(part, nn.Linear | nn.Embedding) and not name.endswith("kv_b_proj"):
            levels_OI, scale_O = quantize_rows(part.weight, narrow=narrow)
            part.weight.copy_(levels_OI * scale_O[:, None])
            if isinstance(part, nn.Linear):
                part.register_forward_pre_hook(lambda _, given: (noisy(given[0]),))
    # The head's weight is read without its layer too.
    network.model.norm.register_forward_hook(lambda _, given, normed: noisy(normed))
    square = 0.0
    for _ in range(draws):
        drawn = torch.cat([network(ids[None])[0] for ids in rows]).double()
        square += float((drawn - exact).square().mean() / exact.square().mean())
    return (square / draws) ** 0.5


def found_error(got: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The same measure of logits that were computed."""
    ours, theirs = torch.cat(list(got)).double(), torch.cat(list(exact)).double()
    return float(((ours - theirs).square().mean() / theirs.square().mean()).sqrt())
