"""The model under training as RL sees it: asked by its prompts, sampled, and scored token by token.

N: input tokens of a row, L: loss tokens, M: layers with experts, K: experts a token uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import Rollout, RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates, replayed
from forethought.problems.problem import Problem
from forethought.training.batches import PackedBatch, TokenSequence
from forethought.training.logprobs import token_logprobs
from forethought.training.prompting import Prompter
from forethought.training.tokenizer import TrainedTokenizer


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities (with gradient) and entropies of the loss tokens of a row, and which
    experts its tokens took (None for a dense network)."""

    logprobs_L: torch.Tensor
    entropy_L: torch.Tensor
    experts_MNK: torch.Tensor | None


class Policy:
    """A network and everything that turns problems into samples of it. One set of weights."""

    def __init__(
        self,
        network: CausalLM,
        tokenizer: TrainedTokenizer,
        prompter: Prompter,
        *,
        sampling_threads: int | None = None,
    ) -> None:
        self._sampling_threads = sampling_threads
        self.network = network
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
    ) -> list[list[RolloutSample]]:
        """``n`` samples of each problem; see :meth:`Rollout.sample`."""
        rollout = Rollout(
            self.network,
            ends=(self.tokenizer.eos_id,),
            vocabulary=self.tokenizer.size,
            rows=rows,
            record_experts=record_experts and self.has_experts,
        )
        prompts = [self.prompter.ids(problem.text) for problem in problems]
        with _threads(self._sampling_threads):
            return rollout.sample(prompts, n, seeds, sampling, max_tokens)

    def sequence(self, problem: Problem, sample: RolloutSample) -> TokenSequence:
        """Prompt and sample; every token of the sample is trained, its end token too."""
        prompt = self.prompter.ids(problem.text)
        return TokenSequence((*prompt, *sample.ids), len(prompt))

    def score(
        self,
        batch: PackedBatch,
        temperature: float,
        *,
        replay_MNK: torch.Tensor | None = None,
        network: CausalLM | None = None,
    ) -> Scored:
        """What the policy gives the loss tokens of a batch, under the sampler's distribution:
        divided by the temperature, over the ids that exist. ``network``: another one, of the same
        shape (the reference). ``replay_MNK``: experts to take instead of choosing."""
        network = network or self.network
        with ExitStack() as entered:
            recorder = None
            if replay_MNK is not None:
                entered.enter_context(replayed(network, replay_MNK))
            if self.has_experts:
                recorder = entered.enter_context(RoutingRecorder(network))
            hidden_1ND = network.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
            experts_MNK = None if recorder is None else recorder.indices_MNK()
        logprobs_L, entropy_L = token_logprobs(
            hidden_1ND[0, batch.rows_L],
            network.head_weight[: self.tokenizer.size],
            batch.targets_L,
            temperature,
        )
        return Scored(logprobs_L, entropy_L, experts_MNK)


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


def experts_of(samples: Sequence[RolloutSample]) -> torch.Tensor | None:
    """The sampler's choices for a row of these samples, in order; int64 [M, N, K]."""
    parts = [sample.experts for sample in samples]
    if any(part is None for part in parts):
        return None
    return torch.cat([part for part in parts if part is not None], dim=1).long()
