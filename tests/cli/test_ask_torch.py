"""``ask`` and ``chat`` on the torch engine: folders, GGUF files, options, bad checkpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import PROGRAM, QUESTION, Cli, ended_by_ctrl_c, environment, sentence

BARE = ("--template", "bare", "the cat sat")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
INSTALL = "pip install 'forethought[train]'"


def test_a_folder_is_run_by_torch_and_writes_what_transformers_writes(
    cli: Cli, made: dict[str, tuple[Path, Any]]
) -> None:
    for folder, network in made.values():
        options = ("-t", "0", "--max-tokens", "24", "--json", "--ids")
        done = cli("ask", "-m", str(folder), *BARE, *options)
        assert done.returncode == 0, done.stderr
        reply = json.loads(done.stdout)
        assert reply["model"] == folder.name
        ids = reply["ids"]
        assert 0 < len(ids) <= 24
        # rows of the embedding beyond the tokenizer's ids are never drawn
        tokens = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
        with torch.no_grad():
            logits = network(torch.tensor([reply["prompt_ids"] + ids])).logits[0, :, :tokens]
        for step, token in zip(logits[len(reply["prompt_ids"]) - 1 :], ids, strict=False):
            assert step[token] >= step.max() - 1e-4


def test_samples_seeds_and_logprobs(cli: Cli, qwen3: Path) -> None:
    options = ("-n", "3", "--seed", "5", "--max-tokens", "12", "--json", "--ids", "--logprobs")
    command = ("ask", "-m", str(qwen3), "--device", "cpu", *BARE, *options, "-t", "1.5")
    first, again = (json.loads(cli(*command).stdout)["samples"] for _ in range(2))
    assert [sample["ids"] for sample in first] == [sample["ids"] for sample in again]
    assert len({tuple(sample["ids"]) for sample in first}) == 3
    for sample in first:
        assert len(sample["logprobs"]) == len(sample["ids"])
        assert all(value is not None and value <= 0 for value in sample["logprobs"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_every_precision_computes(cli: Cli, dtype: str, qwen3: Path) -> None:
    done = cli("ask", "-m", str(qwen3), *BARE, "--dtype", dtype, "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"answer \d tokens? · .* stopped: ", done.stderr.decode().splitlines()[-1])


def test_a_gguf_thinks_and_answers(ask: Cli) -> None:
    done = ask(QUESTION, "--engine", "torch", "--max-thought", "24", "--max-tokens", "48")
    assert done.returncode == 0, done.stderr
    err = done.stderr.decode()
    assert err.startswith("thinking:\n")
    assert "tokens/s" in err.splitlines()[-1]
    assert done.stdout.strip()


@pytest.mark.slow
def test_a_gguf_has_one_prompt_on_both_engines(ask: Cli) -> None:
    prompts = [ask(QUESTION, "--raw-prompt", "--engine", name).stdout for name in ("torch", "auto")]
    assert prompts[0] == prompts[1]


def test_a_chat_goes_on_with_another_engine(cli: Cli, qwen3: Path, smollm2_path: Path) -> None:
    """Flags of the torch engine do not get in the way of a model that llama.cpp runs."""
    lines = f"the cat\n/model {smollm2_path}\nthe mat\n/quit\n".encode()
    options = ("--template", "bare", "--max-tokens", "6", "--dtype", "bfloat16")
    done = cli("chat", "-m", str(qwen3), *options, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count("tokens/s") == 2


# -- options


def test_settings_of_one_engine_do_not_hinder_another(cli: Cli, ask: Cli, qwen3: Path) -> None:
    torch_only = {"FORETHOUGHT_DEVICE": "cuda:7", "FORETHOUGHT_DTYPE": "int8"}
    done = ask(QUESTION, "--max-tokens", "24", FORETHOUGHT_SPECULATE="1", **torch_only)
    assert done.returncode == 0, done.stderr
    variables = {"FORETHOUGHT_GPU_LAYERS": "3", "FORETHOUGHT_SPECULATE": "1"}
    done = cli("ask", "-m", str(qwen3), *BARE, "--max-tokens", "4", **variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "torch finds no CUDA GPU here"),
        (["--gpu-layers", "3"], "--gpu-layers is not possible with the torch engine"),
        (["--lora", "x.gguf"], "--lora is not possible with the torch engine"),
        (["--engine", "llama.cpp"], "--engine llama.cpp needs a GGUF file"),
        (["--speculate", "-t", "0"], "--speculate needs a model with an MTP module"),
        (["--ctx", "9999"], "--ctx 9999 is more than the 4096 tokens"),
    ],
)
def test_what_the_torch_engine_cannot_do_is_said(
    options: list[str], said: str, qwen3: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU")
    assert said in refused(2, ["-m", str(qwen3), *options], capfd)


def refused(code: int, options: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one sentence of the program's own main, in this process: torch starts once."""
    from forethought.cli.main import main

    capfd.readouterr()
    assert main(["ask", *options, *BARE]) == code
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("forethought: ")
    assert said.err.count("\n") == 1, said.err
    assert "bug" not in said.err
    return said.err


@pytest.mark.parametrize("option", [["--device", "cpu"], ["--dtype", "int8"]])
def test_options_of_torch_are_refused_for_llama_cpp(option: list[str], ask: Cli) -> None:
    done = ask(QUESTION, *option)
    assert done.returncode == 2
    assert f"{option[0]} is not possible with llama.cpp" in sentence(done)


