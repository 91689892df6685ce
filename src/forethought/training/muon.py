"""Muon: matrices move along the orthogonal part of their momentum, all else as in AdamW.

The momentum of a matrix has a few large singular values; setting all of them to about 1 lets the
rare directions learn as fast as the common ones. It is scaled as Moonlight does, so that a step is
as long as AdamW's usually is and learning rate and weight decay mean the same for both.

Sources: Jordan et al., "Muon: an optimizer for hidden layers" (2024), for the iteration and its
coefficients; arXiv:2502.16982 section 2.2 for scale and weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from forethought.training.config import OptimizerConfig
from forethought.training.optimizer import MasterAdamW

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5
_RMS: Final = 0.2
"""Root mean square of a step over the learning rate (arXiv:2502.16982, equation 4)."""
_ALL_ELSE: Final = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
"""Tables of rows that are looked up or scored one by one: embedding, head, router."""


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix (or a stack of them) that acts on hidden states."""
    return parameter.dim() >= 2 and not name.endswith(_ALL_ELSE)


def orthogonalised(matrices_BMN: torch.Tensor) -> torch.Tensor:
    """Each of B matrices with its singular values moved to about 1 (0.7 to 1.2), by five steps of a
    Newton-Schulz iteration, in the dtype that they have. A matrix of zeros stays one."""
    wide = matrices_BMN.size(-2) <= matrices_BMN.size(-1)
    x = matrices_BMN if wide else matrices_BMN.mT
    x = x / (x.square().sum(dim=(-2, -1), keepdim=True).sqrt() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x if wide else x.mT


@dataclass(slots=True)
class _Alike:
    """The matrices of one shape, which are worked on together: B x M x N in all."""

    names: list[str]
    counts: list[int]
    """How many matrices each parameter is (a stack of experts is one parameter)."""
    momentum_BMN: torch.Tensor


class MasterMuon(MasterAdamW):
    """`MasterAdamW` in all but the step of the matrices."""

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
    ) -> None:
        self._alike: list[_Alike] = []
        super().__init__(parameters, config)
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name, master in self._masters.items():
            if is_matrix(name, master):
                shapes.setdefault(tuple(master.shape[-2:]), []).append(name)
        for shape, names in shapes.items():
            counts = [self._masters[name].numel() // (shape[0] * shape[1]) for name in names]
            first = self._masters[names[0]]
            momentum = torch.zeros(sum(counts), *shape, dtype=first.dtype, device=first.device)
            self._alike.append(_Alike(names, counts, momentum))

    def _adams(self) -> list[torch.Tensor]:
        return [master for name, master in self._masters.items() if not is_matrix(name, master)]

    def _move(self, rate: float, norm: torch.Tensor) -> None:
        super()._move(rate, norm)
        finite = torch.isfinite(norm)
        with torch.no_grad():
            for alike in self._alike:
                self._move_alike(alike, rate, finite)

    def _move_alike(self, alike: _Alike, rate: float, finite: torch.Tensor) -> None:
        masters = [self._masters[name] for name in alike.names]
        if any(master.grad is None for master in masters):
            self._move_some(alike, rate, finite)
            return
        momentum = alike.momentum_BMN
        shape = momentum.shape[1:]
        gradient = torch.cat([_grad(master).reshape(-1, *shape) for master in masters])
        step = self._step_of(momentum, gradient, rate, finite)
        parts = torch.split(step, alike.counts)
        # The decay comes first, as in torch's AdamW. Where the norm is not finite all stays.
        keep = 1 - rate * self._config.weight_decay * finite.to(momentum.dtype)
        torch._foreach_mul_(masters, keep)
        torch._foreach_add_(
            masters,
            [part.reshape(master.shape) for part, master in zip(parts, masters, strict=True)],
        )

    def _move_some(self, alike: _Alike, rate: float, finite: torch.Tensor) -> None:
        """The same where some parameters have no gradient: these stay as they are."""
        offset = 0
        for name, count in zip(alike.names, alike.counts, strict=True):
            if self._masters[name].grad is not None:
                own = alike.momentum_BMN[offset : offset + count]
                self._move_alike(_Alike([name], [count], own), rate, finite)
            offset += count

    def _step_of(
        self,
        momentum_BMN: torch.Tensor,
        gradient_BMN: torch.Tensor,
        rate: float,
        finite: torch.Tensor,
    ) -> torch.Tensor:
        """What is added to the matrices; moves their momentum (Nesterov's)."""
        beta = self._config.momentum
        moved = momentum_BMN.lerp(gradient_BMN, 1 - beta)
        momentum_BMN.copy_(torch.where(finite, moved, momentum_BMN))
        ahead = gradient_BMN.lerp(moved, beta)
        # The iteration forgives rounding: bfloat16 is what its authors use on GPUs.
        low = ahead.bfloat16() if ahead.is_cuda else ahead
        scale = -rate * _RMS * max(ahead.shape[1:]) ** 0.5
        step = orthogonalised(low).to(ahead.dtype) * scale
        return torch.where(finite, step, torch.zeros_like(step))

    def _moments_of(self, name: str) -> Mapping[str, torch.Tensor]:
        for alike in self._alike:
            if name in alike.names:
                at = alike.names.index(name)
                offset = sum(alike.counts[:at])
                own = alike.momentum_BMN[offset : offset + alike.counts[at]]
                return {"momentum": own.view(self._masters[name].shape)}
        return super()._moments_of(name)


def _grad(master: torch.Tensor) -> torch.Tensor:
    assert master.grad is not None
    return master.grad


def optimizer_of(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> MasterAdamW:
    """The optimiser that a stage asks for."""
    if config.kind == "muon":
        return MasterMuon(parameters, config)
    return MasterAdamW(parameters, config)
