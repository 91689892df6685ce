"""A problem, and the verdict on an answer to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

VerdictStatus = Literal["correct", "wrong", "unscorable"]

HELD_OUT_IN = 16
"""One canonical problem in this many is never trained on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says. ``unscorable`` is the verifier's own failure (a time-out, a sandbox
    that died): never a silent "wrong". ``reason`` is one short sentence, "" when correct."""

    status: VerdictStatus
    reason: str = ""

    @property
    def correct(self) -> bool:
        return self.status == "correct"


CORRECT = Verdict("correct")


def wrong(reason: str) -> Verdict:
    """A verdict of "wrong" and why."""
    return Verdict("wrong", reason)


def unscorable(reason: str) -> Verdict:
    """The verifier failed; the sample says nothing about the model."""
    return Verdict("unscorable", reason)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a checkable answer: a pure function of (family, level, seed).

    ``text`` is what is asked, ``answer`` a right final answer (one of possibly many).
    ``canonical`` names what is asked whatever the phrasing, the language and the order of its
    parts: two problems with the same answer sheet have the same one. ``task`` is what the family's
    verifier and its worked thoughts need; only the family looks inside.
    """

    family: str
    level: int
    seed: int
    language: Language
    text: str
    answer: str
    canonical: str
    task: object = field(repr=False, default=None)

    @property
    def held_out(self) -> bool:
        """Whether training must never see it (one canonical problem in 16)."""
        return is_held_out(self.canonical)


def is_held_out(canonical: str) -> bool:
    """Whether the problem of this canonical name is held out; the same on every machine."""
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return digest[0] % HELD_OUT_IN == 0
