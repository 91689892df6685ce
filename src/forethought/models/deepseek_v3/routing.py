"""What the gates of a network decide, taken down in one pass and replayed in another.

N: tokens, E: routed experts, K: experts a token uses, M: layers with experts.

Sampler and trainer may choose other experts near a tie although they share the weights, because
their matrix products round differently (arXiv:2510.11370). Taking the choice down makes that a
number, and replaying it makes both compute the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from forethought.models.deepseek_v3.gate import Gate, Routing


def gates(network: nn.Module, *, mtp: bool = False) -> list[Gate]:
    """The gates of the main layers, in order; [] for a dense network. The MTP module's comes last,
    and only if asked for: sampling does not run it."""
    return [
        part
        for name, part in network.named_modules()
        if isinstance(part, Gate) and (mtp or not name.startswith("mtp."))
    ]


class RoutingRecorder:
    """Keeps what each gate decided in the newest forward pass, while it is entered.

    ``of``: the gates to listen to; `gates(network)` by default.
    """

    def __init__(self, network: nn.Module, of: Sequence[Gate] | None = None) -> None:
        self._gates = gates(network) if of is None else list(of)
        self._routings: list[Routing | None] = [None] * len(self._gates)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def layers(self) -> int:
        return len(self._gates)

    def __enter__(self) -> RoutingRecorder:
        for at, gate in enumerate(self._gates):
            self._hooks.append(gate.register_forward_hook(self._hook(at)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, at: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], Routing], None]:
        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Routing) -> None:
            self._routings[at] = output

        return keep

    @property
    def routings(self) -> list[Routing]:
        """One of each gate, in order; ValueError where a gate was not called."""
        if any(routing is None for routing in self._routings):
            raise ValueError("no forward pass has gone through every gate")
        return [routing for routing in self._routings if routing is not None]

    def indices_MNK(self) -> torch.Tensor:
        """The chosen experts of the newest pass; int64 [M, N, K]."""
        return torch.stack([routing.indices_NK for routing in self.routings])


@contextmanager
def replayed(network: nn.Module, indices_MNK: torch.Tensor) -> Iterator[None]:
    """Within it, every gate of the main layers takes the experts given for its N tokens."""
    found = gates(network)
    if len(found) != indices_MNK.shape[0]:
        raise ValueError(f"{len(found)} gates, but experts for {indices_MNK.shape[0]} layers")
    for gate, indices_NK in zip(found, indices_MNK, strict=True):
        gate.replay_NK = indices_NK
    try:
        yield
    finally:
        for gate in found:
            gate.replay_NK = None


def flipped_share(sampled_MNK: torch.Tensor, trained_MNK: torch.Tensor) -> float:
    """The share of (layer, token) pairs whose sets of experts differ."""
    if not sampled_MNK.numel():
        return 0.0
    return float(flipped(sampled_MNK, trained_MNK))


def flipped(sampled_MNK: torch.Tensor, trained_MNK: torch.Tensor) -> torch.Tensor:
    """:func:`flipped_share` as a float64 scalar tensor that nothing has waited for."""
    return differs(sampled_MNK, trained_MNK).double().mean()


def differs(sampled_MNK: torch.Tensor, trained_MNK: torch.Tensor) -> torch.Tensor:
    """Where the sets of experts differ; bool [M, N]."""
    return (sampled_MNK.sort(dim=-1).values != trained_MNK.sort(dim=-1).values).any(dim=-1)
