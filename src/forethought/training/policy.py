"""The model under training as RL sees it: asked by its prompts, sampled, and scored token by token.

N: input tokens of a row, L: loss tokens, M: layers with experts, K: experts a token uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from forethought.engines.phases import SILENT, Phases
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import Rollout, RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates, replayed
from forethought.models.packed import PackedSequences, to_device
from forethought.problems.problem import Problem
from forethought.training.batches import TokenSequence
from forethought.training.lanes import Lanes
from forethought.training.logprobs import rows_of, token_logprobs
from forethought.training.prompting import Prompter
from forethought.training.shared_rollout import gather_samples
from forethought.training.tokenizer import TrainedTokenizer

if TYPE_CHECKING:
    from forethought.engines.torch.cuda.rollout import CudaRollout

OnFinished: TypeAlias = Callable[[int, int, RolloutSample], None]
"""Hears of a sample: the number of its problem, its index, the sample."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities (with gradient) and entropies of the loss tokens of a row, and which
    experts its tokens took (None for a dense network)."""

    logprobs_L: torch.Tensor
    entropy_L: torch.Tensor
    experts_MNK: torch.Tensor | None


class ScoredRow(Protocol):
    """A packed row and the tokens of it that are scored."""

    @property
    def ids_1N(self) -> torch.Tensor: ...

    @property
    def positions_1N(self) -> torch.Tensor: ...

    @property
    def packed(self) -> PackedSequences: ...

    @property
    def rows_L(self) -> torch.Tensor:
        """Input positions whose next token is scored."""

    @property
    def targets_L(self) -> torch.Tensor:
        """Those tokens."""


class Policy:
    """A network and everything that turns problems into samples of it. One set of weights.

    ``phases`` hear of the samples' and the passes' parts, from whoever computes them.
    """

    def __init__(
        self,
        network: CausalLM,
        tokenizer: TrainedTokenizer,
        prompter: Prompter,
        *,
        sampling_threads: int | None = None,
        lanes: Lanes | None = None,
        phases: Phases = SILENT,
    ) -> None:
        self.phases = phases
        self._sampling_threads = sampling_threads
        self._samplers: dict[tuple[int, bool], CudaRollout] = {}
        self._prompt: tuple[Problem, tuple[int, ...]] | None = None
        self.network = network
        self.lanes = lanes or Lanes(network)
        self.tokenizer = tokenizer
        self.prompter = prompter
        self.has_experts = bool(gates(network))

    def sample(
        self,
        problems: Sequence[Problem],
        n: int,
        seeds: Sequence[int],
        sampling: SamplingParameters,
        max_tokens: int,
        *,
        rows: int,
        record_experts: bool = False,
        on_finished: OnFinished | None = None,
    ) -> list[list[RolloutSample]]:
        """``n`` samples of each problem; see :meth:`Rollout.sample`. ``on_finished`` hears of each
        (problem, index, sample) that this rank draws; on CUDA soon after it ends, while the rest is
        drawn.

        One lane samples: a decode step is a chain of short operations, and two such chains get in
        each other's way in one interpreter (two lanes of half the rows take longer).
        """
        record_experts = record_experts and self.has_experts
        ranks = self.lanes.ranks
        own = ranks.own(len(problems))
        groups = self._draw(
            [self.prompter.ids(problems[at].text) for at in own],
            n,
            [seeds[at] for at in own],
            sampling,
            max_tokens,
            rows,
            record_experts,
            on_finished and (lambda at, index, sample: on_finished(own[at], index, sample)),
        )
        return gather_samples(ranks, groups, len(problems))

    def _draw(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seeds: Sequence[int],
        sampling: SamplingParameters,
        max_tokens: int,
        rows: int,
        record_experts: bool,
        on_finished: OnFinished | None,
    ) -> list[list[RolloutSample]]:
        """The samples of this rank."""
        if not prompts:
            return []
        if self.network.device.type == "cuda":
            fast = self._on_cuda(rows, record_experts)
            return fast.sample(prompts, n, seeds, sampling, max_tokens, on_finished=on_finished)
        rollout = Rollout(
            self.network,
            ends=(self.tokenizer.eos_id,),
            vocabulary=self.tokenizer.size,
            rows=rows,
            record_experts=record_experts,
            phases=self.phases,
        )
        with _threads(self._sampling_threads):
            groups = rollout.sample(prompts, n, seeds, sampling, max_tokens)
        if on_finished is not None:
            for problem, group in enumerate(groups):
                for index, sample in enumerate(group):
                    on_finished(problem, index, sample)
        return groups

    def _on_cuda(self, rows: int, record_experts: bool) -> CudaRollout:
        """The sampler of so many rows: its graphs and cache outlive updates of the weights."""
        from forethought.engines.torch.cuda.rollout import CudaRollout

        key = (rows, record_experts)
        if key not in self._samplers:
            self._samplers[key] = CudaRollout(
                self.network,
                ends=(self.tokenizer.eos_id,),
                vocabulary=self.tokenizer.size,
                rows=rows,
                record_experts=record_experts,
                phases=self.phases,
            )
        return self._samplers[key]

    def sequence(self, problem: Problem, sample: RolloutSample) -> TokenSequence:
        """Prompt and sample; every token of the sample is trained, its end token too."""
        # The samples of a group come one after the other: their prompt is tokenised once.
        if self._prompt is None or self._prompt[0] is not problem:
            self._prompt = problem, self.prompter.ids(problem.text)
        prompt = self._prompt[1]
        return TokenSequence((*prompt, *sample.ids), len(prompt))

    def score(
        self,
        batch: ScoredRow,
        temperature: float,
        *,
        replay_MNK: torch.Tensor | None = None,
        lane: int = 0,
    ) -> Scored:
        """What the policy gives the loss tokens of a batch, under the sampler's distribution:
        divided by the temperature, over the ids that exist. ``replay_MNK``: experts to take instead
        of choosing. Gradients go to the parameters of a lane."""
        network = self.lanes.networks[lane]
        with ExitStack() as entered:
            recorder = None
            if replay_MNK is not None:
                entered.enter_context(replayed(network, replay_MNK))
            if self.has_experts:
                recorder = entered.enter_context(RoutingRecorder(network))
            scored = self.score_with(network, batch, temperature)
            if recorder is not None:
                scored = replace(scored, experts_MNK=recorder.indices_MNK())
        return scored

    def score_with(self, network: CausalLM, batch: ScoredRow, temperature: float) -> Scored:
        """As :meth:`score`, of any network of this shape (the reference); experts are not told."""
        self.phases.count(
            "forward", lambda costs: costs.forward(batch.packed.lengths, len(batch.targets_L))
        )
        hidden_1ND = network.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
        logprobs_L, entropy_L = token_logprobs(
            rows_of(hidden_1ND, batch.rows_L),
            network.head_weight[: self.tokenizer.size],
            batch.targets_L,
            temperature,
        )
        return Scored(logprobs_L, entropy_L, None)


def noise_seed(seed: int, problem: int) -> int:
    """What the samples of a stage's problem number ``problem`` are drawn with; 63 bits."""
    return ((seed << 40) ^ problem) % (1 << 63)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads on the CPU, and with as many as before afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def experts_of(
    samples: Sequence[RolloutSample], device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """The sampler's choices for a row of these samples, in order; int64 [M, N, K] on ``device``."""
    parts = [sample.experts for sample in samples]
    if any(part is None for part in parts):
        return None
    together = torch.cat([part for part in parts if part is not None], dim=1)
    return to_device(together, device).long()
