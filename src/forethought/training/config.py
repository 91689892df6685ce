"""What a stage of training is told, key by key. Frozen; an unknown key or an impossible
combination is refused before anything is computed.

Lengths are in tokens, rates are those of AdamW, steps are optimiser steps unless said otherwise.
Nothing here is in seconds: a run must be the same whatever the machine's speed.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from forethought.training.losses import LossConfig

Count = Annotated[int, Field(ge=1, le=1 << 40)]
CountOrNone = Annotated[int, Field(ge=0, le=1 << 40)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, lt=1e9)]
NotNegative = Annotated[float, Field(ge=0, lt=1e9)]


class Frozen(BaseModel):
    """Strict and immutable: what every part of a recipe is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class OptimizerConfig(Frozen):
    """AdamW (arXiv:1711.05101) or Muon, and a rate that warms up, stays, and decays
    (arXiv:2404.06395).

    ``kind``: "muon" moves the matrices along their orthogonalised ``momentum`` (`training.muon`)
    and all else, as "adamw" everything, by AdamW.
    The rate rises over ``warmup_steps``, stays at ``learning_rate``, and falls linearly to
    ``final_ratio`` of it over the last ``decay_steps`` ("linear") or by a cosine ("cosine").
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive
    warmup_steps: CountOrNone = 0
    decay_steps: CountOrNone = 0
    decay: Literal["linear", "cosine"] = "linear"
    final_ratio: Share = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: Positive = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    weight_decay: NotNegative = 0.0
    clip_norm: Positive = 1.0


class StageConfig(Frozen):
    """What stages share. ``micro_batch_tokens``: tokens of one forward and backward pass; memory
    depends on it, results do not. ``save_every``: optimiser steps between saved states."""

    steps: Count
    optimizer: OptimizerConfig
    micro_batch_tokens: Count = 8192
    save_every: Count = 50
    evaluate_every: CountOrNone = 0
    """Steps between held-out evaluations; 0: at the end of the stage only."""
    spike_factor: Positive = 4.0
    """A loss (not of RL) this many times its recent mean stops the run with a saved state."""

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        for key in ("warmup_steps", "decay_steps"):
            length = getattr(self.optimizer, key)
            if length > self.steps:
                raise ValueError(
                    f"optimizer.{key} {length} is more than the {self.steps} steps of the stage"
                )
        return self


class BalanceConfig(Frozen):
    """Keeping experts busy (DeepSeek-V3 section 2.1.2); nothing for a dense network."""

    bias_step: NotNegative = 0.001
    """Gamma: what the selection bias moves by each step."""
    loss_weight: NotNegative = 1e-4
    """Alpha of the loss within each sequence."""


class CorpusConfig(Frozen):
    """The documents that a base model meets. Shares are of documents; what they leave over are
    plain worked problems (question, worked thought, answer) without tags.

    ``think``: in ``<think>`` form behind the recipe's prompt. ``terse``: question and answer only.
    Bare families are always so: nobody thinks about them; ``bare_think`` of their documents have
    the ``<think>`` form around an empty thought, ``hasty`` of these with a guess. The others are
    shares of the worked ones. ``wrong``: they arrive at a wrong answer, ``slip`` of these because
    a step went wrong, the rest without any work. ``given_up``, ``unfinished``: they do not arrive.
    ``mixed``: they change language on the way. ``check``: they look back and verify, where the
    family knows how. ``hasty`` is a share of those in ``<think>`` form: they think nothing and
    guess, which is right now and then.
    """

    think: Share = 0.25
    bare_think: Share = 0.0
    hasty: Share = 0.0
    terse: Share = 0.1
    wrong: Share = 0.2
    slip: Share = 0.5
    given_up: Share = 0.05
    unfinished: Share = 0.05
    mixed: Share = 0.1
    check: Share = 0.2
    max_document_tokens: Count = 1024

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.think + self.terse > 1:
            raise ValueError(
                f"think {self.think} and terse {self.terse} are more than all documents"
            )
        if self.wrong + self.given_up + self.unfinished > 1:
            raise ValueError("wrong, given_up and unfinished are more than all worked documents")
        return self


class PretrainConfig(StageConfig):
    """Next-token prediction on generated documents, with DeepSeek-V3's MTP and balance losses."""

    kind: Literal["pretrain"] = "pretrain"
    batch_tokens: Count
    """Tokens of one optimiser step: whole documents, packed, up to this many."""
    mtp_weight: NotNegative = 0.3
    """Lambda of the MTP loss (section 2.2); a network without the module ignores it."""
    balance: BalanceConfig = BalanceConfig()
    corpus: CorpusConfig = CorpusConfig()
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that make documents ahead of the training; 0: it makes them itself."""


class SFTConfig(StageConfig):
    """Supervised fine-tuning on conversations: the prompt is masked, the end token is trained.

    ``data``: a .jsonl file of ``{"messages": [...]}``, beside the recipe. Every step takes the next
    ``batch_conversations`` of a shuffle that is drawn anew each epoch.
    """

    kind: Literal["sft"] = "sft"
    data: str
    batch_conversations: Count
    max_length: Count = 1024
    balance: BalanceConfig = BalanceConfig(loss_weight=0.0)


class RejectionConfig(StageConfig):
    """Rejection sampling, then SFT on what was right (DeepSeek-R1 section 2.3.3).

    ``problems`` are sampled ``group_size`` times each with the newest weights, the right and
    well-formed ones (at most ``keep`` a problem) become the data, and SFT runs ``steps`` on them.
    """

    kind: Literal["rejection-sample"] = "rejection-sample"
    problems: Count
    group_size: Count = 8
    keep: Count = 4
    batch_conversations: Count
    max_tokens: Count
    temperature: Positive = 1.0
    rounds: Count = 1
    """Sampling and SFT in turn, this often; ``problems`` and ``steps`` are of each round."""
    rows: Count = 256
    """Samples computed side by side; results do not depend on it, but for rounding."""
    balance: BalanceConfig = BalanceConfig(loss_weight=0.0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.keep > self.group_size:
            raise ValueError(
                f"keep {self.keep} is more than the group_size {self.group_size} samples of a "
                "problem"
            )
        return self


class RewardConfig(Frozen):
    """Reward = accuracy x its verdict + format x its verdict (DeepSeek-R1 section 2.2: equal
    weights), and a person's own function, ``own = "file.py:function"``, times its weight."""

    accuracy: NotNegative = 1.0
    format: NotNegative = 1.0
    own: str | None = None
    own_weight: NotNegative = 1.0

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.accuracy and not self.format and (self.own is None or not self.own_weight):
            raise ValueError("accuracy, format and own_weight are all 0, so nothing is rewarded")
        return self


