"""Token sequences packed into rows: what one forward pass of training gets.

N: input tokens in a row, L: positions whose next token is trained (loss tokens), S: sequences.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch

from forethought.models.packed import PackedSequences, to_device


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
        if any(sequence.inputs < 1 for sequence in sequences):
            raise ValueError("a sequence of one token predicts nothing")
        self.packed = PackedSequences([sequence.inputs for sequence in sequences], device)
        self._device = torch.device(device)
        inputs_S = torch.tensor(self.packed.lengths)
        sequence_N = torch.arange(len(inputs_S)).repeat_interleave(inputs_S)
        position_N = torch.arange(self.packed.tokens) - torch.tensor(self.packed.starts)[sequence_N]
        # Sequence s is one token longer than its inputs, and so stands s tokens further on.
        every = torch.frombuffer(
            array("q", chain.from_iterable(one.ids for one in sequences)), dtype=torch.int64
        )
        place_N = torch.arange(self.packed.tokens) + sequence_N
        self._next_N = every[place_N + 1]
        self._trained_N = _trained(sequences, sequence_N, position_N)
        rows_L = self._trained_N.nonzero()[:, 0]
        sequence_L = sequence_N[rows_L]
        self.sequences = len(inputs_S)
        self.loss_tokens_S = tuple(torch.bincount(sequence_L, minlength=self.sequences).tolist())
        """Loss tokens of each sequence."""
        moved = _moved(
            (
                every[place_N],
                self._next_N,
                rows_L,
                self._next_N[rows_L],
                position_N,
                sequence_N,
                sequence_L,
                torch.tensor(self.loss_tokens_S),
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
        trained_N = torch.cat((self._trained_N[1:], torch.zeros(1, dtype=torch.bool)))
        # The last input of a sequence has nothing after its next token.
        trained_N[torch.tensor(self.packed.starts[1:], dtype=torch.int64) - 1] = False
        rows_L = trained_N.nonzero()[:, 0]
        return _moved((rows_L, self._next_N[rows_L + 1]), self._device)

    @property
    def second_rows_L(self) -> torch.Tensor:
        """Input positions from which the MTP module predicts a trained token, the one after the
        next, within their own sequence."""
        return self._second[0]

    @property
    def second_targets_L(self) -> torch.Tensor:
        """The token after the next of `second_rows_L`."""
        return self._second[1]


def _trained(
    sequences: Sequence[TokenSequence], sequence_N: torch.Tensor, position_N: torch.Tensor
) -> torch.Tensor:
    """Whether the token after each input token is a target; bool [N], on the CPU."""
    prompt_S = torch.tensor([sequence.prompt for sequence in sequences])
    trained_N = position_N + 1 >= prompt_S[sequence_N]
    start = 0
    for sequence in sequences:
        if sequence.mask is not None:
            trained_N[start : start + sequence.inputs] = torch.tensor(sequence.mask[1:])
        start += sequence.inputs
    return trained_N


def _moved(tensors: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Index tensors of one axis on ``device``, by one copy."""
    if device.type == "cpu":
        return tuple(tensors)
    sizes = [len(tensor) for tensor in tensors]
    return torch.split(to_device(torch.cat(tuple(tensors)), device), sizes)


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
    """As :func:`micro_batches`, but every lane gets about the same: the number of passes is a
    multiple of ``lanes``, and each sequence, longest first, joins the pass that has the least."""
    if lanes == 1:
        return micro_batches(lengths, budget)
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
