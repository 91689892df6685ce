"""Group relative policy optimisation on checkable problems: rollouts, rewards, updates.

One set of weights samples and is trained. A rollout's groups are cut into minibatches, one
optimiser step each; with one minibatch the policy that sampled is the policy that is trained, and
the sampler's log-probabilities are the old ones either way: no pass is made to compute them again.

N: input tokens of a row, L: loss tokens, S: samples, M: layers with experts, K: experts a token.

Sources: DeepSeekMath (arXiv:2402.03300) section 4.1, DeepSeek-R1 (arXiv:2501.12948) sections 2.1
and 2.2, DAPO (arXiv:2503.14476) section 3.2, routing replay (arXiv:2510.11370).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from random import Random

import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.routing import flipped
from forethought.models.packed import to_device
from forethought.problems.stream import ProblemStream
from forethought.training.batches import PackedBatch
from forethought.training.config import RLConfig
from forethought.training.judge_pool import JudgePool, judging_workers
from forethought.training.judging import Judge
from forethought.training.losses import (
    LossMetrics,
    Normaliser,
    TokenBatch,
    k3_kl,
    policy_loss,
)
from forethought.training.memory import step_memory
from forethought.training.monitor import Number
from forethought.training.optimizer import MasterAdamW, NonFiniteGradient, check_norm, learning_rate
from forethought.training.policy import Policy, Scored, experts_of, noise_seed
from forethought.training.ranks import Ranks
from forethought.training.rollouts import Group, groups_of, rollout_metrics
from forethought.training.shared_rollout import gather_judged
from forethought.training.stage import Facts, StepResult, Tensors, TrainingStopped
from forethought.training.supervised import ExpertBalance

_MOST_UNSCORABLE = 0.5
"""Share of a rollout's samples without a verdict from which on training stops."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A sample that has a loss."""

    group: Group
    at: int

    @property
    def sample(self) -> RolloutSample:
        return self.group.samples[self.at]

    @property
    def advantage(self) -> float:
        return float(self.group.advantages_G[self.at])


@dataclass(slots=True)
class _Sums:
    """What a micro-batch says, or several together. Tensors are scalars that nothing waits for
    before the step's last pass is under way."""

    loss: LossMetrics | None = None
    entropy: torch.Tensor | float = 0.0
    mismatch: torch.Tensor | float = 0.0
    tokens: int = 0
    flipped: torch.Tensor | float = 0.0
    routed: int = 0
    replayed: int = 0
    diverged: bool = False
    """Sampler and trainer disagreed more than they may."""
    experts: list[torch.Tensor] = field(default_factory=list)
    """What the gates chose in each micro-batch, int64 [M, N, K]."""

    def __iadd__(self, other: _Sums) -> _Sums:
        assert other.loss is not None
        self.loss = other.loss if self.loss is None else self.loss + other.loss
        self.entropy += other.entropy
        self.mismatch += other.mismatch
        self.tokens += other.tokens
        self.flipped += other.flipped
        self.routed += other.routed
        self.replayed += other.replayed
        self.diverged |= other.diverged
        self.experts += other.experts
        return self

    def over(self, ranks: Ranks) -> _Sums:
        """What the micro-batches of all ranks say together, but for their experts."""
        if ranks.alone:
            return self
        own = self.loss or LossMetrics(*[torch.zeros(())] * 6)
        names = [one.name for one in fields(LossMetrics) if one.name != "ratio_max"]
        totals = ranks.totals(
            [
                *(float(getattr(own, name)) for name in names),
                float(self.entropy),
                float(self.mismatch),
                self.tokens,
                float(self.flipped),
                self.routed,
                self.replayed,
                self.diverged,
            ]
        )
        largest = torch.cat(ranks.gather(own.ratio_max.reshape(1).cpu().double())).max()
        losses = {
            name: torch.tensor(total, dtype=torch.float64)
            for name, total in zip(names, totals, strict=False)
        }
        entropy, mismatch, tokens, flipped, routed, replayed, diverged = totals[len(names) :]
        return _Sums(
            LossMetrics(**losses, ratio_max=largest),
            entropy,
            mismatch,
            round(tokens),
            flipped,
            round(routed),
            round(replayed),
            diverged > 0,
        )


