"""What one pass of supervised training reads: made for its sequences, or of a size fixed before.

N: input tokens of a row, L: loss tokens, S: sequences.

A captured pass (`captured`) reads the same addresses every time, so its row has room for a fixed
number of everything, and what stands in it changes. What fills the rest counts as nothing: its
tokens are sequences of their own that have no loss, no balance and no load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forethought.models.packed import PackedSequences, PaddedSequences
from forethought.training.batches import Integers, PackedBatch, Row, RowSize

_EVEN = 512
"""Sequences of one length are attended to as such from this length on (`models.packed`)."""
_TOKEN_STEPS, _TARGET_STEPS = 16, 8
"""Rooms for tokens and for targets grow by these shares of a pass's budget."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Where states predict what: int64 [L] each, ``weights_L`` 1 and, for padding, 0."""

    rows_L: torch.Tensor
    ids_L: torch.Tensor
    weights_L: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class PassInputs:
    """One micro-batch, and what the losses of its whole step are divided by."""

    ids_1N: torch.Tensor
    positions_1N: torch.Tensor
    packed: PackedSequences
    sequence_N: torch.Tensor
    next_N: torch.Tensor
    targets: Targets
    second: Targets | None
    """Those of the MTP module, where it is trained."""
    sequences: int
    all_targets: int | torch.Tensor
    all_sequences: int | torch.Tensor
    real_S: torch.Tensor | None = None
    """1 and, for padding, 0; int64 [S]. None: there is no padding."""

    @property
    def real_N(self) -> torch.Tensor | None:
        """Which tokens are no padding; bool [N]."""
        return None if self.real_S is None else self.real_S[self.sequence_N].bool()

    @classmethod
    def of(
        cls, batch: PackedBatch, all_targets: int, all_sequences: int, *, mtp: bool
    ) -> PassInputs:
        """Without padding."""
        second = Targets(batch.second_rows_L, batch.second_targets_L) if mtp else None
        return cls(
            batch.ids_1N,
            batch.positions_1N,
            batch.packed,
            batch.sequence_N,
            batch.next_N,
            Targets(batch.rows_L, batch.targets_L),
            second,
            batch.sequences,
            all_targets,
            all_sequences,
        )


