"""Token sequences packed into rows: what one forward pass of training gets.

N: input tokens in a row, L: positions whose next token is trained (loss tokens), S: sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from forethought.models.packed import PackedSequences


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A text as ids, and from where on its tokens are trained: ``ids[prompt:]`` are targets.

    ``mask`` says it token by token instead (conversations of several turns): where it is given, a
    token is a target if its entry is True. The first token is never one: nothing predicts it.
    """

    ids: tuple[int, ...]
    prompt: int = 1
    mask: tuple[bool, ...] | None = None

    @property
    def inputs(self) -> int:
        """Tokens that a forward pass computes: all but the last."""
        return len(self.ids) - 1

    @property
    def targets(self) -> int:
        """How many tokens are trained."""
        if self.mask is not None:
            return sum(self.mask[1:])
        return len(self.ids) - max(self.prompt, 1)


class PackedBatch:
    """Sequences in a row. Each is computed up to its last token but one; the last is a target only.

    ValueError for a sequence of fewer than two tokens: it predicts nothing.
    """

    def __init__(
        self, sequences: Sequence[TokenSequence], device: torch.device | str = "cpu"
    ) -> None:
        if any(sequence.inputs < 1 for sequence in sequences):
            raise ValueError("a sequence of one token predicts nothing")
        self.packed = PackedSequences([sequence.inputs for sequence in sequences], device)
        self._sequences = sequences
        self._device = device
        ids = [torch.tensor(sequence.ids) for sequence in sequences]
        self.ids_1N = torch.cat([one[:-1] for one in ids])[None].to(device)
        self.next_N = torch.cat([one[1:] for one in ids]).to(device)
        """The token after each input token."""
        trained = torch.cat([_trained(sequence) for sequence in sequences])
        self.rows_L = trained.nonzero()[:, 0].to(device)
        """Input positions whose next token is trained, in order."""
        self.targets_L = self.next_N[self.rows_L]

    @property
    def tokens(self) -> int:
        return self.packed.tokens

    @property
    def loss_tokens(self) -> int:
        return len(self.targets_L)

    @cached_property
    def positions_1N(self) -> torch.Tensor:
        return self.packed.positions_1N

    @cached_property
    def sequence_N(self) -> torch.Tensor:
        """Which sequence each input token belongs to."""
        return self.packed.sequence_N

    @cached_property
    def sequence_L(self) -> torch.Tensor:
        """Which sequence each loss token belongs to, int64 [L]."""
        return self.sequence_N[self.rows_L]

    @cached_property
    def lengths_S(self) -> torch.Tensor:
        """Loss tokens of each sequence, int64 [S]."""
        return torch.bincount(self.sequence_L, minlength=len(self._sequences))

    @cached_property
    def second_rows_L(self) -> torch.Tensor:
        """Input positions from which the MTP module predicts a trained token, the one after the
        next, within their own sequence."""
        after = torch.cat([_second(sequence) for sequence in self._sequences])
        return after.nonzero()[:, 0].to(self._device)

    @cached_property
    def second_targets_L(self) -> torch.Tensor:
        """The token after the next of `second_rows_L`."""
        return self.next_N[self.second_rows_L + 1]


def _trained(sequence: TokenSequence) -> torch.Tensor:
    """Whether the token after each input token is a target; bool [inputs]."""
    if sequence.mask is not None:
        return torch.tensor(sequence.mask[1:], dtype=torch.bool)
    return torch.arange(1, len(sequence.ids)) >= sequence.prompt


def _second(sequence: TokenSequence) -> torch.Tensor:
    """Whether the second token after each input token is a target; bool [inputs]."""
    return torch.cat((_trained(sequence)[1:], torch.zeros(1, dtype=torch.bool)))


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Which sequences share a forward pass: indices, at most ``budget`` tokens together.

    Longest first, so that sequences of like length meet. A sequence that is longer than the budget
    has a pass of its own. What is computed does not depend on the budget, only memory does.
    """
    batches: list[list[int]] = []
    room = 0
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or lengths[at] > room:
            batches.append([])
            room = budget
        batches[-1].append(at)
        room -= lengths[at]
    return batches
