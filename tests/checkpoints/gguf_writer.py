"""A tiny writer of GGUF files for tests: nothing but struct."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
CODES |= {U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, item: object) -> bytes:
    if kind == STR:
        assert isinstance(item, str | bytes)
        return string(item)
    if kind == ARR:
        assert isinstance(item, tuple)
        element, items = item
        body = b"".join(value(element, part) for part in items)
        return struct.pack("<IQ", element, len(items)) + body
    return struct.pack("<" + CODES[kind], item)


def key(name: str, kind: int, item: object) -> bytes:
    return string(name) + struct.pack("<I", kind) + value(kind, item)


def gguf(
    keys: Sequence[tuple[str, int, object]],
    tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A whole file; a tensor is (name, shape, type id, data)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(key(*item) for item in keys)
    data = b""
    for name, shape, kind, raw in tensors:
        data += b"\0" * (-len(data) % alignment)
        head += string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, len(data))
        data += raw
    return head + b"\0" * (-len(head) % alignment) + data


TOKENS = ["<unk>", "<s>", "</s>", "<think>", "Ġthe", "é", "<0x0A>", "▁go", "a"]
TYPES = [2, 3, 3, 4, 1, 1, 6, 1, 1]


def small_keys(model: str = "gpt2") -> list[tuple[str, int, object]]:
    return [
        ("general.architecture", STR, "llama"),
        ("general.name", STR, "Tiny"),
        ("general.file_type", U32, 15),
        ("general.sampling.temp", F32, 0.5),
        ("general.sampling.top_k", I32, 20),
        ("llama.context_length", U32, 512),
        ("llama.block_count", U32, 2),
        ("llama.embedding_length", U32, 64),
        ("llama.attention.head_count", U32, 4),
        ("llama.attention.head_count_kv", U32, 2),
        ("llama.feed_forward_length", U32, 128),
        ("tokenizer.ggml.model", STR, model),
        ("tokenizer.ggml.tokens", ARR, (STR, TOKENS)),
        ("tokenizer.ggml.token_type", ARR, (I32, TYPES)),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.add_bos_token", BOOL, 1),
        ("tokenizer.chat_template", STR, "{{ messages }}"),
        ("odd.nested", ARR, (ARR, [(U8, [1, 2]), (STR, ["x"])])),
    ]


def small(path: Path | None = None, model: str = "gpt2") -> bytes:
    """A sound little model."""
    tensors = [
        ("token_embd.weight", (64, 9), 0, bytes(64 * 9 * 4)),
        ("blk.0.attn_q.weight", (64, 64), 8, bytes(64 * 64 // 32 * 34)),
        ("output_norm.weight", (64,), 0, bytes(64 * 4)),
    ]
    raw = gguf(small_keys(model), tensors)
    if path is not None:
        path.write_bytes(raw)
    return raw