@dataclass(frozen=True, slots=True)
class Room:
    """How much of everything a captured pass has room for. Few rooms serve many batches.

    ``even``: the length of each sequence where all have the same and fill the row; else 0.
    """

    tokens: int
    sequences: int
    targets: int
    longest: int
    even: int
    mtp: bool

    @classmethod
    def of(
        cls, rows: Sequence[RowSize], budget: int, *, mtp: bool, may_be_even: bool = True
    ) -> Room:
        """The smallest room for each of the rows; ``budget``: usually the most tokens of a pass.
        Unless it ``may_be_even``, it is one for any lengths, also where all are equal."""
        shapes = {(len(row.lengths), min(row.lengths), max(row.lengths)) for row in rows}
        count, shortest, longest = next(iter(shapes))
        alike = may_be_even and len(shapes) == 1 and shortest == longest >= _EVEN
        even = shortest if alike else 0
        most = max(row.tokens for row in rows)
        loss_tokens = max(max(row.targets, row.second_targets if mtp else 0) for row in rows)
        tokens = most if even else _up(most, budget // _TOKEN_STEPS)
        targets = min(tokens, _up(loss_tokens, budget // _TARGET_STEPS))
        if even:
            return cls(tokens, count, targets, longest, even, mtp)
        longest = _power(max(longest for _, _, longest in shapes))
        sequences = max(_with_filling(row, tokens, longest) for row in rows)
        return cls(tokens, _power(sequences), targets, longest, 0, mtp)

    def holds(self, rows: Sequence[RowSize]) -> bool:
        """Whether each of the rows may stand here, whatever their lengths. Not asked of a room for
        sequences of one length, nor where the MTP module is trained."""
        return (
            not self.even
            and not self.mtp
            and max(row.tokens for row in rows) <= self.tokens
            and max(row.targets for row in rows) <= self.targets
            and max(max(row.lengths) for row in rows) <= self.longest
            and max(_with_filling(row, self.tokens, self.longest) for row in rows) <= self.sequences
        )

    @property
    def _sizes(self) -> tuple[int, ...]:
        seconds = self.targets if self.mtp else 0
        return (
            *(self.tokens,) * 4,
            *(self.targets,) * 3,
            *(seconds,) * 3,
            self.sequences,
            self.sequences + 1,
            1,
            1,
        )

    def filled(self, row: Row, all_targets: int, all_sequences: int) -> Integers:
        """A row and its padding, all in one array: what :meth:`inputs` cuts."""
        missing = self.tokens - row.tokens
        filling = np.array(_pieces(max(0, missing), self.longest), dtype=np.int64)
        lengths = [*row.lengths, *filling]
        spare = self.sequences - len(lengths)
        if missing < 0 or spare < 0:
            raise ValueError(f"{row.tokens} tokens of {len(row.lengths)} sequences for {self}")
        piece = np.repeat(np.arange(len(filling)), filling)
        bounds = np.concatenate(([0], np.cumsum(lengths), np.full(spare, self.tokens)))
        parts = [
            np.pad(row.ids_N, (0, missing)),
            np.concatenate((row.positions_N, np.arange(missing) - piece * self.longest)),
            np.concatenate((row.sequence_N, piece + len(row.lengths))),
            np.pad(row.next_N, (0, missing)),
            *self._targets(row.rows_L, row.next_N[row.rows_L]),
        ]
        if self.mtp:
            rows_L = row.second_rows_L
            parts += self._targets(rows_L, row.next_N[rows_L + 1])
        real_S = np.arange(self.sequences) < len(row.lengths)
        divisors = np.array((all_targets, all_sequences))
        parts += [real_S.astype(np.int64), bounds, divisors]
        whole: Integers = np.concatenate(parts)
        return whole

    def lengths(self, row: Row) -> Sequence[int]:
        """Of the row's sequences, and of those that fill it."""
        return [*row.lengths, *_pieces(self.tokens - row.tokens, self.longest)]

    def _targets(self, rows_L: Integers, ids_L: Integers) -> tuple[Integers, ...]:
        """Rows, ids and weights. Rows that are padding are some that have no target of their own:
        each row may be named once."""
        missing = self.targets - len(rows_L)
        free_N = np.ones(self.tokens, dtype=np.bool_)
        free_N[rows_L] = False
        return (
            np.concatenate((rows_L, free_N.nonzero()[0][:missing])),
            np.pad(ids_L, (0, missing)),
            (np.arange(self.targets) < len(rows_L)).astype(np.int64),
        )

    def inputs(self, buffer: torch.Tensor, lengths: Sequence[int]) -> PassInputs:
        """Views of ``buffer``, int64, in which a filled array stands or will stand, of sequences
        (and what fills the row) of these ``lengths``."""
        cut: Iterator[torch.Tensor] = iter(torch.split(buffer, list(self._sizes)))
        ids_N, positions_N, sequence_N, next_N = (next(cut) for _ in range(4))
        targets, second = (Targets(*(next(cut) for _ in range(3))) for _ in range(2))
        real_S, bounds, all_targets, all_sequences = cut
        return PassInputs(
            ids_N[None],
            positions_N[None],
            PaddedSequences(lengths, bounds, self.longest, even=self.even > 0),
            sequence_N,
            next_N,
            targets,
            second if self.mtp else None,
            self.sequences,
            all_targets[0],
            all_sequences[0],
            real_S,
        )

    @property
    def size(self) -> int:
        """Numbers of a filled array."""
        return sum(self._sizes)


@dataclass(frozen=True, slots=True)
class FilledRoom:
    """A row in its room, in memory from which a GPU can be given it without waiting; implements
    :class:`forethought.training.captured.Filled`."""

    room: Room
    lengths: Sequence[int]
    """Of its sequences, and of what fills it."""
    values: torch.Tensor

    @classmethod
    def of(
        cls, room: Room, row: Row, all_targets: int, all_sequences: int, device: torch.device
    ) -> FilledRoom:
        values = torch.from_numpy(room.filled(row, all_targets, all_sequences))
        if device.type == "cuda":
            values = values.pin_memory()
        return cls(room, room.lengths(row), values)

    def inputs(self, buffer: torch.Tensor) -> PassInputs:
        """Views of ``buffer``, on the device of the pass, in which the values stand or will."""
        return self.room.inputs(buffer, self.lengths)


def _pieces(count: int, longest: int) -> list[int]:
    """Sequences of padding: of a length that occurs anyway, so that rooms differ less."""
    whole, rest = divmod(count, longest)
    return [longest] * whole + ([rest] if rest else [])


def _with_filling(row: RowSize, tokens: int, longest: int) -> int:
    """Sequences of a row and those that fill it; always one of these, for targets to belong to."""
    return len(row.lengths) + max(1, len(_pieces(tokens - row.tokens, longest)))


def _up(count: int, step: int) -> int:
    return -(-count // max(1, step)) * max(1, step)


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()
