"""The tokenizer of a GGUF: llama.cpp encodes, the file's own vocabulary gives the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from forethought.checkpoints.gguf_header import GGUFHeader
from forethought.checkpoints.gguf_vocab import special_tokens, token_bytes
from forethought.engines.llama_loading import LoadedLlama


class LlamaTokenizer:
    """Implements :class:`forethought.dialogue.tokenizer.Tokenizer`."""

    def __init__(self, loaded: LoadedLlama, header: GGUFHeader) -> None:
        self._loaded = loaded
        self._header = header

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of ``text``, no BOS or EOS added."""
        if not text:
            return []
        body = {"content": text, "add_special": False, "parse_special": parse_special}
        with self._loaded.use() as server:
            answer = server.post("/tokenize", body)
        return [int(token) for token in answer["tokens"]]

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id."""
        table = self.vocabulary
        return [table[token] for token in ids]

    def special_texts(self) -> Sequence[str]:
        """Texts of the control and user-defined tokens."""
        return self._special

    @cached_property
    def vocabulary(self) -> Sequence[bytes]:
        """Bytes by id; decoded one by one as asked."""
        return token_bytes(self._header)

    @cached_property
    def _special(self) -> tuple[str, ...]:
        return tuple(token.text for token in special_tokens(self._header))

    def is_control(self, token: int) -> bool:
        """Whether the token is one that no text spells (end of sequence, of turn)."""
        return token in self._control

    @cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(token.id for token in special_tokens(self._header) if token.control)

    @cached_property
    def _ids_of(self) -> dict[bytes, tuple[int, ...]]:
        found: dict[bytes, tuple[int, ...]] = {}
        for token, piece in enumerate(self.vocabulary):
            if piece:
                found[piece] = (*found.get(piece, ()), token)
        return found

    def fill_gap(self, raw: bytes, last: int, count: int) -> tuple[int, ...] | None:
        """The ``count`` ids before ``last`` that together with it spell ``raw``.

        llama.cpp's stream is silent about tokens that end inside a UTF-8 character: when the
        character is complete it sends the text of all and the id of the last. Their number and
        their bytes are known, which leaves one reading in practice; where it leaves several, the
        one with the longest first token is taken, as byte-pair merges build such characters.
        None when there is no reading (bytes that were never valid text).
        """
        tail = self.vocabulary[last]
        if count <= 0 or not raw.endswith(tail):
            return None
        missing = raw[: len(raw) - len(tail)]
        readings: list[tuple[int, ...]] = []
        self._spell(missing, count, (), readings)
        return readings[0] if readings else None

    def _spell(
        self, raw: bytes, count: int, head: tuple[int, ...], found: list[tuple[int, ...]]
    ) -> None:
        if count == 0:
            if not raw:
                found.append(head)
            return
        for size in range(len(raw) - count + 1, 0, -1):
            for token in self._ids_of.get(raw[:size], ()):
                self._spell(raw[size:], count - 1, (*head, token), found)
                if len(found) >= 8:
                    return
