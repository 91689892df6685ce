"""Token sequences packed into rows: what one forward pass of training gets.

N: input tokens in a row, L: positions whose next token is trained (loss tokens), S: sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.models.packed import PackedSequences, to_device

Integers: TypeAlias = NDArray[np.int64]


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

    All of it is made on the CPU and goes to ``device`` in one copy that nothing waits for.
    ValueError for a sequence of fewer than two tokens: it predicts nothing.
    """

    def __init__(
        self, sequences: Sequence[TokenSequence], device: torch.device | str = "cpu"
    ) -> None:
        self.row = Row(sequences)
        self.packed = PackedSequences(self.row.lengths, device)
        self._device = torch.device(device)
        sequence_L = self.row.sequence_N[self.row.rows_L]
        self.sequences = len(self.row.lengths)
        loss_tokens_S = np.bincount(sequence_L, minlength=self.sequences)
        self.loss_tokens_S = tuple(loss_tokens_S.tolist())
        """Loss tokens of each sequence."""
        moved = _moved(
            (
                self.row.ids_N,
                self.row.next_N,
                self.row.rows_L,
                self.row.next_N[self.row.rows_L],
                self.row.positions_N,
                self.row.sequence_N,
                sequence_L,
                loss_tokens_S,
            ),
            self._device,
        )
        self.ids_1N = moved[0][None]
        self.next_N = moved[1]
        """The token after each input token."""
        self.rows_L = moved[2]
        """Input positions whose next token is trained, in order."""
        self.targets_L = moved[3]
        self.positions_1N = moved[4][None]
        self.sequence_N = moved[5]
        """Which sequence each input token belongs to."""
        self.sequence_L = moved[6]
        """Which sequence each loss token belongs to, int64 [L]."""
        self.lengths_S = moved[7]
        """Loss tokens of each sequence, int64 [S]."""

    @property
    def tokens(self) -> int:
        return self.packed.tokens

    @property
    def loss_tokens(self) -> int:
        return len(self.targets_L)

    @cached_property
    def _second(self) -> tuple[torch.Tensor, ...]:
        """(`second_rows_L`, `second_targets_L`)."""
        rows_L = self.row.second_rows_L
        return _moved((rows_L, self.row.next_N[rows_L + 1]), self._device)

    @property
    def second_rows_L(self) -> torch.Tensor:
        """Input positions from which the MTP module predicts a trained token, the one after the
        next, within their own sequence."""
        return self._second[0]

    @property
    def second_targets_L(self) -> torch.Tensor:
        """The token after the next of `second_rows_L`."""
        return self._second[1]


@dataclass(frozen=True, slots=True)
class RowSize:
    """How much a row holds: input tokens of each sequence, and how many of its tokens the network
    and its MTP module are trained to predict."""

    lengths: Sequence[int]
    targets: int
    second_targets: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


class Row:
    """Sequences in a row as arrays of the CPU, int64. By numpy: a dozen operations on so few
    numbers are over before torch has woken its threads, and a GPU may be waiting.

    ValueError for a sequence of fewer than two tokens.
    """

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        if any(sequence.inputs < 1 for sequence in sequences):
            raise ValueError("a sequence of one token predicts nothing")
        self.lengths = [sequence.inputs for sequence in sequences]
        lengths_S = np.array(self.lengths, dtype=np.int64)
        self.tokens = int(lengths_S.sum())
        self.sequence_N: Integers = np.repeat(np.arange(len(lengths_S)), lengths_S)
        every_N = np.arange(self.tokens)
        self.positions_N: Integers = every_N - np.repeat(lengths_S.cumsum() - lengths_S, lengths_S)
        # Sequence s is one token longer than its inputs, and so stands s tokens further on.
        ids = np.fromiter(
            chain.from_iterable(one.ids for one in sequences),
            dtype=np.int64,
            count=self.tokens + len(lengths_S),
        )
        place_N = every_N + self.sequence_N
        self.ids_N: Integers = ids[place_N]
        self.next_N: Integers = ids[place_N + 1]
        """The token after each input token."""
        self._trained_N = self._trained(sequences)
        self.rows_L: Integers = self._trained_N.nonzero()[0]
        """Input positions whose next token is trained, in order."""

    def _trained(self, sequences: Sequence[TokenSequence]) -> NDArray[np.bool_]:
        """Whether the token after each input token is a target; [N]."""
        prompt_S = np.array([sequence.prompt for sequence in sequences])
        trained_N: NDArray[np.bool_] = self.positions_N + 1 >= prompt_S[self.sequence_N]
        start = 0
        for sequence in sequences:
            if sequence.mask is not None:
                trained_N[start : start + sequence.inputs] = sequence.mask[1:]
            start += sequence.inputs
        return trained_N

    @property
    def size(self) -> RowSize:
        return RowSize(self.lengths, len(self.rows_L), len(self.second_rows_L))

    @cached_property
    def second_rows_L(self) -> Integers:
        """Input positions from which the MTP module predicts a trained token."""
        trained_N = np.append(self._trained_N[1:], False)
        # The last input of a sequence has nothing after its next token.
        trained_N[np.cumsum(self.lengths)[:-1] - 1] = False
        return trained_N.nonzero()[0]


def _moved(arrays: Sequence[Integers], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Index arrays of one axis as tensors on ``device``, by one copy."""
    if device.type == "cpu":
        return tuple(torch.from_numpy(array) for array in arrays)
    whole = torch.from_numpy(np.concatenate(arrays))
    return torch.split(to_device(whole, device), [len(array) for array in arrays])


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


def lane_batches(lengths: Sequence[int], budget: int, lanes: int) -> list[list[int]]:
    """As :func:`micro_batches`, but every one of several lanes gets about the same."""
    return micro_batches(lengths, budget) if lanes == 1 else even_batches(lengths, budget, lanes)


def even_batches(lengths: Sequence[int], budget: int, lanes: int) -> list[list[int]]:
    """As :func:`micro_batches`, but of about the same size: the number of passes is a multiple of
    ``lanes``, and each sequence, longest first, joins the pass that has the least."""
    passes = -(-max(1, -(-sum(lengths) // budget)) // lanes) * lanes
    while True:
        batches: list[list[int]] = [[] for _ in range(passes)]
        loads = [0] * passes
        for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            least = loads.index(min(loads))
            batches[least].append(at)
            loads[least] += lengths[at]
        fits = zip(batches, loads, strict=True)
        if all(load <= budget or len(batch) == 1 for batch, load in fits):
            return [batch for batch in batches if batch]
        passes += lanes
