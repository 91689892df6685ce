from __future__ import annotations

import contextlib
import random
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf_writer as w
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forethought.checkpoints.gguf_header import GGUFArray, read_header
from forethought.checkpoints.gguf_memory import kv_bytes_per_token, memory_needed
from forethought.checkpoints.gguf_vocab import special_tokens, token_bytes
from forethought.errors import ForethoughtError, ModelError, UserError


def test_small_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    w.small(path)
    header = read_header(path)
    assert header.architecture == "llama"
    assert header.name == "Tiny"
    assert header.quantisation == "Q4_K_M"
    assert (header.context_length, header.block_count, header.embedding_length) == (512, 2, 64)
    assert (header.head_count, header.head_count_kv) == (4, 2)
    assert (header.key_length, header.value_length) == (16, 16)
    assert (header.bos_id, header.eos_id, header.add_bos) == (1, 2, True)
    assert header.chat_template == "{{ messages }}"
    assert header.sampling == {"temp": 0.5, "top_k": 20.0}
    assert header.parameter_count == 64 * 9 + 64 * 64 + 64
    assert header.split_count == 1
    assert header.vocabulary_size == 9
    tokens = header.items("tokenizer.ggml.tokens")
    assert tokens is not None
    assert list(tokens) == w.TOKENS
    assert tokens[-1] == "a"
    nested = header.items("odd.nested")
    assert nested is not None
    inner = nested[1]
    assert isinstance(inner, GGUFArray)
    assert list(inner) == ["x"]
    assert kv_bytes_per_token(header) == 2 * 2 * (16 + 16) * 2
    need = memory_needed(header, 100, 3)
    assert need.weights == header.weight_bytes
    assert need.cache == 300 * kv_bytes_per_token(header)
    assert need.total == need.weights + need.cache + need.compute


def test_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    w.small(path)
    header = read_header(path)
    assert [(t.id, t.text, t.control) for t in special_tokens(path)] == [
        (1, "<s>", True),
        (2, "</s>", True),
        (3, "<think>", False),
    ]
    table = token_bytes(header)
    assert (table[4], table[5], table[3]) == (b" the", b"\xe9", b"<think>")
    w.small(path, model="llama")
    table = token_bytes(read_header(path))
    assert (table[6], table[7], table[5]) == (b"\n", b" go", "é".encode())
    assert list(table) == [table[i] for i in range(len(table))]
    w.small(path, model="bert")
    with pytest.raises(ModelError, match="bert"):
        token_bytes(read_header(path))


def test_long_vocabulary_by_index(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    words = ["x" * (i % 700) for i in range(3000)]
    path.write_bytes(w.gguf([("t", w.ARR, (w.STR, words))]))
    array = read_header(path).items("t")
    assert array is not None
    assert all(array[i] == words[i] for i in (0, 1, 255, 256, 257, 2999, -1))
    assert list(array) == words


def test_header_longer_than_the_first_read(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    words = ["y" * 1000] * 9000
    path.write_bytes(w.gguf([("t", w.ARR, (w.STR, words)), ("z", w.U32, 7)]))
    header = read_header(path)
    assert header.integer("z") == 7
    assert header.items("t") is not None


def test_mla_cache(tmp_path: Path) -> None:
    path = tmp_path / "mla.gguf"
    keys: list[tuple[str, int, object]] = [
        ("general.architecture", w.STR, "deepseek2"),
        ("deepseek2.block_count", w.U32, 61),
        ("deepseek2.embedding_length", w.U32, 7168),
        ("deepseek2.attention.head_count", w.U32, 128),
        ("deepseek2.attention.head_count_kv", w.U32, 1),
        ("deepseek2.attention.kv_lora_rank", w.U32, 512),
        ("deepseek2.attention.key_length", w.U32, 576),
        ("deepseek2.attention.value_length", w.U32, 512),
        ("deepseek2.rope.dimension_count", w.U32, 64),
    ]
    path.write_bytes(w.gguf(keys))
    assert kv_bytes_per_token(read_header(path)) == 61 * 576 * 2


def test_per_layer_heads(tmp_path: Path) -> None:
    keys = [item for item in w.small_keys() if item[0] != "llama.attention.head_count_kv"]
    keys.append(("llama.attention.head_count_kv", w.ARR, (w.I32, [2, 0])))
    path = tmp_path / "x.gguf"
    path.write_bytes(w.gguf(keys))
    header = read_header(path)
    assert header.head_count_kv == [2, 0]
    assert kv_bytes_per_token(header) == 2 * 32 * 2


F32_64 = ("a", (64,), 0, bytes(256))
BAD = {
    "not a GGUF file": b"PK\x03\x04 a zip file, surely",
    "damaged": b"GGUF",
    "not a GGUF file: download it again": b"",
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "metadata keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40),
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0),
    "occurs twice": w.gguf([("a", w.U8, 1), ("a", w.U8, 2)]),
    "unknown type 99": w.gguf([], [("a", (64,), 99, bytes(256))]),
    "unknown element type": w.gguf([])[:16]
    + struct.pack("<Q", 1)
    + w.string("k")
    + struct.pack("<IIQ", 9, 77, 1)
    + bytes(64),
    "power of two": w.gguf([("general.alignment", w.U32, 48)]),
    "same name": w.gguf([], [F32_64, F32_64]),
    "truncated": w.gguf([], [F32_64])[:-1],
    "no multiple": w.gguf([], [("a", (33,), 8, bytes(64))]),
    "dimensions": w.gguf([], [("a", (1, 1, 1, 1, 1), 0, bytes(4))]),
    "nested too deeply": w.gguf(
        [("a", w.ARR, (w.ARR, [(w.ARR, [(w.ARR, [(w.ARR, [(w.U8, [1])])])])]))]
    ),
    "more than the file can hold": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + w.string("k")
    + struct.pack("<IIQ", 9, 0, 1 << 62)
    + bytes(64),
}


def test_a_file_of_another_kind_asks_for_another_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"not a GGUF file: choose another that ends in \.gguf"):
        read_header(path)
    # what would come again is no help
    old = tmp_path / "old.gguf"
    old.write_bytes(b"ggml")
    with pytest.raises(ModelError, match=r"older ggml format\): choose another"):
        read_header(old)


