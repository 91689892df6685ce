"""The torch engine behind the one protocol: on tiny networks of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from tiny_checkpoints import MODELS, first_difference_is_a_tie, make

import forethought as ft
from forethought.engines.model import AskOptions, Model
from forethought.engines.protocol import AnswerDelta, Finished, SamplingParameters, ThoughtDelta
from forethought.engines.torch.engine import TorchEngine
from forethought.engines.torch.programs import DenseProgram, NetworkProgram
from forethought.errors import UserError

TEXT = "the cat sat on"
BARE: AskOptions = {"template": "bare", "max_tokens": 40}


def test_what_it_says_of_itself(tiny: Callable[[str], Model]) -> None:
    engine = tiny("llama").engine
    assert engine.name == "torch"
    can = engine.capabilities
    assert (can.token_ids, can.logprobs, can.raw_prompt) == (True, True, True)
    assert (can.min_thought, can.templates, can.reproducible) == (True, True, True)
    assert not can.lora
    assert engine.context_length == 512
    assert tiny("llama").count_tokens("the cat") == 2


@pytest.mark.parametrize("name", ["llama-tied-llama3", "qwen2-yarn-tied", "qwen3", "deepseek_v3"])
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = make(name, tmp_path / name)
    with ft.load(str(tmp_path / name), engine="torch", threads=1) as model:
        kind = DenseProgram if name.startswith(("llama", "qwen")) else NetworkProgram
        assert isinstance(model.engine, TorchEngine)
        assert isinstance(model.engine.program, kind)
        for text in ("the cat sat on", "and then that"):
            prompt = model.prompt(text, template="bare").ids
            assert prompt is not None
            # More rows than tokens: those that the tokenizer lacks are never drawn.
            size = len(model.engine.tokenizer.vocabulary)  # type: ignore[union-attr]
            theirs.lm_head.weight.data[size:] = 0
            sample = model.ask(text, temperature=0, template="bare", max_tokens=64)
            assert sample.ids is not None
            assert first_difference_is_a_tie(theirs, list(prompt), list(sample.ids), 64)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "deepseek_v2-lite"])
def test_every_architecture_samples_alone_as_together(
    name: str, tiny: Callable[[str], Model]
) -> None:
    """`n` samples and each of them among fewer: the same ids (their bits: test_engine_bits)."""
    model = tiny(name)
    four = model.samples(TEXT, n=4, seed=2, temperature=1.0, **BARE)
    assert len({sample.ids for sample in four}) == 4
    for n in (1, 2, 3):
        some = model.samples(TEXT, n=n, seed=2, temperature=1.0, **BARE)
        assert [sample.ids for sample in some] == [sample.ids for sample in four[:n]]


def test_a_sample_is_a_function_of_seed_and_index(tiny: Callable[[str], Model]) -> None:
    model = tiny("llama")
    options: AskOptions = {**BARE, "temperature": 1.0, "top_p": 1.0}
    four = model.samples(TEXT, n=4, seed=7, **options)
    assert [sample.index for sample in four] == [0, 1, 2, 3]
    assert len({sample.ids for sample in four}) == 4
    others = model.samples(TEXT, n=4, seed=8, **options)
    assert not {sample.ids for sample in four} & {sample.ids for sample in others}
    unseeded = model.ask(TEXT, **options)
    assert unseeded.seed is not None
    assert model.ask(TEXT, seed=unseeded.seed, **options).ids == unseeded.ids
    assert model.ask(TEXT, **options).seed != unseeded.seed


def test_events_add_up_to_the_samples(tiny: Callable[[str], Model]) -> None:
    """Random bytes are no text: unfinished characters must not lose an id or a letter."""
    model = tiny("llama")
    events = list(model.stream(TEXT, n=5, seed=1, temperature=1.5, top_p=1.0, **BARE))
    samples = [event.sample for event in events if isinstance(event, Finished)]
    assert sorted(sample.index for sample in samples) == list(range(5))
    for sample in samples:
        mine = [
            event
            for event in events
            if isinstance(event, ThoughtDelta | AnswerDelta) and event.index == sample.index
        ]
        assert "".join(event.text for event in mine) == sample.answer
        assert tuple(token for event in mine for token in event.ids) == sample.ids
        assert sum(event.tokens for event in mine) == sample.usage.answer_tokens == 40
        assert sample.timings.first_token is not None
        assert 0 < sample.timings.first_token <= sample.timings.total


def test_tokens_come_as_they_are_computed(tiny: Callable[[str], Model]) -> None:
    handle = tiny("llama").submit(TEXT, template="bare", max_tokens=400, seed=1, temperature=1.0)
    sizes = [len(batch) for batch in handle.batches()]
    assert len(sizes) > 10
    assert handle.wait()[0].usage.answer_tokens == 400


def test_ids_that_the_tokenizer_lacks_are_never_drawn(tiny: Callable[[str], Model]) -> None:
    model = tiny("llama")
    size = len(model.engine.tokenizer.vocabulary)  # type: ignore[union-attr]
    assert size == 281 < 330
    samples = model.samples(TEXT, n=16, seed=1, temperature=50.0, top_p=1.0, **BARE)
    drawn = {token for sample in samples for token in sample.ids or ()}
    assert max(drawn) < size
    assert len(drawn) > 200  # of 640 draws that are nearly uniform


def test_the_end_of_a_turn_ends_the_sample(tiny: Callable[[str], Model]) -> None:
    """The end token of the config, drawn sooner or later at a high temperature."""
    model = tiny("llama")
    samples = model.samples(
        TEXT, n=16, seed=1, temperature=50.0, top_p=1.0, template="bare", max_tokens=400
    )
    stopped = [sample for sample in samples if sample.stop_reason == "stop"]
    assert stopped
    for sample in stopped:
        assert sample.ids is not None
        assert sample.ids[-1] == 1
        assert 1 not in sample.ids[:-1]
        assert "<|end|>" not in sample.answer
        assert sample.usage.answer_tokens == len(sample.ids)


@pytest.mark.parametrize(
    "bad",
    [
        SamplingParameters(temperature=float("nan")),
        SamplingParameters(temperature=-1.0),
        SamplingParameters(top_p=1.5),
        SamplingParameters(top_k=-1),
        SamplingParameters(min_p=-0.1),
    ],
)
def test_impossible_sampling_is_refused_before_anything_runs(
    bad: SamplingParameters, tiny: Callable[[str], Model]
) -> None:
    from dataclasses import replace

    model = tiny("llama")
    request = replace(model.request(TEXT, **BARE), sampling=bad)
    assert isinstance(model.engine, TorchEngine)
    before = model.engine.steps
    with pytest.raises(UserError):
        model.engine.submit(request)
    assert model.engine.steps == before


def test_the_whole_context_can_be_filled_and_no_more(tiny: Callable[[str], Model]) -> None:
    model = tiny("llama")
    prompt = model.prompt(TEXT, template="bare").ids
    assert prompt is not None
    room = 512 - len(prompt)
    sample = model.ask(TEXT, template="bare", seed=3, temperature=1.0, max_tokens=room)
    assert sample.usage.total_tokens == 512
    assert sample.stop_reason == "length"
    with pytest.raises(UserError, match="1 more than the context of 512"):
        model.ask(TEXT, template="bare", max_tokens=room + 1)
    unasked = model.ask(TEXT, template="bare", seed=3, temperature=1.0)
    assert unasked.ids == sample.ids


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama-tied-llama3", "float32"),
        ("llama-tied-llama3", "bfloat16"),
        ("llama-tied-llama3", "int8"),
        ("deepseek_v3", "float32"),
        ("deepseek_v3", "bfloat16"),
    ],
)
def test_every_precision_runs(name: str, dtype: str, tiny_folder: Callable[[str], Path]) -> None:
    from forethought.engines.torch.kernels import can_int8

    if dtype == "int8" and not can_int8():
        pytest.skip("a torch without fbgemm")
    options: AskOptions = {"n": 4, "temperature": 1.0, "logprobs": "sampling"}
    with ft.load(str(tiny_folder(name)), engine="torch", dtype=dtype, threads=1) as model:
        four = model.samples(TEXT, seed=1, **options, **BARE)
        again = model.samples(TEXT, seed=1, **options, **BARE)
    assert len({sample.ids for sample in four}) == 4
    assert [(s.ids, s.logprobs) for s in again] == [(s.ids, s.logprobs) for s in four]


def test_torch_settings_of_the_caller_stay() -> None:
    """The engine's thread counts are its own."""
    assert torch.get_num_threads() == 1
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