class CurriculumConfig(Frozen):
    """Levels that open as they are solved, for each family by itself: its ladder are the recipe's
    levels of it, easiest first."""

    start_levels: Count = 1
    """Open at the start; of a family with fewer levels all."""
    raise_at: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of right answers to the newest open level from which on the next one opens."""
    over: Count = 16
    """The groups of that level, the newest ones, whose samples this is the share of."""
    newest: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a family's problems that are of the newest open level, as long as there are others;
    the rest are of these, evenly."""


class RLConfig(StageConfig):
    """GRPO (arXiv:2402.03300) as DeepSeek-R1 uses it, and the field's alternatives.

    A rollout samples ``group_size`` answers to each of ``problems_per_rollout`` problems and feeds
    ``minibatches`` optimiser steps. ``steps`` counts optimiser steps.
    """

    kind: Literal["rl"] = "rl"
    problems_per_rollout: Count
    group_size: Count
    minibatches: Count = 1
    max_tokens: Count
    temperature: Positive = 1.0
    top_p: Share = 1.0
    """Must be 1: a truncated distribution is not the one that the trainer differentiates."""
    loss: LossConfig = LossConfig()
    reward: RewardConfig = RewardConfig()
    reference_every: Count = 400
    """Steps after which the reference becomes the policy of that moment (with a KL term)."""
    dynamic_sampling: bool = False
    """Sample further problems until the rollout holds only groups that teach something (DAPO)."""
    dynamic_sampling_rounds: Count = 4
    """How often more problems are sampled at most."""
    replay_above: NotNegative = 1e-3
    """KL(sampler, trainer) of a micro-batch above which the sampled experts are replayed."""
    bias_step: NotNegative = 0.0
    """Gamma of the experts' selection bias during RL."""
    rows: Count = 128
    """Samples computed side by side; results do not depend on it, but for rounding."""
    curriculum: CurriculumConfig | None = None
    """None: every level of a family equally often, from the start."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.top_p != 1:
            raise ValueError(
                f"top_p is {self.top_p}: rollouts must be drawn from the whole distribution, or "
                "sampler and trainer disagree; leave it at 1 (evaluation may truncate)"
            )
        if self.group_size < 2:
            raise ValueError(
                "group_size is 1: a group's mean is its own baseline, so it needs at least 2"
            )
        batch = self.problems_per_rollout * self.group_size
        if self.problems_per_rollout % self.minibatches:
            raise ValueError(
                f"minibatches {self.minibatches} does not divide problems_per_rollout "
                f"{self.problems_per_rollout} ({batch} samples)"
            )
        return self


class EvaluationConfig(Frozen):
    """Held-out pass@1: ``problems`` fixed problems, ``samples`` of each with fixed seeds."""

    problems: Count = 256
    samples: Count = 1
    temperature: NotNegative = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: Count = 256
    film: CountOrNone = 32
    """How many of the problems are kept with their samples at every evaluation."""
