"""``forethought models export``: both ways, what it says, what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest
import torch
from safetensors.torch import load_file

from .conftest import PROGRAM, QUESTION, Cli, environment, sentence

FOLDER = {"config.json", "model.safetensors", "tokenizer.json"}


def same_values(first: Path, second: Path) -> None:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor.float(), theirs[name].float()), name


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3"])
def test_a_folder_becomes_a_file_and_a_folder_again(name: str, cli: Cli, tmp_path: Path) -> None:
    import forethought as ft
    from checkpoints import tiny_checkpoints

    folder, file, back = tmp_path / "folder", tmp_path / "m.gguf", tmp_path / "back"
    # no more rows than the tokenizer has ids: a GGUF names the others, and they could be drawn
    tokens = len(json.loads(tiny_checkpoints.tokenizer_json())["model"]["vocab"])
    tiny_checkpoints.make(name, folder, vocab_size=tokens)
    done = cli("models", "export", str(folder), str(file), "--quantize", "f32")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    wrote, ask_it = done.stderr.decode().splitlines()
    assert re.fullmatch(rf"Wrote {file}: [\d.]+ [kM]B, f32\.", wrote)
    assert ask_it == f'Ask it: forethought ask -m {file} "Are tomatoes fruits?"'
    done = cli("models", "export", str(file), str(back), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["source"] == str(file)
    assert report["target"] == str(back)
    assert (report["kind"], report["dtype"]) == ("folder", "float32")
    assert report["bytes"] == sum(item.stat().st_size for item in back.iterdir())
    assert {item.name for item in back.iterdir()} >= FOLDER
    same_values(folder, back)
    ids = set()
    for path in (folder, file, back):
        with ft.load(str(path), engine="torch", threads=1) as model:
            reply = model.ask("the cat", template="bare", temperature=0, max_tokens=12)
            ids.add(reply.ids)
    assert len(ids) == 1
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("*.part"))


def test_the_default_is_f16_and_the_json_tells(cli: Cli, qwen3: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    done = cli("models", "export", str(qwen3), str(file), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kind"], report["quantize"]) == ("gguf", "f16")
    assert report["bytes"] == file.stat().st_size
    assert b"default: f16" in cli("models", "export", "--help").stdout
    half = tmp_path / "half"
    assert cli("models", "export", str(file), str(half), "--dtype", "bfloat16").returncode == 0
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_rows_that_do_not_fit_a_block_are_told(cli: Cli, tmp_path: Path) -> None:
    from checkpoints import tiny_checkpoints

    folder, file = tmp_path / "odd", tmp_path / "odd.gguf"
    tiny_checkpoints.make("llama", folder, hidden_size=72, intermediate_size=128, head_dim=12)
    done = cli("models", "export", str(folder), str(file), "--quantize", "q8_0", "--json")
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert any("rows of 72 numbers" in line and "f16" in line for line in notes)
    assert notes[0] in done.stderr.decode()


@pytest.mark.slow
def test_an_installed_model_goes_both_ways(cli: Cli, smollm2_path: Path, tmp_path: Path) -> None:
    models = {"FORETHOUGHT_MODELS": str(smollm2_path.parents[1])}
    folder, file = tmp_path / "smollm2", tmp_path / "smollm2.gguf"
    done = cli("models", "export", "smollm2:135m", str(folder), "--dtype", "float16", **models)
    assert done.returncode == 0, done.stderr
    done = cli("models", "export", str(folder), str(file), "--quantize", "q8_0")
    assert done.returncode == 0, done.stderr
    prompts = set()
    for model in (folder, file):
        done = cli("ask", "-m", str(model), QUESTION, "--max-tokens", "24", "-t", "0")
        assert done.returncode == 0, done.stderr
        assert b"tomato" in done.stdout.lower()
        prompts.add(cli("ask", "-m", str(model), QUESTION, "--raw-prompt").stdout)
    assert len(prompts) == 1  # the template and its tokens came along


@pytest.fixture
def gguf(cli: Cli, qwen3: Path, tmp_path: Path) -> Path:
    file = tmp_path / "here.gguf"
    assert cli("models", "export", str(qwen3), str(file)).returncode == 0
    return file


def test_impossible_pairs_are_one_sentence(
    cli: Cli, qwen3: Path, gguf: Path, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    a_file = tmp_path / "a-file"
    a_file.write_text("x")
    before = gguf.read_bytes()
    cases: list[tuple[list[str], str]] = [
        ([str(gguf), str(tmp_path / "x.gguf")], "is a GGUF file already"),
        ([str(qwen3), str(tmp_path / "x")], "is a Hugging Face folder already"),
        ([str(gguf), str(tmp_path / "x"), "--quantize", "q8_0"], "--quantize is for a GGUF"),
        ([str(qwen3), str(tmp_path / "x.gguf"), "--dtype", "float32"], "--dtype is for a folder"),
        ([str(qwen3), str(gguf)], "exists already"),
        ([str(gguf), str(full)], "exists and is not empty"),
        ([str(gguf), str(a_file)], "is a file"),
        ([str(qwen3), str(tmp_path / "no" / "x.gguf")], "there is no folder"),
    ]
    for arguments, said in cases:
        done = cli("models", "export", *arguments)
        assert done.returncode == 2, done.stderr
        assert said in sentence(done)
        assert done.stdout == b""
    assert gguf.read_bytes() == before
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.gguf").exists()


def test_what_llama_cpp_cannot_load_is_refused(cli: Cli, damaged: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((damaged / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "NFC"}
    (damaged / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = cli("models", "export", str(damaged), str(tmp_path / "x.gguf"))
    assert done.returncode == 1
    assert "NFC" in sentence(done)
    assert not list(tmp_path.glob("x.gguf*"))


def test_a_damaged_file_leaves_nothing(cli: Cli, gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:-5000])
    done = cli("models", "export", str(cut), str(tmp_path / "out"))
    assert done.returncode == 1
    assert "cut.gguf" in sentence(done)
    assert {item.name for item in tmp_path.iterdir()} >= {"cut.gguf", "here.gguf"}
    assert not [item for item in tmp_path.iterdir() if "out" in item.name]


def test_a_bar_is_drawn_on_a_terminal(home: Path, qwen3: Path, tmp_path: Path) -> None:
    arguments = ["-m", "forethought", "models", "export", str(qwen3), str(tmp_path / "x.gguf")]
    seen, status = pexpect.run(
        " ".join([sys.executable, *arguments]),
        env=environment(home),
        timeout=60,
        withexitstatus=True,
    )
    assert status == 0
    assert re.search(rb"\[#{24}\] 100%", seen)
    assert b"Ask it: " in seen


@pytest.mark.slow
@pytest.mark.parametrize("way", ["to a file", "to a folder"])
def test_ctrl_c_leaves_nothing_that_looks_finished(
    way: str, home: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    """At several moments; whatever has the target's name is whole."""
    source, target = smollm2_path, tmp_path / "out"
    if way == "to a file":
        source, target = big_folder(tmp_path / "big"), tmp_path / "out.gguf"
    before = {item.name for item in tmp_path.iterdir()}
    interrupted = 0
    for delay in (0.9, 1.4):
        process = subprocess.Popen(
            [*PROGRAM, "models", "export", str(source), str(target)],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert b"Traceback" not in err, err
        if process.returncode == 0:
            assert b"Wrote" in err
            break
        assert process.returncode in (130, -signal.SIGINT)
        interrupted += 1
        left = {item.name for item in tmp_path.iterdir()} - before
        assert not left
    assert interrupted


def big_folder(folder: Path) -> Path:
    """A model whose export takes some seconds."""
    from checkpoints import tiny_checkpoints

    tiny_checkpoints.make(
        "llama", folder, hidden_size=1024, intermediate_size=4096, num_attention_heads=8,
        head_dim=128, num_hidden_layers=12,
    )  # fmt: skip
    return folder


def test_the_extra_is_not_needed_to_be_refused(
    cli: Cli, gguf: Path, no_extra: dict[str, str], tmp_path: Path
) -> None:
    done = cli("models", "export", str(gguf), str(tmp_path / "x.gguf"), **no_extra)
    assert done.returncode == 2
    assert "is a GGUF file already" in sentence(done)
    assert not (tmp_path / "x.gguf").exists()
