"""Group relative policy optimisation on checkable problems: rollouts, rewards, updates.

One set of weights samples and is trained. A rollout's groups are cut into minibatches, one
optimiser step each; with one minibatch the policy that sampled is the policy that is trained, and
the sampler's log-probabilities are the old ones either way: no pass is made to compute them again.

Sources: DeepSeekMath (arXiv:2402.03300) section 4.1, DeepSeek-R1 (arXiv:2501.12948) sections 2.1
and 2.2, DAPO (arXiv:2503.14476) section 3.2.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from random import Random

import torch

from forethought.engines.protocol import SamplingParameters
from forethought.models.causal_lm import CausalLM
from forethought.problems.stream import ProblemStream
from forethought.training.config import RLConfig
from forethought.training.curriculum import Curriculum
from forethought.training.judged_samples import judged_samples, pool_for
from forethought.training.judging import Judge
from forethought.training.losses import Normaliser
from forethought.training.monitor import Number
from forethought.training.optimizer import MasterAdamW, NonFiniteGradient, check_norm, learning_rate
from forethought.training.policy import Policy, noise_seed
from forethought.training.policy_inputs import TrainedSample
from forethought.training.policy_passes import PolicyPasses, Sums
from forethought.training.rollouts import Group, groups_of, level_result, rollout_metrics
from forethought.training.stage import Facts, StepResult, Tensors, TrainingStopped
from forethought.training.supervised import ExpertBalance

_MOST_UNSCORABLE = 0.5
"""Share of a rollout's samples without a verdict from which on training stops."""


class GRPO:
    """Implements :class:`forethought.training.stage.Stage`. ``seed`` decides noise and order; the
    problems come from ``stream`` by a cursor. ``fixed_sizes``: see :class:`PolicyPasses`."""

    def __init__(
        self,
        policy: Policy,
        optimizer: MasterAdamW,
        config: RLConfig,
        stream: ProblemStream,
        judge: Judge,
        seed: int,
        *,
        fixed_sizes: bool | None = None,
    ) -> None:
        self.steps, self.number = config.steps, 0
        self._policy, self._optimizer, self._config = policy, optimizer, config
        self._stream, self._seed = stream, seed
        self._verdicts = pool_for(policy, judge)
        self._verdicts.start()
        self._curriculum = (
            None if config.curriculum is None else Curriculum(config.curriculum, stream.ladders)
        )
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
        self._passes = PolicyPasses(
            policy, optimizer, config, self._reference, fixed_sizes=fixed_sizes
        )

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
        self._figures |= self._climb(everything)
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
        first = self._next
        choose = None if self._curriculum is None else self._curriculum.level
        problems = [self._stream.problem(first + at, choose) for at in range(count)]
        self._next += count
        found = judged_samples(
            self._policy,
            self._verdicts,
            problems,
            config.group_size,
            [noise_seed(self._seed, first + at) for at in range(count)],
            SamplingParameters(temperature=config.temperature, top_p=1.0),
            config.max_tokens,
            rows=config.rows,
            record_experts=True,
        )
        self._phases["sampling"] += found.sampling_seconds
        self._phases["verdicts"] += found.verdict_seconds
        self._sampled += found.tokens
        return groups_of(problems, found.samples, found.judged, config.loss, config.max_tokens)

    def _climb(self, groups: Sequence[Group]) -> dict[str, Number]:
        """Tell the curriculum of a whole rollout; the newest levels that it was drawn from."""
        if self._curriculum is None:
            return {}
        name = "open_level"
        drawn: dict[str, Number] = {
            f"{name}/{family}": level for family, level in self._curriculum.newest().items()
        }
        self._curriculum.hear(map(level_result, groups))
        return drawn

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
            TrainedSample(
                self._policy.sequence(group.problem, sample),
                sample,
                float(group.advantages_G[at]),
            )
            for group in groups
            for at, sample in enumerate(group.samples)
            if group.learns[at] or (self._reference is not None and self._has_kl(group, at))
        ]
        if not trained:
            return {"learning_rate": rate, "tokens": 0, "trained_samples": 0, "grad_norm": 0.0}
        normaliser = Normaliser.of(
            torch.cat([one.sample.logprobs.cpu() for one in trained]),
            torch.tensor([len(one.sample.ids) for one in trained]),
            config.max_tokens,
        )
        lanes = self._policy.lanes
        self._optimizer.zero_grad()  # A step that was stopped may have left its own.
        lanes.drop_gradients()
        self._balance.reset()
        own = self._passes.run(trained, normaliser, fresh=self._fresh, replaying=self._replaying)
        lanes.gather_gradients()
        self._balance.add(own.loads)
        self._optimizer.sum_gradients(lanes.ranks)
        self._balance.sum_over(lanes.ranks)
        sums = own.over(lanes.ranks)
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

    def _metrics(self, sums: Sums, rate: float, norm: float, trained: int) -> dict[str, Number]:
        loss = sums.loss
        mismatch = sums.mismatch / sums.tokens
        metrics: dict[str, Number] = {
            "entropy": sums.entropy / sums.tokens,
            "kl_sampler_trainer": mismatch if self._fresh else None,
            "grad_norm": norm,
            "loss": loss["policy_loss"],
            "learning_rate": rate,
            "tokens": sums.tokens,
            "trained_samples": trained,
            "ratio_mean": loss["ratio_mean"],
            "ratio_max": loss["ratio_max"],
            "clipped_low": loss["clipped_low"],
            "clipped_high": loss["clipped_high"],
        }
        if not self._fresh:
            metrics["kl_old_new"] = mismatch
        if self._reference is not None:
            metrics["kl_reference"] = loss["kl"]
        if self._policy.has_experts:
            metrics["flipped_experts"] = sums.flipped / sums.routed if sums.routed else None
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
        if self._curriculum is not None:
            return tensors, {**facts, "curriculum": self._curriculum.facts()}
        return tensors, facts

    def load(self, tensors: Tensors, facts: Facts) -> None:
        number, following, rollouts = facts["number"], facts["next_problem"], facts["rollouts"]
        assert isinstance(number, int)
        assert isinstance(following, int)
        assert isinstance(rollouts, int)
        self.number, self._next, self._rollouts = number, following, rollouts
        if self._curriculum is not None:
            climbed = facts["curriculum"]
            assert isinstance(climbed, dict)
            self._curriculum.load(climbed)
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
