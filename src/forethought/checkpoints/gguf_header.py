"""A bounds-checked reader of GGUF headers (versions 2 and 3) in plain Python.

A GGUF file may come from anywhere, so every count, length and offset is compared with the size of
the file before anything is read or allocated for it (rule R9 of the trust notes). Whatever is
wrong with a file becomes one `ModelError` sentence.

The header is read into memory, not mapped: a mapped file that another process truncates kills the
reader with SIGBUS, and indexing bytes is faster than indexing a map. Arrays stay undecoded until
someone asks: a vocabulary of 150,000 strings costs only the walk over its length fields.

Format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import array
import math
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import overload

from forethought.checkpoints import gguf_types as t
from forethought.errors import ModelError, UserError

MAGIC = b"GGUF"
# The biggest real headers (vocabularies of 260,000 tokens) are under 20 MB.
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_KEY_BYTES = 65535
MAX_TENSOR_NAME_BYTES = 1024
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
MAX_ALIGNMENT = 1 << 16
_FIRST_READ = 4 << 20
# Every how many strings a position is remembered, for access by index without a full walk.
_STRIDE = 256

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Scalar = int | float | bool | str


class _NeedMoreError(Exception):
    """The part of the file read so far ends before the header does."""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


class GGUFArray(Sequence["Scalar | GGUFArray"]):
    """An array of a header, decoded element by element when asked.

    Strings that are not UTF-8 come with replacement characters; `raw(i)` has their bytes.
    """

    __slots__ = ("_data", "_length", "_marks", "element_type", "offset")

    def __init__(
        self, data: bytes, element_type: int, count: int, offset: int, marks: array.array[int]
    ) -> None:
        self._data = data
        self.element_type = element_type
        self._length = count
        self.offset = offset
        self._marks = marks

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Scalar | GGUFArray: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scalar | GGUFArray]: ...

    def __getitem__(self, index: int | slice) -> Scalar | GGUFArray | list[Scalar | GGUFArray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self.element_type == t.STRING:
            return _text(self.raw(index))
        if self.element_type == t.ARRAY:
            cursor = _Cursor(self._data, len(self._data), Path())
            cursor.pos = self.offset
            for _ in range(index):
                cursor.sequence(1)
            return cursor.sequence(1)
        _, code, size = t.SCALARS[self.element_type]
        value: int | float = struct.unpack_from("<" + code, self._data, self.offset + index * size)[
            0
        ]
        return bool(value) if self.element_type == t.BOOL else value

    def __iter__(self) -> Iterator[Scalar | GGUFArray]:
        if self.element_type == t.STRING:
            for raw in self.raws():
                yield _text(raw)
            return
        for i in range(self._length):
            yield self[i]

    def raw(self, index: int) -> bytes:
        """The bytes of string number `index`."""
        position = self._marks[index // _STRIDE]
        data = self._data
        for _ in range(index % _STRIDE):
            position += 8 + _U64.unpack_from(data, position)[0]
        (length,) = _U64.unpack_from(data, position)
        return data[position + 8 : position + 8 + length]

    def raws(self) -> Iterator[bytes]:
        """The bytes of every string, in order."""
        data, position, unpack = self._data, self.offset, _U64.unpack_from
        for _ in range(self._length):
            start = position + 8
            position = start + unpack(data, position)[0]
            yield data[start:position]

    def integers(self) -> array.array[int]:
        """All elements of an array of integers at once. Raises ModelError for other types."""
        _, code, size = t.SCALARS.get(self.element_type, ("", "", 0))
        if not code or code in "fd":
            raise ModelError(
                "An array in the GGUF header holds no integers where integers are needed: the "
                "file was written wrongly; download or convert it again."
            )
        values = array.array(code)
        values.frombytes(self._data[self.offset : self.offset + self._length * size])
        if sys.byteorder == "big":
            values.byteswap()
        return values


Value = Scalar | GGUFArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    `shape` is in GGUF's order (fastest dimension first), `offset` counts from `data_offset`.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class _Cursor:
    """Reads forward through the header and never past the end of the file."""

    __slots__ = ("data", "path", "pos", "size")

    def __init__(self, data: bytes, size: int, path: Path) -> None:
        self.data = data
        self.size = size
        self.path = path
        self.pos = 0

    def fail(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path} is damaged ({what}): download it again, or convert it again."
        )

    def need(self, count: int) -> None:
        """Make sure that `count` bytes follow, in the file and in memory."""
        end = self.pos + count
        if end > self.size:
            raise self.fail(f"the file ends after {self.size} bytes, but its header needs more")
        if end > len(self.data):
            raise _NeedMoreError

    def u32(self) -> int:
        self.need(4)
        value: int = _U32.unpack_from(self.data, self.pos)[0]
        self.pos += 4
        return value

    def u64(self) -> int:
        self.need(8)
        value: int = _U64.unpack_from(self.data, self.pos)[0]
        self.pos += 8
        return value

    def string(self, limit: int, what: str) -> bytes:
        length = self.u64()
        if length > limit:
            raise self.fail(f"{what} claims {length} bytes")
        self.need(length)
        raw = self.data[self.pos : self.pos + length]
        self.pos += length
        return raw

    def name(self, limit: int, what: str) -> str:
        try:
            return self.string(limit, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Value:
        if kind == t.STRING:
            return _text(self.string(self.size, f"the value of {key!r}"))
        if kind == t.ARRAY:
            return self.sequence(1)
        if kind not in t.SCALARS:
            raise self.fail(f"the value of {key!r} has the unknown type {kind}")
        _, code, size = t.SCALARS[kind]
        self.need(size)
        value: int | float = struct.unpack_from("<" + code, self.data, self.pos)[0]
        self.pos += size
        return bool(value) if kind == t.BOOL else value

    def sequence(self, depth: int) -> GGUFArray:
        kind, count = self.u32(), self.u64()
        start = self.pos
        marks: array.array[int] = array.array("Q")
        if kind == t.STRING:
            self._skip_strings(count, marks)
        elif kind == t.ARRAY:
            if depth >= MAX_ARRAY_DEPTH:
                raise self.fail("arrays are nested too deeply")
            self._check_count(count, 12)
            for _ in range(count):
                self.sequence(depth + 1)
        elif kind in t.SCALARS:
            size = t.SCALARS[kind][2]
            self._check_count(count, size)
            self.need(count * size)
            self.pos += count * size
        else:
            raise self.fail(f"an array has the unknown element type {kind}")
        return GGUFArray(self.data, kind, count, start, marks)

    def _check_count(self, count: int, least: int) -> None:
        if count > (self.size - self.pos) // least:
            raise self.fail(f"an array claims {count} elements, more than the file can hold")

    def _skip_strings(self, count: int, marks: array.array[int]) -> None:
        """Walk over `count` strings, noting every 256th position.

        This loop runs once per token of the vocabulary: nothing but the length is looked at, and
        a length that leads out of the buffer makes the next unpack fail.
        """
        self._check_count(count, 8)
        data, position, unpack = self.data, self.pos, _U64.unpack_from
        limit = len(data)
        try:
            for done in range(0, count, _STRIDE):
                marks.append(position)
                for _ in repeat(None, min(_STRIDE, count - done)):
                    (length,) = unpack(data, position)
                    position += length + 8
                if position > limit:
                    break
        except (struct.error, OverflowError):
            # The length before led out of the buffer: out of the file too, or only out of the
            # part read so far? `need` tells.
            position += 8
        self.pos = min(position, self.size + 1)
        self.need(0)


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself. Sizes and offsets are in bytes."""

    path: Path
    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_size: int

    def integer(self, key: str) -> int | None:
        """The integer under `key`, or None if absent. Raises ModelError if it is no integer."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer")
        return value

    def number(self, key: str) -> float | None:
        """The finite number under `key`, or None. Raises ModelError if it is none."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        if not math.isfinite(value):
            raise self._wrong(key, "a finite number")
        return float(value)

    def text(self, key: str) -> str | None:
        """The string under `key`, or None. Raises ModelError if it is no string."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def flag(self, key: str) -> bool | None:
        """The boolean under `key`, or None. Raises ModelError if it is no boolean."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "a boolean")
        return value

    def items(self, key: str) -> GGUFArray | None:
        """The array under `key`, undecoded, or None. Raises ModelError if it is no array."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, GGUFArray):
            raise self._wrong(key, "an array")
        return value

    def per_layer(self, key: str) -> int | list[int] | None:
        """An integer, or one for each layer, as the file has it."""
        value = self.metadata.get(key)
        if isinstance(value, GGUFArray):
            if len(value) > MAX_KEYS:
                raise self._wrong(key, "one number for each layer")
            return list(value.integers())
        return self.integer(key)

    def _wrong(self, key: str, wanted: str) -> ModelError:
        return ModelError(
            f"{self.path}: {key!r} in the GGUF header is not {wanted}; convert the model again."
        )

    def arch_key(self, name: str) -> str:
        """The key of a hyperparameter: `arch_key("block_count")` is `llama.block_count`."""
        return f"{self.architecture}.{name}"

    @property
    def architecture(self) -> str:
        """`general.architecture`, e.g. `llama`, `qwen3`, `deepseek2`; empty if absent."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """`general.name`."""
        return self.text("general.name")

    @property
    def context_length(self) -> int | None:
        """Tokens of context the model was trained for."""
        return self.integer(self.arch_key("context_length"))

    @property
    def block_count(self) -> int | None:
        """Number of layers."""
        return self.integer(self.arch_key("block_count"))

    @property
    def embedding_length(self) -> int | None:
        """Width of the residual stream."""
        return self.integer(self.arch_key("embedding_length"))

    @property
    def head_count(self) -> int | list[int] | None:
        """Attention heads, one number or one for each layer."""
        return self.per_layer(self.arch_key("attention.head_count"))

    @property
    def head_count_kv(self) -> int | list[int] | None:
        """Key/value heads; where the file is silent, as many as attention heads."""
        own = self.per_layer(self.arch_key("attention.head_count_kv"))
        return self.head_count if own is None else own

    def _head_length(self, key: str) -> int | None:
        own = self.integer(self.arch_key(key))
        if own is not None:
            return own
        heads, width = self.head_count, self.embedding_length
        most = max(heads, default=0) if isinstance(heads, list) else heads
        return width // most if most and width else None

    @property
    def key_length(self) -> int | None:
        """Width of one key head (embedding_length / head_count where the file is silent)."""
        return self._head_length("attention.key_length")

    @property
    def value_length(self) -> int | None:
        """Width of one value head (embedding_length / head_count where the file is silent)."""
        return self._head_length("attention.value_length")

    @property
    def chat_template(self) -> str | None:
        """The model's own jinja chat template."""
        return self.text("tokenizer.chat_template")

    @property
    def tokenizer_model(self) -> str | None:
        """`gpt2` (byte-level BPE), `llama` (SentencePiece), ..."""
        return self.text("tokenizer.ggml.model")

    @property
    def bos_id(self) -> int | None:
        """Token id that begins a sequence."""
        return self.integer("tokenizer.ggml.bos_token_id")

    @property
    def eos_id(self) -> int | None:
        """Token id that ends a turn."""
        return self.integer("tokenizer.ggml.eos_token_id")

    @property
    def add_bos(self) -> bool | None:
        """Whether the tokenizer itself puts BOS first; None where the file does not say."""
        return self.flag("tokenizer.ggml.add_bos_token")

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary (0 where the file has none)."""
        tokens = self.items("tokenizer.ggml.tokens")
        return 0 if tokens is None else len(tokens)

    @property
    def quantisation(self) -> str:
        """`Q4_K_M`, `F16`, ...: the declared file type, else the type of most bytes."""
        declared = self.integer("general.file_type")
        if declared in t.FILE_TYPES:
            return t.FILE_TYPES[declared]
        totals: dict[str, int] = {}
        for tensor in self.tensors:
            totals[tensor.type] = totals.get(tensor.type, 0) + tensor.bytes
        return max(totals, key=lambda kind: totals[kind]) if totals else "unknown"

    @property
    def parameter_count(self) -> int:
        """Numbers in the tensors of this file (one file of a split model holds only its own)."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors of this file."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def split_count(self) -> int:
        """Files that the model is split over (1 where it is not)."""
        return self.integer("split.count") or 1

    @property
    def sampling(self) -> dict[str, float]:
        """The model's own sampling defaults: those of temp, top_p, top_k, min_p that it states."""
        found: dict[str, float] = {}
        for name in ("temp", "top_p", "top_k", "min_p"):
            value = self.number(f"general.sampling.{name}")
            if value is not None:
                found[name] = value
        return found


