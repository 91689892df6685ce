"""Many samples of many prompts, for training: ids and exact log-probabilities, nothing streamed.

B: rows computed side by side, V: vocabulary, M: layers with experts, K: experts a token uses,
P: tokens of a prompt, T: tokens of a sample.

The network is the trainer's own: there is one set of weights, and no cache outlives a call, so
nothing can be stale. A prompt is computed once for its samples, a row that ends is taken over by
the next sample that waits, and towards the end the batch shrinks. A token is the same function of
(weights, prompt, parameters, seed, index) as on the engine (`sampler`); nothing is decoded to text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from forethought.engines.phases import SILENT, Phases
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.sampler import RowParameters, Sampler
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import RoutingRecorder
from forethought.models.packed import PackedSequences

PREFILL_TOKENS = 4096
"""Prompt tokens that are computed at once, at most (a longer prompt has a pass of its own)."""
_EXPERT_NUMBER = torch.int16


@dataclass(frozen=True, slots=True)
class RolloutSample:
    """One sample. ``ids`` end with an end token unless ``truncated``; ``logprobs`` float32 [T],
    under the distribution that was drawn from. ``experts`` int16 [M, P + T - 1, K]: what each gate
    chose for every token that was computed (the last one never is); None if not asked for."""

    ids: tuple[int, ...]
    logprobs: torch.Tensor
    truncated: bool
    experts: torch.Tensor | None = None


@dataclass(slots=True)
class _Row:
    """The sample in a row of the batch: which prompt, which of its samples, and what the gates
    chose for the prompt it stands on (int16 [M, P, K])."""

    prompt: int
    index: int
    experts: torch.Tensor | None = None


class Rollout:
    """Samples from a network that is being trained.

    ``ends``: ids that end a sample. ``vocabulary``: only ids below it are drawn. ``rows``: samples
    computed side by side. ``record_experts``: keep each gate's choices (a network with experts).
    ``phases`` hear of prefill, decode and sampling.
    """

    def __init__(
        self,
        network: CausalLM,
        *,
        ends: Iterable[int],
        vocabulary: int,
        rows: int = 128,
        record_experts: bool = False,
        phases: Phases = SILENT,
    ) -> None:
        self._network = network
        self.phases = phases
        self._vocabulary = vocabulary
        self._rows = rows
        self._device = network.device
        self._is_end_V = torch.zeros(network.config.vocab_size, dtype=torch.bool)
        self._is_end_V[list(ends)] = True
        self._is_end_V = self._is_end_V.to(self._device)
        self._record = record_experts

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seeds: Sequence[int],
        sampling: SamplingParameters,
        max_tokens: int,
    ) -> list[list[RolloutSample]]:
        """``n`` samples of each prompt, at most ``max_tokens`` long; in order.

        ``seeds``: one for each prompt; sample i of a prompt has index i. Raises ModelError where
        the network's logits are not finite.
        """
        run = _Run(self, prompts, n, seeds, sampling, max_tokens)
        return run.finished()

    # What a run asks of it.

    @property
    def network(self) -> CausalLM:
        return self._network

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def is_end_V(self) -> torch.Tensor:
        return self._is_end_V

    @property
    def records(self) -> bool:
        return self._record


class _Run:
    """One call of :meth:`Rollout.sample`."""

    def __init__(
        self,
        rollout: Rollout,
        prompts: Sequence[Sequence[int]],
        n: int,
        seeds: Sequence[int],
        sampling: SamplingParameters,
        max_tokens: int,
    ) -> None:
        self.rollout = rollout
        self.network = rollout.network
        self.phases = rollout.phases
        self.device = rollout.network.device
        self.prompts = [list(prompt) for prompt in prompts]
        self.n, self.seeds, self.sampling, self.max_tokens = n, seeds, sampling, max_tokens
        self.waiting = [(p, i) for p in range(len(prompts)) for i in range(n)]
        self.waiting.reverse()
        self.results: list[list[RolloutSample | None]] = [[None] * n for _ in prompts]
        width = min(rollout.rows, len(self.waiting))
        longest = max(len(prompt) for prompt in self.prompts)
        self.cache = RowCache(self.network.config.num_hidden_layers, self.device)
        self.cache.reserve(width, longest + max_tokens)
        self.recorder = RoutingRecorder(self.network) if rollout.records else None
        if self.recorder is not None and not self.recorder.layers:
            self.recorder = None  # a dense network
        self.first_logits: dict[int, torch.Tensor] = {}
        """Logits after each prompt that was just computed; float32 [V]."""
        self.prompt_experts: dict[int, torch.Tensor] = {}
        """int16 [M, P, K] of each prompt that was just computed."""
        self.rows: list[_Row] = []
        self.lengths_B = torch.zeros(width, dtype=torch.int64, device=self.device)
        """Tokens stored in each row."""
        self.drawn_B = torch.zeros(width, dtype=torch.int64, device=self.device)
        """Tokens of each sample so far; the newest is not stored yet."""
        self.next_B = torch.zeros(width, dtype=torch.int64, device=self.device)
        self.ids_BT = torch.zeros(width, max_tokens, dtype=torch.int64, device=self.device)
        self.logprobs_BT = torch.zeros(width, max_tokens, dtype=torch.float32, device=self.device)
        self.experts_MBTK: torch.Tensor | None = None
        self.sampler: Sampler | None = None

    def finished(self) -> list[list[RolloutSample]]:
        if self.recorder is None:
            self._work()
        else:
            with self.recorder:
                self._work()
        return [[sample for sample in group if sample is not None] for group in self.results]

    def _work(self) -> None:
        free = self._fill(list(range(min(self.rollout.rows, len(self.waiting)))))
        self._compact(free)
        while self.rows:
            over = self._step()
            if over:
                for row in over:
                    self._harvest(row)
                self._compact(self._fill(over))

    # -- taking up samples

    def _fill(self, free: list[int]) -> list[int]:
        """Begin waiting samples in the rows ``free``; the rows that are left without one."""
        while free and self.waiting:
            rows = free[: len(self.waiting)]
            over = self._begin(rows)
            for row in over:  # samples of a single token
                self._harvest(row)
            free = over + free[len(rows) :]
        return free

    def _begin(self, rows: list[int]) -> list[int]:
        """Begin a waiting sample in each of the rows; those that are over at once."""
        forks: dict[int, list[int]] = {}
        for row in rows:
            prompt, index = self.waiting.pop()
            if row == len(self.rows):
                self.rows.append(_Row(prompt, index))
            else:
                self.rows[row] = _Row(prompt, index)
            forks.setdefault(prompt, []).append(row)
        self._prefill(list(forks), [targets[0] for targets in forks.values()])
        for prompt, targets in forks.items():
            if len(targets) > 1:
                self.cache.fork(targets[0], targets[1:], len(self.prompts[prompt]))
        owners = [self.rows[row] for row in rows]
        for owner in owners:
            # A prompt that is computed again for later samples may round otherwise.
            owner.experts = self.prompt_experts.get(owner.prompt)
        self.prompt_experts.clear()
        at = torch.tensor(rows, device=self.device)
        self.lengths_B[at] = torch.tensor(
            [len(self.prompts[owner.prompt]) for owner in owners], device=self.device
        )
        self.drawn_B[at] = 0
        if self.sampler is not None:
            self.sampler.reseed(
                rows,
                [self.seeds[owner.prompt] for owner in owners],
                [owner.index for owner in owners],
            )
        logits_BV = torch.stack([self.first_logits[owner.prompt] for owner in owners])
        self.first_logits.clear()
        return self._draw(at, logits_BV, self._sampler_of(rows))

    def _prefill(self, prompts: list[int], rows: list[int]) -> None:
        """Compute prompts into rows, several at once."""
        start = 0
        while start < len(prompts):
            end, tokens = start, 0
            while end < len(prompts) and (
                end == start or tokens + len(self.prompts[prompts[end]]) <= PREFILL_TOKENS
            ):
                tokens += len(self.prompts[prompts[end]])
                end += 1
            self._prefill_together(prompts[start:end], rows[start:end])
            start = end

    def _prefill_together(self, prompts: list[int], rows: list[int]) -> None:
        packed = PackedSequences([len(self.prompts[p]) for p in prompts], self.device)
        with self.phases.phase("prefill", lambda costs: costs.prefill(packed.lengths, len(rows))):
            self._prefill_packed(prompts, rows, packed)

    def _prefill_packed(self, prompts: list[int], rows: list[int], packed: PackedSequences) -> None:
        ids = [token for p in prompts for token in self.prompts[p]]
        self.cache.prefill_packed(rows, packed)
        hidden_1ND = self.network.hidden(
            torch.tensor([ids], device=self.device), packed.positions_1N, self.cache
        )
        last = torch.tensor(packed.starts) + torch.tensor(packed.lengths) - 1
        logits = self.network.logits(hidden_1ND[0, last.to(self.device)]).float()
        for at, prompt in enumerate(prompts):
            self.first_logits[prompt] = logits[at]
        if self.recorder is not None:
            chosen_MNK = self.recorder.indices_MNK().to(_EXPERT_NUMBER)
            for at, prompt in enumerate(prompts):
                first = packed.starts[at]
                self.prompt_experts[prompt] = chosen_MNK[:, first : first + packed.lengths[at]]

    def _sampler_of(self, rows: Sequence[int]) -> Sampler:
        return Sampler(
            [
                RowParameters(
                    self.sampling, self.seeds[self.rows[r].prompt], self.rows[r].index, "sampling"
                )
                for r in rows
            ],
            self.device,
            self.rollout.vocabulary,
        )

    # -- one step

    def _step(self) -> list[int]:
        """Compute the newest token of every row and draw the next one of each; rows now over."""
        with self.phases.phase("decode", lambda costs: costs.decode(*self._seen())):
            logits_BV = self._decode()
        if self.sampler is None:
            self.sampler = self._sampler_of(range(len(self.rows)))
        at = torch.arange(len(self.rows), device=self.device)
        return self._draw(at, logits_BV, self.sampler)

    def _seen(self) -> tuple[int, int]:
        """Rows of the step just computed, and tokens that they attended to, themselves included."""
        return len(self.rows), int(self.lengths_B[: len(self.rows)].sum())

    def _decode(self) -> torch.Tensor:
        """Logits after the newest token of every row, [B, V]."""
        batch = len(self.rows)
        lengths_B = self.lengths_B[:batch]
        self.cache.decode(lengths_B, int(lengths_B.max()), self.network.dtype)
        hidden_B1D = self.network.hidden(self.next_B[:batch, None], lengths_B[:, None], self.cache)
        if self.recorder is not None:
            self._keep_experts(self.recorder.indices_MNK())
        self.lengths_B[:batch] += 1
        return self.network.logits(hidden_B1D[:, 0])

    def _draw(self, at: torch.Tensor, logits_BV: torch.Tensor, sampler: Sampler) -> list[int]:
        """Draw the next token of the rows ``at`` and take it down; the rows that are over."""
        with self.phases.phase("sampling", lambda costs: costs.draw(len(at))):
            return self._drawn(at, logits_BV, sampler)

    def _drawn(self, at: torch.Tensor, logits_BV: torch.Tensor, sampler: Sampler) -> list[int]:
        place = self.drawn_B[at]
        drawn = sampler.sample(logits_BV, place)
        assert drawn.logprobs_B is not None
        self.ids_BT[at, place] = drawn.ids_B
        self.logprobs_BT[at, place] = drawn.logprobs_B.float()
        self.next_B[at] = drawn.ids_B
        self.drawn_B[at] = place + 1
        over = self.rollout.is_end_V[drawn.ids_B] | (place + 1 >= self.max_tokens)
        ended: list[int] = at[over].tolist()
        return ended

    def _keep_experts(self, chosen_MBK: torch.Tensor) -> None:
        """What the gates chose for the token just computed, the number ``drawn - 1`` of each."""
        if self.experts_MBTK is None:
            layers, _, top_k = chosen_MBK.shape
            rows, tokens = self.ids_BT.shape
            self.experts_MBTK = torch.zeros(
                layers, rows, tokens, top_k, dtype=_EXPERT_NUMBER, device=self.device
            )
        batch = len(self.rows)
        at = torch.arange(batch, device=self.device)
        self.experts_MBTK[:, at, self.drawn_B[:batch] - 1] = chosen_MBK.to(_EXPERT_NUMBER)

    def _harvest(self, row: int) -> None:
        """The sample of a row, whole."""
        count = int(self.drawn_B[row])
        ids = tuple(self.ids_BT[row, :count].tolist())
        place = self.rows[row]
        experts = place.experts
        if experts is not None and count > 1:
            assert self.experts_MBTK is not None
            experts = torch.cat((experts, self.experts_MBTK[:, row, : count - 1]), dim=1)
        self.results[place.prompt][place.index] = RolloutSample(
            ids,
            self.logprobs_BT[row, :count].clone(),
            not bool(self.rollout.is_end_V[ids[-1]]),
            experts,
        )

    def _compact(self, free: list[int]) -> None:
        """Rows without a sample leave no gap: the last ones move into them."""
        if not free:
            return
        gone = set(free)
        count = len(self.rows) - len(gone)
        holes = sorted(row for row in gone if row < count)
        movers = [row for row in range(count, len(self.rows)) if row not in gone]
        for target, source in zip(holes, movers, strict=True):
            self.cache.fork(source, [target], int(self.lengths_B[source]))
            self.rows[target] = self.rows[source]
            if self.experts_MBTK is not None:
                self.experts_MBTK[:, target] = self.experts_MBTK[:, source]
        if holes:
            to, of = (torch.tensor(rows, device=self.device) for rows in (holes, movers))
            for tensor in (
                self.lengths_B,
                self.drawn_B,
                self.next_B,
                self.ids_BT,
                self.logprobs_BT,
            ):
                tensor[to] = tensor[of]
        order = list(range(count))
        for target, source in zip(holes, movers, strict=True):
            order[target] = source
        if self.sampler is not None and count:
            self.sampler.select(order)
        del self.rows[count:]
