"""What every stage of a run is to whoever drives it: steps, and a state that they follow from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import torch

from forethought.checkpoints.folder import JSON
from forethought.errors import ForethoughtError
from forethought.training.monitor import Number

Tensors: TypeAlias = "Mapping[str, torch.Tensor]"
Facts: TypeAlias = "Mapping[str, JSON]"

METRICS: Final = (
    "reward",
    "reward_accuracy",
    "reward_format",
    "pass_at_1",
    "thought_tokens",
    "truncated",
    "dead_groups",
    "entropy",
    "kl_sampler_trainer",
    "grad_norm",
    "loss",
    "learning_rate",
    "tokens",
)
"""Keys that stand on every line of metrics.jsonl, null where a stage has nothing to say."""


class TrainingStopped(ForethoughtError):
    """Training cannot go on as it is (a loss that is not finite, a spike, a broken verifier). The
    sentence says what happened and what to do; whoever drives the run saves the state first."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step says. ``tokens``: computed or sampled; ``phases``: seconds by name. ``thought``:
    a sample worth showing (question, text, reward)."""

    metrics: Mapping[str, Number]
    tokens: int
    phases: Mapping[str, float] = field(default_factory=dict)
    thought: tuple[str, str, float] | None = None


class Stage(Protocol):
    """One stage. All that it draws is a function of its seed and of what `state` holds."""

    steps: int
    number: int
    """Steps done."""

    @property
    def resumable(self) -> bool:
        """Whether `state` says everything now (not in the middle of a rollout's minibatches)."""

    def step(self) -> StepResult:
        """The next step. Raises `TrainingStopped`, with weights as they were before it."""

    def state(self) -> tuple[Tensors, Facts]:
        """What `load` needs to go on from here, the network's weights apart."""

    def load(self, tensors: Tensors, facts: Facts) -> None:
        """Go on from a saved state; the network has its weights of then already."""

    def close(self) -> None:
        """Let go of processes and memory."""


class SpikeGuard:
    """Notices a loss that jumps far above its recent mean.

    The mean is exponential, over about 50 steps, and is part of a run's state.
    """

    _MEMORY = 0.02
    _WARM = 20

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self.mean = 0.0
        self.count = 0

    def check(self, loss: float) -> None:
        """Raises `TrainingStopped` for a spike, or no finite loss; else the loss joins the mean."""
        if not math.isfinite(loss):
            raise TrainingStopped(
                f"the loss is {loss}: lower optimizer.learning_rate, start from the saved state."
            )
        if self.count >= self._WARM and loss > self._factor * self.mean:
            raise TrainingStopped(
                f"the loss is {loss:.4g}, over {self._factor:g} times the recent mean "
                f"{self.mean:.4g}: lower optimizer.learning_rate, or raise spike_factor."
            )
        share = max(self._MEMORY, 1.0 / (self.count + 1))
        self.mean += share * (loss - self.mean)
        self.count += 1

    def facts(self) -> dict[str, JSON]:
        return {"loss_mean": self.mean, "loss_count": self.count}

    def load(self, facts: Facts) -> None:
        mean, count = facts["loss_mean"], facts["loss_count"]
        assert isinstance(mean, float | int)
        assert isinstance(count, int)
        self.mean, self.count = float(mean), count
