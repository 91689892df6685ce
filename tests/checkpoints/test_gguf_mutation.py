"""Ten thousand damaged GGUF files: each is read correctly or refused in one sentence."""

from __future__ import annotations

import math
import random
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf_writer as w
import pytest
import torch
from test_gguf_weights import DEEPSEEK, DENSE, keys_of, tensors_of

from forethought.checkpoints.gguf_weights import GGUFWeights
from forethought.checkpoints.network_config import NetworkConfig
from forethought.errors import ForethoughtError, ModelError, UserError

SMALL: dict[str, NetworkConfig] = {
    "llama": DENSE.model_copy(
        update={"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    ),
    "deepseek2": DEEPSEEK.model_copy(update={"num_hidden_layers": 2}),
}
EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def sound(config: NetworkConfig) -> bytes:
    """A file with one tensor in blocks, a vocabulary and, for a llama, rotary factors."""
    tensors = tensors_of(config)
    at = next(i for i, item in enumerate(tensors) if item[0] == "blk.0.ffn_up.weight")
    name, shape, _, _ = tensors[at]
    scales = struct.pack("<e", 0.01) + bytes(range(32))
    tensors[at] = (name, shape, 8, scales * (math.prod(shape) // 32))
    if config.model_type == "llama":
        tensors.append(("rope_freqs.weight", (4,), 0, struct.pack("<4f", 1, 1, 1, 1)))
    keys = [
        *keys_of(config),
        ("tokenizer.ggml.tokens", w.ARR, (w.STR, w.TOKENS)),
        ("tokenizer.ggml.token_type", w.ARR, (w.I32, w.TYPES)),
        ("tokenizer.ggml.eos_token_id", w.U32, 2),
    ]
    return w.gguf(keys, tensors)


def fields(raw: bytes) -> list[tuple[int, int]]:
    """Position and width of every number of the header: counts, lengths, types, sizes, offsets."""
    found: list[tuple[int, int]] = [(4, 4), (8, 8), (16, 8)]
    position = 24
    tensors, keys = struct.unpack_from("<QQ", raw, 8)

    def number(width: int) -> int:
        nonlocal position
        found.append((position, width))
        value = int.from_bytes(raw[position : position + width], "little")
        position += width
        return value

    def string() -> None:
        nonlocal position
        length = number(8)
        position += length

    def value(kind: int) -> None:
        if kind == w.STR:
            string()
        elif kind == w.ARR:
            inner, count = number(4), number(8)
            for _ in range(count):
                value(inner)
        else:
            number(struct.calcsize(w.CODES[kind]))

    for _ in range(keys):
        string()
        value(number(4))
    for _ in range(tensors):
        string()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found


def each_field(raw: bytes) -> Iterator[bytes]:
    """Every number of the header, one larger, one smaller, and at the ends of its range."""
    for at, width in fields(raw):
        old = int.from_bytes(raw[at : at + width], "little")
        limit = 1 << (8 * width)
        for new in {(old + 1) % limit, (old - 1) % limit, *(x % limit for x in EXTREMES)} - {old}:
            yield raw[:at] + new.to_bytes(width, "little") + raw[at + width :]


def at_random(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """Random bytes, bits, cuts and insertions, most of them in the header."""
    header = fields(raw)[-1][0] + 8
    while True:
        data = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(4, header if rng.random() < 0.9 else len(raw))
            kind = rng.randrange(5)
            if kind == 0:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at : at + 8] = rng.randbytes(8)
            elif kind == 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            elif kind == 3:
                del data[at : at + rng.randint(1, 16)]
            else:
                del data[at:]
        yield bytes(data)


def read_all(path: Path) -> None:
    """Open and read every tensor; what is read must be what was described."""
    weights = GGUFWeights(path)
    for name in weights.names():
        tensor = weights.read(name)
        assert tuple(tensor.shape) == weights.shape(name)
        assert tensor.dtype == weights.dtype(name)
    weights.close()


def attack(path: Path, raw: bytes, cases: Iterator[bytes], count: int | None = None) -> list[int]:
    """How many were read and how many refused."""
    outcome = [0, 0]
    path.write_bytes(raw)
    for number, data in enumerate(cases):
        if number == count:
            break
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(data)
        try:
            read_all(path)
        except (ModelError, UserError) as error:
            outcome[1] += 1
            if "\n" in str(error) or len(str(error)) < 10:
                pytest.fail(f"not one sentence: {error}")
        except ForethoughtError as error:
            pytest.fail(f"an unexpected kind of error: {error!r}")
        else:
            outcome[0] += 1
    return outcome


def grown(before: int) -> int:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


def test_sound_files_are_read(tmp_path: Path) -> None:
    for name, config in SMALL.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(sound(config))
        read_all(path)
        weights = GGUFWeights(path)
        up = weights.read("model.layers.0.mlp.up_proj.weight")
        row = torch.arange(32) * torch.tensor(0.01, dtype=torch.float16).float()
        assert torch.equal(up[0, :32], row)


@pytest.mark.parametrize("name", SMALL)
def test_every_field(name: str, tmp_path: Path) -> None:
    raw = sound(SMALL[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, refused = attack(tmp_path / "m.gguf", raw, each_field(raw))
    assert refused > 1000
    assert read > 100, "ids of tokens, the theta, ... may change"
    assert grown(before) < 64


@pytest.mark.parametrize("name", SMALL)
def test_at_random(name: str, tmp_path: Path) -> None:
    raw = sound(SMALL[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases = at_random(raw, random.Random(name))
    read, refused = attack(tmp_path / "m.gguf", raw, cases, 6000)
    assert refused > 3000
    assert read > 100
    assert grown(before) < 64


@pytest.mark.parametrize("name", SMALL)
def test_every_length(name: str, tmp_path: Path) -> None:
    raw = sound(SMALL[name])
    header = fields(raw)[-1][0] + 8
    lengths = [*range(0, header, 3), *range(header, len(raw), max(1, len(raw) // 300))]
    read, refused = attack(tmp_path / "m.gguf", raw, (raw[:length] for length in lengths))
    assert read == 0
    assert refused == len(lengths)
