"""Many samples of many prompts on a GPU: what `engines.torch.rollout` does, without waiting.

V: vocabulary, M: layers with experts, K: experts a token uses, P: tokens of a prompt.

The device is given chunks of steps, each a replayed graph; the host looks at a chunk's tokens while
the next one runs (see `schedule`). Cache and graphs live as long as the object; what they hold of
prompts and samples does not outlive a call, since weights change between calls.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from forethought.engines.phases import SILENT, Phases
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cuda.cache import page_bytes
from forethought.engines.torch.cuda.collect import Collector, Experts
from forethought.engines.torch.cuda.decoder import Chunk, Decoder, PromptExperts
from forethought.engines.torch.cuda.draw import IDS, LOGPROBS, Mode
from forethought.engines.torch.cuda.pages import pages_for
from forethought.engines.torch.cuda.schedule import Absorbed, Orders, Schedule
from forethought.engines.torch.rollout import Rollout, RolloutSample
from forethought.engines.torch.sampler import check_sampling
from forethought.errors import UserError
from forethought.models.causal_lm import CausalLM
from forethought.models.costs import Cost, CostModel
from forethought.models.deepseek_v3.routing import RoutingRecorder

OnFinished = Callable[[int, int, RolloutSample], None]
"""Called with the number of the prompt, the sample's index, and the sample."""
_SHARE = 0.5
"""Share of the free memory that pages may take: the training step wants some too, and with fewer
pages than rows fill at most, samples begin anew at worst."""
_GIB = 1 << 30
_log = logging.getLogger(__name__)


_TURN = 2e-4
"""Seconds for which another thread may keep the interpreter while sampling goes on."""


