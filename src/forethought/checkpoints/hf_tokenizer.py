"""The tokenizer of a Hugging Face folder or of a GGUF, through the library ``tokenizers``.

Two tokenizers share one set of merges: one that parses the added tokens (control tokens, tags) out
of a text, and one that has none of them, for text that must stay text. White space that is an
added token (runs of spaces in some vocabularies) is no tag: both parse it, as llama.cpp does.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

from forethought.checkpoints import gguf_types
from forethought.checkpoints.gguf_header import GGUFHeader
from forethought.checkpoints.gguf_vocab import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    special_tokens,
    token_bytes,
)
from forethought.checkpoints.pre_tokenizers import (
    JSON,
    byte_characters,
    pre_tokenizer,
    pre_tokenizer_json,
    require_byte_level,
    token_to_bytes,
)
from forethought.checkpoints.tokenizer_files import TokenizerFiles, read_tokenizer_folder
from forethought.errors import ModelError, UserError

if TYPE_CHECKING:
    import tokenizers

MAX_VOCABULARY: Final = 1 << 22
# Bytes that occur in no UTF-8 text; vocabularies may lack them.
_NEVER_IN_TEXT: Final = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
_TURN_MARK: Final = re.compile(r"<[|｜][^<>]*[|｜]>")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that stands for its own text: ``control`` (never shown) or user-defined (shown).

    ``plain``: found wherever its text is, whatever stands around it.
    """

    id: int
    text: str
    control: bool
    plain: bool = True


