"""What the scheduler is given: requests under way, and what it must know about token ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.tokenizer import Tokenizer
from forethought.engines.handle import StreamHandle
from forethought.engines.limits import Limits
from forethought.engines.protocol import Request


@dataclass(eq=False)
class Job:
    """One request under way."""

    handle: StreamHandle
    request: Request
    limits: Limits
    seed: int
    started: float
    ended: threading.Event = field(default_factory=threading.Event)
    next_index: int = 0
    """Samples from this index on have not begun."""
    running: int = 0
    error: BaseException | None = None

    @property
    def waiting(self) -> int:
        return self.request.n - self.next_index


@dataclass(frozen=True)
class Vocabulary:
    """What the scheduler must know about ids: how they read, which end a turn, which exist."""

    tokenizer: Tokenizer
    tags: ThinkTags
    pieces: Sequence[bytes]
    """Bytes by id; b"" for ids that end a turn."""
    ends: frozenset[int]
    size: int
    """Ids from here on are padding of the embedding matrix and never drawn."""
