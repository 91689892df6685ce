"""A vocabulary between its two homes: the metadata of a GGUF, the files of a Hugging Face folder.

A vocabulary that goes into a GGUF is tried in llama.cpp first (:func:`check_against_llama_cpp`):
two tokenizers that agree on a thousand odd strings agree on what people write.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, cast

from forethought.checkpoints import gguf_types as t
from forethought.checkpoints.comparison_strings import comparison_strings
from forethought.checkpoints.gguf_header import GGUFHeader
from forethought.checkpoints.gguf_vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED
from forethought.checkpoints.hf_tokenizer import (
    added_tokens,
    adds_bos,
    gguf_tokenizer_json,
    merge_pairs,
    tokens_by_id,
)
from forethought.checkpoints.pre_tokenizers import JSON, derive_pre, pre_tokenizer
from forethought.checkpoints.tokenizer_files import TokenizerFiles, read_tokenizer_folder
from forethought.dialogue.tokenizer import Tokenizer
from forethought.errors import ModelError

Metadata: TypeAlias = str | int | bool | list[str] | list[int]

_PRE: Final = "tokenizer.ggml."
# No word ever holds these two side by side as symbols, as no merge makes them.
_IDLE_MERGE: Final = "ĠĠ ĠĠ"
_WIDTH: Final = 32


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """The vocabulary as a GGUF has it: ``metadata`` by key, ready to be written.

    Keys: ``tokenizer.ggml.model``, ``pre``, ``tokens``, ``token_type`` (int32), ``merges``, the
    ids of special tokens (uint32), ``add_bos_token``, and ``tokenizer.chat_template``.
    """

    metadata: dict[str, Metadata] = field(repr=False)
    where: str = "the vocabulary"

    @property
    def tokens(self) -> list[str]:
        """The texts by id, as GPT-2's table writes bytes."""
        return cast("list[str]", self.metadata[_PRE + "tokens"])

    @property
    def token_types(self) -> list[int]:
        """What each id is: normal, control, user-defined, unused."""
        return cast("list[int]", self.metadata[_PRE + "token_type"])

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self.tokens)

    @property
    def pre(self) -> str:
        """llama.cpp's name of the pre-tokenizer."""
        return cast("str", self.metadata[_PRE + "pre"])

    def texts(self, kind: int) -> list[str]:
        """The texts of all tokens of one kind."""
        return [
            text for text, own in zip(self.tokens, self.token_types, strict=True) if own == kind
        ]

    def padded(self, vocab_size: int) -> GGUFVocabulary:
        """With unused entries up to ``vocab_size``, the rows of the embedding.

        Raises ModelError where the embedding has fewer rows than there are tokens.
        """
        missing = vocab_size - self.size
        if missing < 0:
            raise ModelError(
                f"{self.where} has {self.size} tokens, and the embedding {vocab_size} rows: they "
                "belong to different models; copy the right tokenizer.json."
            )
        if not missing:
            return self
        names = _unused_names(set(self.tokens), range(self.size, vocab_size))
        metadata = {
            **self.metadata,
            _PRE + "tokens": [*self.tokens, *names],
            _PRE + "token_type": [*self.token_types, *[UNUSED] * missing],
        }
        return GGUFVocabulary(metadata, self.where)


def _unused_names(taken: set[str], ids: Sequence[int]) -> list[str]:
    """A name for each id that no token has; llama.cpp refuses a text that occurs twice."""
    names = []
    for number in ids:
        name = f"[PAD{number}]"
        while name in taken:
            name = f"[{name}]"
        taken.add(name)
        names.append(name)
    return names


def folder_vocabulary(folder: str | os.PathLike[str] | TokenizerFiles) -> GGUFVocabulary:
    """The vocabulary of a Hugging Face folder, for a GGUF.

    Raises ModelError for what llama.cpp cannot do: a normaliser, an unknown pre-tokenizer, another
    kind than byte-level BPE, added tokens that eat white space, no token that ends a text.
    """
    files = folder if isinstance(folder, TokenizerFiles) else read_tokenizer_folder(folder)
    where, definition = files.where, files.tokenizer_json
    pre = derive_pre(definition, where)
    by_id = tokens_by_id(definition, where)
    size = max(by_id, default=-1) + 1
    kinds = [NORMAL if number in by_id else UNUSED for number in range(size)]
    for token in added_tokens(definition, where):
        if not token.plain:
            raise ModelError(
                f"{where}: the added token {token.text!r} takes white space around it, or whole "
                "words only (lstrip, rstrip, single_word), which llama.cpp does not: this "
                "tokenizer cannot go into a GGUF."
            )
        kinds[token.id] = CONTROL if token.control else USER_DEFINED
    gaps = [number for number in range(size) if number not in by_id]
    by_id.update(zip(gaps, _unused_names(set(by_id.values()), gaps), strict=True))
    metadata: dict[str, Metadata] = {
        _PRE + "model": "gpt2",
        _PRE + "pre": pre,
        _PRE + "tokens": [by_id[number] for number in range(size)],
        _PRE + "token_type": kinds,
        _PRE + "merges": [f"{left} {right}" for left, right in merge_pairs(definition)]
        or [_IDLE_MERGE],
        **_special_ids(files, {text: number for number, text in by_id.items()}),
    }
    if files.chat_template is not None:
        metadata["tokenizer.chat_template"] = files.chat_template
    return GGUFVocabulary(metadata, where)