class HFTokenizer:
    """Implements :class:`forethought.dialogue.tokenizer.Tokenizer`; thread-safe.

    ``vocabulary``: the bytes of every id. Make one with :meth:`from_folder` or :meth:`from_gguf`.
    """

    def __init__(
        self,
        definition: Mapping[str, JSON],
        where: str,
        *,
        raw: bytes | None = None,
        table: Callable[[], Sequence[bytes]] | None = None,
        control: Iterable[int] | None = None,
        size: int | None = None,
    ) -> None:
        """``definition``: a tokenizer.json, ``raw`` its bytes.

        ``table``: the bytes by id, ``control``: the control tokens, ``size``: one more than the
        last id that is a token, where another file than the definition says them.

        Raises ModelError for a tokenizer that is no byte-level BPE or is damaged.
        """
        require_byte_level(definition, where)
        self._definition = definition
        self._where = where
        self._table = table or partial(_bytes_by_id, definition, where)
        self._size = size
        self._added = added_tokens(definition, where)
        self._full = _open(raw or json.dumps(definition).encode(), where)
        found = {
            i: str(token.content) for i, token in self._full.get_added_tokens_decoder().items()
        }
        if found != {token.id: token.text for token in self._added}:
            raise ModelError(
                f"{where} is damaged (its added tokens do not have the ids it names): copy it "
                "again."
            )
        self._tags = frozenset(token.id for token in self._added if not token.text.isspace())
        self._control = frozenset(
            (token.id for token in self._added if token.control) if control is None else control
        )
        model = definition["model"]
        vocab = model.get("vocab") if isinstance(model, dict) else None
        self._lacks_bytes = isinstance(vocab, dict) and any(
            character not in vocab
            for byte, character in enumerate(byte_characters())
            if byte not in _NEVER_IN_TEXT
        )
        self._lock = threading.Lock()
        self._strict: tokenizers.Tokenizer | None = None
        self._untagged = self._share() if len(self._tags) == len(self._added) else self._without()

    def __getstate__(self) -> dict[str, object]:
        """A copy in another process has a lock of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> HFTokenizer:
        """The tokenizer of a Hugging Face folder. Raises ModelError or UserError: one sentence."""
        return cls.from_files(read_tokenizer_folder(folder))

    @classmethod
    def from_files(cls, files: TokenizerFiles) -> HFTokenizer:
        """The tokenizer of a folder that was read already."""
        return cls(files.tokenizer_json, files.where, raw=files.raw)

    @classmethod
    def from_gguf(cls, header: GGUFHeader) -> HFTokenizer:
        """The byte-level BPE of a GGUF. Raises ModelError for other kinds and pre-tokenizers."""
        return cls(
            gguf_tokenizer_json(header),
            str(header.path),
            table=lambda: list(token_bytes(header)),
            control=[token.id for token in special_tokens(header) if token.control],
            size=_used(header),
        )

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of ``text``, no BOS or EOS added; without ``parse_special`` no tag is parsed.

        Raises UserError for a text that is no Unicode, ModelError where the vocabulary has no
        token for a byte of it.
        """
        if not text:
            return []
        ids = self._encode(self._full if parse_special else self._untagged, text)
        if not parse_special and not self._tags.isdisjoint(ids):
            # Merges, or a whole word that is a token, spell a tag: leave those tokens out.
            ids = self._encode(self._without(), text)
        if self._lacks_bytes and sum(map(len, self.pieces(ids))) != len(text.encode()):
            raise ModelError(
                f"{self._where} has no token for some bytes of {text[:40]!r}, so that text would "
                "be lost: train the tokenizer with all 256 bytes in its alphabet."
            )
        return ids

    def _encode(self, tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        try:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError):
            raise UserError(
                f"The text {text[:40]!a} holds half a character (a lone surrogate), which no "
                "tokenizer takes: remove it."
            ) from None

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; rows of an embedding beyond the vocabulary have none."""
        table = self.vocabulary
        size = len(table)
        if ids and min(ids) < 0:
            raise ModelError(f"{min(ids)} is no token id: ids count from 0.")
        return [table[token] if token < size else b"" for token in ids]

    def special_texts(self) -> Sequence[str]:
        """Texts of the control and user-defined tokens, by id."""
        return tuple(token.text for token in self._added)

    def is_control(self, token: int) -> bool:
        """Whether the token is one that no text spells (end of sequence, of turn)."""
        return token in self._control

    @cached_property
    def vocabulary(self) -> Sequence[bytes]:
        """The bytes of every id; its length is the size of the vocabulary."""
        return self._table()

    @property
    def size(self) -> int:
        """One more than the last id that is a token; what follows is padding, never to be drawn."""
        return len(self.vocabulary) if self._size is None else self._size

    def _share(self) -> tokenizers.Tokenizer:
        """The same merges without any added token: no second copy of the vocabulary."""
        import tokenizers

        plain = tokenizers.Tokenizer(self._full.model)
        if self._full.normalizer is not None:
            plain.normalizer = self._full.normalizer
        plain.pre_tokenizer = self._full.pre_tokenizer
        return plain

    def _without(self) -> tokenizers.Tokenizer:
        """A tokenizer whose vocabulary lacks the tags, built when one of them needs it."""
        with self._lock:
            if self._strict is None:
                definition = _without_tags(self._definition, self._added)
                self._strict = _open(json.dumps(definition).encode(), self._where)
            return self._strict


def _open(raw: bytes, where: str) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        opened = tokenizers.Tokenizer.from_buffer(raw)
    except BaseException as error:
        # A panic of the library's Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{where} is damaged ({reason}): copy it again.") from None
    opened.no_truncation()
    opened.no_padding()
    return opened


def added_tokens(definition: Mapping[str, JSON], where: str) -> tuple[AddedToken, ...]:
    """The added tokens of a tokenizer.json, by id. Raises ModelError for a damaged list.

    Control is what the file calls special, and what has the shape of a turn's mark (``<|user|>``,
    ``<｜User｜>``): DeepSeek's files call those ordinary, and then a user's text could write them.
    llama.cpp's converter does the same.
    """
    listed = definition.get("added_tokens") or []
    if not isinstance(listed, list):
        raise ModelError(f"{where} is damaged (added_tokens is no list): copy it again.")
    found = []
    for item in listed:
        text = item.get("content") if isinstance(item, dict) else None
        number = item.get("id") if isinstance(item, dict) else None
        if (
            not isinstance(item, dict)
            or not isinstance(text, str)
            or not text
            or not isinstance(number, int)
            or not 0 <= number < MAX_VOCABULARY
        ):
            raise ModelError(
                f"{where} is damaged (an added token has no text or id): copy it again."
            )
        found.append(
            AddedToken(
                number,
                text,
                bool(item.get("special")) or _TURN_MARK.fullmatch(text) is not None,
                not any(item.get(key) for key in ("single_word", "lstrip", "rstrip")),
            )
        )
    return tuple(sorted(found, key=lambda token: token.id))


def tokens_by_id(definition: Mapping[str, JSON], where: str) -> dict[int, str]:
    """Every token of a tokenizer.json, added ones too. Raises ModelError where ids collide."""
    model = definition.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict):
        raise ModelError(f"{where} has no vocabulary: copy the file again.")
    found: dict[int, str] = {}
    for text, number in vocab.items():
        if not isinstance(number, int) or not 0 <= number < MAX_VOCABULARY or number in found:
            raise ModelError(
                f"{where} is damaged (token {text[:40]!r} has the id {number!r}): copy it again."
            )
        found[number] = text
    for token in added_tokens(definition, where):
        if found.get(token.id, token.text) != token.text or vocab.get(token.text, token.id) != (
            token.id
        ):
            raise ModelError(
                f"{where} is damaged (two tokens for the id {token.id}): copy it again."
            )
        found[token.id] = token.text
    return found


def _bytes_by_id(definition: Mapping[str, JSON], where: str) -> list[bytes]:
    tokens = tokens_by_id(definition, where)
    table = [b""] * (max(tokens, default=-1) + 1)
    for number, text in tokens.items():
        table[number] = token_to_bytes(text)
    for token in added_tokens(definition, where):
        table[token.id] = token.text.encode()
    return table


def _pairs(merges: JSON) -> Iterable[tuple[str, str]]:
    """Merges as pairs; files have them as pairs or as texts with a space between."""
    for merge in merges if isinstance(merges, list) else ():
        if isinstance(merge, str):
            left, _, right = merge.partition(" ")
            yield left, right
        elif isinstance(merge, list) and len(merge) == 2:
            yield str(merge[0]), str(merge[1])


def merge_pairs(definition: Mapping[str, JSON]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json, the first one first."""
    model = definition.get("model")
    return list(_pairs(model.get("merges"))) if isinstance(model, dict) else []


