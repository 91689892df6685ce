"""A network that decodes on a paged cache: its pages, its captured steps, its log.

B: rows of a bucket, R: rows, S: steps of a chunk, V: vocabulary, D: width of the residual stream,
M: layers with experts, K: experts a token uses, P: tokens of a prompt, N: tokens of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F

from forethought.engines.torch.cuda import dense, latent
from forethought.engines.torch.cuda.cache import PagedCache
from forethought.engines.torch.cuda.dense import DenseDecoder
from forethought.engines.torch.cuda.draw import DrawLog, Mode, take_step
from forethought.engines.torch.cuda.graphs import Steps
from forethought.engines.torch.cuda.latent import ExpertLog, LatentDecoder
from forethought.engines.torch.cuda.pages import PAGE, IntArray
from forethought.engines.torch.cuda.schedule import LENGTH, MOST_STEPS, NEXT, Orders, Prefill
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates
from forethought.models.dense import DenseLM
from forethought.models.packed import PackedSequences


@dataclass(frozen=True, slots=True)
class Chunk:
    """Steps under way: what was ordered, and where its tokens will be on the host."""

    orders: Orders
    drawn_S2R: torch.Tensor
    experts_SRMK: torch.Tensor | None
    arrived: torch.cuda.Event | None

    @property
    def here(self) -> bool:
        """Whether the tokens have arrived; asking does not wait."""
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class PromptExperts:
    """What the gates chose for prompts, on its way to the host; int16 [M, N, K]."""

    prefill: Prefill
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    chosen_MNK: torch.Tensor


class Decoder:
    """Does what the schedule orders. ``recorder``: whose experts are kept, entered by the caller.

    Nothing here waits for the device, but where a graph is captured for the first time.
    """

    def __init__(
        self,
        network: CausalLM,
        rows: int,
        is_end_V: torch.Tensor,
        recorder: RoutingRecorder | None,
        *,
        capture: bool,
    ) -> None:
        self.network, self.device = network, network.device
        self.vocabulary = len(is_end_V)
        self.rows = rows
        self.cache: PagedCache | None = None
        self.log = DrawLog(rows, is_end_V, self.device)
        self.recorder = recorder
        self.experts: tuple[int, int] | None = None
        """(M, K), where experts are kept."""
        self._experts_SRMK: torch.Tensor | None = None
        if recorder is not None:
            self.experts = recorder.layers, gates(network)[0].top_k
            self._experts_SRMK = torch.zeros(
                MOST_STEPS, rows, *self.experts, dtype=torch.int16, device=self.device
            )
        self.steps = Steps(self._step, self.device, capture=capture)
        self._fused: DenseDecoder | LatentDecoder | None = None
        self._places: tuple[int, ...] = ()
        self._free: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    # -- room

    def renew(self, pages: int, width: int) -> None:
        """Another cache; the old one is let go first."""
        self.let_go()
        self.cache = PagedCache(self.network, self.rows, pages, width)

    def let_go(self) -> None:
        """Free the cache and all that reads it."""
        self.steps.forget()
        self._fused = self.cache = None
        self._places = ()

    def check_places(self) -> None:
        """Make sure that graphs read parameters and buffers where they are."""
        assert self.cache is not None
        if self._places == self._tensors():
            return
        self.steps.forget()
        self._fused = self._few_kernels(self.cache)
        self._places = self._tensors()

    def _few_kernels(self, cache: PagedCache) -> DenseDecoder | LatentDecoder | None:
        """What computes a step from few kernels, for networks that it is written for."""
        network = self.network
        if isinstance(network, DenseLM) and dense.fusable(network):
            return DenseDecoder(network, cache)
        if isinstance(network, DeepseekV3) and latent.fusable(network):
            experts_SRMK = self._experts_SRMK
            log = None if experts_SRMK is None else ExpertLog(self.log.step, experts_SRMK)
            return LatentDecoder(network, cache, log)
        return None

    def _tensors(self) -> tuple[int, ...]:
        network = self.network
        return tuple(one.data_ptr() for one in chain(network.parameters(), network.buffers()))

    # -- a step, as it is captured

    def _step(self, batch: int, mode: Mode) -> None:
        cache = self.cache
        assert cache is not None
        if self._fused is not None:
            hidden_BD = self._fused.hidden(batch)  # which takes experts down as well
        else:
            cache.decode(batch)
            hidden_B1D = self.network.hidden(
                cache.state_FR[NEXT, :batch, None], cache.state_FR[LENGTH, :batch, None], cache
            )
            hidden_BD = hidden_B1D[:, 0]
            if self.recorder is not None and self._experts_SRMK is not None:
                chosen_BMK = self.recorder.indices_MNK().transpose(0, 1).to(torch.int16)
                self._experts_SRMK[:, :batch].index_copy_(0, self.log.step, chosen_BMK[None])
        take_step(self._logits(hidden_BD), cache.state_FR, self.log, mode)

    def _logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """[B, V], of the ids that may be drawn, in float32 or wider: rounded to 16 bits they would
        be another distribution than the trainer's."""
        weight_VD = self.network.head_weight[: self.vocabulary]
        if hidden_BD.dtype.itemsize > 2:
            return F.linear(hidden_BD, weight_VD)
        if hidden_BD.is_cuda:
            return torch.mm(hidden_BD, weight_VD.t(), out_dtype=torch.float32)
        return F.linear(hidden_BD.float(), weight_VD.float())

    # -- orders

    def run(self, orders: Orders, mode: Mode) -> Chunk:
        """The steps of a chunk, once :meth:`prepare` has been called."""
        self.log.restart()
        for _ in range(orders.steps):
            self.steps.run(orders.bucket, mode)
        drawn_S2R, experts_SRMK = self._free.pop() if self._free else self._host_tensors()
        done = slice(0, orders.steps)
        drawn_S2R[done].copy_(self.log.drawn_S2R[done], non_blocking=True)
        if experts_SRMK is not None and self._experts_SRMK is not None:
            experts_SRMK[done].copy_(self._experts_SRMK[done], non_blocking=True)
        arrived = None
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return Chunk(orders, drawn_S2R, experts_SRMK, arrived)

    def prepare(self, orders: Orders, prompts: Sequence[Sequence[int]]) -> list[PromptExperts]:
        """All that comes before the steps; what gates chose for the prompts that were computed."""
        cache = self.cache
        assert cache is not None
        if len(orders.moved_to):
            cache.move_rows(self._sent(orders.moved_from), self._sent(orders.moved_to))
        if len(orders.table_places):
            flat = cache.table_RW.view(-1)
            pages = self._sent(orders.table_pages.astype(np.int32))
            flat.index_copy_(0, self._sent(orders.table_places), pages)
        if len(orders.rows):
            cache.state_FR.index_copy_(1, self._sent(orders.rows), self._sent(orders.state_FN))
        chosen = [self._prefill(cache, prefill, prompts) for prefill in orders.prefills]
        if len(orders.copied_to):
            cache.copy_pages(self._sent(orders.copied_from), self._sent(orders.copied_to))
        return [one for one in chosen if one is not None]

    def _prefill(
        self, cache: PagedCache, prefill: Prefill, prompts: Sequence[Sequence[int]]
    ) -> PromptExperts | None:
        parts = [prompts[prompt][:-1] for prompt in prefill.prompts]
        packed = PackedSequences([len(part) for part in parts], self.device)
        places = [np.arange(len(part)) for part in parts]
        pages = [own[at // PAGE] for own, at in zip(prefill.pages, places, strict=True)]
        positions_N = np.concatenate(places)
        tokens_N = np.fromiter(chain(*parts), np.int64, len(positions_N))
        sent_4N = self._sent(
            np.stack((tokens_N, positions_N, np.concatenate(pages), positions_N % PAGE))
        )
        cache.prefill(packed, sent_4N[2], sent_4N[3])
        self.network.hidden(sent_4N[0:1], sent_4N[1:2], cache)
        if self.recorder is None:
            return None
        chosen_MNK = self.recorder.indices_MNK().to(torch.int16)
        return PromptExperts(prefill, packed.starts, packed.lengths, self._fetched(chosen_MNK))

    def done_with(self, chunk: Chunk) -> None:
        """Its tensors may be filled again."""
        self._free.append((chunk.drawn_S2R, chunk.experts_SRMK))

    # -- between host and device

    def _sent(
        self, array: IntArray | np.ndarray[tuple[int, ...], np.dtype[np.int32]]
    ) -> torch.Tensor:
        """An array on the device, without waiting for it: pinned memory is not used again before
        it was copied."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the host, once a later chunk has arrived."""
        if self.device.type != "cuda":
            return tensor
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)

    def _host_tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        pinned = self.device.type == "cuda"
        made = [
            None
            if tensor is None
            else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            for tensor in (self.log.drawn_S2R, self._experts_SRMK)
        ]
        assert made[0] is not None
        return made[0], made[1]
