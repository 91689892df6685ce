"""Several module trees over one set of weights, which compute micro-batches side by side.

On a CPU the operations of a small network are too short to be shared among threads: two threads of
one operation are slower than one, while two micro-batches on a thread each take half the time. Each
lane has its own modules (hooks and replayed experts are its own) and its own gradients, but the
tensors of parameters and buffers are the network's: an update in place reaches every lane.

Which lane computes what is a function of the work alone, and gradients are added in the order of
the lanes, so the same run gives the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import nn

from forethought.models.causal_lm import CausalLM
from forethought.training.batches import even_batches, lane_batches
from forethought.training.ranks import Ranks

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """``count`` lanes over ``network``, which is the first; its thread is the caller's. Other
    ``ranks`` have lanes of their own.

    Gradients of parameters end up in ``network``'s after :meth:`gather_gradients`.
    """

    def __init__(self, network: CausalLM, count: int = 1, ranks: Ranks | None = None) -> None:
        if count < 1:
            raise ValueError(f"{count} lanes: at least one computes")
        self.ranks = ranks or Ranks()
        self.networks = (network, *(_twin(network) for _ in range(count - 1)))
        self._pool: ThreadPoolExecutor | None = None

    @property
    def count(self) -> int:
        return len(self.networks)

    def deal(self, lengths: Sequence[int], budget: int, *, even: bool = False) -> list[list[int]]:
        """Sequences laid out as passes (`lane_batches`, or `even_batches` also for a single lane)
        for the lanes of all ranks: this rank's."""
        laid_out = even_batches if even else lane_batches
        parts = laid_out(lengths, budget, self.count * self.ranks.count)
        return parts[self.ranks.rank :: self.ranks.count]

    def run(self, work: Callable[[int, Item], Result], items: Sequence[Item]) -> list[Result]:
        """``work(lane, item)`` of each item, in order; item i is worked on in lane i % count.

        Returns, or raises the first lane's error, when every lane has stopped.
        """
        if self.count == 1:
            return [work(0, item) for item in items]
        if self._pool is None:
            threads = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(
                self.count - 1,
                thread_name_prefix="lane",
                initializer=torch.set_num_threads,
                initargs=(threads,),
            )

        def of(lane: int) -> list[Result]:
            return [work(lane, item) for item in items[lane :: self.count]]

        others = [self._pool.submit(of, lane) for lane in range(1, self.count)]
        try:
            mine = of(0)
        finally:
            wait(others)
        by_lane = [mine, *(other.result() for other in others)]
        return [by_lane[at % self.count][at // self.count] for at in range(len(items))]

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Add the gradients of the other lanes to the network's, in the order of the lanes."""
        first, *others = self.networks
        for other in others:
            for own, twin in zip(first.parameters(), other.parameters(), strict=True):
                if twin.grad is None:
                    continue
                if own.grad is None:
                    own.grad = twin.grad
                else:
                    own.grad += twin.grad
                twin.grad = None

    def drop_gradients(self) -> None:
        """Forget what a step that was stopped left in the other lanes."""
        for network in self.networks[1:]:
            network.zero_grad(set_to_none=True)


def _twin(network: CausalLM) -> CausalLM:
    """Modules of their own over the same memory."""
    shared: dict[int, torch.Tensor] = {
        id(one): nn.Parameter(one.detach(), one.requires_grad) for one in network.parameters()
    }
    shared |= {id(one): one for one in network.buffers()}
    return copy.deepcopy(network, shared)
