"""Vocabularies inside GGUF headers: special tokens, and the bytes that each token stands for."""

from __future__ import annotations

import array
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import overload

from forethought.checkpoints import gguf_types as t
from forethought.checkpoints.gguf_header import GGUFArray, GGUFHeader, read_header
from forethought.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that stands for itself: `control` (never shown) or `user-defined` (shown)."""

    id: int
    text: str
    control: bool


def _tokens(header: GGUFHeader) -> GGUFArray:
    tokens = header.items("tokenizer.ggml.tokens")
    if tokens is None or tokens.element_type != t.STRING:
        raise ModelError(f"{header.path} has no vocabulary in its header: convert it again.")
    return tokens


def _token_types(header: GGUFHeader, count: int) -> list[int] | array.array[int]:
    """The type of each token; all NORMAL where the file does not say."""
    types = header.items("tokenizer.ggml.token_type")
    if types is None:
        return [NORMAL] * count
    values = types.integers()
    if len(values) != count:
        raise ModelError(
            f"{header.path}: {len(values)} token types for {count} tokens in the GGUF header; "
            "convert the model again."
        )
    return values


def special_tokens(source: GGUFHeader | str | os.PathLike[str]) -> tuple[SpecialToken, ...]:
    """The control and user-defined tokens of a vocabulary, by id.

    Only these few strings are decoded. Raises ModelError if the file has no vocabulary.
    """
    header = source if isinstance(source, GGUFHeader) else read_header(source)
    tokens = _tokens(header)
    types = _token_types(header, len(tokens))
    # Types are tiny numbers: searching their low bytes in C beats a loop over 150,000 of them.
    low_bytes = bytes(kind & 0xFF for kind in types) if isinstance(types, list) else _low(types)
    return tuple(
        SpecialToken(i, tokens.raw(i).decode("utf-8", "replace"), types[i] == CONTROL)
        for i in (match.start() for match in re.finditer(b"[\x03\x04]", low_bytes))
        if types[i] in (CONTROL, USER_DEFINED)
    )


def _low(types: array.array[int]) -> bytes:
    start = 0 if sys.byteorder == "little" else types.itemsize - 1
    return types.tobytes()[start :: types.itemsize]


@cache
def _byte_of_character() -> dict[int, int]:
    """GPT-2's table: every byte has a printable character (openai/gpt-2, `encoder.py`).

    Characters that stand for no byte go to one that Latin-1 lacks, so that encoding notices them.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    table = {byte: byte for byte in printable}
    spare = 256
    for byte in range(256):
        if byte not in printable:
            table[byte] = 0xFFFF
            table[spare] = byte
            spare += 1
    return table


_SPM_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(Sequence[bytes]):
    """The bytes of every token, computed when asked. Special tokens give their own text."""

    def __init__(self, tokens: GGUFArray, types: Sequence[int], byte_level: bool) -> None:
        self._tokens = tokens
        self._types = types
        self._byte_level = byte_level

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._decode(self._tokens.raw(index), self._types[index])

    def __iter__(self) -> Iterator[bytes]:
        for raw, kind in zip(self._tokens.raws(), self._types, strict=True):
            yield self._decode(raw, kind)

    def _decode(self, raw: bytes, kind: int) -> bytes:
        if kind in (CONTROL, USER_DEFINED):
            return raw
        text = raw.decode("utf-8", "replace")
        if self._byte_level:
            try:
                return text.translate(_byte_of_character()).encode("latin-1")
            except UnicodeEncodeError:
                return _mixed(text)
        if kind == BYTE:
            match = _SPM_BYTE.fullmatch(text)
            if match:
                return bytes((int(match[1], 16),))
        return raw.replace("▁".encode(), b" ")


def _mixed(text: str) -> bytes:
    """A token with characters that GPT-2's table lacks: those stand for themselves."""
    table = _byte_of_character()
    return b"".join(
        bytes((byte,)) if (byte := table.get(ord(char), 0xFFFF)) < 256 else char.encode()
        for char in text
    )


def token_bytes(header: GGUFHeader) -> TokenBytes:
    """The bytes behind each token id, for byte-level BPE ("gpt2") and SentencePiece ("llama").

    Raises ModelError for other kinds of vocabulary.
    """
    model = header.tokenizer_model
    if model not in {"gpt2", "llama"}:
        raise ModelError(
            f"{header.path} has a vocabulary of the kind {model!r}, and forethought knows the "
            "bytes of 'gpt2' and 'llama' ones only: choose another model."
        )
    tokens = _tokens(header)
    return TokenBytes(tokens, _token_types(header, len(tokens)), model == "gpt2")