def test_speculation_writes_the_same_greedy_text(cli: Cli, deepseek: Path, tmp_path: Path) -> None:
    import forethought as ft
    from forethought.checkpoints.hf_config import read_config

    config = read_config(deepseek).model_copy(update={"num_nextn_predict_layers": 1})
    network = ft.models.build(config, mtp=True, generator=torch.Generator().manual_seed(3))
    folder = tmp_path / "with-mtp"
    ft.models.save(network, folder, source=deepseek)
    command = ("ask", "-m", str(folder), *BARE, "-t", "0", "--max-tokens", "24")
    plain, drafted = cli(*command), cli(*command, "--speculate")
    assert plain.returncode == drafted.returncode == 0, drafted.stderr
    assert plain.stdout == drafted.stdout
    assert b"drafts accepted" not in plain.stderr
    assert re.search(rb"\d+% of drafts accepted", drafted.stderr.splitlines()[-1])


def test_without_the_extra_the_install_line_is_said(
    cli: Cli, ask: Cli, qwen3: Path, no_extra: dict[str, str]
) -> None:
    for done in (
        ask(QUESTION, "--engine", "torch", **no_extra),
        cli("ask", "-m", str(qwen3), *BARE, **no_extra),
        cli("chat", "-m", str(qwen3), stdin=b"hi\n", **no_extra),
        cli("models", "export", str(qwen3), "out.gguf", **no_extra),
    ):
        assert done.returncode == 2, done.stderr
        assert INSTALL in sentence(done)
        assert done.stdout == b""
    done = ask(QUESTION, "--max-tokens", "24", **no_extra)
    assert done.returncode == 0, done.stderr


# -- Ctrl-C


def _start(home: Path, model: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, "ask", "-m", str(model), "--engine", "torch", "--template", "bare", *options],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_ctrl_c_keeps_what_came(home: Path, smollm2_path: Path) -> None:
    process = _start(home, smollm2_path, "Once upon a time", "--max-tokens", "3000")
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    out, err = process.communicate(timeout=20)
    assert time.perf_counter() - begin < 3
    assert process.returncode == 130
    assert (first + out).decode().strip()
    assert err.decode().splitlines()[-1].endswith("stopped: cancelled")
    assert b"Traceback" not in err


@pytest.mark.parametrize("delay", [0.3, 1.0])
def test_ctrl_c_while_it_loads(delay: float, home: Path, smollm2_path: Path) -> None:
    process = _start(home, smollm2_path, "Once upon a time", "--max-tokens", "3000")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert ended_by_ctrl_c(process.returncode, err), (process.returncode, err.decode())


# -- bad checkpoints


def _cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def _cut_header(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:100])


def _change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _wrong_shape(folder: Path) -> None:
    _change(folder, "model.norm.weight", torch.ones(97))


def _missing_tensor(folder: Path) -> None:
    _change(folder, "model.layers.1.mlp.up_proj.weight", None)


def _not_a_number(folder: Path) -> None:
    weight = load_file(folder / WEIGHTS)["model.layers.0.mlp.up_proj.weight"]
    weight[3, 5] = float("nan")
    _change(folder, "model.layers.0.mlp.up_proj.weight", weight)


def _index(folder: Path, file: str) -> None:
    names = load_file(folder / WEIGHTS).keys()
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))


def _missing_shard(folder: Path) -> None:
    _index(folder, "model-00002-of-00002.safetensors")
    (folder / WEIGHTS).unlink()


def _outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder.parent / WEIGHTS).replace(folder / "model-1.safetensors")
    names = load_file(folder / "model-1.safetensors").keys()
    index = {"weight_map": dict.fromkeys(names, "../model-1.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _pickle_in_index(folder: Path) -> None:
    _index(folder, "model.pt")
    (folder / WEIGHTS).unlink()


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _code(folder: Path) -> None:
    _config(folder, auto_map={"AutoModel": "modeling.Net"})


def _unknown_type(folder: Path) -> None:
    _config(folder, model_type="mamba")


def _unknown_key(folder: Path) -> None:
    _config(folder, sliding_windw=12)


def _empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _too_large(folder: Path) -> None:
    """A hundred thousand billion parameters; the weights in the folder are never looked at."""
    _config(folder, num_hidden_layers=4000, hidden_size=98304, intermediate_size=1 << 20,
            num_attention_heads=64, num_key_value_heads=64, head_dim=1536,
            layer_types=None, max_window_layers=None)  # fmt: skip


BAD = {
    _cut: ["damaged or not complete", WEIGHTS],
    _cut_header: ["damaged or not complete", WEIGHTS],
    _wrong_shape: ["model.norm.weight", "[97]", "[96]"],
    _missing_tensor: ["model.layers.1.mlp.up_proj.weight"],
    _not_a_number: ["model.layers.0.mlp.up_proj.weight", "NaN"],
    _missing_shard: ["lacks model-00002-of-00002.safetensors"],
    _outside: ["../model-1.safetensors", "outside the folder"],
    _no_tokenizer: ["no tokenizer.json"],
    _pickle: ["pytorch_model.bin", "pickle", "safetensors"],
    _pickle_in_index: ["model.pt", "pickle"],
    _code: ["auto_map", "code"],
    _unknown_type: ["model_type 'mamba'", "qwen3"],
    _unknown_key: ["sliding_windw"],
    _empty_config: ["model_type"],
    _too_large: ["of memory as float32", "is free"],
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__[1:])
def test_a_bad_folder_is_one_sentence(
    damage: Any, damaged: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(damaged)
    said = refused(1, ["-m", str(damaged)], capfd)
    for words in BAD[damage]:
        assert words in said


def test_a_bad_folder_is_one_sentence_of_the_program(cli: Cli, damaged: Path) -> None:
    _pickle(damaged)
    for command in (
        ["ask", "-m", str(damaged), *BARE],
        ["models", "export", str(damaged), "x.gguf"],
    ):
        done = cli(*command)
        assert done.returncode == 1
        assert "pickle" in sentence(done)
    assert not Path("x.gguf").exists()
