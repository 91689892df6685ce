"""Loading a folder or a GGUF on the torch engine: what is read from it, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import tokenizers
import torch
from tiny_checkpoints import make, tokenizer_json

import forethought as ft
from forethought.checkpoints.export import export_gguf
from forethought.engines.model import AskOptions, Model
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch import kernels
from forethought.engines.torch import load as torch_load
from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.engine import TorchEngine
from forethought.engines.torch.kernels import can_int8
from forethought.errors import ForethoughtError, ModelError, UserError

GREEDY: AskOptions = {"template": "bare", "temperature": 0, "max_tokens": 40}


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny llama, to be changed."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), copy)
    return copy


def load(path: Path, **options: Any) -> Model:
    return ft.load(str(path), engine="torch", threads=1, **options)


def refused(path: Path, **options: Any) -> str:
    """The one sentence that a person gets."""
    with pytest.raises(ForethoughtError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- the same weights from a folder and from a GGUF


@pytest.mark.parametrize("rows", [281, 330])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "deepseek_v3"])
def test_a_folder_and_its_gguf_say_the_same(name: str, rows: int, tmp_path: Path) -> None:
    """With as many rows as tokens, and with more: those that no text has are drawn from neither."""
    make(name, tmp_path / "model", vocab_size=rows)
    gguf = tmp_path / "model.gguf"
    export_gguf(tmp_path / "model", gguf, "f32")
    with load(tmp_path / "model") as one, load(gguf) as other:
        for text in ("the cat sat on", "mat?"):
            assert one.prompt(text, template="bare").ids == other.prompt(text, template="bare").ids
            first, second = one.ask(text, **GREEDY), other.ask(text, **GREEDY)
            assert first.ids == second.ids
            assert first.answer == second.answer


def test_a_folder_needs_no_engine_named(tiny_folder: Callable[[str], Path]) -> None:
    with ft.load(str(tiny_folder("llama")), threads=1) as model:
        assert model.engine.name == "torch"


# -- what the files say about talking to the model


def test_defaults_come_from_the_generation_config(folder: Path) -> None:
    path = folder / "generation_config.json"
    settings = {"eos_token_id": [1, 7], "do_sample": True, "temperature": 0.25, "top_k": 11}
    path.write_text(json.dumps(settings))
    with load(folder) as model:
        assert model.defaults == SamplingParameters(0.25, 0.95, 11, 0.0)
        assert model.request("hi", template="bare").sampling == model.defaults
        hot = model.samples("cat", template="bare", n=16, temperature=60.0, top_p=1.0, seed=1)
        last = {sample.ids[-1] for sample in hot if sample.stop_reason == "stop" and sample.ids}
        assert last == {1, 7}
    path.write_text(json.dumps({**settings, "do_sample": False}))
    with load(folder) as model:
        assert model.defaults == SamplingParameters()


def add_tokens(folder: Path, *texts: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())
    tokenizer.add_tokens([tokenizers.AddedToken(text, special=False) for text in texts])
    tokenizer.save(str(folder / "tokenizer.json"))


TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}"


@pytest.mark.parametrize(
    ("template", "tokens", "thinks"),
    [
        (None, (), "none"),
        (TEMPLATE, (), "none"),
        (TEMPLATE + "<think>\n{# until </think> #}", (), "native"),
        (TEMPLATE, ("<think>", "</think>"), "native"),
        (None, ("<think>", "</think>"), "native"),
    ],
)
def test_whether_it_thinks_is_read_from_template_and_vocabulary(
    folder: Path, template: str | None, tokens: tuple[str, ...], thinks: str
) -> None:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    add_tokens(folder, *tokens)
    with load(folder) as model:
        assert model.thinks == thinks
        assert isinstance(model.engine, TorchEngine)
        assert (model.engine.tags.close_id is not None) == bool(tokens)
        assert model.persona.eos_token == "<|end|>"
        if template is None:
            with pytest.raises(UserError, match="no chat template"):
                model.ask("hi")
        else:
            text = model.prompt("hi").text
            assert text is not None
            assert text.startswith("hi")
            assert "<|end|>" in text


def test_the_end_token_of_the_tokenizer_ends_a_turn_too(folder: Path) -> None:
    """Where config and generation config name none."""
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(settings))
    with load(folder) as model:
        hot = model.samples("cat", template="bare", n=16, temperature=60.0, top_p=1.0, seed=1)
        assert {s.ids[-1] for s in hot if s.stop_reason == "stop" and s.ids} == {1}


# -- options


def test_context_options(folder: Path) -> None:
    with load(folder, context=100) as model:
        assert model.engine.context_length == 100
        with pytest.raises(UserError, match="more than the context of 100"):
            model.ask("cat", template="bare", max_tokens=100)
        sample = model.ask("cat", template="bare", seed=3, temperature=1.0)
        assert sample.usage.total_tokens == 100
    assert "trained for" in refused(folder, context=513)
    assert "--ctx is 0" in refused(folder, context=0)
    with pytest.raises(UserError, match="--threads is 0"):
        ft.load(str(folder), engine="torch", threads=0)


def test_reproducible_holds_for_every_request(folder: Path) -> None:
    options: AskOptions = {"template": "bare", "max_tokens": 20, "seed": 1, "logprobs": "raw"}
    with load(folder, reproducible=True) as model:
        many = model.samples("cat", n=7, **options)
        alone = model.ask("cat", **options)
    assert (alone.ids, alone.logprobs) == (many[0].ids, many[0].logprobs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_that_is_not_there(folder: Path) -> None:
    assert "no CUDA GPU" in refused(folder, device="cuda")
    assert "no CUDA GPU" in refused(folder, device="cuda:1")
    assert "not a device" in refused(folder, device="quantum")


def test_precisions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "float32, bfloat16, int8" in refused(folder, dtype="fp4")
    monkeypatch.setattr(torch_load, "can_int8", lambda: False)
    assert "take float32 or bfloat16" in refused(folder, dtype="int8")


def test_too_little_memory_is_said_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_load, "available_memory", lambda: 100_000)
    monkeypatch.setattr(torch_load, "load_network", lambda *_args, **_options: 1 / 0)
    text = refused(folder)
    assert "GiB of memory as float32" in text
    assert "GiB is free" in text
    assert "take a smaller model (or --dtype bfloat16)" in text
    if can_int8():
        assert "(or --dtype" not in refused(folder, dtype="bfloat16")


def test_too_little_memory_for_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forethought.engines.torch import engine as torch_engine

    with load(folder) as model:
        monkeypatch.setattr(torch_engine, "available_memory", lambda: 0)
        with pytest.raises(ModelError, match="not enough memory for one sample") as caught:
            model.ask("cat", template="bare")
        assert "--max-tokens" in str(caught.value)
        monkeypatch.undo()
        assert model.ask("cat", **GREEDY).ids


def test_a_missing_extra_names_the_install_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> object:
        return None if name in ("torch", "safetensors") else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    text = refused(folder)
    assert "torch, safetensors" in text
    assert "pip install 'forethought[train]'" in text


def test_speculating_without_an_mtp_module(folder: Path) -> None:
    assert "no" in refused(folder, speculate=True)
    assert "MTP" in refused(folder, speculate=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"lora": "x.gguf"}, "--lora"), ({"gpu_layers": 3}, "--gpu-layers")],
)
def test_options_of_the_other_engine(folder: Path, options: dict[str, Any], words: str) -> None:
    text = refused(folder, **options)
    assert words in text
    assert "not possible with the torch engine" in text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-1000]
            ),
            "safetensors",
        ),
    ],
    ids=["no weights", "no tokenizer", "damaged config", "truncated weights"],
)
def test_damaged_folders_are_one_sentence(
    folder: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(folder)
    assert words in refused(folder)


def test_threads_are_chosen_where_none_are_given(folder: Path) -> None:
    with ft.load(str(folder), engine="torch") as model:
        assert model.ask("cat", **GREEDY).ids


# -- a real model

PROMPTS = [
    f"{start} {word}"
    for start in ("The history of the", "Write one line about a")
    for word in (
        "fox", "sea", "king", "clock", "road", "tree", "bread", "river", "song", "stone",
    )
]  # fmt: skip
PROSE = """
A lighthouse is a tower built to guide ships at night. Before electricity, its lamp burned
oil, and a keeper climbed the stairs every evening to light it, and every few hours to trim it.
The light had to be strong, so it was placed behind a lens made of many rings of glass, which bent
its rays into one narrow beam. Each lighthouse had its own pattern of flashes, so that a sailor who
counted the seconds between them could find on the chart which one it was. In fog the light could
not be seen, and a bell or a horn was sounded instead. Today most of them work without a keeper, and
many ships know their position from satellites, but the towers are still painted and kept in repair,
because a light that everyone can see needs no battery, no map and no permission."""


@pytest.mark.slow
def test_smollm2_greedy_tokens_are_those_of_transformers(smollm2_path: Path) -> None:
    """From the same GGUF and the same ids. Each of our tokens must be transformers' best after
    those before it, or within 1e-4 of it."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2_path.parent), gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()
    assert len(PROMPTS) == 20
    ties = 0
    with ft.load(str(smollm2_path), engine="torch", threads=2) as model:
        handles = [
            model.submit(text, template="bare", temperature=0, max_tokens=64) for text in PROMPTS
        ]
        for text, handle in zip(PROMPTS, handles, strict=True):
            (sample,) = handle.wait()
            prompt = model.prompt(text, template="bare").ids
            assert prompt is not None
            assert sample.ids is not None
            assert len(sample.ids) == 64 or sample.stop_reason == "stop"
            with torch.inference_mode():
                logits = theirs(torch.tensor([[*prompt, *sample.ids]])).logits[0]
            for at, token in enumerate(sample.ids):
                row = logits[len(prompt) - 1 + at]
                gap = float(row.max() - row[token])
                assert gap <= 1e-4, (text, at, gap)
                ties += gap > 0
    print(f"tokens that are not transformers' first choice, within 1e-4: {ties}")