def _without_tags(definition: Mapping[str, JSON], added: Sequence[AddedToken]) -> dict[str, JSON]:
    """The definition without its tags; ids of what remains stay."""
    model = definition["model"]
    assert isinstance(model, dict)
    tags = {token.text for token in added if not token.text.isspace()}
    spaces = [token for token in added if token.text.isspace()]
    vocab = model["vocab"]
    assert isinstance(vocab, dict)
    kept: dict[str, JSON] = {text: number for text, number in vocab.items() if text not in tags}
    kept.update((token.text, token.id) for token in spaces)
    merges: list[JSON] = [
        [left, right]
        for left, right in _pairs(model.get("merges"))
        if left in kept and right in kept and left + right in kept
    ]
    return {
        **definition,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "added_tokens": [_added_json(token.id, token.text, special=False) for token in spaces],
        "model": {**model, "vocab": kept, "merges": merges},
    }


def _added_json(number: int, text: str, *, special: bool) -> dict[str, JSON]:
    flags: dict[str, JSON] = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": special}


def gguf_tokenizer_json(header: GGUFHeader) -> dict[str, JSON]:
    """The tokenizer.json of a GGUF's byte-level BPE.

    Raises ModelError for another kind of vocabulary, a pre-tokenizer that is not known, or a
    damaged one.
    """
    where = str(header.path)
    if header.tokenizer_model != "gpt2":
        raise ModelError(
            f"{where} has a vocabulary of the kind {header.tokenizer_model!r}, and the torch "
            "engine reads byte-level BPE ('gpt2') only: run this model with the llama.cpp engine."
        )
    rule = pre_tokenizer(header.text("tokenizer.ggml.pre"), where)
    texts, kinds, merges = _gguf_vocabulary(header)
    products = {part for left, right in merges for part in (left, right, left + right)}
    vocab: dict[str, JSON] = {
        text: number
        for number, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if text and (kind != UNUSED or text in products)
    }
    if len(vocab) < sum(
        bool(text) and kind != UNUSED for text, kind in zip(texts, kinds, strict=True)
    ):
        raise ModelError(f"{where} is damaged (a token occurs twice): download it again.")
    added: list[JSON] = [
        _added_json(number, text, special=kind != USER_DEFINED)
        for number, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if text and kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    # A merge whose parts are no tokens can never apply; llama.cpp wants at least one merge, so a
    # vocabulary of bytes alone carries such a one.
    usable: list[JSON] = [
        [left, right]
        for left, right in merges
        if left in vocab and right in vocab and left + right in vocab
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_json(rule.name),
        "post_processor": _post_processor(header, texts),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule.ignore_merges,
            "vocab": vocab,
            "merges": usable,
        },
    }