@pytest.mark.parametrize("sentence", BAD)
def test_bad_files(sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[sentence])
    with pytest.raises(ModelError, match=sentence) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


def test_overlapping_tensors(tmp_path: Path) -> None:
    raw = w.gguf([], [("a", (64,), 0, bytes(256)), ("b", (64,), 0, bytes(256))])
    at = raw.index(struct.pack("<Q", 256), raw.index(b"b" + struct.pack("<I", 1)))
    path = tmp_path / "o.gguf"
    path.write_bytes(raw[:at] + struct.pack("<Q", 128) + raw[at + 8 :])
    with pytest.raises(ModelError, match="overlap"):
        read_header(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="folder"):
        read_header(tmp_path)


def test_wrong_types_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(w.gguf([("general.architecture", w.U8, 3)]))
    with pytest.raises(ModelError, match="not a string"):
        _ = read_header(path).architecture


def use_everything(path: Path) -> None:
    """Ask a file for all that callers ask for."""
    header = read_header(path)
    for name in ("context_length", "quantisation", "sampling", "chat_template", "split_count"):
        getattr(header, name)
    for ask in (
        lambda: kv_bytes_per_token(header),
        lambda: memory_needed(header, 512),
        lambda: special_tokens(header),
        lambda: list(token_bytes(header)),
        lambda: [list(v) for v in header.metadata.values() if isinstance(v, GGUFArray)],
    ):
        ask()


def mutate(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    end = data.rindex(b"output_norm.weight") + 60
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(4, end)
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1 << 31, 1 << 63, (1 << 64) - 1]))
        elif kind == 2:
            (old,) = struct.unpack_from("<Q", data, at)
            data[at : at + 8] = struct.pack("<Q", (old + rng.choice([-1, 1])) % (1 << 64))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 8, 9, 13, 1 << 31, 99]))
        elif kind == 4:
            del data[at : at + rng.randint(1, 16)]
        else:
            return bytes(data[:at])
    return bytes(data)


def fuzz(path: Path, cases: int, seed: int) -> int:
    raw = w.small()
    rng = random.Random(seed)
    refused = 0
    for case in range(cases):
        path.write_bytes(mutate(w.small(model="llama") if case % 2 else raw, rng))
        try:
            use_everything(path)
        except ForethoughtError as error:
            refused += 1
            if "\n" in str(error):
                pytest.fail(f"more than one line: {error}")
    return refused


def test_fuzz_quick(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fuzz(tmp_path / "f.gguf", 500, 1) > 100
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10


@pytest.mark.slow
def test_fuzz_long(tmp_path: Path) -> None:
    assert fuzz(tmp_path / "f.gguf", 20_000, 2) > 4000


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_fuzz_fields(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(w.small())
    at = data.draw(st.integers(4, 1400))
    field = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
    width = data.draw(st.sampled_from([4, 8]))
    raw[at : at + width] = (field % (1 << (8 * width))).to_bytes(width, "little")
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    path = tmp_path / "h.gguf"
    path.write_bytes(bytes(raw[:cut]))
    with contextlib.suppress(ForethoughtError):
        use_everything(path)


@pytest.mark.alone
def test_real_model(real_model: Path) -> None:
    header = read_header(real_model)
    assert header.architecture == "llama"
    assert header.quantisation == "Q4_1"
    assert header.parameter_count == 134_515_008
    assert (header.context_length, header.vocabulary_size) == (8192, 49152)
    assert (header.bos_id, header.eos_id) == (1, 2)
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template
    texts = [token.text for token in special_tokens(header)]
    assert texts[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert kv_bytes_per_token(header) == 23040
    table = token_bytes(header)
    assert b"".join(table[i] for i in (28120, 905)) != b""
    start = time.perf_counter()
    read_header(real_model)
    assert time.perf_counter() - start < 1.0


def test_import_is_light() -> None:
    code = (
        "import sys\n"
        "import forethought.checkpoints.resolve, forethought.checkpoints.gguf_vocab\n"
        "import forethought.checkpoints.gguf_memory, forethought.checkpoints.pull\n"
        "heavy = {'numpy', 'torch', 'httpx', 'huggingface_hub', 'pydantic', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