def read_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Raises UserError if there is no such file, ModelError if it is not a sound GGUF file.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a GGUF file: give the path of the file in it.")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            want = _FIRST_READ
            while True:
                stream.seek(0)
                data = stream.read(min(want, size))
                size = min(size, os.fstat(stream.fileno()).st_size)
                try:
                    return _parse(data, size, file)
                except _NeedMoreError:
                    if want >= MAX_HEADER_BYTES:
                        raise ModelError(
                            f"{file} is damaged (its header is larger than "
                            f"{MAX_HEADER_BYTES >> 20} MiB): download it again."
                        ) from None
                    # Sixteenfold: two steps reach the cap, so little is parsed twice.
                    want = min(want * 16, MAX_HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"There is no file {file}: check the path.") from None
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror or error}): check its permissions."
        ) from None


def _parse(data: bytes, size: int, path: Path) -> GGUFHeader:
    cursor = _Cursor(data, size, path)
    if data[:4] != MAGIC:
        hint = " (it has an older ggml format)" if data[:4] in {b"ggml", b"ggjt"} else ""
        again = path.suffix == ".gguf" and not hint
        what = "download it again" if again else "choose another that ends in .gguf"
        raise ModelError(f"{path} is not a GGUF file{hint}: {what}.")
    cursor.pos = 4
    version = cursor.u32()
    if version & 0xFFFF == 0 and version:
        raise ModelError(
            f"{path} is a GGUF file for big-endian machines: download the ordinary one."
        )
    if version not in {2, 3}:
        raise ModelError(
            f"{path} is a GGUF file of version {version}, and forethought reads 2 and 3: "
            "convert the model again with a current llama.cpp."
        )
    tensor_count, key_count = cursor.u64(), cursor.u64()
    # The smallest key is 8 + 1 + 4 + 1 bytes, the smallest tensor 8 + 1 + 4 + 8 + 4 + 8.
    if key_count > min(MAX_KEYS, (size - cursor.pos) // 14):
        raise cursor.fail(f"it claims {key_count} metadata keys")
    if tensor_count > min(MAX_TENSORS, (size - cursor.pos) // 33):
        raise cursor.fail(f"it claims {tensor_count} tensors")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.name(MAX_KEY_BYTES, "a metadata key")
        if key in metadata:
            raise cursor.fail(f"the key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.u32(), key)
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 1 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise cursor.fail("general.alignment is not a power of two")
    tensors = [_tensor(cursor, alignment) for _ in range(tensor_count)]
    data_offset = -(-cursor.pos // alignment) * alignment
    _check_layout(cursor, tensors, data_offset)
    return GGUFHeader(
        path=path,
        version=version,
        metadata=metadata,
        tensors=tuple(tensors),
        alignment=alignment,
        data_offset=data_offset,
        file_size=size,
    )


def _tensor(cursor: _Cursor, alignment: int) -> TensorInfo:
    name = cursor.name(MAX_TENSOR_NAME_BYTES, "a tensor name")
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name!r} claims {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))
    kind, offset = cursor.u32(), cursor.u64()
    if kind not in t.TENSOR_TYPES:
        raise ModelError(
            f"{cursor.path}: tensor {name!r} has the unknown type {kind}; the file is damaged, or "
            "newer than this forethought: update it, or choose another quantisation."
        )
    type_name, block, block_bytes = t.TENSOR_TYPES[kind]
    if shape[0] % block:
        raise cursor.fail(
            f"rows of tensor {name!r} have {shape[0]} elements, no multiple of {block}"
        )
    if offset % alignment:
        raise cursor.fail(f"tensor {name!r} is not aligned to {alignment} bytes")
    return TensorInfo(name, shape, type_name, offset, math.prod(shape) // block * block_bytes)


def _check_layout(cursor: _Cursor, tensors: list[TensorInfo], data_offset: int) -> None:
    """Every tensor lies inside the file, no two overlap, no name occurs twice."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise cursor.fail("two tensors have the same name")
    room = cursor.size - data_offset
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda item: (item.offset, item.bytes)):
        if tensor.offset + tensor.bytes > room:
            raise ModelError(
                f"{cursor.path} is truncated: tensor {tensor.name!r} needs "
                f"{data_offset + tensor.offset + tensor.bytes} bytes, and the file has "
                f"{cursor.size}; download it again."
            )
        if tensor.offset < end:
            raise cursor.fail(f"tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.bytes, tensor.name