class GRPO:
    """Implements :class:`forethought.training.stage.Stage`. ``seed`` decides noise and order; the
    problems come from ``stream`` by a cursor."""

    def __init__(
        self,
        policy: Policy,
        optimizer: MasterAdamW,
        config: RLConfig,
        stream: ProblemStream,
        judge: Judge,
        seed: int,
    ) -> None:
        self.steps, self.number = config.steps, 0
        self._policy, self._optimizer, self._config = policy, optimizer, config
        self._stream, self._seed = stream, seed
        on_cuda = policy.network.device.type == "cuda"
        self._verdicts = JudgePool(judge, judging_workers() if on_cuda else 0, policy.phases)
        self._next = 0
        """Problems used up."""
        self._rollouts = 0
        self._minibatches: list[list[Group]] = []
        self._fresh = False
        """No update since the rollout: sampler and trainer are the same policy."""
        self._replaying = False
        """Sampler and trainer disagreed on this rollout: its experts are replayed."""
        self._figures: dict[str, Number] = {}
        self._phases: dict[str, float] = {}
        self._sampled = 0
        self._thought: tuple[str, str, float] | None = None
        self._balance = ExpertBalance(policy.network, mtp=False)
        self._reference = _frozen_copy(policy.network) if config.loss.beta else None

    @property
    def resumable(self) -> bool:
        """Between rollouts."""
        return not self._minibatches

    # -- one step

    def step(self) -> StepResult:
        sampled = 0
        if not self._minibatches:
            cursor, rollouts = self._next, self._rollouts
            try:
                self._roll_out()
            except TrainingStopped:
                self._next, self._rollouts = cursor, rollouts
                raise
            sampled = self._sampled
        else:
            self._phases = {}
        if self._reference is not None and self.number % self._config.reference_every == 0:
            self._reference.load_state_dict(self._policy.network.state_dict())
        groups = self._minibatches.pop(0)
        started = time.perf_counter()
        metrics = self._update(groups)
        self._phases["training"] = time.perf_counter() - started
        self._fresh = False
        self.number += 1
        thought, self._thought = self._thought, None
        return StepResult({**self._figures, **metrics}, sampled, self._phases, thought)

    # -- the rollout

    def _roll_out(self) -> None:
        """Sample groups, judge them, and lay them out as minibatches."""
        config = self._config
        self._phases, self._sampled = {"sampling": 0.0, "verdicts": 0.0}, 0
        groups = self._sample_groups(config.problems_per_rollout)
        everything = list(groups)
        if config.dynamic_sampling:
            groups = [group for group in groups if not group.dead]
            for _ in range(config.dynamic_sampling_rounds - 1):
                missing = config.problems_per_rollout - len(groups)
                if missing <= 0:
                    break
                more = self._sample_groups(missing)
                everything += more
                groups += [group for group in more if not group.dead]
        self._check_verdicts(everything)
        self._figures = {**rollout_metrics(everything), "groups": len(everything)}
        self._thought = self._worth_showing(everything)
        Random((self._seed << 32) ^ self._rollouts).shuffle(groups)
        self._rollouts += 1
        share = -(-len(groups) // config.minibatches) if groups else 0
        self._minibatches = [
            groups[at * share : (at + 1) * share] for at in range(config.minibatches)
        ]
        self._fresh, self._replaying = True, False

    def _sample_groups(self, count: int) -> list[Group]:
        config = self._config
        started = time.perf_counter()
        first = self._next
        problems = [self._stream[first + at] for at in range(count)]
        self._next += count
        # Samples are judged as they end, on other cores where there is a GPU to keep busy.
        places: list[tuple[int, int]] = []

        def finished(problem: int, index: int, sample: RolloutSample) -> None:
            self._verdicts.submit(problems[problem], sample.ids)
            places.append((problem, index))

        samples = self._policy.sample(
            problems,
            config.group_size,
            [noise_seed(self._seed, first + at) for at in range(count)],
            SamplingParameters(temperature=config.temperature, top_p=1.0),
            config.max_tokens,
            rows=config.rows,
            record_experts=True,
            on_finished=finished,
        )
        sampled = time.perf_counter()
        own = dict(zip(places, self._verdicts.results(), strict=True))
        verdicts = gather_judged(self._policy.lanes.ranks, own)
        judged = [[verdicts[p, i] for i in range(len(samples[p]))] for p in range(count)]
        self._phases["sampling"] += sampled - started
        self._phases["verdicts"] += time.perf_counter() - sampled
        self._sampled += sum(len(sample.ids) for group in samples for sample in group)
        return groups_of(problems, samples, judged, config.loss, config.max_tokens)

    @staticmethod
    def _check_verdicts(groups: Sequence[Group]) -> None:
        judged = [one for group in groups for one in group.judged]
        failed = [one for one in judged if one.reward is None]
        if len(failed) > _MOST_UNSCORABLE * len(judged):
            raise TrainingStopped(
                f"{len(failed)} of {len(judged)} samples could not be judged "
                f"({failed[0].verdict.reason}): mend the verifier or the own reward first."
            )

    def _worth_showing(self, groups: Sequence[Group]) -> tuple[str, str, float] | None:
        """One sample of the rollout, another problem each time."""
        group = groups[self._rollouts % len(groups)]
        reward = group.judged[0].reward
        ids = [i for i in group.samples[0].ids if i != self._policy.tokenizer.eos_id]
        pieces = self._policy.tokenizer.tokenizer.pieces(ids)
        text = b"".join(pieces).decode("utf-8", "replace")
        return (group.problem.text, text, 0.0 if reward is None else reward)

    # -- the update

    def _update(self, groups: Sequence[Group]) -> dict[str, Number]:
        """One optimiser step on the samples that have a loss; nothing changes where none has."""
        config = self._config
        rate = learning_rate(config.optimizer, self.number, self.steps)
        trained = [
            _Trained(group, at)
            for group in groups
            for at in range(len(group.samples))
            if group.learns[at] or (self._reference is not None and self._has_kl(group, at))
        ]
        if not trained:
            return {"learning_rate": rate, "tokens": 0, "trained_samples": 0, "grad_norm": 0.0}
        normaliser = Normaliser.of(
            torch.cat([one.sample.logprobs.cpu() for one in trained]),
            torch.tensor([len(one.sample.ids) for one in trained]),
            config.max_tokens,
        )
        sequences = [self._policy.sequence(one.group.problem, one.sample) for one in trained]
        lanes = self._policy.lanes
        self._optimizer.zero_grad()  # A step that was stopped may have left its own.
        lanes.drop_gradients()
        self._balance.reset()

        def work(lane: int, part: list[int]) -> _Sums:
            batch = PackedBatch([sequences[at] for at in part], self._policy.network.device)
            return self._backward(lane, batch, [trained[at] for at in part], normaliser)

        lengths = [one.inputs for one in sequences]
        sums = _Sums()
        parts = lanes.deal(lengths, config.micro_batch_tokens)
        with step_memory(self._policy.network.device, config.micro_batch_tokens):
            for one in lanes.run(work, parts):
                sums += one
        lanes.gather_gradients()
        for experts_MNK in sums.experts:
            self._balance.count(experts_MNK.unbind())
        self._optimizer.sum_gradients(lanes.ranks)
        self._balance.sum_over(lanes.ranks)
        sums = sums.over(lanes.ranks)
        self._replaying |= sums.diverged
        try:
            with self._policy.phases.phase("optimiser", lambda costs: costs.optimizer_step()):
                norm = check_norm(self._optimizer.step(rate))
        except NonFiniteGradient:
            self._minibatches = []
            raise TrainingStopped(
                "the gradient is not finite: lower optimizer.learning_rate."
            ) from None
        self._balance.update(config.bias_step)
        return self._metrics(sums, rate, norm, len(trained))

    def _has_kl(self, group: Group, at: int) -> bool:
        """Whether a sample that prefers nothing still counts towards the divergence."""
        masked = self._config.loss.overlong == "mask" and group.samples[at].truncated
        return group.judged[at].reward is not None and not masked

    def _backward(
        self,
        lane: int,
        batch: PackedBatch,
        trained: Sequence[_Trained],
        normaliser: Normaliser,
    ) -> _Sums:
        """Add the gradient of one micro-batch's share of the step's loss, in a lane."""
        device = self._policy.network.device
        old_L = to_device(torch.cat([one.sample.logprobs for one in trained]), device)
        sampled_MNK = experts_of([one.sample for one in trained], device)
        advantages_S = torch.tensor([one.advantage for one in trained], dtype=torch.float64)
        sums, phases = _Sums(tokens=len(old_L)), self._policy.phases
        with phases.phase("forward"):  # each pass in it says what it cost
            scored = self._score(lane, batch, old_L, sampled_MNK, sums)
            tokens = TokenBatch(
                scored.logprobs_L,
                old_L,
                batch.lengths_S,
                to_device(advantages_S, device),
                self._reference_logprobs(batch),
            )
            loss, sums.loss = policy_loss(tokens, self._config.loss, normaliser)
        lengths, trained_tokens = batch.packed.lengths, batch.loss_tokens
        with phases.phase("backward", lambda costs: costs.backward(lengths, trained_tokens)):
            loss.backward()  # type: ignore[no-untyped-call]
        sums.entropy = scored.entropy_L.sum().double()
        if scored.experts_MNK is not None:
            sums.experts.append(scored.experts_MNK)
        return sums

    def _score(
        self,
        lane: int,
        batch: PackedBatch,
        old_L: torch.Tensor,
        sampled_MNK: torch.Tensor | None,
        sums: _Sums,
    ) -> Scored:
        """The policy's log-probabilities; ``sums`` learns how far the sampler's were from them.

        Only a fresh rollout tells: after an update the difference is the update. Where it is too
        large, the pass is made again with the sampler's experts; the rest of the rollout's
        minibatches take them at once. Only that question waits for the device, so only a network
        with experts does.
        """
        temperature = self._config.temperature
        replay = sampled_MNK if self._replaying else None
        scored = self._policy.score(batch, temperature, replay_MNK=replay, lane=lane)
        sums.replayed = int(replay is not None)
        mismatch = k3_kl(scored.logprobs_L, old_L)
        if (
            self._fresh
            and replay is None
            and sampled_MNK is not None
            and scored.experts_MNK is not None
        ):
            sums.flipped = flipped(sampled_MNK, scored.experts_MNK) * batch.tokens
            sums.routed = batch.tokens
            if float(mismatch) > self._config.replay_above:
                sums.diverged, sums.replayed = True, 1
                scored = self._policy.score(batch, temperature, replay_MNK=sampled_MNK, lane=lane)
                mismatch = k3_kl(scored.logprobs_L, old_L)
        sums.mismatch = mismatch.double() * len(old_L)
        return scored

    def _reference_logprobs(self, batch: PackedBatch) -> torch.Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            return self._policy.score_with(
                self._reference, batch, self._config.temperature
            ).logprobs_L

    def _metrics(self, sums: _Sums, rate: float, norm: float, trained: int) -> dict[str, Number]:
        assert sums.loss is not None
        loss = sums.loss
        mismatch = float(sums.mismatch) / sums.tokens
        metrics: dict[str, Number] = {
            "entropy": float(sums.entropy) / sums.tokens,
            "kl_sampler_trainer": mismatch if self._fresh else None,
            "grad_norm": norm,
            "loss": float(loss.policy_loss),
            "learning_rate": rate,
            "tokens": sums.tokens,
            "trained_samples": trained,
            "ratio_mean": float(loss.ratio_mean),
            "ratio_max": float(loss.ratio_max),
            "clipped_low": float(loss.clipped_low),
            "clipped_high": float(loss.clipped_high),
        }
        if not self._fresh:
            metrics["kl_old_new"] = mismatch
        if self._reference is not None:
            metrics["kl_reference"] = float(loss.kl)
        if self._policy.has_experts:
            metrics["flipped_experts"] = float(sums.flipped) / sums.routed if sums.routed else None
            metrics["replayed_micro_batches"] = sums.replayed
        return metrics

    # -- state

    def state(self) -> tuple[Tensors, Facts]:
        if not self.resumable:
            raise ValueError("a state is taken between rollouts")
        tensors = {f"optimizer.{n}": t for n, t in self._optimizer.state_tensors().items()}
        if self._reference is not None:
            reference = self._reference.state_dict()
            tensors |= {f"reference.{name}": tensor for name, tensor in reference.items()}
        facts = {"number": self.number, "next_problem": self._next, "rollouts": self._rollouts}
        return tensors, facts

    def load(self, tensors: Tensors, facts: Facts) -> None:
        number, following, rollouts = facts["number"], facts["next_problem"], facts["rollouts"]
        assert isinstance(number, int)
        assert isinstance(following, int)
        assert isinstance(rollouts, int)
        self.number, self._next, self._rollouts = number, following, rollouts
        parts: dict[str, dict[str, torch.Tensor]] = {"optimizer": {}, "reference": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self._optimizer.load_state_tensors(parts["optimizer"])
        if self._reference is not None:
            self._reference.load_state_dict(parts["reference"])

    def close(self) -> None:
        self._minibatches = []
        self._verdicts.close()


def _frozen_copy(network: CausalLM) -> CausalLM:
    """The policy of this moment, which nothing trains."""
    made = copy.deepcopy(network)
    made.requires_grad_(requires_grad=False)
    return made