def perplexity(model: Model, text: str) -> float:
    assert isinstance(model.engine, TorchEngine)
    program = model.engine.program
    ids = torch.tensor([model.engine.tokenizer.encode(text, parse_special=False)])
    count = ids.shape[1]
    cache = RowCache(program.layers)
    cache.reserve(1, count)
    cache.prefill(0, 0, count)
    with torch.inference_mode():
        hidden = program.hidden(ids, torch.arange(count)[None], cache)
        logits = program.logits(hidden).double()
    return math.exp(float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])))


@pytest.mark.slow
def test_smollm2_of_fewer_bits_stays_sensible(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for dtype in ("float32", "bfloat16", *(("int8",) if can_int8() else ())):
        with ft.load(str(smollm2_path), engine="torch", threads=2, dtype=dtype) as model:
            found[dtype] = perplexity(model, " ".join(PROSE.split()))
            text = model.ask("The capital of France is", **{**GREEDY, "max_tokens": 8}).answer
            assert "Paris" in text, dtype
    if can_int8():  # as on a CPU without VNNI, on any CPU
        monkeypatch.setattr(kernels, "has_vnni", lambda: False)
        with ft.load(str(smollm2_path), engine="torch", threads=2, dtype="int8") as model:
            found["narrow int8"] = perplexity(model, " ".join(PROSE.split()))
    print("perplexity: " + ", ".join(f"{dtype} {value:.3f}" for dtype, value in found.items()))
    assert 5 < found["float32"] < 60
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02)
    for dtype in ("int8", "narrow int8"):
        assert found.get(dtype, found["float32"]) == pytest.approx(found["float32"], rel=0.05)


def test_int8_is_for_dense_networks(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="int8 is for dense networks"):
        ft.load(str(tiny_folder("deepseek_v3")), engine="torch", device="cpu", dtype="int8")


def test_other_devices_are_refused(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="computes on cpu or cuda"):
        ft.load(str(tiny_folder("llama")), engine="torch", device="meta")
