"""Self-speculation: the MTP module guesses the token after the next, one pass checks both.

V3 paper, sections 2.2 and 5.4.3. For one greedy sample at a time. The network computes the newest
token and the guess together; where the guess is what it would have chosen, two tokens are gained,
else the guess is overwritten. The text is the one without speculation (as far as two tokens in one
pass and one by one round alike: a tie may fall the other way).

Entry i of the module's cache is made from the hidden state of token i and from token i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.programs import NetworkProgram
from forethought.engines.torch.row import Row
from forethought.engines.torch.sampler import is_greedy
from forethought.errors import ModelError


@dataclass(slots=True)
class Acceptance:
    """How often guesses were right, since the engine was made."""

    guessed: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float | None:
        """Accepted share of the guesses; None before the first."""
        return self.accepted / self.guessed if self.guessed else None


class Speculation:
    """The guesses for one row, from its prompt on.

    ``observe`` must see the hidden states of every token that the row computes, in order; whoever
    cannot show one drops the speculation and goes on without.
    """

    def __init__(self, program: NetworkProgram, acceptance: Acceptance, size: int) -> None:
        """``size``: ids from there on are padding of the head and never chosen."""
        self._size = size
        self._program = program
        self._acceptance = acceptance
        self._entries = 0
        self._hidden_ND: torch.Tensor | None = None

    @staticmethod
    def suits(row: Row) -> bool:
        """Whether this sample may be guessed: greedy, alone, and nobody asks for the model's own
        probabilities (under a greedy distribution each token has 1)."""
        request = row.job.request
        plain = not request.reproducible and request.logprobs != "raw"
        return request.n == 1 and is_greedy(request.sampling) and plain

    @property
    def _seen(self) -> int:
        return self._entries + (0 if self._hidden_ND is None else len(self._hidden_ND))

    def observe(self, start: int, hidden_ND: torch.Tensor) -> bool:
        """Hidden states of the tokens from ``start`` on; False when some are missing before it."""
        if start != self._seen:
            return False
        before_ND = self._hidden_ND
        self._hidden_ND = hidden_ND if before_ND is None else torch.cat((before_ND, hidden_ND))
        return True

    def step(self, row: Row, at: int, cache: RowCache) -> bool:
        """Guess and check for the row in place ``at``; False when it must be computed plainly.

        The newest token must be the only one that is not computed, and one place further on must
        be free.
        """
        known = row.known
        stored = row.stored
        if stored != len(known) - 1 or self._seen != stored or self._hidden_ND is None:
            return False
        guess = self._guess(known, at, cache)
        device = self._program.device
        ids_BT = torch.tensor([[known[stored], guess]], device=device)
        positions_BT = torch.arange(stored, stored + 2, device=device)[None]
        cache.prefill(at, stored, 2)
        hidden_ND = self._program.hidden(ids_BT, positions_BT, cache)
        first, second = self._best(self._program.logits(hidden_ND))
        self._acceptance.guessed += 1
        row.stored += 1
        taken = hidden_ND[:1]
        probability = None if row.job.request.logprobs is None else 0.0
        row.take(first, probability)
        if row.sample.done is None and first == guess and row.follows(stored + 1, guess):
            self._acceptance.accepted += 1
            row.stored += 1
            taken = hidden_ND
            if row.wants_token:
                row.take(second, probability)
        self.observe(stored, taken)
        return True

    def _guess(self, known: list[int], at: int, cache: RowCache) -> int:
        """The most probable token after the newest one, by the module."""
        assert self._hidden_ND is not None
        start, count = self._entries, len(self._hidden_ND)
        device = self._program.device
        next_BT = torch.tensor([known[start + 1 : start + count + 1]], device=device)
        positions_BT = torch.arange(start, start + count, device=device)[None]
        cache.prefill(at, start, count)
        logits_V = self._program.draft(next_BT, self._hidden_ND[None], positions_BT, cache)
        self._entries += count
        self._hidden_ND = None
        return self._best(logits_V[None])[0]

    def _best(self, logits_NV: torch.Tensor) -> list[int]:
        """The most probable id of each row. ModelError where there is none."""
        best = logits_NV[:, : self._size].float().max(dim=-1)
        if not bool(best.values.isfinite().all()):
            raise ModelError("the network gave no numbers for a token: its weights are damaged.")
        ids: list[int] = best.indices.tolist()
        return ids
