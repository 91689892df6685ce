"""What one pass of a policy update reads: made for its samples, or of a size fixed before.

N: input tokens of a row, L: loss tokens, S: samples, M: layers with experts, K: experts a token
uses. As in :mod:`forethought.training.pass_inputs`, what fills a fixed size counts as nothing: its
loss tokens are a sample of their own for which the sampler gave no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forethought.engines.torch.rollout import RolloutSample
from forethought.models.packed import PackedSequences, to_device
from forethought.training.batches import Integers, PackedBatch, Row, TokenSequence
from forethought.training.losses import Normaliser
from forethought.training.pass_inputs import PassInputs, Room
from forethought.training.policy import experts_of

_IN_A_WORD = 4
"""Numbers of 16 bits in one of 64."""


@dataclass(frozen=True, slots=True)
class TrainedSample:
    """A sample that has a loss, with its prompt; ``advantage``: how much better than its group."""

    sequence: TokenSequence
    sample: RolloutSample
    advantage: float


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """One micro-batch of samples, and what the losses of its whole step are divided by."""

    base: PassInputs
    old_L: torch.Tensor
    """The sampler's log-probabilities, of a float dtype; not finite where it gave none."""
    lengths_S: torch.Tensor
    """Loss tokens of each sample, int64."""
    advantages_S: torch.Tensor
    """float64."""
    sampled_MNK: torch.Tensor | None
    """The sampler's experts, of an integer dtype; None for a dense network."""

    @property
    def ids_1N(self) -> torch.Tensor:
        return self.base.ids_1N

    @property
    def positions_1N(self) -> torch.Tensor:
        return self.base.positions_1N

    @property
    def packed(self) -> PackedSequences:
        return self.base.packed

    @property
    def rows_L(self) -> torch.Tensor:
        return self.base.targets.rows_L

    @property
    def targets_L(self) -> torch.Tensor:
        return self.base.targets.ids_L

    def normaliser(self, max_tokens: int) -> Normaliser:
        return Normaliser(self.base.all_sequences, self.base.all_targets, max_tokens)

    @classmethod
    def of(
        cls, trained: Sequence[TrainedSample], normaliser: Normaliser, device: torch.device
    ) -> PolicyInputs:
        """Without padding."""
        batch = PackedBatch([one.sequence for one in trained], device)
        samples = [one.sample for one in trained]
        advantages_S = torch.tensor([one.advantage for one in trained], dtype=torch.float64)
        return cls(
            PassInputs.of(
                batch, _number(normaliser.tokens), _number(normaliser.samples), mtp=False
            ),
            to_device(torch.cat([sample.logprobs for sample in samples]), device),
            batch.lengths_S,
            to_device(advantages_S, device),
            experts_of(samples, device),
        )


@dataclass(frozen=True, slots=True)
class PolicyRoom:
    """How much a captured pass has room for; ``experts``: M and K, where there are any."""

    base: Room
    experts: tuple[int, int] | None

    @property
    def _extra(self) -> tuple[int, ...]:
        """Numbers behind those of the base: of lengths, advantages, log-probabilities, experts."""
        words = 0
        if self.experts is not None:
            words = -(-self.base.tokens * self.experts[0] * self.experts[1] // _IN_A_WORD)
        return (self.base.sequences, self.base.sequences, self.base.targets, words)

    def filled(
        self, row: Row, trained: Sequence[TrainedSample], normaliser: Normaliser
    ) -> Integers:
        """The samples of a row and its padding, all in one array; floats by their bits."""
        room, samples = self.base, [one.sample for one in trained]
        lengths = [len(sample.ids) for sample in samples]
        missing = room.targets - sum(lengths)
        spare = room.sequences - len(trained) - 1
        if missing < 0 or spare < 0:
            raise ValueError(f"{sum(lengths)} loss tokens of {len(trained)} samples for {room}")
        old_L = torch.cat([sample.logprobs for sample in samples]).double().numpy()
        advantages_S = np.array([one.advantage for one in trained])
        whole: Integers = np.concatenate(
            (
                room.filled(row, _number(normaliser.tokens), _number(normaliser.samples)),
                np.array([*lengths, missing, *[0] * spare]),
                np.pad(advantages_S, (0, spare + 1)).view(np.int64),
                np.pad(old_L, (0, missing), constant_values=np.nan).view(np.int64),
                self._packed_experts(samples),
            )
        )
        return whole

    def _packed_experts(self, samples: Sequence[RolloutSample]) -> Integers:
        """int16 [M, N, K], four to a number."""
        if self.experts is None:
            return np.empty(0, dtype=np.int64)
        layers, chosen = self.experts
        words = self._extra[-1]
        whole = np.zeros(words * _IN_A_WORD, dtype=np.int16)
        row_MNK = whole[: layers * self.base.tokens * chosen].reshape(layers, -1, chosen)
        start = 0
        for sample in samples:
            assert sample.experts is not None
            end = start + sample.experts.shape[1]
            row_MNK[:, start:end] = sample.experts.numpy()
            start = end
        packed: Integers = whole.view(np.int64)
        return packed

    def inputs(self, buffer: torch.Tensor, lengths: Sequence[int]) -> PolicyInputs:
        """Views of ``buffer``, int64; see :meth:`Room.inputs`."""
        base, *extra = torch.split(buffer, [self.base.size, *self._extra])
        lengths_S, advantages_S, old_L, experts = extra
        sampled_MNK = None
        if self.experts is not None:
            layers, chosen = self.experts
            numbers = experts.view(torch.int16)[: layers * self.base.tokens * chosen]
            sampled_MNK = numbers.view(layers, self.base.tokens, chosen)
        return PolicyInputs(
            self.base.inputs(base, lengths),
            old_L.view(torch.float64),
            lengths_S,
            advantages_S.view(torch.float64),
            sampled_MNK,
        )


@dataclass(frozen=True, slots=True)
class FilledPolicyRoom:
    """Samples in their room; implements :class:`forethought.training.captured.Filled`."""

    room: PolicyRoom
    lengths: Sequence[int]
    values: torch.Tensor

    @classmethod
    def of(
        cls,
        room: PolicyRoom,
        row: Row,
        trained: Sequence[TrainedSample],
        normaliser: Normaliser,
        device: torch.device,
    ) -> FilledPolicyRoom:
        values = torch.from_numpy(room.filled(row, trained, normaliser))
        if device.type == "cuda":
            values = values.pin_memory()
        return cls(room, room.base.lengths(row), values)

    def inputs(self, buffer: torch.Tensor) -> PolicyInputs:
        return self.room.inputs(buffer, self.lengths)


def _number(count: int | torch.Tensor) -> int:
    return max(1, int(count))