def _special_ids(files: TokenizerFiles, ids: dict[str, int]) -> dict[str, Metadata]:
    """Ids of BOS, EOS, end of turn and padding. llama.cpp takes 11 for a BOS or EOS not named."""

    def named(text: str | None) -> int | None:
        return None if text is None else ids.get(text)

    ends = [number for number in files.eos_ids if number < len(ids)]
    eos = named(files.eos_token)
    if eos is None:
        eos = ends[0] if ends else None
    if eos is None:
        raise ModelError(
            f"{files.folder} names no token that ends a text, and llama.cpp needs one: add "
            '"eos_token" to tokenizer_config.json.'
        )
    bos = named(files.bos_token)
    if bos is None and files.add_bos:
        raise ModelError(
            f"{files.folder} puts a BOS token first and does not name it: add "
            '"bos_token" to tokenizer_config.json, or set "add_bos_token" to false.'
        )
    found: dict[str, Metadata] = {
        _PRE + "bos_token_id": eos if bos is None else bos,
        _PRE + "eos_token_id": eos,
        _PRE + "add_bos_token": files.add_bos,
        _PRE + "add_space_prefix": False,
    }
    # llama.cpp ends a sample at the ids of EOS, of a turn and of a message.
    others = [number for number in ends if number != eos]
    for key, number in zip(("eot_token_id", "eom_token_id"), others, strict=False):
        found[_PRE + key] = number
    pad = named(files.pad_token)
    if pad is not None:
        found[_PRE + "padding_token_id"] = pad
    return found


def tokenizer_files_from_gguf(header: GGUFHeader) -> dict[str, bytes]:
    """The tokenizer files of a Hugging Face folder, by name, for a GGUF's vocabulary.

    transformers' AutoTokenizer opens them to the same ids. Raises ModelError for a vocabulary that
    is no byte-level BPE with a known pre-tokenizer.
    """
    definition = gguf_tokenizer_json(header)
    tokens = header.items("tokenizer.ggml.tokens")
    size = 0 if tokens is None else len(tokens)

    def number(key: str) -> int | None:
        found = header.integer(f"{_PRE}{key}_token_id")
        return found if found is not None and 0 <= found < size else None

    ids = {key: number(key) for key in ("bos", "eos", "padding", "unknown", "eot", "eom")}
    texts: dict[str, JSON] = {
        name: str(tokens[found])
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("pad_token", "padding"),
            ("unk_token", "unknown"),
        )
        if tokens is not None and (found := ids[key]) is not None
    }
    config: dict[str, JSON] = {
        # The class that takes tokenizer.json as it is; a model's own class would rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos(header),
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **texts,
    }
    if header.context_length is not None:
        config["model_max_length"] = header.context_length
    ends: list[JSON] = []
    for key in ("eos", "eot", "eom"):
        if ids[key] is not None and ids[key] not in ends:
            ends.append(ids[key])
    generation: dict[str, JSON] = {
        name: value
        for name, value in (
            ("bos_token_id", ids["bos"]),
            ("eos_token_id", ends[0] if len(ends) == 1 else ends or None),
            ("pad_token_id", ids["padding"]),
        )
        if value is not None
    }
    generation.update(_sampling(header))
    files = {
        "tokenizer.json": _dump(definition, indent=None),
        "tokenizer_config.json": _dump(config),
        "special_tokens_map.json": _dump(texts),
        "generation_config.json": _dump(generation),
    }
    if header.chat_template is not None:
        files["chat_template.jinja"] = header.chat_template.encode()
    return files


def _sampling(header: GGUFHeader) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for key, name in (("temp", "temperature"), ("top_p", "top_p"), ("min_p", "min_p")):
        value = header.number(f"general.sampling.{key}")
        if value is not None:
            # The file has 32 bits of it; seven digits are what was meant.
            found[name] = float(f"{value:.7g}")
    top_k = header.integer("general.sampling.top_k")
    if top_k is not None:
        found["top_k"] = top_k
    return {"do_sample": True, **found} if found else {}