@contextmanager
def _short_turns() -> Iterator[None]:
    """Within it other threads (those that fetch verdicts) give the interpreter back sooner: the
    usual 5 ms are several steps of the device, which waits for this thread."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _TURN))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class CudaRollout:
    """Samples from a network that is being trained; made once, called many times.

    ``ends``: ids that end a sample. ``vocabulary``: only ids below it are drawn. ``rows``: samples
    computed side by side. ``record_experts``: keep each gate's choices (a network with experts).
    ``most_tokens``: room for prompt and sample in a row; without it there is always enough, with
    it longer requests go to the plain path. ``pages``: the pool's, instead of what rows need and
    memory holds. ``phases`` hear of prefill, and of decode and sampling together: a step's graph
    holds both. It runs on any device, without graphs where there is no CUDA.
    """

    def __init__(
        self,
        network: CausalLM,
        *,
        ends: Iterable[int],
        vocabulary: int,
        rows: int = 128,
        record_experts: bool = False,
        most_tokens: int | None = None,
        pages: int | None = None,
        graphs: bool = True,
        phases: Phases = SILENT,
    ) -> None:
        self.network = network
        self.phases = phases
        self.rows = rows
        self.vocabulary = vocabulary
        self._ends = tuple(ends)
        self._most_tokens = most_tokens
        self._pages = pages
        is_end_V = torch.zeros(vocabulary, dtype=torch.bool)
        is_end_V[[token for token in self._ends if token < vocabulary]] = True
        self.is_end_V = is_end_V.numpy()
        recorder = RoutingRecorder(network) if record_experts else None
        self._recorder = recorder if recorder is not None and recorder.layers else None
        self.decoder = Decoder(network, rows, is_end_V, self._recorder, capture=graphs)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seeds: Sequence[int],
        sampling: SamplingParameters,
        max_tokens: int,
        *,
        lengths: Sequence[Sequence[int]] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[list[RolloutSample]]:
        """``n`` samples of each prompt, at most ``max_tokens`` long; in order.

        ``seeds``: one for each prompt; sample i of a prompt has index i. ``on_finished`` hears of
        each sample soon after it ends, while the device goes on; the sooner it returns the better.
        ``lengths``, for measurements: how long each sample is, an end token its last. Raises
        ModelError where the network's logits are not finite, UserError where memory is too small.
        """
        check_sampling(sampling)
        if not prompts or not n:
            return [[] for _ in prompts]
        longest = max(len(prompt) for prompt in prompts) - 1 + max_tokens
        if self._most_tokens is not None and longest > self._most_tokens:
            _log.warning(
                "Prompt and sample may be %d tokens, more than the cache's %d: sampling on the "
                "plain path, which is slower.",
                longest,
                self._most_tokens,
            )
            return self._plainly(prompts, n, seeds, sampling, max_tokens, on_finished)
        limits = lengths if lengths is not None else [[max_tokens] * n for _ in prompts]
        mode = Mode(sampling, lengths is not None)
        try:
            # Not in the caller's inference mode: what outlives this call could not be used in
            # others, and parameters that were moved in it could not be trained.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                _short_turns(),
                self._recorder if self._recorder is not None else nullcontext(),
            ):
                self._make_room(prompts, n, longest)
                return _Run(self, prompts, seeds, limits, mode, on_finished).finished()
        except torch.OutOfMemoryError as error:
            self.decoder.let_go()
            raise self._too_large(longest) from error

    def _plainly(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seeds: Sequence[int],
        sampling: SamplingParameters,
        max_tokens: int,
        on_finished: OnFinished | None,
    ) -> list[list[RolloutSample]]:
        plain = Rollout(
            self.network,
            ends=self._ends,
            vocabulary=self.vocabulary,
            rows=self.rows,
            record_experts=self._recorder is not None,
            phases=self.phases,
        )
        groups = plain.sample(prompts, n, seeds, sampling, max_tokens)
        if on_finished is not None:
            for prompt, group in enumerate(groups):
                for index, sample in enumerate(group):
                    on_finished(prompt, index, sample)
        return groups

    # -- room

    def _make_room(self, prompts: Sequence[Sequence[int]], n: int, longest: int) -> None:
        width = pages_for(self._most_tokens or longest)
        rows = min(self.rows, n * len(prompts))
        own = [pages_for(len(prompt)) for prompt in prompts]
        least = 2 + width + max(own)
        # What rows fill at most, the prompts beside them, and the page that is nobody's.
        wanted = self._pages or max(least, 1 + rows * width + sum(own))
        cache = self.decoder.cache
        if cache is None or cache.width < width or cache.pages < wanted:
            held = 0 if cache is None else cache.pages
            pages = min(wanted, self._affordable(held))
            if pages < least:
                need = least * page_bytes(self.network) / _GIB
                raise UserError(
                    f"A single sample of up to {longest} tokens needs {need:.2f} GiB of cache, "
                    f"and there is room for {pages * page_bytes(self.network) / _GIB:.2f}: lower "
                    "`max_tokens` in the stage of RL."
                )
            # Not for a few pages more than memory allowed the last time.
            if cache is None or cache.width < width or pages > held * 1.1:
                self.decoder.renew(pages, width)
        self.decoder.check_places()

    def _affordable(self, held: int) -> int:
        """Pages that memory has room for, those of the present cache included."""
        device = self.network.device
        if device.type != "cuda":
            return 1 << 62
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return held + int(free * _SHARE) // page_bytes(self.network)

    def _too_large(self, longest: int) -> UserError:
        per_row = pages_for(longest) * page_bytes(self.network) + 8 * self.vocabulary
        lower = max(1, self.rows // 2)
        saved = (self.rows - lower) * per_row / _GIB
        return UserError(
            f"The GPU has not enough memory for {self.rows} samples side by side: lower `rows` in "
            f"the stage of RL (to {lower}, which would save up to {saved:.1f} GiB)."
        )


class _Run:
    """One call of :meth:`CudaRollout.sample`."""

    def __init__(
        self,
        rollout: CudaRollout,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        limits: Sequence[Sequence[int]],
        mode: Mode,
        on_finished: OnFinished | None,
    ) -> None:
        self._decoder, self._mode, self._on_finished = rollout.decoder, mode, on_finished
        self._phases = rollout.phases
        self._prompts = prompts
        cache = self._decoder.cache
        assert cache is not None
        # Whoever was in a row is not any more.
        cache.state_FR.zero_()
        self._schedule = Schedule(
            prompts,
            seeds,
            limits,
            rows=cache.rows,
            pages=cache.pages,
            width=cache.width,
            is_end_V=rollout.is_end_V,
        )
        samples = sum(len(own) for own in limits)
        most = max(limit for own in limits for limit in own)
        self._collector = Collector(
            min(cache.rows, samples), most, samples, rollout.is_end_V, self._decoder.experts
        )
        self._results: list[list[RolloutSample | None]] = [[None] * len(own) for own in limits]
        self._of_prompt: dict[int, Experts] = {}
        """What gates chose for each prompt, int16 [M, P - 1, K], as it was computed last."""
        self._of_ticket: list[Experts | None] = []
        """The same as it was when each ticket began."""

    def finished(self) -> list[list[RolloutSample]]:
        """Sample all there is to sample."""
        under_way: deque[Chunk] = deque()
        while True:
            orders = self._schedule.plan()
            if orders is not None:
                under_way.append(self._ordered(orders))
            for ticket in self._schedule.taken_back:
                self._collector.drop(ticket)
            self._schedule.taken_back.clear()
            if orders is None and not under_way:
                break
            # One chunk ahead of what the host knows.
            if orders is None or len(under_way) > 1:
                self._learn(under_way.popleft())
        return [[sample for sample in group if sample is not None] for group in self._results]

    def _ordered(self, orders: Orders) -> Chunk:
        """The device is told what to do next."""
        # Without prompts what comes before the steps is a few writes to the table.
        prefill = self._phases.phase("prefill", lambda costs: self._prefilled(costs, orders))
        with prefill if orders.prefills else nullcontext():
            chosen = self._decoder.prepare(orders, self._prompts)
        for one in chosen:
            self._keep(one)
        for prompt, _ in self._schedule.samples[len(self._of_ticket) :]:
            self._of_ticket.append(self._of_prompt.get(prompt))
        with self._phases.phase("decode and sampling", calls=orders.steps):
            return self._decoder.run(orders, self._mode)

    def _keep(self, chosen: PromptExperts) -> None:
        whole_MNK = chosen.chosen_MNK.numpy()  # a view: its numbers may still be on their way
        for prompt, start, length in zip(
            chosen.prefill.prompts, chosen.starts, chosen.lengths, strict=True
        ):
            self._of_prompt[prompt] = whole_MNK[:, start : start + length]

    def _learn(self, chunk: Chunk) -> None:
        while not chunk.here:
            time.sleep(0)  # lets other threads go on
        steps = chunk.orders.steps
        drawn_S2R = chunk.drawn_S2R[:steps]
        ids_SR = drawn_S2R[:, IDS].numpy()
        absorbed = self._schedule.absorb(chunk.orders.tickets_B, ids_SR)
        self._phases.count("decode and sampling", lambda costs: self._decoded(costs, absorbed))
        experts = None if chunk.experts_SRMK is None else chunk.experts_SRMK[:steps].numpy()
        logprobs_SR = drawn_S2R[:, LOGPROBS].numpy().view("float32")
        self._collector.add(absorbed, ids_SR, logprobs_SR, experts)
        self._decoder.done_with(chunk)
        for ticket in absorbed.over.tolist():
            prompt, index = self._schedule.samples[ticket]
            sample = self._collector.sample(
                ticket, self._schedule.drawn(ticket), self._of_ticket[ticket]
            )
            self._results[prompt][index] = sample
            if self._on_finished is not None:
                self._on_finished(prompt, index, sample)

    def _prefilled(self, costs: CostModel, orders: Orders) -> Cost:
        """What the prompts of these orders cost: all but the last token of each."""
        total = Cost()
        for one in orders.prefills:
            total += costs.prefill([len(self._prompts[at]) - 1 for at in one.prompts])
        return total

    def _decoded(self, costs: CostModel, absorbed: Absorbed) -> Cost:
        """What the tokens that a chunk drew cost; rows that stand still cost nothing here."""
        prompts = [len(self._prompts[self._schedule.samples[at][0]]) for at in absorbed.tickets]
        # The first token of a sample is drawn by the step that computes the prompt's last one.
        first_N = np.array(prompts, dtype=np.int64) + absorbed.before
        total = Cost()
        for step in range(int(absorbed.counts.max(initial=0))):
            alive_N = absorbed.counts > step
            rows, context = int(alive_N.sum()), int((first_N[alive_N] + step).sum())
            total += costs.decode(rows, context) + costs.draw(rows)
        return total
