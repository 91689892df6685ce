"""What forethought asks of a tokenizer, whoever implements it (llama.cpp, tokenizers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to token ids and back. Implementations are thread-safe."""

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of ``text``, without BOS or EOS of its own.

        With ``parse_special`` the text of control tokens becomes their id; without it control
        tokens stay text (user-defined tokens may still be parsed: see ``special_texts``).
        """

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; special tokens give their text, so that joining is lossless."""

    def special_texts(self) -> Sequence[str]:
        """Texts that ``encode`` may turn into one control or user-defined id, tags among them."""