def _dump(value: dict[str, JSON], indent: int | None = 2) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def vocabulary_gguf(vocabulary: GGUFVocabulary, path: str | os.PathLike[str]) -> Path:
    """Write a GGUF that llama.cpp loads in a moment and that holds the vocabulary alone.

    A llama of one layer, 32 wide, every weight 0: the file is sparse, nothing of it is written.
    The chat template is left out.
    """
    keys: dict[str, Metadata] = {
        "general.architecture": "llama",
        "general.name": "vocabulary",
        "llama.context_length": 256,
        "llama.embedding_length": _WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": _WIDTH,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": _WIDTH,
        "llama.vocab_size": vocabulary.size,
        **vocabulary.metadata,
    }
    keys.pop("tokenizer.chat_template", None)
    square, row = (_WIDTH, _WIDTH), (_WIDTH,)
    tensors = {
        "token_embd.weight": (_WIDTH, vocabulary.size),
        "output_norm.weight": row,
        "blk.0.attn_norm.weight": row,
        "blk.0.ffn_norm.weight": row,
        **{
            f"blk.0.{name}.weight": square
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
        },
        "blk.0.ffn_down.weight": square,
    }
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys) + 1)]
    # One number that is no 32-bit integer, so it stands beside the table.
    parts += [
        _string("llama.attention.layer_norm_rms_epsilon"),
        struct.pack("<If", t.FLOAT32, 1e-6),
    ]
    for key, value in keys.items():
        parts += [_string(key), *_value(value)]
    offset = 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        parts += [
            _string(name),
            struct.pack("<I", len(shape)),
            struct.pack(f"<{len(shape)}Q", *shape),
        ]
        parts.append(struct.pack("<IQ", 0, offset))
        offset += size
    head = b"".join(parts)
    file = Path(path)
    with file.open("wb") as out:
        out.write(head)
        out.truncate(-(-len(head) // 32) * 32 + offset)
    return file


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Metadata) -> Iterator[bytes]:
    if isinstance(value, bool):
        yield struct.pack("<IB", t.BOOL, value)
    elif isinstance(value, int):
        yield struct.pack("<II", t.UINT32, value)
    elif isinstance(value, str):
        yield struct.pack("<I", t.STRING) + _string(value)
    elif value and isinstance(value[0], str):
        yield struct.pack("<IIQ", t.ARRAY, t.STRING, len(value))
        yield from map(_string, value)
    else:
        yield struct.pack(f"<IIQ{len(value)}i", t.ARRAY, t.INT32, len(value), *value)


def check_against_llama_cpp(
    vocabulary: GGUFVocabulary,
    tokenizer: Tokenizer,
    open_llama_tokenizer: Callable[[Path], AbstractContextManager[Tokenizer]],
    *,
    strings: int = 1000,
    seed: int = 0,
) -> None:
    """Refuse a vocabulary that llama.cpp would tokenise otherwise than ``tokenizer``.

    ``strings`` texts (words, code, numbers, white space, many scripts, combining marks, emoji,
    special tokens) are encoded by both; ``open_llama_tokenizer`` opens a GGUF, which is written
    aside for it. llama.cpp takes user-defined tokens out of every text, so texts that hold one are
    compared with ``parse_special`` only. White space that llama.cpp is known to cut otherwise
    (:func:`known_difference`) is left out. Raises ModelError that shows the first difference.
    """
    spaces = pre_tokenizer(vocabulary.pre).other_spaces
    tags = [text for kind in (CONTROL, USER_DEFINED) for text in vocabulary.texts(kind)]
    user_defined = vocabulary.texts(USER_DEFINED)
    with tempfile.TemporaryDirectory(prefix="forethought-") as folder:
        path = vocabulary_gguf(vocabulary, Path(folder) / "vocabulary.gguf")
        with open_llama_tokenizer(path) as theirs:
            for text in comparison_strings(strings, seed, tags, spaces):
                for parse_special in _comparable(text, tags, user_defined):
                    _compare(vocabulary, text, parse_special, tokenizer, theirs)


def known_difference(vocabulary: GGUFVocabulary) -> str | None:
    """What llama.cpp is known to tokenise otherwise, as a sentence to be shown; None if nothing."""
    if not pre_tokenizer(vocabulary.pre).other_spaces:
        return None
    return (
        f"llama.cpp's {vocabulary.pre} cuts words at white space such as U+3000 and U+2003 where "
        "the model's own tokenizer may not: texts that hold it can get other ids there."
    )


def _comparable(text: str, tags: Sequence[str], user_defined: Sequence[str]) -> tuple[bool, ...]:
    """With which `parse_special` the two can be compared on a text."""
    if not any(tag in text for tag in tags):
        return (False,)  # the setting changes nothing
    return (True,) if any(tag in text for tag in user_defined) else (True, False)


def _compare(
    vocabulary: GGUFVocabulary, text: str, parse_special: bool, ours: Tokenizer, theirs: Tokenizer
) -> None:
    def both(part: str) -> tuple[list[int], list[int]]:
        return (
            ours.encode(part, parse_special=parse_special),
            theirs.encode(part, parse_special=parse_special),
        )

    def differs(part: str) -> bool:
        own, other = both(part)
        return own != other

    if not differs(text):
        return
    text = _shortest(text, differs)
    own, other = both(text)
    raise ModelError(
        f"{vocabulary.where}: llama.cpp ({vocabulary.pre}) tokenises {text!a} as {other} and the "
        f"folder's tokenizer as {own}, so a GGUF of this model would not read what the model was "
        "trained on: keep the folder, and use the torch engine."
    )


def _shortest(text: str, differs: Callable[[str], bool]) -> str:
    """What is left when every part that is not needed for the difference is cut out."""
    size = len(text) // 2
    while size:
        start = 0
        while start < len(text):
            shorter = text[:start] + text[start + size :]
            if shorter and differs(shorter):
                text = shorter
            else:
                start += size
        size //= 2
    return text