def _used(header: GGUFHeader) -> int:
    """One more than the last id that is not marked as unused."""
    types = header.items("tokenizer.ggml.token_type")
    if types is None:
        return len(header.items("tokenizer.ggml.tokens") or ())
    return max(
        (number + 1 for number, kind in enumerate(types.integers()) if kind != UNUSED), default=0
    )


def _gguf_vocabulary(header: GGUFHeader) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Texts and kinds by id, and the merges."""
    tokens = header.items("tokenizer.ggml.tokens")
    merges = header.items("tokenizer.ggml.merges")
    if tokens is None or merges is None or len(tokens) > MAX_VOCABULARY:
        raise ModelError(
            f"{header.path} has no byte-level vocabulary in its header: convert it again."
        )
    if tokens.element_type != gguf_types.STRING or merges.element_type != gguf_types.STRING:
        raise ModelError(f"{header.path} is damaged (tokens are no texts): convert it again.")
    types = header.items("tokenizer.ggml.token_type")
    kinds = [NORMAL] * len(tokens) if types is None else list(types.integers())
    if len(kinds) != len(tokens):
        raise ModelError(
            f"{header.path}: {len(kinds)} token types for {len(tokens)} tokens in the GGUF header; "
            "convert the model again."
        )
    pairs = []
    for merge in merges:
        text = str(merge)
        space = text.find(" ", 1)
        if space > 0:
            pairs.append((text[:space], text[space + 1 :]))
    return [str(token) for token in tokens], kinds, pairs


def adds_bos(header: GGUFHeader) -> bool:
    """Whether llama.cpp begins a text with BOS: what the file says, else what the name implies."""
    if header.add_bos is not None:
        return header.add_bos
    rule = pre_tokenizer(header.text("tokenizer.ggml.pre"), str(header.path))
    return rule.name == "llama-bpe"


def _byte_level(*, use_regex: bool) -> dict[str, JSON]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _post_processor(header: GGUFHeader, texts: Sequence[str]) -> dict[str, JSON]:
    """What transformers runs after tokenising: BOS first, where the file wants it."""
    offsets: dict[str, JSON] = {**_byte_level(use_regex=True), "trim_offsets": False}
    bos = header.bos_id
    if not adds_bos(header) or bos is None or not 0 <= bos < len(texts):
        return offsets
    text = texts[bos]

    def part(kind: str, name: str, number: int) -> dict[str, JSON]:
        return {kind: {"id": name, "type_id": number}}

    first = [part("SpecialToken", text, 0), part("Sequence", "A", 0)]
    second = [part("SpecialToken", text, 1), part("Sequence", "B", 1)]
    template: dict[str, JSON] = {
        "type": "TemplateProcessing",
        "single": [*first],
        "pair": [*first, *second],
        "special_tokens": {text: {"id": text, "ids": [bos], "tokens": [text]}},
    }
    return {"type": "Sequence", "processors": [offsets, template]}
