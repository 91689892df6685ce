"""Rejection sampling: the model's own right answers become its next lesson.

Source: DeepSeek-R1 (arXiv:2501.12948) section 2.3.3.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from forethought.engines.protocol import SamplingParameters
from forethought.problems.stream import ProblemStream
from forethought.training.batches import TokenSequence
from forethought.training.config import RejectionConfig
from forethought.training.judged_samples import judged_samples, pool_for
from forethought.training.judging import Judge
from forethought.training.monitor import Number
from forethought.training.optimizer import MasterAdamW, learning_rate
from forethought.training.policy import Policy, noise_seed
from forethought.training.sft import shuffled_batch
from forethought.training.stage import Facts, StepResult, Tensors, TrainingStopped
from forethought.training.supervised import Supervised


class RejectionSampler:
    """Implements :class:`forethought.training.stage.Stage`.

    A round samples with the newest weights, then trains on what was kept; ``steps`` of the config
    are those of one round.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: MasterAdamW,
        config: RejectionConfig,
        stream: ProblemStream,
        judge: Judge,
        seed: int,
    ) -> None:
        self.steps, self.number = config.steps * config.rounds, 0
        self._policy, self._optimizer, self._config = policy, optimizer, config
        self._stream, self._seed = stream, seed
        self._verdicts = pool_for(policy, judge)
        self._verdicts.start()
        self._kept: list[TokenSequence] = []
        self._figures: dict[str, Number] = {}
        self._trainer = Supervised(
            policy.network,
            optimizer,
            vocabulary=policy.tokenizer.size,
            micro_batch_tokens=config.micro_batch_tokens,
            balance=config.balance,
            lanes=policy.lanes,
            phases=policy.phases,
        )

    @property
    def resumable(self) -> bool:
        return True

    def step(self) -> StepResult:
        within = self.number % self._config.steps
        phases: dict[str, float] = {}
        sampled = 0
        if within == 0:
            started = time.perf_counter()
            sampled = self._sample(self.number // self._config.steps)
            phases["sampling"] = time.perf_counter() - started
        batch = shuffled_batch(self._kept, within, self._config.batch_conversations, self._seed)
        rate = learning_rate(self._config.optimizer, self.number, self.steps)
        metrics = self._trainer.step(batch, rate)
        self.number += 1
        tokens = sum(one.inputs for one in batch) + sampled
        return StepResult({**metrics, **self._figures}, tokens, phases)

    def _sample(self, number: int) -> int:
        """Fill the data with what a round keeps; tokens sampled."""
        config = self._config
        first = number * config.problems
        problems = [self._stream[first + at] for at in range(config.problems)]
        found = judged_samples(
            self._policy,
            self._verdicts,
            problems,
            config.group_size,
            [noise_seed(self._seed, first + at) for at in range(config.problems)],
            SamplingParameters(temperature=config.temperature, top_p=1.0),
            config.max_tokens,
            rows=config.rows,
        )
        kept: list[TokenSequence] = []
        right = total = 0
        for problem, group, judgements in zip(problems, found.samples, found.judged, strict=True):
            good = []
            for sample, judged in zip(group, judgements, strict=True):
                total += 1
                right += judged.verdict.correct
                if judged.verdict.correct and judged.reply.well_formed:
                    good.append(self._policy.sequence(problem, sample))
            kept += good[: config.keep]
        if not kept:
            raise TrainingStopped(
                f"none of {total} samples was right and well formed: there is nothing to train "
                "on; train the base further, or take easier problems."
            )
        self._kept = kept
        self._figures = {"reward_accuracy": right / total, "kept": len(kept)}
        return found.tokens

    def state(self) -> tuple[Tensors, Facts]:
        """The kept samples travel along as ids: they cannot be drawn again with later weights."""
        tensors = {f"optimizer.{n}": t for n, t in self._optimizer.state_tensors().items()}
        tensors["kept.ids"] = torch.tensor(
            [i for one in self._kept for i in one.ids], dtype=torch.int64
        )
        tensors["kept.lengths"] = torch.tensor(
            [len(one.ids) for one in self._kept], dtype=torch.int64
        )
        tensors["kept.prompts"] = torch.tensor(
            [one.prompt for one in self._kept], dtype=torch.int64
        )
        return tensors, {"number": self.number, "figures": dict(self._figures)}

    def load(self, tensors: Tensors, facts: Facts) -> None:
        number, figures = facts["number"], facts["figures"]
        assert isinstance(number, int)
        assert isinstance(figures, dict)
        self.number = number
        self._figures = {
            key: value for key, value in figures.items() if isinstance(value, int | float)
        }
        self._optimizer.load_state_tensors(_under("optimizer.", tensors))
        parts = torch.split(tensors["kept.ids"], tensors["kept.lengths"].tolist())
        prompts = tensors["kept.prompts"].tolist()
        self._kept = [
            TokenSequence(tuple(ids.tolist()), prompt)
            for ids, prompt in zip(parts, prompts, strict=True)
        ]

    def close(self) -> None:
        self._verdicts.close()


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
